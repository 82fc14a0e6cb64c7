/* Threads: blocks go from one to another, a thread's end hands its heaps on, keys' destructors still
 * allocate and free. */
#include "check.h"

#include <malloc.h>
#include <sched.h>

static malloc_arena *arena;

enum
{
  COUNT = 2000
};
static char *_Atomic mailbox[COUNT];

static void *
produce (void *unused)
{
  (void)unused;
  malloc_arena_enter (arena);
  for (size_t i = 0; i < COUNT; i++)
    {
      size_t size = 8 + i * 13 % 3000;
      char *p = malloc (size);
      CHECK (p != NULL);
      memset (p, (int)i, size);
      mailbox[i] = p;
    }
  malloc_arena_leave (arena);
  return NULL;
}

static void *
consume (void *unused)
{
  (void)unused;
  for (size_t i = 0; i < COUNT; i++)
    {
      char *p;
      while ((p = mailbox[i]) == NULL)
        sched_yield ();
      size_t size = 8 + i * 13 % 3000;
      CHECK (check_all (p, (int)i, size));
      CHECK (malloc_arena_of (p) == arena);
      CHECK_EQUAL (malloc_usable_size (p), size);
      if (i % 5 == 0)
        {
          p = realloc (p, size + 100); /* not this thread's, and stays in the arena */
          CHECK (p != NULL && malloc_arena_of (p) == arena && check_all (p, (int)i, size));
        }
      free (p);
      mailbox[i] = NULL;
    }
  return NULL;
}

static void
hand_over (void)
{
  pthread_t a, b;
  CHECK_EQUAL (pthread_create (&a, NULL, produce, NULL), 0);
  CHECK_EQUAL (pthread_create (&b, NULL, consume, NULL), 0);
  pthread_join (a, NULL);
  pthread_join (b, NULL);
  CHECK_EQUAL (check_stats (arena).live_blocks, 0);
}

/* Blocks of a thread that has ended are as good as any; freed later, their memory goes back. */
static void
outlived (void)
{
  size_t mapped[2] = { 0, 0 }; /* most, of the first rounds and the last */
  for (unsigned round = 0; round < 16; round++)
    {
      pthread_t thread;
      CHECK_EQUAL (pthread_create (&thread, NULL, produce, NULL), 0);
      pthread_join (thread, NULL);
      CHECK_EQUAL (check_stats (arena).live_blocks, COUNT);
      consume (NULL);
      CHECK_EQUAL (check_stats (arena).live_blocks, 0);
      size_t now = check_stats (arena).mapped_bytes, *most = &mapped[round >= 12];
      *most = now > *most ? now : *most;
    }
  /* The next thread takes the heaps over; what this one keeps warm has its bound by now. */
  CHECK (mapped[1] <= mapped[0] + 16 * CHECK_PAGE);
}

static pthread_key_t key;
static _Atomic unsigned destroyed;

static void
destroy (void *p)
{
  CHECK (malloc_arena_of (p) == arena);
  char *q = malloc_arena (arena, malloc, 70);
  CHECK (q != NULL && malloc_arena_of (q) == arena);
  memset (q, 1, 70);
  free (q);
  free (p);
  /* Once more, later than any other destructor, when the arena's own may have run. */
  if (++destroyed % 4 != 0)
    CHECK_EQUAL (pthread_setspecific (key, malloc_arena (arena, malloc, 90)), 0);
}

static void *
with_key (void *unused)
{
  CHECK_EQUAL (pthread_setspecific (key, malloc_arena (arena, malloc, 100)), 0);
  return unused;
}

static void
teardown (void)
{
  CHECK_EQUAL (pthread_key_create (&key, destroy), 0);
  size_t mapped = 0;
  for (unsigned i = 0; i < 50; i++)
    {
      pthread_t thread;
      CHECK_EQUAL (pthread_create (&thread, NULL, with_key, NULL), 0);
      pthread_join (thread, NULL);
      if (i == 9)
        mapped = check_stats (arena).mapped_bytes;
    }
  CHECK_EQUAL (destroyed, 200);
  /* The part of a thread that is gone goes to the next, though nobody was told of the end. */
  CHECK (check_stats (arena).mapped_bytes <= mapped + 8 * CHECK_PAGE);
  CHECK_EQUAL (pthread_key_delete (key), 0);
  CHECK_EQUAL (check_stats (arena).live_blocks, 0);
}

static void *
end_inside (void *unused)
{
  malloc_arena_enter (arena);
  free (malloc (10));
  malloc_arena_enter (NULL);
  malloc_arena_enter (arena);
  return unused;
}

static void *
cancelled (void *unused)
{
  malloc_arena_enter (arena);
  for (;;)
    {
      free (malloc (10));
      pthread_testcancel ();
    }
  return unused;
}

/* A thread that ends inside (returns, exits, is cancelled) leaves nothing behind. */
static void
ends_inside (void)
{
  for (unsigned i = 0; i < 50; i++)
    {
      pthread_t thread;
      CHECK_EQUAL (pthread_create (&thread, NULL, end_inside, NULL), 0);
      pthread_join (thread, NULL);
      CHECK_EQUAL (pthread_create (&thread, NULL, cancelled, NULL), 0);
      pthread_cancel (thread);
      pthread_join (thread, NULL);
    }
  CHECK_EQUAL (check_stats (arena).live_blocks, 0);
}

int
main (void)
{
  const unsigned kinds[] = { HEAP_SECURE, HEAP_SECURE | HEAP_ISOLATED, HEAP_DEFAULT };
  for (unsigned k = 0; k < 3; k++)
    {
      struct malloc_arena_options options = { .size = sizeof options, .kind = kinds[k] };
      arena = malloc_arena_new (&options);
      CHECK (arena != NULL);
      hand_over ();
      outlived ();
      destroyed = 0;
      if (!CHECK_THREAD_SANITIZED) /* which ends before the last destructors */
        teardown ();
      ends_inside ();
      CHECK_EQUAL (malloc_arena_delete (arena), 0);
    }
  return 0;
}
