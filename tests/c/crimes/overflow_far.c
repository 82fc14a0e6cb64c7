/* Writes 40 bytes past the end, over the neighbour as well.
 *
 * secure-24 secure-100 secure-1000 at free: malloc_arena: canary overwritten: ADDR (arena "VARIANT")
 * isolated-16 isolated-100 isolated-4096 secure-4096 secure-5000 at touch: SIGSEGV
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  size_t size = crime_size (argv[1]);
  char *p = malloc_arena (crime_arena (argv[1]), malloc, size);
  step ("touch", p + size);
  memset (check_hide (p + size), 'A', 40);
  step ("free", p);
  free (p);
  return 0;
}
