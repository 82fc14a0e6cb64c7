/* Writes one byte past the end of a block that is small for the slot which its alignment needs: the canary is
 * longer than that of the slot's own sizes.
 *
 * secure-1 secure-10 secure-24 secure-40 at free: malloc_arena: canary overwritten: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  size_t size = crime_size (argv[1]);
  malloc_arena_enter (crime_arena (argv[1]));
  for (size_t align = 64; align < 1024; align *= 2)
    free (aligned_alloc (align, size));
  char *p = aligned_alloc (512, size);
  malloc_arena_leave (crime_arena (argv[1]));
  char *end = check_hide (p + size);
  end[0] ^= 1;
  step ("free", p);
  free (p);
  return 0;
}
