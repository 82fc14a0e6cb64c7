/* Only a library of the program is linked with ours: the C library, which the program names, comes first.
 *
 * secure isolated at bind: malloc_arena: foreign malloc: malloc is PATHlibc.so.6's, the arena is PATHlibmalloc_arena.so's: link the program itself with that, or put it first in LD_PRELOAD
 */
#include "crime.h"

/* This file is the library and the program. */
int use_arena (const char *variant);

#ifdef IS_LIBRARY
int
use_arena (const char *variant)
{
  malloc_arena *arena = crime_arena (variant);
  step ("bind", NULL);
  return malloc_arena (arena, malloc, 40) == NULL;
}
#else
int
main (int argc, char **argv)
{
  return argc != 2 || use_arena (argv[1]);
}
#endif
