/* Writes behind a block that realloc has made longer.
 *
 * secure-40 secure-110 secure-250 secure-700 secure-5001 isolated-110 isolated-5001 at free: malloc_arena: canary overwritten: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  size_t size = crime_size (argv[1]);
  char *p = malloc_arena (crime_arena (argv[1]), malloc, size);
  p = realloc (p, size + 3);
  ((char *)check_hide (p))[size + 3] ^= 1;
  step ("free", p);
  free (p);
  return 0;
}
