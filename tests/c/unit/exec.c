/* vfork, posix_spawn and system, inside an active arena and out: the parent's memory is as it was, and
 * the new program starts with nothing. */
#include "check.h"

#include <spawn.h>

extern char **environ;

static void
spawn_here (void)
{
  char *arguments[] = { (char *)"true", NULL };
  pid_t pid;
  CHECK_EQUAL (posix_spawn (&pid, "/bin/true", NULL, NULL, arguments, environ), 0);
  CHECK_EQUAL (check_wait (pid, -1).exit_code, 0);
  pid = vfork ();
  if (pid == 0)
    {
      execv ("/bin/true", arguments);
      _exit (127);
    }
  CHECK (pid > 0);
  CHECK_EQUAL (check_wait (pid, -1).exit_code, 0);
  CHECK_EQUAL (system ("exit 3"), 3 << 8);
  FILE *pipe = popen ("echo spoken", "r");
  CHECK (pipe != NULL);
  char line[32];
  CHECK (fgets (line, sizeof line, pipe) != NULL && strcmp (line, "spoken\n") == 0);
  CHECK_EQUAL (pclose (pipe), 0);
}

int
main (void)
{
  const unsigned kinds[] = { HEAP_SECURE, HEAP_SECURE | HEAP_ISOLATED };
  spawn_here ();
  for (unsigned k = 0; k < 2; k++)
    {
      malloc_arena *arena = malloc_arena_get (kinds[k]);
      char *secret = malloc_arena (arena, malloc, 100);
      memset (secret, 0x66, 100);
      unsigned before = check_receipt (arena).obtained;
      for (unsigned i = 0; i < 20; i++)
        {
          spawn_here ();
          malloc_arena_enter (arena);
          spawn_here ();
          malloc_arena_leave (arena);
        }
      CHECK (check_all (secret, 0x66, 100));
      CHECK_EQUAL (check_receipt (arena).obtained, before);
      struct check_mapping m = check_mapping_of (secret);
      CHECK_EQUAL (check_flag (&m, "lo"), (before & MALLOC_ARENA_LOCKED) != 0);
      if (check_had (check_receipt (arena), MALLOC_ARENA_UNDUMPED, "exclusion from dumps"))
        CHECK (check_flag (&m, "dd"));
      free (secret);
    }
  return 0;
}
