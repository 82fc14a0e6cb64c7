/* realloc (p, 0) has freed the block.
 *
 * secure isolated default secure-3000 isolated-9000 at free: malloc_arena: double free: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  void *p = malloc_arena (crime_arena (argv[1]), malloc, crime_size (argv[1]));
  CHECK (realloc (p, check_size (0)) == NULL);
  step ("free", p);
  free (check_hide (p));
  return 0;
}
