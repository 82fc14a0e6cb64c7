/* A thread that is to be cancelled (pthread_cancel) ends at its next cancellation point, of which malloc, free and
 * fork are none: it would end with the arena's locks in its hands. */
#include "check.h"

static malloc_arena *
make (unsigned kind)
{
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = kind, .fork = MALLOC_ARENA_FORK_KEEP };
  malloc_arena *arena = malloc_arena_new (&options);
  CHECK (arena != NULL || errno == ENOTSUP);
  return arena;
}

static void
use (malloc_arena *arena)
{
  static const size_t sizes[] = { 20, 3000, 100000, 5000000 };
  enum
  {
    BLOCKS = sizeof sizes / sizeof *sizes
  };
  char *blocks[BLOCKS];
  for (unsigned i = 0; i < BLOCKS; i++)
    {
      CHECK ((blocks[i] = malloc_arena (arena, malloc, sizes[i])) != NULL);
      memset (blocks[i], 7, sizes[i]);
    }
  pid_t child = fork ();
  CHECK (child != -1);
  if (child == 0)
    {
      for (unsigned i = 0; i < BLOCKS; i++)
        free (blocks[i]);
      _exit (0);
    }
  int before, status;
  pthread_setcancelstate (PTHREAD_CANCEL_DISABLE, &before); /* waitpid is one */
  CHECK_EQUAL (waitpid (child, &status, 0), child);
  pthread_setcancelstate (before, NULL);
  CHECK_EQUAL (status, 0);
  for (unsigned i = 0; i < BLOCKS; i++)
    free (blocks[i]);
}

static bool is_done;

/* The first use of all as well: it asks for random bytes. */
static void *
cancelled (void *data)
{
  static const unsigned kinds[]
      = { HEAP_SECURE, HEAP_DEFAULT, HEAP_SECURE | HEAP_ISOLATED, HEAP_SECURE | HEAP_SECRETMEM };
  CHECK_EQUAL (pthread_cancel (pthread_self ()), 0);
  for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++)
    {
      malloc_arena *arena = make (kinds[i]);
      if (arena == NULL)
        continue;
      use (arena);
      CHECK_EQUAL (malloc_arena_delete (arena), 0);
    }
  is_done = true;
  pthread_testcancel ();
  return data;
}

int
main (int argc, char **argv)
{
  (void)argv;
  if (argc > 1)
    check_memlock (0); /* the line that says so is written with locks held */
  pthread_t thread;
  void *result;
  CHECK_EQUAL (pthread_create (&thread, NULL, cancelled, NULL), 0);
  CHECK_EQUAL (pthread_join (thread, &result), 0);
  CHECK (result == PTHREAD_CANCELED);
  CHECK (is_done);
  if (argc > 1)
    return 0;
  struct check_outcome outcome = check_again ("limit", NULL);
  CHECK_EQUAL (outcome.exit_code, 0);
  CHECK (strstr (outcome.text, "malloc_arena: lock refused: ") != NULL);
  return 0;
}
