/* Leaves in another thread than it entered.
 *
 * secure at leave: malloc_arena: unmatched leave: arena "VARIANT"
 */
#include "crime.h"

static void *
leave (void *arena)
{
  malloc_arena_leave (arena);
  return NULL;
}

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  malloc_arena *arena = crime_arena (argv[1]);
  malloc_arena_enter (arena);
  step ("leave", NULL);
  in_thread (leave, arena);
  return 0;
}
