/* Binds a routine of the right type that belongs to the program.
 *
 * secure at bind: malloc_arena: foreign routine: the routine is PATHcrime_foreign_routine's, the arena is PATHlibmalloc_arena.so's
 */
#include "crime.h"

static void *
my_malloc (size_t size)
{
  return malloc (size);
}

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  step ("bind", NULL);
  return malloc_arena (crime_arena (argv[1]), my_malloc, 40) == NULL;
}
