/* Writes the last byte of the slot only: the canary goes all the way.
 *
 * secure-9 secure-25 secure-33 at free: malloc_arena: canary overwritten: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  size_t size = crime_size (argv[1]);
  char *p = malloc_arena (crime_arena (argv[1]), malloc, size);
  size_t slot = (size + 8 + 15) / 16 * 16 < 32 ? 32 : (size + 8 + 15) / 16 * 16;
  ((char *)check_hide (p))[slot - 1] ^= 0x10;
  step ("free", p);
  free (p);
  return 0;
}
