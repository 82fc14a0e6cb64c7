/* The owner frees the block, then another thread does.
 *
 * secure isolated default secure-3000 at again: malloc_arena: double free: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  void *p = malloc_arena (crime_arena (argv[1]), malloc, crime_size (argv[1]));
  free (p);
  step ("again", p);
  in_thread (crime_free, check_hide (p));
  return 0;
}
