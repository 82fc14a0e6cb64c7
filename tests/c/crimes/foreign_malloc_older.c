/* The same with an object that has only the older table of symbols (--hash-style=sysv).
 *
 * with LD_PRELOAD=$FOREIGN_MALLOC_OLDER
 *
 * secure isolated at bind: malloc_arena: foreign malloc: malloc is PATHforeign_malloc_older.so's, the arena is PATHlibmalloc_arena.so's: link the program itself with that, or put it first in LD_PRELOAD
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
