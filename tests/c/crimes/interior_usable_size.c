/* Asks for the size of the inside of a block.
 *
 * secure isolated default secure-5000 isolated-5000 at ask: malloc_arena: interior pointer: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  char *p = malloc_arena (crime_arena (argv[1]), malloc, crime_size (argv[1]));
  step ("ask", p + 32);
  return malloc_usable_size (check_hide (p + 32)) == 0;
}
