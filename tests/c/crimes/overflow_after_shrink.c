/* Writes where the block was longer before realloc.
 *
 * secure-110 isolated-110 at free: malloc_arena: canary overwritten: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  size_t size = crime_size (argv[1]);
  char *p = malloc_arena (crime_arena (argv[1]), malloc, size);
  p = realloc (p, size - 5);
  ((char *)check_hide (p))[size - 5] ^= 1;
  step ("free", p);
  free (p);
  return 0;
}
