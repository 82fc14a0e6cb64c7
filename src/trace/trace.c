/* trace.c - remembers who allocated a block of the process's malloc: preloaded in a program that is
 * audited with --trace, and read from outside (python/malloc_arena/audit/traced.py).
 *
 * It replaces nothing: each routine is the next one's, and what it returned is noted, with the call
 * stack and the time, in a table of fixed size. A freed block stays in the table until its place is
 * needed. What cannot be noted at once (another thread is at the same place) is left out.
 */
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXPORT __attribute__ ((visibility ("default")))

enum
{
  FRAMES = 12,
  OWN = 2,  /* innermost frames: note() and the routine here */
  WAYS = 8, /* places where a block may be noted */
  BUCKETS_LOG = 15,
  BUCKETS = 1 << BUCKETS_LOG
};

/* Read from outside by these sizes and offsets: a change is a new VERSION. */
struct note
{
  uintptr_t block;
  uint64_t size;
  uint64_t born; /* CLOCK_MONOTONIC, in ns */
  uint64_t died; /* 0: it lives */
  void *frames[FRAMES];
};
struct bucket
{
  struct note notes[WAYS];
};
static struct bucket table[BUCKETS];
static atomic_flag busy[BUCKETS];

struct malloc_arena_trace
{
  uint32_t version, frames, ways, buckets_log;
  const struct bucket *table;
};
extern EXPORT const struct malloc_arena_trace malloc_arena_trace;
const struct malloc_arena_trace malloc_arena_trace = { 1, FRAMES, WAYS, BUCKETS_LOG, table };

static __thread int is_inside __attribute__ ((tls_model ("initial-exec")));
static atomic_int is_ready;

static uint64_t
now (void)
{
  struct timespec t;
  clock_gettime (CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static size_t
bucket_of (uintptr_t block)
{
  return (size_t)((block >> 4) * 0x9e3779b97f4a7c15u >> (64 - BUCKETS_LOG));
}

static __attribute__ ((noinline)) void
note (void *p, size_t size)
{
  if (p == NULL || is_inside || !atomic_load_explicit (&is_ready, memory_order_relaxed))
    return;
  int saved = errno;
  void *frames[FRAMES + OWN];
  is_inside = 1; /* the unwinder may allocate */
  int n = backtrace (frames, FRAMES + OWN);
  is_inside = 0;
  size_t at = bucket_of ((uintptr_t)p);
  if (!atomic_flag_test_and_set_explicit (&busy[at], memory_order_acquire))
    {
      /* Its own old place; else the one that is empty, dead for longest, or oldest. */
      struct note *best = &table[at].notes[0];
      for (struct note *one = table[at].notes; one < table[at].notes + WAYS; one++)
        {
          if (one->block == (uintptr_t)p)
            {
              best = one;
              break;
            }
          int is_better = one->block == 0                         ? best->block != 0
                          : best->block == 0                      ? 0
                          : (one->died != 0) != (best->died != 0) ? one->died != 0
                          : one->died != 0                        ? one->died < best->died
                                                                  : one->born < best->born;
          if (is_better)
            best = one;
        }
      *best = (struct note){ .block = (uintptr_t)p, .size = size, .born = now () };
      if (n > OWN)
        memcpy (best->frames, frames + OWN, (size_t)(n - OWN) * sizeof *frames);
      atomic_flag_clear_explicit (&busy[at], memory_order_release);
    }
  errno = saved;
}

/* Before the block is given back: a moment later it may be another thread's. */
static void
note_death (void *p)
{
  size_t at = bucket_of ((uintptr_t)p);
  if (p == NULL || atomic_flag_test_and_set_explicit (&busy[at], memory_order_acquire))
    return;
  for (struct note *one = table[at].notes; one < table[at].notes + WAYS; one++)
    if (one->block == (uintptr_t)p)
      one->died = now ();
  atomic_flag_clear_explicit (&busy[at], memory_order_release);
}

#define NEXT(result, name, parameters)                                                             \
  static result (*next) parameters;                                                                \
  if (next == NULL)                                                                                \
  next = (result (*) parameters) (uintptr_t)dlsym (RTLD_NEXT, #name)

EXPORT void *
malloc (size_t size)
{
  NEXT (void *, malloc, (size_t));
  void *p = next (size);
  note (p, size);
  return p;
}

EXPORT void *
calloc (size_t count, size_t size)
{
  NEXT (void *, calloc, (size_t, size_t));
  void *p = next (count, size);
  note (p, count * size);
  return p;
}

EXPORT void *
realloc (void *old, size_t size)
{
  NEXT (void *, realloc, (void *, size_t));
  note_death (old);
  void *p = next (old, size);
  note (p, size);
  return p;
}

EXPORT int
posix_memalign (void **out, size_t align, size_t size)
{
  NEXT (int, posix_memalign, (void **, size_t, size_t));
  int refused = next (out, align, size);
  if (refused == 0)
    note (*out, size);
  return refused;
}

EXPORT void *
aligned_alloc (size_t align, size_t size)
{
  NEXT (void *, aligned_alloc, (size_t, size_t));
  void *p = next (align, size);
  note (p, size);
  return p;
}

EXPORT void
free (void *p)
{
  NEXT (void, free, (void *));
  note_death (p);
  next (p);
}

__attribute__ ((constructor)) static void
start (void)
{
  void *frame;
  backtrace (&frame, 1); /* loads the unwinder, which allocates */
  atomic_store (&is_ready, 1);
}
