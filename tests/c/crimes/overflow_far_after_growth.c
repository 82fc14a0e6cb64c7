/* Writes far behind a block that realloc has made longer: past its canary, in the room that is between it and its
 * guard.
 *
 * secure-5001 secure-70001 at free: malloc_arena: canary overwritten: ADDR (arena "VARIANT")
 * secure-5001-shrink secure-70001-shrink at shrink: malloc_arena: canary overwritten: ADDR (arena "VARIANT")
 * secure-5001-realloc secure-70001-realloc at realloc: malloc_arena: canary overwritten: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  size_t size = crime_size (argv[1]), grown = size / 2 * 3;
  malloc_arena *arena = crime_arena (argv[1]);
  /* Once more: what is behind the first one was never touched, and is wiped. */
  free (realloc (malloc_arena (arena, malloc, size), grown));
  char *p = realloc (malloc_arena (arena, malloc, size), grown);
  CHECK (p != NULL);
  ((char *)check_hide (p))[grown + 400] = 1;
  if (strstr (argv[1], "realloc"))
    {
      step ("realloc", p);
      return realloc (p, grown + 1000) == NULL;
    }
  if (strstr (argv[1], "shrink"))
    {
      step ("shrink", p);
      return realloc (p, grown - 1000) == NULL;
    }
  step ("free", p);
  free (p);
  return 0;
}
