/* Writes behind a block that realloc has made longer bit by bit, so that there is room between it and its guard.
 *
 * secure-5001 secure-70001 secure-300001 default-70001 at free: malloc_arena: canary overwritten: ADDR (arena "VARIANT")
 * secure-5001-realloc secure-70001-realloc default-70001-realloc at realloc: malloc_arena: canary overwritten: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  size_t size = crime_size (argv[1]);
  char *p = malloc_arena (crime_arena (argv[1]), malloc, size);
  for (size_t i = 0; i < 90; i++)
    CHECK ((p = realloc (p, size += 100)) != NULL);
  ((char *)check_hide (p))[size] ^= 1;
  if (strstr (argv[1], "realloc"))
    {
      step ("realloc", p);
      return realloc (p, size + 1) == NULL;
    }
  step ("free", p);
  free (p);
  return 0;
}
