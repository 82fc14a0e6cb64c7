/* A length of 4 GiB: a slab ends in a guard page, so that it stops before the next.
 *
 * secure-24 secure-1000 default-100 isolated-100 secure-5000 at touch: SIGSEGV
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  malloc_arena *arena = crime_arena (argv[1]);
  size_t size = crime_size (argv[1]);
  /* Slabs enough for something to lie behind. */
  for (int i = 0; i < 500; i++)
    CHECK (check_hide (malloc_arena (arena, malloc, size)) != NULL);
  char *p = malloc_arena (arena, malloc, size);
  step ("touch", p);
  volatile char *at = check_hide (p);
  for (size_t i = 0; i < (size_t)1 << 17; i++)
    at[i] = 'A';
  step ("alive", p);
  return 0;
}
