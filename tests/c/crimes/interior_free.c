/* Frees an address inside a block.
 *
 * secure isolated default at free: malloc_arena: interior pointer: ADDR (arena "VARIANT")
 * secure-2000 secure-5000 secure-200000 at free: malloc_arena: interior pointer: ADDR (arena "VARIANT")
 * isolated-5000 isolated-200000 default-200000 at free: malloc_arena: interior pointer: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  size_t size = crime_size (argv[1]);
  char *p = malloc_arena (crime_arena (argv[1]), malloc, size);
  size_t into = size > 70000 ? 70000 : 16; /* also where the bookkeeping is another unit's */
  step ("free", p + into);
  free (check_hide (p + into));
  return 0;
}
