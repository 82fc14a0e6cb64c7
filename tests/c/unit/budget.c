/* HEAP_DEFAULT as a component's budget: what it holds is counted and limited, the rest of the program
 * goes on when the limit is met, and all pages are the kernel's again when the work has ended. */
#include "check.h"

#include <sys/resource.h>

enum
{
  LIMIT = 8 << 20,
  MOST = 1 << 19
};
static void *blocks[MOST];

static malloc_arena *
new_arena (unsigned kind, const char *name, size_t limit)
{
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = kind, .name = name, .limit = limit };
  malloc_arena *arena = malloc_arena_new (&options);
  CHECK (arena != NULL);
  return arena;
}

/* Blocks of SIZE until the arena has no more, or COUNT of them; all written. */
static size_t
fill (malloc_arena *arena, size_t size, size_t count)
{
  size_t n = 0;
  malloc_arena_enter (arena);
  while (n < count && (blocks[n] = malloc (size)) != NULL)
    memset (blocks[n++], 0x42, size);
  malloc_arena_leave (arena);
  return n;
}

/* Every STEP-th block stays. */
static void
drop (size_t n, size_t step)
{
  for (size_t i = 0; i < n; i++)
    if (step == 0 || i % step != 0)
      free (blocks[i]);
}

static void
limited (unsigned kind)
{
  static const size_t sizes[] = { 24, 100, 1000, 9000, 100000 };
  malloc_arena *arena = new_arena (kind, "plugin", LIMIT);
  malloc_arena *other = new_arena (HEAP_DEFAULT, "other", 0);
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
    {
      errno = 0;
      size_t n = fill (arena, sizes[i], MOST);
      CHECK (n < MOST);
      CHECK_EQUAL (errno, ENOMEM);
      struct malloc_arena_stats stats = check_stats (arena);
      CHECK_EQUAL (stats.live_blocks, n);
      CHECK_EQUAL (stats.live_bytes, n * sizes[i]);
      CHECK_EQUAL (stats.limit_bytes, LIMIT);
      CHECK (stats.mapped_bytes <= LIMIT);
      /* The limit is met by memory, not by what the heap loses; and the kernel holds no more. */
      CHECK (stats.live_bytes > LIMIT / 2);
      CHECK (sizes[i] > 1000 || stats.mapped_bytes + 2 * CHECK_PAGE > LIMIT);
      CHECK (check_region ().present <= LIMIT + check_stats (other).mapped_bytes);
      /* What is freed is to be had again, also where it is not the last that was opened. */
      free (blocks[0]);
      CHECK ((blocks[0] = malloc_arena (arena, malloc, sizes[i])) != NULL);
      /* Others have theirs. */
      void *p = malloc_arena (other, malloc, LIMIT);
      CHECK (p != NULL);
      free (p);
      CHECK ((p = malloc (LIMIT)) != NULL);
      free (p);
      drop (n, 0);
      CHECK_EQUAL (check_stats (arena).live_bytes, 0);
      CHECK (check_region ().present <= (128 << 10) + (2 << 20) + LIMIT / 64);
      CHECK (malloc_arena_trim (arena) >= 0);
      malloc_arena_trim (other);
      CHECK_EQUAL (check_region ().present, 0);
      CHECK_EQUAL (check_stats (arena).mapped_bytes, 0);
      CHECK_EQUAL (malloc_arena_trim (arena), 0);
    }
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
  CHECK_EQUAL (malloc_arena_delete (other), 0);
}

/* What counts is pages that are held: where the blocks of one size have left theirs, blocks of another
 * find room, though each slab is still in use. */
