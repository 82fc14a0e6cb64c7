/* The counters are exact: after each call, and when threads are done. */
#include "check.h"

static malloc_arena *arena;

#define EXPECT(blocks, bytes)                                                                      \
  do                                                                                               \
    {                                                                                              \
      struct malloc_arena_stats now = check_stats (arena);                                         \
      CHECK_EQUAL (now.live_blocks, blocks);                                                       \
      CHECK_EQUAL (now.live_bytes, bytes);                                                         \
    }                                                                                              \
  while (0)

static void
step_by_step (unsigned kind)
{
  struct malloc_arena_options options = { .size = sizeof options, .kind = kind, .name = "counted" };
  arena = malloc_arena_new (&options);
  CHECK (arena != NULL);
  EXPECT (0, 0);
  char *a = malloc_arena (arena, malloc, 100);
  EXPECT (1, 100);
  char *b = malloc_arena (arena, calloc, 3, 1000);
  EXPECT (2, 3100);
  a = realloc (a, 110);
  EXPECT (2, 3110);
  a = realloc (a, 50000);
  EXPECT (2, 53000);
  CHECK_EQUAL (check_stats (arena).peak_bytes >= 53000, 1);
  a = realloc (a, 10);
  EXPECT (2, 3010);
  CHECK (realloc (a, check_size (SIZE_MAX / 2)) == NULL);
  EXPECT (2, 3010);
  char *c = malloc_arena (arena, malloc, 0);
  EXPECT (3, 3010);
  void *d;
  CHECK_EQUAL (malloc_arena (arena, posix_memalign, &d, 4096, 77), 0);
  EXPECT (4, 3087);
  free (d);
  free (c);
  free (b);
  EXPECT (1, 10);
  CHECK (realloc (a, check_size (0)) == NULL);
  EXPECT (0, 0);
  CHECK (check_stats (arena).peak_bytes >= 53000);
  CHECK (check_stats (arena).peak_bytes <= 53000 + 3110);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* The most that lived, to the byte, and while pages come and go. */
static void
peak (unsigned kind)
{
  enum
  {
    SIZE = 480,
    MANY = 14000 /* more than may stay warm */
  };
  struct malloc_arena_options options = { .size = sizeof options, .kind = kind, .name = "peak" };
  arena = malloc_arena_new (&options);
  CHECK (arena != NULL);
  static void *all[MANY];
  size_t n = 0;
  malloc_arena_enter (arena);
  for (size_t most = MANY / 2; most <= MANY; most += MANY / 4)
    {
      while (n < most)
        CHECK ((all[n++] = malloc (SIZE)) != NULL);
      CHECK_EQUAL (check_stats (arena).peak_bytes, n * SIZE);
      while (n > 10)
        free (all[--n]);
      CHECK_EQUAL (check_stats (arena).peak_bytes, most * SIZE);
      EXPECT (n, n * SIZE);
    }
  while (n > 0)
    free (all[--n]);
  malloc_arena_leave (arena);
  CHECK_EQUAL (check_stats (arena).peak_bytes, (size_t)MANY * SIZE);
  EXPECT (0, 0);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

enum
{
  THREADS = 8,
  BLOCKS = 400
};
static void *blocks[THREADS][BLOCKS];
static pthread_barrier_t barrier;

static size_t
size_of (size_t thread, size_t i)
{
  return (thread * 131 + i * 37) % 5000;
}

static void *
worker (void *data)
{
  size_t me = (size_t)data, next = (me + 1) % THREADS;
  malloc_arena_enter (arena);
  for (size_t i = 0; i < BLOCKS; i++)
    CHECK ((blocks[me][i] = malloc (size_of (me, i))) != NULL);
  malloc_arena_leave (arena);
  pthread_barrier_wait (&barrier); /* all allocated */
  pthread_barrier_wait (&barrier); /* counted */
  for (size_t i = 0; i < BLOCKS; i += 2)
    free (blocks[next][i]);
  pthread_barrier_wait (&barrier);
  pthread_barrier_wait (&barrier); /* counted */
  for (size_t i = 1; i < BLOCKS; i += 2)
    free (blocks[me][i]);
  return NULL;
}

/* Small blocks and large ones at different times: more than lived, but not than may. */
static void
peak_in_limit (void)
{
  enum
  {
    LIMIT = 4 << 20
  };
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = HEAP_DEFAULT, .limit = LIMIT };
  malloc_arena *limited = malloc_arena_new (&options);
  CHECK (limited != NULL);
  static char *small[LIMIT / 1000];
  size_t n = 0;
  for (; n < LIMIT / 1000 / 4 * 3; n++)
    CHECK ((small[n] = malloc_arena (limited, malloc, 1000)) != NULL);
  CHECK (check_stats (limited).peak_bytes >= n * 1000);
  while (n > 0)
    free (small[--n]);
  char *large = malloc_arena (limited, malloc, LIMIT / 4 * 3);
  CHECK (large != NULL);
  CHECK_EQUAL (check_stats (limited).peak_bytes, LIMIT);
  free (large);
  CHECK_EQUAL (malloc_arena_delete (limited), 0);
}

int
main (void)
{
  step_by_step (HEAP_DEFAULT);
  step_by_step (HEAP_SECURE);
  peak (HEAP_DEFAULT);
  peak (HEAP_SECURE);
  step_by_step (HEAP_SECURE | HEAP_ISOLATED);

  arena = malloc_arena_get (HEAP_SECURE);
  size_t all = 0, odd = 0;
  for (size_t t = 0; t < THREADS; t++)
    for (size_t i = 0; i < BLOCKS; i++)
      {
        all += size_of (t, i);
        odd += i % 2 ? size_of (t, i) : 0;
      }
  pthread_t threads[THREADS];
  CHECK_EQUAL (pthread_barrier_init (&barrier, NULL, THREADS + 1), 0);
  for (size_t t = 0; t < THREADS; t++)
    CHECK_EQUAL (pthread_create (&threads[t], NULL, worker, (void *)t), 0);
  pthread_barrier_wait (&barrier);
  EXPECT (THREADS * BLOCKS, all);
  pthread_barrier_wait (&barrier);
  pthread_barrier_wait (&barrier);
  EXPECT (THREADS * BLOCKS / 2, odd);
  pthread_barrier_wait (&barrier);
  for (size_t t = 0; t < THREADS; t++)
    pthread_join (threads[t], NULL);
  EXPECT (0, 0);

  struct malloc_arena_stats stats = { .size = 0 };
  errno = 0;
  CHECK_EQUAL (malloc_arena_stats (arena, &stats), -1);
  CHECK_EQUAL (errno, EINVAL);
  stats.size = sizeof stats;
  CHECK_EQUAL (malloc_arena_stats (NULL, &stats), -1);
  peak_in_limit ();
  return 0;
}
