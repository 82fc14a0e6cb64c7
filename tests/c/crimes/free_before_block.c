/* Frees the page start that an isolated block ends in: what a caller would who thinks of pages.
 *
 * isolated secure-3000 at free: malloc_arena: invalid free: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  char *p = malloc_arena (crime_arena (argv[1]), malloc, crime_size (argv[1]));
  char *page = (char *)((uintptr_t)p & ~(CHECK_PAGE - 1));
  CHECK (page != p);
  step ("free", page);
  free (check_hide (page));
  return 0;
}
