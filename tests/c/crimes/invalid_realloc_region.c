/* Resizes the first address of the reserved region, and its last.
 *
 * first last at realloc: malloc_arena: invalid free: ADDR (no arena)
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  CHECK (check_hide (malloc_arena (crime_arena (argv[1]), malloc, 24)) != NULL);
  char *p = (char *)check_bounds ().base
            + (strcmp (argv[1], "first") == 0 ? 0 : check_bounds ().size - 16);
  step ("realloc", p);
  return realloc (check_hide (p), 100) == NULL;
}
