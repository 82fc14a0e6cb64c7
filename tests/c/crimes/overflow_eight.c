/* Writes a word past the end, where the block fills its slot as far as it can.
 *
 * secure-24 secure-120 secure-248 secure-2040 at free: malloc_arena: canary overwritten: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  size_t size = crime_size (argv[1]);
  char *p = malloc_arena (crime_arena (argv[1]), malloc, size);
  memset (check_hide (p + size), 0, 8);
  step ("free", p);
  free (p);
  return 0;
}
