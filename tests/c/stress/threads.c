/* Threads allocate, resize, check, hand to each other and free blocks and objects, in several arenas at
 * once, while one forks children that go on by themselves. Seed and seconds by argument:
 * threads [SEED [SECONDS]]. */
#include "check.h"

#include <malloc.h>
#include <time.h>

enum
{
  THREADS = 6,
  SLOTS = 512,
  SHARED = 256,
  ARENAS = 5
};

struct block
{
  unsigned char *p;
  size_t size;
  unsigned char byte;
  bool is_object; /* asked for as one: may be a block, where it is large or was resized */
};

static malloc_arena *arenas[ARENAS]; /* the last is NULL: the ordinary malloc */
static struct block shared[SHARED];
static pthread_mutex_t shared_lock[SHARED];
static _Atomic bool stop;
static _Atomic unsigned long operations;
static uint64_t seed;

static size_t
some_size (uint64_t *state)
{
  unsigned shift = 4 + (unsigned)(check_random (state) % 10);
  return check_random (state) % ((size_t)1 << shift);
}

static void
verify (const struct block *b)
{
  if (b->size != 0
      && (b->p[0] != b->byte || b->p[b->size - 1] != b->byte || b->p[b->size / 2] != b->byte
          || b->p[b->size / 3] != b->byte))
    CHECK_FAIL ("seed %llu: block %p of %zu bytes is not as it was written",
                (unsigned long long)seed, (void *)b->p, b->size);
}

static void
fill (struct block *b, uint64_t *state)
{
  b->byte = (unsigned char)check_random (state);
  memset (b->p, b->byte, b->size);
}

static void
make (struct block *b, uint64_t *state, unsigned choice)
{
  malloc_arena *arena = arenas[check_random (state) % choice];
  b->size = some_size (state);
  size_t alignment = (size_t)16 << check_random (state) % 6;
  b->is_object = false;
  malloc_arena_enter (arena);
  switch (check_random (state) % 8)
    {
    case 0:
      b->p = calloc (1, b->size);
      CHECK (b->p != NULL && check_all (b->p, 0, b->size));
      break;
    case 1:
      b->p = aligned_alloc (alignment, b->size);
      CHECK ((uintptr_t)b->p % alignment == 0);
      break;
    case 2:
    case 3:
      if (arena != NULL)
        {
          b->p = ma_object_alloc (ma_local_of (arena), b->size);
          b->is_object = true;
          CHECK (arena == arenas[2] || b->p == NULL || check_all (b->p, 0, b->size));
          break;
        }
      /* fall through */
    case 4:
      if (arena != NULL)
        {
          b->p = malloc_arena (arena, malloc, b->size);
          break;
        }
      /* fall through */
    default: b->p = malloc (b->size);
    }
  malloc_arena_leave (arena);
  CHECK (b->p != NULL && malloc_arena_of (b->p) == arena);
  fill (b, state);
}

static void
drop (struct block *b)
{
  if (b->p == NULL)
    return;
  verify (b);
  if (b->is_object && b->byte & 1)
    ma_object_free (b->p);
  else
    free (b->p);
  b->p = NULL;
}

static void
one_step (struct block *mine, uint64_t *state)
{
  struct block *b = &mine[check_random (state) % SLOTS];
  unsigned what = (unsigned)(check_random (state) % 16);
  if (b->p == NULL)
    make (b, state, ARENAS);
  else if (what < 6)
    drop (b);
  else if (what < 9)
    {
      verify (b);
      malloc_arena *home = malloc_arena_of (b->p);
      size_t size = some_size (state) + 1;
      unsigned char *p
          = b->is_object && b->byte & 1 ? ma_object_resize (b->p, size) : realloc (b->p, size);
      CHECK (p != NULL && malloc_arena_of (p) == home);
      b->p = p;
      b->size = size < b->size ? size : b->size;
      verify (b);
      b->size = size;
      fill (b, state);
    }
  else if (what < 14)
    {
      size_t at = check_random (state) % SHARED;
      pthread_mutex_lock (&shared_lock[at]);
      struct block other = shared[at];
      shared[at] = *b;
      pthread_mutex_unlock (&shared_lock[at]);
      *b = other;
      if (b->p != NULL)
        verify (b);
    }
  else
    {
      verify (b);
      if (b->is_object)
        CHECK (malloc_usable_size (b->p) >= b->size);
      else if (malloc_arena_of (b->p) != NULL)
        CHECK_EQUAL (malloc_usable_size (b->p), b->size);
    }
}

