/* Leaves an arena that was not entered.
 *
 * secure isolated default at leave: malloc_arena: unmatched leave: arena "VARIANT"
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  malloc_arena *arena = crime_arena (argv[1]);
  step ("leave", NULL);
  malloc_arena_leave (arena);
  return 0;
}
