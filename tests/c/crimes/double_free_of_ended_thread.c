/* A block of a thread that has ended is freed twice.
 *
 * secure isolated default secure-3000 at again: malloc_arena: double free: ADDR (arena "VARIANT")
 */
#include "crime.h"

static const char *variant;

static void *
make (void *unused)
{
  (void)unused;
  return malloc_arena (crime_arena (variant), malloc, crime_size (variant));
}

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  variant = argv[1];
  pthread_t thread;
  void *p, *other = malloc_arena (crime_arena (variant), malloc, 10);
  CHECK_EQUAL (pthread_create (&thread, NULL, make, NULL), 0);
  pthread_join (thread, &p);
  free (p);
  free (other);
  step ("again", p);
  free (check_hide (p));
  return 0;
}
