/* Leaves the outer arena first.
 *
 * secure at leave: malloc_arena: unmatched leave: arena "VARIANT"
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  malloc_arena *arena = crime_arena (argv[1]);
  malloc_arena_enter (arena);
  malloc_arena_enter (crime_arena ("isolated"));
  step ("leave", NULL);
  malloc_arena_leave (arena);
  return 0;
}
