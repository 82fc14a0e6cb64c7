/* A forked child frees what it inherited, twice.
 *
 * secure isolated secure-3000 isolated-9000 at again: malloc_arena: double free: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  void *p = malloc_arena (crime_arena (argv[1]), malloc, crime_size (argv[1]));
  pid_t pid = fork ();
  if (pid != 0)
    {
      int status;
      waitpid (pid, &status, 0);
      raise (WIFSIGNALED (status) ? WTERMSIG (status) : SIGKILL);
    }
  free (p);
  step ("again", p);
  free (check_hide (p));
  return 0;
}
