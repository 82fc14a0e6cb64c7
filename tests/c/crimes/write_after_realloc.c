/* Writes the place that realloc moved the block away from.
 *
 * secure-100 at reuse: malloc_arena: use after wipe: ADDR (arena "VARIANT")
 * isolated-100 isolated-5000 at touch: SIGSEGV
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
  CHECK (realloc (p, 100000) != check_hide (p));
  step ("touch", p);
  *(char *)check_hide (p) = 1;
  step ("reuse", p);
  for (int i = 0; i < 5000; i++)
    CHECK (check_hide (malloc_arena (arena, malloc, size)) != NULL);
  free (keep);
  return 0;
}
