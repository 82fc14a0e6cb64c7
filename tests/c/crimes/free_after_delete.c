/* Frees a block again that belonged to an arena which is deleted.
 *
 * small at free: malloc_arena: invalid free: ADDR (no arena)
 * large reused at free: malloc_arena: double free: ADDR (no arena)
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
  if (strcmp (argv[1], "reused") == 0)
    {
      /* Another arena has the place in all tables, and this thread's part. */
      options.name = "other";
      for (unsigned i = 0; i < 100; i++)
        CHECK ((arena = malloc_arena_new (&options)) != NULL);
      free (malloc_arena (arena, malloc, 40));
    }
  step ("free", p);
  free (check_hide (p));
  return 0;
}
