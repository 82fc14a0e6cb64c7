/* Where no object begins, and where none was ever.
 *
 * secure default at interior: malloc_arena: interior pointer: ADDR (arena "VARIANT")
 * secure-100 default-100 at beyond: malloc_arena: invalid free: ADDR (arena "VARIANT")
 */
#include "crime.h"
#include "runtime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  int is_beyond = strchr (argv[1], '-') != NULL;
  char *p = ma_object_alloc (ma_local_of (crime_arena (argv[1])), crime_size (argv[1]));
  /* Pages are opened from the front: the slab's last is not there yet. */
  size_t slot = malloc_usable_size (p);
  p += is_beyond ? 50000 / slot * slot : 16;
  step (is_beyond ? "beyond" : "interior", p);
  ma_object_free (check_hide (p));
  return 0;
}
