/* Someone's free alone stands in front of ours.
 *
 * with LD_PRELOAD=$FOREIGN_FREE
 *
 * secure isolated at bind: malloc_arena: foreign free: free is PATHforeign_free.so's, the arena is PATHlibmalloc_arena.so's: link the program itself with that, or put it first in LD_PRELOAD
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  malloc_arena *arena = crime_arena (argv[1]);
  step ("bind", NULL);
  return malloc_arena (arena, malloc, 40) == NULL;
}