static void
sparse (void)
{
  if (CHECK_PAGE != 4096) /* the numbers below are of such pages */
    return;
  malloc_arena *arena = new_arena (HEAP_DEFAULT, "sparse", LIMIT);
  size_t n = fill (arena, 64, MOST);
  CHECK (n < MOST);
  drop (n, 640);
  size_t present = check_region ().present;
  CHECK (present < LIMIT / 4);
  CHECK (check_stats (arena).mapped_bytes <= present + (2 << 20));
  size_t kept = (n + 639) / 640;
  for (size_t i = 0; i < kept; i++)
    blocks[MOST - 1 - i] = blocks[i * 640];
  CHECK_EQUAL (fill (arena, 1000, LIMIT / 2 / 1000), LIMIT / 2 / 1000);
  drop (LIMIT / 2 / 1000, 0);
  /* The first size again, in the pages that were given back. */
  n = fill (arena, 64, LIMIT / 2 / 64);
  CHECK_EQUAL (n, LIMIT / 2 / 64);
  drop (n, 0);
  for (size_t i = 0; i < kept; i++)
    {
      CHECK (check_all (blocks[MOST - 1 - i], 0x42, 64));
      free (blocks[MOST - 1 - i]);
    }
  malloc_arena_trim (arena);
  CHECK_EQUAL (check_region ().present, 0);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* Address space as well: what one arena's work has left, another's gets. */
static void
reused_space (unsigned kind)
{
  malloc_arena *first = new_arena (kind, "first", 0);
  malloc_arena *second = new_arena (kind, "second", 0);
  size_t n = fill (first, 500, 40000);
  uintptr_t low = UINTPTR_MAX, high = 0;
  for (size_t i = 0; i < n; i++)
    {
      low = (uintptr_t)blocks[i] < low ? (uintptr_t)blocks[i] : low;
      high = (uintptr_t)blocks[i] > high ? (uintptr_t)blocks[i] : high;
    }
  drop (n, 0);
  malloc_arena_trim (first);
  n = fill (second, 500, 40000);
  size_t inside = 0;
  for (size_t i = 0; i < n; i++)
    inside += (uintptr_t)blocks[i] >= low && (uintptr_t)blocks[i] <= high;
  CHECK (inside > n / 2);
  drop (n, 0);
  CHECK_EQUAL (malloc_arena_delete (first), 0);
  CHECK_EQUAL (malloc_arena_delete (second), 0);
}

/* Pages that have blocks of another size next: nothing of the first size's ways is left with them. */
static void
other_size (size_t before, size_t after)
{
  malloc_arena *arena = new_arena (HEAP_SECURE, "sizes", 0);
  drop (fill (arena, before, 3), 0);
  uintptr_t slab = (uintptr_t)blocks[0] >> 16;
  malloc_arena_trim (arena);
  CHECK_EQUAL (check_region ().present, 0);
  /* Slabs of other sizes until it is the turn of that one. */
  size_t n = 0;
  void *others[8];
  while (fill (arena, after, 40) == 40 && (uintptr_t)blocks[0] >> 16 != slab)
    {
      drop (40, 0);
      malloc_arena_trim (arena);
      CHECK (n < 8);
      CHECK_EQUAL (fill (arena, 2000 + 100 * n, 1), 1);
      others[n++] = blocks[0];
    }
  void *kept = blocks[39];
  void *again[2]; /* the first of a slab goes another way */
  for (size_t i = 0; i < 2; i++)
    CHECK ((again[i] = malloc_arena (arena, malloc, before)) != NULL);
  for (size_t i = 0; i < 39; i++)
    free (blocks[i]);
  CHECK (check_all (kept, 0x42, after));
  free (kept);
  free (again[0]);
  free (again[1]);
  while (n > 0)
    free (others[--n]);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* A limit that ends anywhere in a slab, of slots after the last of which whole pages are left. */
static void
any_limit (void)
{
  static const size_t sizes[] = { 7100, 8192, 14336, 16384 };
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
    for (size_t pages = 16; pages < 80; pages++)
      {
        malloc_arena *arena = new_arena (HEAP_DEFAULT, "any", pages << 12);
        size_t n = fill (arena, sizes[i], MOST);
        CHECK (n * sizes[i] <= pages << 12);
        CHECK_EQUAL (check_stats (arena).live_blocks, n);
        for (size_t k = 0; k < n; k++)
          {
            CHECK (malloc_arena_of (blocks[k]) == arena);
            memset (blocks[k], (int)k, sizes[i]);
          }
        for (size_t k = 0; k < n; k++)
          CHECK (check_all (blocks[k], (unsigned char)k, sizes[i]));
        drop (n, 0);
        CHECK_EQUAL (malloc_arena_delete (arena), 0);
      }
}

/* A slot of many pages, of which the first were given back and cannot be had again: the next one shares a page with
 * it, and is not to be had either. */
static void
shared_page (void)
{
  if (CHECK_PAGE != 4096) /* the numbers below are of such pages */
    return;
  malloc_arena *arena = new_arena (HEAP_DEFAULT, "shared", LIMIT);
  char *first = malloc_arena (arena, malloc, 30000);
  size_t n = fill (arena, 64, 16000);
  free (first);
  drop (n, 0);
  CHECK_EQUAL (check_stats (arena).live_bytes, 0);
  size_t left = LIMIT - check_stats (arena).mapped_bytes;
  char *rest = malloc_arena (arena, malloc, left - 7 * CHECK_PAGE);
  CHECK (rest != NULL);
  CHECK_EQUAL (LIMIT - check_stats (arena).mapped_bytes, 7 * CHECK_PAGE);
  char *second = malloc_arena (arena, malloc, 30000);
  if (second != NULL)
    memset (second, 0x42, 30000);
  free (rest);
  drop (fill (arena, 64, 16000), 0);
  if (second != NULL)
    {
      CHECK_EQUAL (check_stats (arena).live_blocks, 1);
      CHECK (check_all (second, 0x42, 30000));
      free (second);
    }
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* What another work has left is what is given back first: the pages of a work that is done again and again stay. */
static void
done_again (void)
{
  struct rlimit limit;
  CHECK_EQUAL (getrlimit (RLIMIT_MEMLOCK, &limit), 0);
  if (limit.rlim_cur < 8 << 20)
    {
      puts ("left out: what stays where more can be locked");
      return;
    }
  malloc_arena *arena = new_arena (HEAP_SECURE, "again", 0);
  drop (fill (arena, 24, 80000), 0);
  for (size_t i = 0; i < 4; i++)
    drop (fill (arena, 50, 20000), 0);
  CHECK (check_region ().present >= (size_t)20000 * 64);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

static void *
worker (void *data)
{
  malloc_arena *arena = data;
  void *mine[500];
  malloc_arena_enter (arena);
  for (size_t i = 0; i < 500; i++)
    CHECK ((mine[i] = malloc (i * 7)) != NULL);
  malloc_arena_leave (arena);
  for (size_t i = 0; i < 500; i++)
    free (mine[i]);
  return NULL;
}

static void
ended_threads (void)
{
  malloc_arena *arena = new_arena (HEAP_DEFAULT, "threads", 0);
  pthread_t threads[4];
  for (size_t i = 0; i < 4; i++)
    CHECK_EQUAL (pthread_create (&threads[i], NULL, worker, arena), 0);
  for (size_t i = 0; i < 4; i++)
    pthread_join (threads[i], NULL);
  malloc_arena_trim (arena);
  CHECK_EQUAL (check_region ().present, 0);
  CHECK_EQUAL (check_stats (arena).mapped_bytes, 0);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

static void
by_class (unsigned kind)
{
  malloc_arena *arena = new_arena (kind, "classes", 0);
  void *a[10], *b[3], *c = malloc_arena (arena, malloc, 70000);
  for (size_t i = 0; i < 10; i++)
    a[i] = malloc_arena (arena, malloc, 99 + i % 2);
  for (size_t i = 0; i < 3; i++)
    b[i] = malloc_arena (arena, malloc, 1000);
  struct malloc_arena_stats stats = check_stats (arena);
  struct malloc_arena_class sum = { 0 };
  size_t seen = 0;
  for (size_t i = 0; i < stats.classes; i++)
    {
      const struct malloc_arena_class *class = &stats.by_class[i];
      CHECK (i == 0 || class->slot_bytes == 0
             || class->slot_bytes > stats.by_class[i - 1].slot_bytes);
      CHECK (class->mapped_bytes >= class->live_bytes);
      sum.live_blocks += class->live_blocks;
      sum.live_bytes += class->live_bytes;
      sum.mapped_bytes += class->mapped_bytes;
      if (class->slot_bytes >= 100 && class->slot_bytes <= 112 && class->live_blocks != 0)
        {
          CHECK_EQUAL (class->live_blocks, 10);
          CHECK_EQUAL (class->live_bytes, 995);
          seen++;
        }
      if (class->slot_bytes >= 1000 && class->live_blocks != 0)
        {
          CHECK_EQUAL (class->live_blocks, 3);
          CHECK_EQUAL (class->live_bytes, 3000);
          seen++;
        }
      if (class->slot_bytes == 0)
        {
          CHECK_EQUAL (class->live_blocks, 1);
          CHECK_EQUAL (class->live_bytes, 70000);
          seen++;
        }
    }
  CHECK_EQUAL (seen, 3);
  CHECK_EQUAL (sum.live_blocks, stats.live_blocks);
  CHECK_EQUAL (sum.live_bytes, stats.live_bytes);
  CHECK_EQUAL (sum.mapped_bytes, stats.mapped_bytes);
  /* A caller of an older header gets what it knows, and no more is written. */
  memset (&stats, 0x55, sizeof stats);
  stats.size = offsetof (struct malloc_arena_stats, classes);
  CHECK_EQUAL (malloc_arena_stats (arena, &stats), 0);
  CHECK_EQUAL (stats.live_blocks, 14);
  CHECK (check_all (&stats.classes, 0x55, sizeof stats - stats.size));
  for (size_t i = 0; i < 10; i++)
    free (a[i]);
  for (size_t i = 0; i < 3; i++)
    free (b[i]);
  free (c);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

static _Atomic int is_over;

static void *
ask_too_much (void *arena)
{
  while (!is_over)
    CHECK (malloc_arena (arena, malloc, 2 * LIMIT) == NULL);
  return NULL;
}

/* What does not fit is not in the way of what does, in another thread. */
static void
refused_elsewhere (void)
{
  malloc_arena *arena = new_arena (HEAP_DEFAULT, "elsewhere", LIMIT);
  pthread_t thread;
  CHECK_EQUAL (pthread_create (&thread, NULL, ask_too_much, arena), 0);
  for (size_t i = 0; i < 5000; i++)
    {
      /* Too large to stay ready. */
      char *p = malloc_arena (arena, malloc, LIMIT / 8 * 5);
      CHECK (p != NULL);
      CHECK (check_stats (arena).mapped_bytes <= LIMIT);
      free (p);
    }
  is_over = 1;
  CHECK_EQUAL (pthread_join (thread, NULL), 0);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

enum
{
  SMALL_LIMIT = 4 << 20
};

static pthread_barrier_t used, over;

static void *
use_and_stay (void *arena)
{
  char *p = malloc_arena (arena, malloc, SMALL_LIMIT / 3);
  CHECK (p != NULL);
  memset (p, 1, SMALL_LIMIT / 3);
  free (p);
  pthread_barrier_wait (&used);
  pthread_barrier_wait (&over);
  return NULL;
}

/* What threads keep ready that do nothing more does not use up the limit, one thread after the other. */
static void
idle_threads (unsigned kind)
{
  enum
  {
    THREADS = 6
  };
  pthread_t threads[THREADS];
  malloc_arena *arena = new_arena (kind, "idle", SMALL_LIMIT);
  CHECK_EQUAL (pthread_barrier_init (&used, NULL, 2), 0);
  CHECK_EQUAL (pthread_barrier_init (&over, NULL, THREADS + 1), 0);
  for (unsigned i = 0; i < THREADS; i++)
    {
      CHECK_EQUAL (pthread_create (&threads[i], NULL, use_and_stay, arena), 0);
      pthread_barrier_wait (&used);
    }
  CHECK (check_stats (arena).mapped_bytes <= SMALL_LIMIT / 2);
  pthread_barrier_wait (&over);
  for (unsigned i = 0; i < THREADS; i++)
    CHECK_EQUAL (pthread_join (threads[i], NULL), 0);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

int
main (void)
{
  limited (HEAP_DEFAULT);
  sparse ();
  reused_space (HEAP_DEFAULT);
  other_size (100, 16);
  other_size (400, 1000);
  any_limit ();
  refused_elsewhere ();
  idle_threads (HEAP_DEFAULT);
  idle_threads (HEAP_SECURE);
  shared_page ();
  done_again ();
  ended_threads ();
  by_class (HEAP_DEFAULT);
  by_class (HEAP_SECURE);
  CHECK_EQUAL (malloc_arena_trim (NULL), -1);
  return 0;
}
