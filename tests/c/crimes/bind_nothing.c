/* Binds to NULL, as a caller does who did not look at what malloc_arena_get returned: never silently
 * the ordinary malloc.
 *
 * malloc calloc strdup at bind: malloc_arena: invalid arena: ADDR (no arena)
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  malloc_arena *volatile arena = malloc_arena_get (1u << 30);
  step ("bind", arena);
  if (strcmp (argv[1], "malloc") == 0)
    return malloc_arena (arena, malloc, 10) == NULL;
  if (strcmp (argv[1], "calloc") == 0)
    return malloc_arena (arena, calloc, 10, 1) == NULL;
  return malloc_arena (arena, strdup, "secret") == NULL;
}
