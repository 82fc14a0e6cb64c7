/* A value that does not exist: nothing is guessed, and nothing is run.
 *
 * with MALLOC_ARENA_OPTIONS=lock=perhaps
 *
 * secure at none: malloc_arena: bad option: lock=perhaps (allowed: prefer|require|off)
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  step ("alive", NULL);
  crime_arena (argv[1]);
  return 0;
}
