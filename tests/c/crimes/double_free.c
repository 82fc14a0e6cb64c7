/* Frees a block twice, of every kind and size.
 *
 * secure-0 secure-1 secure-24 secure-100 secure-1000 secure-2040 at again: malloc_arena: double free: ADDR (arena "VARIANT")
 * secure-2048 secure-5000 secure-200000 secure-9000000 at again: malloc_arena: double free: ADDR (arena "VARIANT")
 * isolated-0 isolated-1 isolated-100 isolated-4096 isolated-5000 isolated-200000 at again: malloc_arena: double free: ADDR (arena "VARIANT")
 * default-1 default-100 default-2040 default-5000 default-200000 at again: malloc_arena: double free: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  void *p = malloc_arena (crime_arena (argv[1]), malloc, crime_size (argv[1]));
  CHECK (p != NULL);
  free (p);
  step ("again", p);
  free (check_hide (p));
  return 0;
}
