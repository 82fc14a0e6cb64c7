/* Another thread frees the block, then its owner does.
 *
 * secure isolated default secure-3000 at again: malloc_arena: double free: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  void *p = malloc_arena (crime_arena (argv[1]), malloc, crime_size (argv[1]));
  in_thread (crime_free, p);
  step ("again", p);
  free (check_hide (p));
  /* Where the owner is not told of the other's free, it finds out when it takes it in. */
  for (int i = 0; i < 10000; i++)
    CHECK (check_hide (malloc_arena (crime_arena (argv[1]), malloc, crime_size (argv[1]))) != NULL);
  return 0;
}
