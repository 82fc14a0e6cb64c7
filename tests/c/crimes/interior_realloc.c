/* Resizes from inside a block.
 *
 * secure isolated default secure-5000 isolated-5000 at realloc: malloc_arena: interior pointer: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  char *p = malloc_arena (crime_arena (argv[1]), malloc, crime_size (argv[1]));
  step ("realloc", p + 8);
  return realloc (check_hide (p + 8), 100) == NULL;
}
