/* Frees a, b, a: the simple check for the block freed last does not see it.
 *
 * secure isolated default secure-3000 isolated-9000 at again: malloc_arena: double free: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  malloc_arena *arena = crime_arena (argv[1]);
  size_t size = crime_size (argv[1]);
  void *a = malloc_arena (arena, malloc, size), *b = malloc_arena (arena, malloc, size);
  free (a);
  free (b);
  step ("again", a);
  free (check_hide (a));
  return 0;
}
