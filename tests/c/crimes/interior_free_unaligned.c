/* Frees the second byte of a block, from another thread.
 *
 * secure isolated default secure-5000 at free: malloc_arena: interior pointer: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  char *p = malloc_arena (crime_arena (argv[1]), malloc, crime_size (argv[1]));
  step ("free", p + 1);
  in_thread (crime_free, check_hide (p + 1));
  return 0;
}
