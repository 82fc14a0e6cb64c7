/* Touches a block of an arena that was deleted: its memory is gone with it.
 *
 * small large at touch: SIGSEGV
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
  step ("touch", p);
  return *(volatile char *)check_hide (p);
}
