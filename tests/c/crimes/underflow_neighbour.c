/* Writes before a block: it is the canary of the one below.
 *
 * secure-24 secure-100 secure-1000 at free: malloc_arena: canary overwritten: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  malloc_arena *arena = crime_arena (argv[1]);
  size_t size = crime_size (argv[1]);
  char *a = malloc_arena (arena, malloc, size), *b = malloc_arena (arena, malloc, size);
  char *low = a < b ? a : b, *high = a < b ? b : a;
  CHECK (high - low < 1100);
  ((char *)check_hide (high))[-1] ^= 1;
  step ("free", low);
  free (low);
  return 0;
}
