/* Writes before a block of its own pages: canary, and below its page a guard.
 *
 * isolated-40 isolated-5000 secure-5000 default-70000 at free: malloc_arena: canary overwritten: ADDR (arena "VARIANT")
 * isolated-4096 at touch: SIGSEGV
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  char *p = malloc_arena (crime_arena (argv[1]), malloc, crime_size (argv[1]));
  step ("touch", p - 1);
  ((char *)check_hide (p))[-1] ^= 1;
  step ("free", p);
  free (p);
  return 0;
}
