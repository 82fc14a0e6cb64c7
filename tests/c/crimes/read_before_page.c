/* Reads a page before and a page after an isolated block.
 *
 * isolated-40 isolated-4096 isolated-5000 isolated-70000 at touch: SIGSEGV
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  size_t size = crime_size (argv[1]);
  char *p = malloc_arena (crime_arena (argv[1]), malloc, size);
  CHECK_EQUAL (check_touch (p + size + 16, false), SIGSEGV);
  CHECK_EQUAL (check_touch (p - CHECK_PAGE, false), SIGSEGV);
  step ("touch", p - CHECK_PAGE);
  return *(volatile char *)check_hide (p - CHECK_PAGE);
}
