/* Frees a place in a slab that was never given out.
 *
 * secure default at free: malloc_arena: invalid free: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  char *p = malloc_arena (crime_arena (argv[1]), malloc, 24); /* slots of 32 */
  step ("free", p + 32 * 1000);
  free (check_hide (p + 32 * 1000));
  return 0;
}
