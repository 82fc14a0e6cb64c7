/* An object of a language runtime is freed twice.
 *
 * secure default secure-500 at again: malloc_arena: double free: ADDR (arena "VARIANT")
 */
#include "crime.h"
#include "runtime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  void *p = ma_object_alloc (ma_local_of (crime_arena (argv[1])), crime_size (argv[1]));
  ma_object_free (p);
  step ("again", p);
  ma_object_free (check_hide (p));
  return 0;
}
