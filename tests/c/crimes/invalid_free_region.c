/* Frees an address of the reserved region that belongs to no arena.
 *
 * secure isolated default at free: malloc_arena: invalid free: ADDR (no arena)
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  CHECK (check_hide (malloc_arena (crime_arena (argv[1]), malloc, 24)) != NULL);
  char *p = (char *)check_bounds ().base + check_bounds ().size / 4 * 3 + 64;
  step ("free", p);
  free (check_hide (p));
  return 0;
}
