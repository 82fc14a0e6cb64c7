/* A double free in a thread that is to be cancelled, which does not end before the line.
 *
 * secure isolated default secure-3000 at again: malloc_arena: double free: ADDR (arena "VARIANT")
 */
#include "crime.h"

static void *
free_when_cancelled (void *p)
{
  CHECK_EQUAL (pthread_cancel (pthread_self ()), 0);
  free (p);
  return NULL;
}

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  void *p = malloc_arena (crime_arena (argv[1]), malloc, crime_size (argv[1]));
  free (p);
  step ("again", p);
  in_thread (free_when_cancelled, check_hide (p));
  return 0;
}
