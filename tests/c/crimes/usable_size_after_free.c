/* Asks for the size of a block that was freed.
 *
 * secure isolated default secure-3000 at ask: malloc_arena: double free: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  void *p = malloc_arena (crime_arena (argv[1]), malloc, crime_size (argv[1]));
  free (p);
  step ("ask", p);
  return malloc_usable_size (check_hide (p)) == 0;
}
