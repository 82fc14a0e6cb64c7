/* Frees a block again that belonged to an arena which is deleted.
 *
 * small at free: malloc_arena: invalid free: ADDR (no arena)
 * large at free: malloc_arena: double free: ADDR (arena "secure")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  struct malloc_arena_options options = { .size = sizeof options, .kind = HEAP_SECURE };
  malloc_arena *arena = malloc_arena_new (&options);
  char *p = malloc_arena (arena, malloc, strcmp (argv[1], "small") == 0 ? 40 : 40000);
  free (p);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
  step ("free", p);
  free (check_hide (p));
  return 0;
}
