/* Reads an isolated block after its free: there is nothing to read.
 *
 * isolated-1 isolated-100 isolated-4096 isolated-100000 at touch: SIGSEGV
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  char *p = malloc_arena (crime_arena (argv[1]), malloc, crime_size (argv[1]));
  *p = 's';
  free (p);
  step ("touch", p);
  return *(volatile char *)check_hide (p) == 's';
}
