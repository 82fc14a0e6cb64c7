/* Threads over the borders of a scope: one that is started inside is inside, and none that was inside
 * leaves its stack to the next. */
#include "check.h"

#include <threads.h>

enum
{
  BYTES = 60000,
  SECRET = 0x6b
};

static malloc_arena *arena;
static volatile unsigned char *dead; /* stack of a call that has returned */

__attribute__ ((__noinline__)) static void
leave_on_stack (void)
{
  volatile unsigned char secret[BYTES];
  memset ((void *)secret, SECRET, sizeof secret);
  dead = check_hide ((void *)secret);
}

static unsigned
left (void)
{
  unsigned n = 0;
  for (unsigned i = 0; i < BYTES; i++)
    n += dead[i] == SECRET;
  return n;
}

/* pthread_exit loads the unwinder at its first use, into whatever arena is active. */
static void *
plain_thread (void *data)
{
  leave_on_stack ();
  pthread_exit (data);
}

static void *
thread_that_enters (void *data)
{
  malloc_arena_enter (arena);
  leave_on_stack ();
  malloc_arena_leave (arena);
  return data;
}

static void *
thread_that_allocates (void *data)
{
  (void)data;
  leave_on_stack ();
  return malloc (10);
}

static void *
thread_that_exits (void *data)
{
  malloc_arena_enter (arena);
  leave_on_stack ();
  pthread_exit (data);
}

static int
c11_thread (void *data)
{
  *(void **)data = thread_that_allocates (NULL);
  return 5;
}

static void *
run (void *(*routine) (void *), void *argument)
{
  pthread_t thread;
  void *result;
  CHECK_EQUAL (pthread_create (&thread, NULL, routine, argument), 0);
  CHECK_EQUAL (pthread_join (thread, &result), 0);
  return result;
}

static void *
run_c11 (void)
{
  thrd_t thread;
  void *p;
  int result;
  if (CHECK_THREAD_SANITIZED) /* which does not know of such threads */
    return run (thread_that_allocates, NULL);
  CHECK_EQUAL (thrd_create (&thread, c11_thread, &p), thrd_success);
  CHECK_EQUAL (thrd_join (thread, &result), thrd_success);
  CHECK_EQUAL (result, 5);
  return p;
}

int
main (void)
{
  const char *options = getenv ("MALLOC_ARENA_OPTIONS");
  bool is_inheriting = options != NULL && strstr (options, "inherit=on") != NULL;
  arena = malloc_arena_get (HEAP_SECURE);
  CHECK (arena != NULL);

  if (check_emulated () && CHECK_PAGE != 4096)
    check_skip ("the emulator's mincore counts pages of another size than its own");

  /* The first thread, for which the C library makes tables: they are not in the arena. */
  malloc_arena_enter (arena);
  free (run_c11 ());
  malloc_arena_leave (arena);
  CHECK_EQUAL (check_stats (arena).live_blocks, 0);

  /* The control: the C library keeps the stack of an ended thread as it is. */
  run (plain_thread, NULL);
  CHECK (left () > BYTES / 8);

  run (thread_that_enters, NULL);
  CHECK (left () < 64);
  run (plain_thread, NULL);
  run (thread_that_exits, NULL);
  CHECK (left () < 64);

  malloc_arena_enter (arena);
  void *p = run (thread_that_allocates, NULL);
  CHECK (malloc_arena_of (p) == (is_inheriting ? arena : NULL));
  if (is_inheriting)
    CHECK (left () < 64);
  free (p);
  p = run_c11 ();
  CHECK (malloc_arena_of (p) == (is_inheriting ? arena : NULL));
  if (is_inheriting)
    CHECK (left () < 64);
  free (p);
  malloc_arena_enter (NULL);
  p = run (thread_that_allocates, NULL);
  CHECK (p != NULL && malloc_arena_of (p) == NULL);
  free (p);
  p = run_c11 ();
  CHECK (p != NULL && malloc_arena_of (p) == NULL);
  free (p);
  malloc_arena_leave (NULL);
  malloc_arena_leave (arena);

  CHECK_EQUAL (check_stats (arena).live_blocks, 0);
  return 0;
}
