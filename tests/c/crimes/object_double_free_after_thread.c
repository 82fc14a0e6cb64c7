/* Another thread frees an object of a language runtime, then its owner does.
 *
 * secure default at again: malloc_arena: double free: ADDR (arena "VARIANT")
 */
#include "crime.h"
#include "runtime.h"

static void *
free_object (void *p)
{
  ma_object_free (p);
  return NULL;
}

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  void *p = ma_object_alloc (ma_local_of (crime_arena (argv[1])), crime_size (argv[1]));
  in_thread (free_object, p);
  step ("again", p);
  ma_object_free (check_hide (p));
  return 0;
}
