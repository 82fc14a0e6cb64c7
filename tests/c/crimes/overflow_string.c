/* The classic: room for the characters, none for the final zero.
 *
 * secure isolated at free: malloc_arena: canary overwritten: ADDR (arena "VARIANT")
 */
#include "crime.h"

int
main (int argc, char **argv)
{
  CHECK (argc == 2);
  const char *password = "correct horse battery st"; /* 24 characters */
  char *p = malloc_arena (crime_arena (argv[1]), malloc, strlen (password) - 2);
  strncpy (check_hide (p), password, strlen (password) - 2);
  ((char *)check_hide (p))[strlen (password) - 2] = 0;
  step ("free", p);
  free (p);
  return 0;
}
