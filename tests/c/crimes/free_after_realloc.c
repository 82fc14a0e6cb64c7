/* Frees the place that realloc moved the block away from.
 *
 * secure isolated default secure-3000 isolated-9000 at free: malloc_arena: double free: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  char *p = malloc_arena (crime_arena (argv[1]), malloc, crime_size (argv[1]));
  char *q = realloc (p, 100000);
  CHECK (q != NULL && q != check_hide (p));
  step ("free", p);
  free (check_hide (p));
  return 0;
}
