/* Writes one byte past the end; the canary is seen at free.
 *
 * secure-0 secure-1 secure-23 secure-24 secure-40 secure-1000 secure-2040 at free: malloc_arena: canary overwritten: ADDR (arena "VARIANT")
 * default-70001 at free: malloc_arena: canary overwritten: ADDR (arena "VARIANT")
 * secure-2049 secure-5001 isolated-1 isolated-40 isolated-5001 at free: malloc_arena: canary overwritten: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  size_t size = crime_size (argv[1]);
  char *p = malloc_arena (crime_arena (argv[1]), malloc, size);
  char *end = check_hide (p + size);
  end[0] ^= 1;
  step ("free", p);
  free (p);
  return 0;
}
