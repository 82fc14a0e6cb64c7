/* The last byte of a freed block is looked at as well as the first, whatever size comes next.
 *
 * secure-100 secure-1000 at reuse: malloc_arena: use after wipe: ADDR (arena "VARIANT")
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
  ((char *)check_hide (p))[size - 1] = 1;
  step ("reuse", p);
  for (int i = 0; i < 5000; i++)
    CHECK (check_hide (malloc_arena (arena, malloc, size - 4)) != NULL);
  free (keep);
  return 0;
}
