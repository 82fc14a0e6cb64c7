/* An overflow is seen when the block is resized, to a larger or a smaller size.
 *
 * secure isolated secure-2500 isolated-5001 default-70001 at realloc: malloc_arena: canary overwritten: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  size_t size = crime_size (argv[1]);
  char *p = malloc_arena (crime_arena (argv[1]), malloc, size);
  ((char *)check_hide (p))[size] ^= 1;
  step ("realloc", p);
  return realloc (p, size + 1) == NULL;
}
