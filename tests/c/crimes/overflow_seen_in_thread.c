/* An overflow is seen by whoever frees.
 *
 * secure isolated secure-2500 default-70001 at free: malloc_arena: canary overwritten: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  size_t size = crime_size (argv[1]);
  char *p = malloc_arena (crime_arena (argv[1]), malloc, size);
  ((char *)check_hide (p))[size + 2] ^= 1;
  step ("free", p);
  in_thread (crime_free, p);
  return 0;
}