static void *
worker (void *data)
{
  uint64_t state = seed * 1000 + (size_t)data;
  struct block mine[SLOTS] = { 0 };
  unsigned long count = 0;
  for (; !stop; count++)
    one_step (mine, &state);
  for (size_t i = 0; i < SLOTS; i++)
    drop (&mine[i]);
  operations += count;
  return NULL;
}

static void *
child_worker (void *data)
{
  uint64_t state = (uintptr_t)data;
  struct block mine[SLOTS] = { 0 };
  for (unsigned i = 0; i < 2000; i++)
    {
      struct block *b = &mine[check_random (&state) % SLOTS];
      /* The address sanitizer's own malloc may have been left locked by the fork. */
      if (b->p == NULL)
        make (b, &state, ARENAS - CHECK_SANITIZED);
      else
        drop (b);
    }
  for (size_t i = 0; i < SLOTS; i++)
    drop (&mine[i]);
  return NULL;
}

/* A child has one thread, and inherits blocks that others were just writing: it works on its own, and a
 * thread that it starts with what a thread had that is not there any more. */
static void
child (void *data)
{
  alarm (120);
  child_worker (data);
  if (CHECK_SANITIZED)
    return;
  pthread_t thread;
  CHECK_EQUAL (pthread_create (&thread, NULL, child_worker, data), 0);
  pthread_join (thread, NULL);
}

int
main (int argc, char **argv)
{
  seed = argc > 1 ? strtoull (argv[1], NULL, 10) : 1;
  long seconds = argc > 2 ? atol (argv[2]) : 8;
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = HEAP_SECURE, .name = "kept" };
  options.fork = MALLOC_ARENA_FORK_KEEP;
  arenas[0] = malloc_arena_get (HEAP_SECURE);
  arenas[1] = malloc_arena_get (HEAP_SECURE | HEAP_ISOLATED);
  arenas[2] = malloc_arena_get (HEAP_DEFAULT);
  arenas[3] = malloc_arena_new (&options);
  for (unsigned i = 0; i < 4; i++)
    CHECK (arenas[i] != NULL);
  for (size_t i = 0; i < SHARED; i++)
    CHECK_EQUAL (pthread_mutex_init (&shared_lock[i], NULL), 0);

  struct timespec start, now;
  clock_gettime (CLOCK_MONOTONIC, &start);
  unsigned children = 0;
  uint64_t state = seed;
  do
    {
      /* A generation of threads; the next takes over what it left. */
      pthread_t threads[THREADS];
      stop = false;
      for (size_t t = 0; t < THREADS; t++)
        CHECK_EQUAL (
            pthread_create (&threads[t], NULL, worker, (void *)(check_random (&state) % 900)), 0);
      for (unsigned i = 0; i < 15; i++, children++)
        {
          struct check_outcome outcome
              = check_child (child, (void *)(uintptr_t)(check_random (&state) >> 8));
          if (outcome.exit_code != 0)
            CHECK_FAIL ("seed %llu: child %u: exit %d, signal %d", (unsigned long long)seed,
                        children, outcome.exit_code, outcome.signal);
        }
      stop = true;
      for (unsigned t = 0; t < THREADS; t++)
        pthread_join (threads[t], NULL);
      clock_gettime (CLOCK_MONOTONIC, &now);
    }
  while (now.tv_sec - start.tv_sec < seconds);
  for (size_t i = 0; i < SHARED; i++)
    drop (&shared[i]);
  for (unsigned i = 0; i < 4; i++)
    {
      struct malloc_arena_stats stats = check_stats (arenas[i]);
      CHECK_EQUAL (stats.live_blocks, 0);
      CHECK_EQUAL (stats.live_bytes, 0);
    }
  CHECK_EQUAL (malloc_arena_delete (arenas[3]), 0);
  dprintf (STDOUT_FILENO, "seed %llu: %lu operations, %u children\n", (unsigned long long)seed,
           operations, children);
  return 0;
}
