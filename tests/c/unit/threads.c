/* Threads: blocks go from one to another, a thread's end hands its heaps on, keys' destructors still
 * allocate and free. */
#include "check.h"

#include <malloc.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>

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

/* ---- what a thread that is gone leaves for the next ---- */

enum
{
  KIB = 1024,
  MIB = 1024 * KIB,
  KEPT = MIB /* of small blocks' pages, by all such threads of an arena */
};

static malloc_arena *
arena_of (size_t limit, unsigned lock)
{
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = HEAP_SECURE, .limit = limit, .lock = lock };
  malloc_arena *made = malloc_arena_new (&options);
  CHECK (made != NULL);
  return made;
}

static pthread_barrier_t together;

static void
fill_and_free (size_t bytes)
{
  static __thread char *blocks[4000];
  size_t n = 0;
  for (size_t size = 16; bytes > size && n < 4000; bytes -= size, size = size % 2000 + 16)
    {
      CHECK ((blocks[n] = malloc (size)) != NULL);
      memset (blocks[n++], 0x5a, size);
    }
  while (n > 0)
    free (blocks[--n]);
}

static void *
short_work (void *bytes)
{
  malloc_arena_enter (arena);
  fill_and_free ((uintptr_t)bytes);
  malloc_arena_leave (arena);
  return NULL;
}

static void *
work_together (void *bytes)
{
  pthread_barrier_wait (&together);
  short_work (bytes);
  pthread_barrier_wait (&together);
  return NULL;
}

static void
run_thread (size_t bytes)
{
  pthread_t thread;
  CHECK_EQUAL (pthread_create (&thread, NULL, short_work, (void *)bytes), 0);
  pthread_join (thread, NULL);
}

/* Short threads one after the other open no pages, and what they left is nobody's for ever. */
static void
kept (void)
{
  arena = arena_of (0, 0);
  run_thread (300 * KIB);
  size_t present = check_region ().present;
  CHECK (present >= 300 * KIB && present <= KEPT);
  for (unsigned i = 0; i < 20; i++)
    run_thread (300 * KIB);
  CHECK (check_region ().present <= present + 8 * CHECK_PAGE);
  struct rusage before, after;
  CHECK_EQUAL (getrusage (RUSAGE_SELF, &before), 0);
  for (unsigned i = 0; i < 20; i++)
    run_thread (300 * KIB);
  CHECK_EQUAL (getrusage (RUSAGE_SELF, &after), 0);
  CHECK (after.ru_minflt - before.ru_minflt < 20 * (300 * KIB / (long)CHECK_PAGE) / 2);
  check_honest (arena);
  malloc_arena_trim (arena);
  CHECK_EQUAL (check_region ().present, 0);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* However many end at once. */
static void
kept_of_all (void)
{
  enum
  {
    THREADS = 12
  };
  arena = arena_of (0, 0);
  pthread_t threads[THREADS];
  CHECK_EQUAL (pthread_barrier_init (&together, NULL, THREADS), 0);
  for (unsigned i = 0; i < THREADS; i++)
    CHECK_EQUAL (pthread_create (&threads[i], NULL, work_together, (void *)(300 * KIB)), 0);
  for (unsigned i = 0; i < THREADS; i++)
    pthread_join (threads[i], NULL);
  CHECK (check_region ().present <= KEPT);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* How many blocks of SIZE an arena has for this thread, after another one had its turn or not. */
static size_t
count_blocks (size_t limit, size_t size, int is_second)
{
  static void *blocks[4096];
  size_t n = 0;
  arena = arena_of (limit, 0);
  if (is_second)
    {
      run_thread (300 * KIB);
      CHECK (check_stats (arena).mapped_bytes != 0);
    }
  while (n < 4096 && (blocks[n] = malloc_arena (arena, malloc, size)) != NULL)
    n++;
  for (size_t i = 0; i < n; i++)
    free (blocks[i]);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
  return n;
}

/* A limit, of an arena or of what may be locked, is not spent on it. */
static void
kept_is_given_back (void)
{
  CHECK (count_blocks (2 * MIB, 1000, 1) >= count_blocks (2 * MIB, 1000, 0));
  CHECK (count_blocks (2 * MIB, 300 * KIB, 1) >= count_blocks (2 * MIB, 300 * KIB, 0));
  struct rlimit limit;
  CHECK_EQUAL (getrlimit (RLIMIT_MEMLOCK, &limit), 0);
  if (limit.rlim_cur < 2 * MIB)
    {
      puts ("left out: a lock limit that is met, as it is less than 2 MiB");
      return;
    }
  limit.rlim_cur = 2 * MIB;
  CHECK_EQUAL (setrlimit (RLIMIT_MEMLOCK, &limit), 0);
  arena = arena_of (0, MALLOC_ARENA_LOCK_REQUIRE);
  malloc_arena *other = arena_of (0, MALLOC_ARENA_LOCK_REQUIRE);
  for (unsigned i = 0; i < 2; i++)
    {
      run_thread (100 * KIB);
      CHECK (check_region ().present >= 100 * KIB);
      char *p = malloc_arena (i == 0 ? arena : other, malloc, 2 * MIB - 20 * CHECK_PAGE);
      CHECK (p != NULL);
      free (p);
      malloc_arena_trim (arena);
      malloc_arena_trim (other);
    }
  CHECK_EQUAL (malloc_arena_delete (other), 0);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

static void
kept_all (void *unused)
{
  (void)unused;
  kept ();
  kept_of_all ();
  kept_is_given_back ();
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
  if (!check_emulated () && check_outside () == NULL) /* what there is more in the region */
    CHECK_EQUAL (check_child (kept_all, NULL).exit_code, 0);
  return 0;
}
