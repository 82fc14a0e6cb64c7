/* Where nobody reads standard error any more, a line is lost, and no more: one that tells does not end the
 * program (SIGPIPE), and after one about a crime it ends as always. */
#include "check.h"

static void
close_reader (void)
{
  int ends[2];
  CHECK_EQUAL (pipe2 (ends, O_CLOEXEC), 0);
  CHECK_EQUAL (dup2 (ends[1], STDERR_FILENO), STDERR_FILENO);
  close (ends[0]);
  signal (SIGPIPE, SIG_DFL);
}

static void
be_told (void *data)
{
  (void)data;
  check_memlock (0);
  close_reader ();
  malloc_arena *arena = malloc_arena_get (HEAP_SECURE);
  CHECK (arena != NULL);
  free (malloc_arena (arena, malloc, 40));
  sigset_t mask;
  CHECK_EQUAL (sigprocmask (SIG_BLOCK, NULL, &mask), 0);
  CHECK (!sigismember (&mask, SIGPIPE));
}

/* A signal of the program's own that waits is not taken away. */
static void
be_told_while_blocked (void *data)
{
  (void)data;
  sigset_t set;
  sigemptyset (&set);
  sigaddset (&set, SIGPIPE);
  CHECK_EQUAL (sigprocmask (SIG_BLOCK, &set, NULL), 0);
  check_memlock (0);
  close_reader ();
  raise (SIGPIPE);
  CHECK (malloc_arena_get (HEAP_SECURE) != NULL);
  CHECK_EQUAL (sigpending (&set), 0);
  CHECK (sigismember (&set, SIGPIPE));
}

static void
commit_crime (void *data)
{
  (void)data;
  malloc_arena *arena = malloc_arena_get (HEAP_SECURE);
  void *p = malloc_arena (arena, malloc, 40);
  close_reader ();
  free (p);
  free (check_hide (p));
}

int
main (void)
{
  struct check_outcome outcome = check_child (be_told, NULL);
  CHECK_EQUAL (outcome.signal, 0);
  CHECK_EQUAL (outcome.exit_code, 0);
  outcome = check_child (be_told_while_blocked, NULL);
  CHECK_EQUAL (outcome.signal, 0);
  CHECK_EQUAL (outcome.exit_code, 0);
  CHECK_EQUAL (check_child (commit_crime, NULL).signal, SIGABRT);
  return 0;
}
