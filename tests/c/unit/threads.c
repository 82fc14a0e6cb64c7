/* Threads: blocks go from one to another, a thread's end hands its heaps on, keys' destructors still
 * allocate and free. */
#include "check.h"

#include <linux/capability.h>
#include <malloc.h>
#include <sched.h>
#include <stdatomic.h>
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

enum
{
  KIB = 1024,
  MIB = 1024 * KIB,
  KEPT = MIB /* of what threads that are gone have left, for the next ones */
};

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
  for (unsigned i = 0; i < 200; i++)
    {
      pthread_t thread;
      CHECK_EQUAL (pthread_create (&thread, NULL, with_key, NULL), 0);
      pthread_join (thread, NULL);
      if (i == 9)
        mapped = check_stats (arena).mapped_bytes;
    }
  CHECK_EQUAL (destroyed, 800);
  /* The part of a thread that is gone goes to the next, though nobody was told of the end: soon, as the kernel may know
   * of it a little longer. */
  CHECK (check_stats (arena).mapped_bytes <= mapped + KEPT);
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
  long before = check_faults ();
  for (unsigned i = 0; i < 20; i++)
    run_thread (300 * KIB);
  CHECK (check_faults () - before < 20 * (300 * KIB / (long)CHECK_PAGE) / 2);
  check_honest (arena);
  malloc_arena_trim (arena);
  CHECK_EQUAL (check_region ().present, 0);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* However many end at once; and they take no part of what this thread may keep. */
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
  CHECK (check_stats (arena).mapped_bytes <= KEPT);
  CHECK (check_region ().present <= KEPT);
  short_work ((void *)(1000 * KIB));
  long before = check_faults ();
  for (unsigned i = 0; i < 10; i++)
    short_work ((void *)(1000 * KIB));
  CHECK (check_faults () - before < 100);
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

