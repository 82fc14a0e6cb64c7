/* Writes a freed block of a dense heap: seen when its slot is used again. An isolated one faults.
 *
 * secure-24 secure-100 secure-2000 secure-5000 at reuse: malloc_arena: use after wipe: ADDR (arena "VARIANT")
 * isolated-24 isolated-100 isolated-5000 isolated-200000 at touch: SIGSEGV
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  malloc_arena *arena = crime_arena (argv[1]);
  size_t size = crime_size (argv[1]);
  void *keep = malloc_arena (arena, malloc, size);
  char *p = malloc_arena (arena, malloc, size);
  free (p);
  step ("touch", p);
  ((char *)check_hide (p))[5] = 1;
  step ("reuse", p);
  for (int i = 0; i < 5000; i++)
    CHECK (check_hide (malloc_arena (arena, malloc, size)) != NULL);
  free (keep);
  return 0;
}
