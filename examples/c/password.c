/* The example of the RFC: a password in the secure arena, freed by code that knows nothing of it. */
#include <malloc_arena.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Somewhere else, by someone else. */
static void
log_in (char *password)
{
  printf ("a password of %zu characters\n", strlen (password));
  free (password); /* wiped */
}

int
main (int argc, char **argv)
{
  const char *typed = argc > 1 ? argv[1] : "correct horse battery staple";
  size_t size = strlen (typed) + 1;
  char *password_storage = NULL;
  malloc_arena *secure_arena = NULL;

  secure_arena = malloc_arena_get (HEAP_SECURE);
  if (secure_arena == NULL)
    abort ();
  password_storage = malloc_arena (secure_arena, malloc, size);
  if (password_storage == NULL)
    abort ();
  memcpy (password_storage, typed, size);
  log_in (password_storage);
  return 0;
}