/* Root's, which the limit is not for. */
static void
drop_capability (void)
{
  struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
  struct __user_cap_data_struct data[2];
  CHECK_EQUAL (syscall (SYS_capget, &header, data), 0);
  data[0].effective &= ~(1u << CAP_IPC_LOCK);
  CHECK_EQUAL (syscall (SYS_capset, &header, data), 0);
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
  drop_capability ();
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

/* Several meet the limit at once: who is not the first to give back finds it given back. */
static void *
ask_together (void *refused)
{
  malloc_arena_enter (arena);
  free (malloc (1));
  pthread_barrier_wait (&together); /* each has a part of its own */
  for (unsigned i = 0; i < 300; i++)
    {
      pthread_barrier_wait (&together);
      void *p = malloc (100 * KIB);
      if (p == NULL)
        (*(_Atomic unsigned *)refused)++;
      pthread_barrier_wait (&together);
      free (p);
      malloc_arena_trim (arena);
      pthread_barrier_wait (&together);
    }
  malloc_arena_leave (arena);
  return NULL;
}

static void
kept_is_given_to_all (void)
{
  enum
  {
    THREADS = 4,
    ROOM = THREADS * 164 * KIB + 100 * KIB
  };
  _Atomic unsigned refused = 0;
  arena = arena_of (32 * MIB, MALLOC_ARENA_LOCK_OFF);
  char *held = malloc_arena (arena, malloc, 32 * MIB - ROOM);
  CHECK (held != NULL);
  pthread_t threads[THREADS];
  CHECK_EQUAL (pthread_barrier_init (&together, NULL, THREADS + 1), 0);
  for (unsigned i = 0; i < THREADS; i++)
    CHECK_EQUAL (pthread_create (&threads[i], NULL, ask_together, &refused), 0);
  pthread_barrier_wait (&together);
  for (unsigned i = 0; i < 300; i++)
    {
      run_thread (500 * KIB);
      for (unsigned j = 0; j < 3; j++)
        pthread_barrier_wait (&together);
    }
  for (unsigned i = 0; i < THREADS; i++)
    pthread_join (threads[i], NULL);
  CHECK_EQUAL (refused, 0);
  free (held);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

static void *
large_work (void *bytes)
{
  void *p = malloc_arena (arena, malloc, (uintptr_t)bytes);
  CHECK (p != NULL);
  free (p);
  return NULL;
}

/* Nor is a block in its place that has no other to grow in. */
static void
kept_makes_way (unsigned kind)
{
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = kind, .limit = 32 * MIB, .lock = MALLOC_ARENA_LOCK_OFF };
  arena = malloc_arena_new (&options);
  CHECK (arena != NULL);
  char *p = malloc_arena (arena, malloc, 20 * MIB);
  pthread_t thread;
  CHECK_EQUAL (pthread_create (&thread, NULL, large_work, (void *)(50 * KIB)), 0);
  pthread_join (thread, NULL);
  CHECK ((p = realloc (p, 32 * MIB - 64 * KIB)) != NULL);
  free (p);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* What others free of a thread that is gone is nobody's as well. */
static void *
leave_blocks (void *blocks)
{
  for (unsigned i = 0; i < 32; i++)
    CHECK ((((void **)blocks)[i] = malloc_arena (arena, malloc, 2000)) != NULL);
  pthread_barrier_wait (&together);
  return NULL;
}

static void
freed_later (void)
{
  enum
  {
    THREADS = 16
  };
  static void *blocks[THREADS][32];
  pthread_t threads[THREADS];
  arena = arena_of (4 * MIB, MALLOC_ARENA_LOCK_OFF);
  CHECK_EQUAL (pthread_barrier_init (&together, NULL, THREADS), 0);
  for (unsigned i = 0; i < THREADS; i++)
    CHECK_EQUAL (pthread_create (&threads[i], NULL, leave_blocks, blocks[i]), 0);
  for (unsigned i = 0; i < THREADS; i++)
    pthread_join (threads[i], NULL);
  for (unsigned i = 0; i < THREADS * 32; i++)
    free (blocks[i / 32][i % 32]);
  void *p = malloc_arena (arena, malloc, 3 * MIB);
  CHECK (p != NULL);
  free (p);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* Of all arenas together no more is kept, */
static void
kept_of_all_arenas (void)
{
  enum
  {
    COUNT_OF_ARENAS = 20
  };
  malloc_arena *arenas[COUNT_OF_ARENAS];
  for (unsigned i = 0; i < COUNT_OF_ARENAS; i++)
    {
      arena = arenas[i] = arena_of (0, 0);
      run_thread (300 * KIB);
    }
  CHECK (check_region ().present <= KEPT);
  for (unsigned i = 0; i < COUNT_OF_ARENAS; i++)
    CHECK_EQUAL (malloc_arena_delete (arenas[i]), 0);
}

/* and in a child that starts anew no less. */
static void
generations (void *left)
{
  run_thread (300 * KIB);
  CHECK (check_stats (arena).mapped_bytes >= 300 * KIB);
  if ((uintptr_t)left > 0)
    CHECK_EQUAL (check_child (generations, (void *)((uintptr_t)left - 1)).exit_code, 0);
}

static void
kept_in_children (void)
{
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = HEAP_SECURE, .fork = MALLOC_ARENA_FORK_REFUSE };
  arena = malloc_arena_new (&options);
  CHECK (arena != NULL);
  generations ((void *)6);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

static void *
end_process (void *grown)
{
  usleep (100000);
  _exit (check_status ("VmStk") > (uintptr_t)grown + 512 * KIB);
}

/* The first stack does not grow because its thread ends. */
static void
first_ends (void *unused)
{
  malloc_arena *any = malloc_arena_get (HEAP_SECURE);
  free (malloc_arena (any, malloc, 10));
  pthread_t thread;
  CHECK_EQUAL (pthread_create (&thread, NULL, end_process, (void *)check_status ("VmStk")), 0);
  pthread_exit (unused);
}

static char *_Atomic handed;

static void *
free_handed (void *count)
{
  for (uintptr_t i = 0; i < (uintptr_t)count; i++)
    {
      char *p;
      while ((p = atomic_exchange (&handed, NULL)) == NULL)
        sched_yield ();
      free (p);
    }
  return NULL;
}

static void
hand_over_large (void *data)
{
  size_t count = (uintptr_t)data;
  pthread_t thread;
  CHECK_EQUAL (pthread_create (&thread, NULL, free_handed, data), 0);
  for (size_t i = 0; i < count; i++)
    {
      char *p = malloc_arena (arena, malloc, 50 * KIB);
      CHECK (p != NULL && check_all (p, 0, 50 * KIB));
      memset (p, 0x5a, 50 * KIB);
      while (handed != NULL)
        sched_yield ();
      handed = p;
    }
  pthread_join (thread, NULL);
}

/* What another thread frees is ready for the one that made it. */
static void
given_back (void)
{
  arena = arena_of (0, 0);
  hand_over_large ((void *)50);
  long before = check_faults ();
  hand_over_large ((void *)500);
  CHECK (check_faults () - before < 500);
  check_honest (arena);
  malloc_arena_trim (arena);
  CHECK_EQUAL (check_region ().present, 0);
  /* A child has them as well, or not at all. */
  hand_over_large ((void *)50);
  CHECK_EQUAL (check_child (hand_over_large, (void *)50).exit_code, 0);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

static void
kept_all (void *unused)
{
  (void)unused;
  kept ();
  kept_of_all ();
  kept_of_all_arenas ();
  kept_in_children ();
  given_back ();
  kept_is_given_to_all ();
  kept_makes_way (HEAP_DEFAULT);
  kept_makes_way (HEAP_SECURE);
  freed_later ();
  kept_is_given_back ();
}

static void
fill_locked (malloc_arena *in, size_t size, size_t count, void **blocks)
{
  for (size_t i = 0; i < count; i++)
    {
      CHECK ((blocks[i] = malloc_arena (in, malloc, size)) != NULL);
      memset (blocks[i], 0x5a, size);
    }
}

static void
free_all (void **blocks, size_t count)
{
  while (count > 0)
    free (blocks[--count]);
}

/* What may be locked is spent on what lives. What comes and goes beside it is not opened anew each time for that; and once
 * the limit is free again, all that is used is locked. */
static void
locked_out (void *unused)
{
  (void)unused;
  enum
  {
    BIG = 3000,
    SMALL = 100
  };
  static void *live[BIG], *brief[SMALL];
  struct rlimit limit;
  CHECK_EQUAL (getrlimit (RLIMIT_MEMLOCK, &limit), 0);
  if (limit.rlim_cur < 2 * MIB)
    return;
  limit.rlim_cur = 2 * MIB;
  CHECK_EQUAL (setrlimit (RLIMIT_MEMLOCK, &limit), 0);
  drop_capability ();
  arena = arena_of (0, 0);
  fill_locked (arena, 1000, BIG, live);
  CHECK (check_stats (arena).locked_bytes <= 2 * MIB);
  CHECK (check_stats (arena).locked_bytes >= MIB);
  long before = 0;
  for (unsigned round = 0; round < 60; round++)
    {
      if (round == 10)
        before = check_faults ();
      for (size_t size = 50; size < 30000; size *= 2)
        {
          fill_locked (arena, size, SMALL / 10, brief);
          free_all (brief, SMALL / 10);
        }
    }
  CHECK (check_faults () - before < 50 * 10);
  free_all (live, BIG);
  fill_locked (arena, 100, SMALL, brief);
  fill_locked (arena, 5000, SMALL, live);
  struct malloc_arena_stats stats = check_stats (arena);
  CHECK_EQUAL (stats.locked_bytes, stats.mapped_bytes);
  check_honest (arena);
  free_all (live, SMALL);
  free_all (brief, SMALL);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
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
    {
      CHECK_EQUAL (check_child (kept_all, NULL).exit_code, 0);
      CHECK_EQUAL (check_child (locked_out, NULL).exit_code, 0);
      struct check_outcome outcome = check_child (first_ends, NULL);
      CHECK_EQUAL (outcome.signal, 0);
      CHECK_EQUAL (outcome.exit_code, 0);
    }
  return 0;
}
