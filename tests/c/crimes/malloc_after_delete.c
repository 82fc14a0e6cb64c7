/* Uses the handle of an arena that was deleted.
 *
 * bind at use: malloc_arena: invalid arena: ADDR (no arena)
 * enter at use: malloc_arena: invalid arena: ADDR (no arena)
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  struct malloc_arena_options options = { .size = sizeof options, .kind = HEAP_SECURE };
  malloc_arena *arena = malloc_arena_new (&options);
  free (malloc_arena (arena, malloc, 40));
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
  step ("use", arena);
  if (strcmp (argv[1], "enter") == 0)
    malloc_arena_enter (arena);
  else
    return malloc_arena (arena, malloc, 40) == NULL;
  return 0;
}
