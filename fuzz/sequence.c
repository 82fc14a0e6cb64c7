/* sequence.c - a fuzzer of the whole interface: each input is a sequence of calls in all kinds of
 * arenas and in several threads, one at a time or all at once, held against a model of what must be so.
 *
 * With libFuzzer: CC=clang meson setup build -Dpython=false -Dtests=true builds, where clang can,
 * tests/c/fuzz_sequence, the library inside it; run it on a directory, with fuzz/corpus as seeds. In
 * the ordinary test run fuzz/replay.c plays the corpus, and some random sequences.
 */
#include "check.h"

#include <malloc.h>
#include <semaphore.h>

void free_sized (void *, size_t);
void free_aligned_sized (void *, size_t, size_t);
int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

enum
{
  BLOCKS = 48,
  ARENAS = 5,
  OWN = 4, /* made and deleted along the way */
  WORKERS = 3,
  FORKS = 1, /* most of an input: each costs more than all the rest */
  NESTED = 6
};

struct block
{
  unsigned char *p;
  size_t size;
  unsigned char byte;
  int arena; /* index; -1: the ordinary malloc */
};

static struct
{
  const uint8_t *at, *end;
} input;
static struct block blocks[BLOCKS];
static malloc_arena *arenas[ARENAS];
static bool is_secure[ARENAS], is_limited[ARENAS];
static _Atomic size_t live_blocks[ARENAS], live_bytes[ARENAS];
static _Atomic unsigned char stamp;
static _Atomic unsigned own_entered;
static unsigned forks;
static char text[1 << 19]; /* to be copied */
static int memory = -1;    /* /proc/self/mem: an unmapped address is an error, not a fault */

/* While threads run at once, none can have the input: each draws from a seed, and has some of the blocks
 * to itself. */
static _Thread_local uint64_t draw;
static _Thread_local unsigned first_block, block_count = BLOCKS;
static _Thread_local unsigned nested;

static unsigned
byte (void)
{
  if (draw != 0)
    {
      draw ^= draw << 13;
      draw ^= draw >> 7;
      draw ^= draw << 17;
      return (unsigned)(draw >> 32 & 255);
    }
  return input.at < input.end ? *input.at++ : 0;
}

static size_t
some_size (void)
{
  unsigned kind = byte ();
  size_t n = byte ();
  switch (kind % 8)
    {
    case 0: return n & 31;
    case 1:
    case 2: return n;
    case 3: return n * 8 + kind / 8;
    case 4: return 2048 - 16 + (n & 31); /* about the threshold */
    case 5: return n * 64 + kind;
    case 6: return 4096 * (1 + (n & 7)) - 8 + (n >> 4);
    default: return n * 1024 + kind;
    }
}

/* ---- the model ---- */

static void
added (struct block *b)
{
  if (b->arena < 0)
    return;
  live_blocks[b->arena]++;
  live_bytes[b->arena] += b->size;
}

static void
removed (const struct block *b)
{
  if (b->arena < 0)
    return;
  live_blocks[b->arena]--;
  live_bytes[b->arena] -= b->size;
}

static void
verify (const struct block *b)
{
  CHECK (check_all (b->p, b->byte, b->size));
  malloc_arena *arena = b->arena < 0 ? NULL : arenas[b->arena];
  CHECK (malloc_arena_of (b->p) == arena);
  if (b->size != 0)
    CHECK (malloc_arena_of (b->p + b->size - 1) == arena);
  if (arena != NULL)
    CHECK_EQUAL (malloc_usable_size (b->p), b->size);
}

static void
verify_counts (void)
{
  for (int i = 0; i < ARENAS; i++)
    {
      if (arenas[i] == NULL)
        continue;
      struct malloc_arena_stats stats = check_stats (arenas[i]);
      CHECK_EQUAL (stats.live_blocks, live_blocks[i]);
      CHECK_EQUAL (stats.live_bytes, live_bytes[i]);
      struct malloc_arena_receipt receipt = check_receipt (arenas[i]);
      CHECK_EQUAL (receipt.obtained & ~receipt.requested, 0);
      CHECK (receipt.locked_bytes <= receipt.mapped_bytes);
      CHECK (receipt.mapped_bytes >= live_bytes[i]);
    }
}

/* Nothing of a block is left where it was. */
static void
verify_wiped (uintptr_t place, size_t size)
{
  unsigned char now[256];
  ssize_t got = pread (memory, now, size < sizeof now ? size : sizeof now, (off_t)place);
  if (got > 0)
    CHECK (check_all (now, 0, (size_t)got));
}

/* ---- the calls ---- */

/* Whether there is no block as the arena has a limit. */
static bool
is_at_limit (const void *p, int arena)
{
  if (p != NULL || arena < 0 || !is_limited[arena])
    return false;
  CHECK_EQUAL (errno, ENOMEM);
  return true;
}

static void
settle (struct block *b, void *p, size_t size, int arena, size_t alignment)
{
  CHECK (p != NULL);
  CHECK_EQUAL ((uintptr_t)p % alignment, 0);
  *b = (struct block){ .p = p, .size = size, .byte = ++stamp | 1, .arena = arena };
  memset (p, b->byte, size);
  added (b);
  verify (b);
}

static void
allocate (struct block *b)
{
  int index = (int)(byte () % (ARENAS + 1)) - 1;
  if (index >= 0 && arenas[index] == NULL)
    index = -1;
  malloc_arena *arena = index < 0 ? NULL : arenas[index];
  size_t size = some_size (), alignment = (size_t)8 << byte () % 12;
  size_t least = alignment < 16 ? 16 : alignment;
  void *p = NULL;
  unsigned routine = byte () % 12;
  /* Of an empty block of its own the thread sanitizer says that a byte is usable, which it then
   * takes for freed. */
  if (CHECK_THREAD_SANITIZED && arena == NULL && size == 0)
    size = 1;
  malloc_arena_enter (arena);
  switch (routine)
    {
    case 0: p = calloc (1, size); break;
    case 1: p = calloc (size, 1); break;
    case 2: p = realloc (NULL, size); break;
    case 3: p = reallocarray (NULL, 1, size); break;
    case 4: p = aligned_alloc (alignment, size); break;
    case 5: p = memalign (alignment, size); break;
    case 6: errno = posix_memalign (&p, alignment, size); break;
    case 7:
      p = valloc (size);
      least = CHECK_PAGE;
      break;
    case 8:
      if (arena != NULL)
        p = malloc_arena (arena, malloc, size);
      else
        p = malloc (size);
      break;
    case 9:
      size = (size + CHECK_PAGE - 1) / CHECK_PAGE * CHECK_PAGE;
      p = pvalloc (size);
      least = CHECK_PAGE;
      break;
    case 10:
      if (arena != NULL && size != 0 && !CHECK_SANITIZED)
        {
          p = malloc_arena (arena, strndup, text, size - 1);
          break;
        }
      /* fall through */
    default: p = malloc (size);
    }
  malloc_arena_leave (arena);
  if (is_at_limit (p, index))
    return;
  if (routine < 2)
    CHECK (check_all (p, 0, size));
  settle (b, p, size, index, (routine >= 4 && routine <= 7) || routine == 9 ? least : 16);
}

static void
release (struct block *b)
{
  verify (b);
  removed (b);
  uintptr_t place = (uintptr_t)b->p;
  errno = EXDEV;
  switch (b->byte >> 1 & 3)
    {
    case 0: free_sized (b->p, b->size); break;
    case 1: free_aligned_sized (b->p, 16, b->size); break;
    default: free (b->p);
    }
  CHECK_EQUAL (errno, EXDEV);
  /* With others at work the place may be theirs by now. */
  if (b->arena >= 0 && is_secure[b->arena] && draw == 0)
    verify_wiped (place, b->size);
  b->p = NULL;
}

static void
resize (struct block *b)
{
  size_t size = some_size ();
  verify (b);
  if (size == 0)
    {
      removed (b);
      CHECK (realloc (b->p, check_size (0)) == NULL);
      b->p = NULL;
      return;
    }
  /* An outside block moves into the arena that is active, others stay. */
  int active = (int)(byte () % (ARENAS + 1)) - 1;
  if (active >= 0 && arenas[active] == NULL)
    active = -1;
  malloc_arena_enter (active < 0 ? NULL : arenas[active]);
  unsigned char *p = byte () % 2 ? realloc (b->p, size) : reallocarray (b->p, size, 1);
  malloc_arena_leave (active < 0 ? NULL : arenas[active]);
  if (is_at_limit (p, b->arena < 0 ? active : b->arena))
    {
      verify (b);
      return;
    }
  removed (b);
  CHECK (p != NULL && check_all (p, b->byte, size < b->size ? size : b->size));
  settle (b, p, size, b->arena < 0 ? active : b->arena, 16);
}

static void
refused (struct block *b)
{
  size_t huge = SIZE_MAX / 2 + 1 + some_size ();
  errno = 0;
  switch (byte () % 5)
    {
    case 0: CHECK (realloc (b->p, check_size (huge)) == NULL); break;
    case 1: CHECK (reallocarray (b->p, check_size (huge), 2) == NULL); break;
    case 2: CHECK (calloc (check_size (huge), 2) == NULL); break;
    case 3: CHECK (aligned_alloc (64, check_size (huge)) == NULL); break;
    default: CHECK (malloc (check_size (huge)) == NULL);
    }
  CHECK_EQUAL (errno, ENOMEM);
  if (b->p != NULL)
    verify (b);
}

static void
own_arena (void)
{
  malloc_arena **own = &arenas[OWN];
  if (*own != NULL)
    {
      bool is_used = live_blocks[OWN] != 0 || own_entered != 0;
      errno = 0;
      int result = malloc_arena_delete (*own);
      CHECK_EQUAL (result, is_used ? -1 : 0);
      if (is_used)
        CHECK_EQUAL (errno, EBUSY);
      else
        *own = NULL;
      return;
    }
  static const size_t thresholds[] = { 0, 0, 16, 64, 1000, 2048 };
  static const size_t heaps[] = { 0, 64 << 10, 1 << 20, 4 << 20 };
  static const size_t limits[] = { 0, 0, 0, 64 << 10, 300 << 10, 1 << 20 };
  static const unsigned kinds[]
      = { HEAP_DEFAULT, HEAP_SECURE, HEAP_SECURE | HEAP_ISOLATED, HEAP_SECURE | HEAP_SECRETMEM };
  struct malloc_arena_options options = { .size = sizeof options, .name = "own" };
  options.kind = kinds[byte () % 4];
  options.fork = byte () % 3; /* not `refuse`: the child verifies */
  options.lock = byte () % 2 ? MALLOC_ARENA_LOCK_OFF : 0;
  options.isolate_threshold = options.kind == HEAP_SECURE ? thresholds[byte () % 6] : 0;
  options.heap_size = heaps[byte () % 4];
  options.limit = limits[byte () % 6];
  *own = malloc_arena_new (&options);
  if (*own == NULL && options.kind & HEAP_SECRETMEM)
    CHECK_EQUAL (errno, ENOTSUP);
  else
    CHECK (*own != NULL);
  is_limited[OWN] = options.limit != 0;
  is_secure[OWN] = options.kind != HEAP_DEFAULT;
}

static void
in_child (void)
{
  for (int i = 0; i < BLOCKS; i++)
    {
      struct block *b = &blocks[i];
      if (b->p == NULL)
        continue;
      bool is_wiped
          = b->arena >= 0 && check_receipt (arenas[b->arena]).obtained & MALLOC_ARENA_FORK_WIPED;
      if (is_wiped)
        b->byte = 0;
      verify (b);
      if (b->byte == 0)
        memset (b->p, b->byte = 77, b->size);
    }
  verify_counts ();
  memory = open ("/proc/self/mem", O_RDONLY | O_CLOEXEC);
  for (int i = 0; i < BLOCKS; i++)
    if (blocks[i].p == NULL)
      allocate (&blocks[i]);
  for (int i = 0; i < BLOCKS; i++)
    if (blocks[i].p != NULL)
      release (&blocks[i]);
  verify_counts ();
}

static void
fork_once (void)
{
  if (forks++ >= FORKS)
    return;
  pid_t pid = fork ();
  CHECK (pid >= 0);
  if (pid == 0)
    {
      alarm (120);
      in_child ();
      _exit (0);
    }
  struct check_outcome outcome = check_wait (pid, -1);
  CHECK_EQUAL (outcome.signal, 0);
  CHECK_EQUAL (outcome.exit_code, 0);
}

static void one_call (void);

/* Some calls with an arena active, or the ordinary malloc. */
static void
inside (void)
{
  int index = (int)(byte () % (ARENAS + 1)) - 1;
  malloc_arena *arena = index < 0 ? NULL : arenas[index];
  own_entered += index == OWN && arena != NULL;
  nested++;
  malloc_arena_enter (arena);
  for (unsigned calls = byte () % 4; calls != 0; calls--)
    one_call ();
  malloc_arena_leave (arena);
  nested--;
  own_entered -= index == OWN && arena != NULL;
}

static void
one_call (void)
{
  unsigned what = byte () % 32;
  struct block *b = &blocks[first_block + byte () % block_count];
  /* With others at work there is no counting, no end of an arena, and no fork that a model knows of. */
  if (draw != 0 && (what == 31 || what == 30 || what == 28))
    what = 24;
  if (what == 31)
    fork_once ();
  else if (what == 30)
    own_arena ();
  else if (what == 29)
    refused (b);
  else if (what == 28)
    verify_counts ();
  else if (what == 27)
    CHECK (malloc_trim (0) >= 0);
  else if (what == 26 && nested < NESTED)
    inside ();
  else if (what == 25)
    malloc_arena_scrub (byte () * 64);
  else if (b->p == NULL)
    allocate (b);
  else if (what < 14)
    release (b);
  else if (what < 24)
    resize (b);
  else
    verify (b);
}

/* ---- threads: mostly one at a time, so that an input is a sequence ---- */

static struct worker
{
  pthread_t thread;
  sem_t begin, done;
  unsigned calls; /* 0: end */
  uint64_t draw;  /* to run with the others: what from */
} workers[WORKERS];

static void
wait_for (sem_t *semaphore)
{
  while (sem_wait (semaphore) == -1)
    CHECK_EQUAL (errno, EINTR); /* the fuzzer's timer */
}

static void *
work (void *data)
{
  struct worker *worker = data;
  for (;;)
    {
      wait_for (&worker->begin);
      if (worker->calls == 0)
        return NULL;
      draw = worker->draw;
      if (draw != 0)
        {
          block_count = BLOCKS / WORKERS;
          first_block = (unsigned)(worker - workers) * block_count;
        }
      for (unsigned i = 0; i < worker->calls && (draw != 0 || input.at < input.end); i++)
        one_call ();
      draw = 0;
      first_block = 0;
      block_count = BLOCKS;
      sem_post (&worker->done);
    }
}

static void
start (struct worker *worker)
{
  CHECK_EQUAL (sem_init (&worker->begin, 0, 0), 0);
  CHECK_EQUAL (sem_init (&worker->done, 0, 0), 0);
  CHECK_EQUAL (pthread_create (&worker->thread, NULL, work, worker), 0);
}

static void
run (struct worker *worker, unsigned calls, uint64_t seed)
{
  worker->calls = calls;
  worker->draw = seed;
  sem_post (&worker->begin);
}

/* All of them at once. */
static void
run_all (unsigned calls, uint64_t seed)
{
  for (int i = 0; i < WORKERS; i++)
    run (&workers[i], calls, (seed * WORKERS + (unsigned)i + 1) * 0x9e3779b97f4a7c15u | 1);
  for (int i = 0; i < WORKERS; i++)
    wait_for (&workers[i].done);
  verify_counts ();
}

static void
end (struct worker *worker)
{
  worker->calls = 0;
  sem_post (&worker->begin);
  pthread_join (worker->thread, NULL);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  if (memory == -1)
    {
      memory = open ("/proc/self/mem", O_RDONLY | O_CLOEXEC);
      CHECK (memory >= 0);
      memset (text, 'x', sizeof text - 1);
      struct malloc_arena_options options
          = { .size = sizeof options, .kind = HEAP_SECURE, .fork = MALLOC_ARENA_FORK_KEEP };
      arenas[0] = malloc_arena_get (HEAP_SECURE);
      arenas[1] = malloc_arena_get (HEAP_SECURE | HEAP_ISOLATED);
      arenas[2] = malloc_arena_get (HEAP_DEFAULT);
      arenas[3] = malloc_arena_new (&options);
      for (int i = 0; i < OWN; i++)
        {
          CHECK (arenas[i] != NULL);
          is_secure[i] = i != 2;
        }
    }
  input.at = data;
  input.end = data + size;
  forks = 0;
  stamp = 0;
  for (int i = 0; i < WORKERS; i++)
    start (&workers[i]);
  while (input.at < input.end)
    {
      unsigned turn = byte ();
      unsigned who = turn % (WORKERS + 2);
      unsigned calls = 1 + turn / 32;
      if (who < WORKERS)
        {
          run (&workers[who], calls, 0);
          wait_for (&workers[who].done);
        }
      else if (who == WORKERS)
        for (unsigned i = 0; i < calls && input.at < input.end; i++)
          one_call ();
      else if (calls == 6)
        run_all (4 + byte (), byte ());
      else if (calls > 6)
        {
          /* A thread ends; another takes over what it had. */
          struct worker *worker = &workers[byte () % WORKERS];
          end (worker);
          start (worker);
        }
    }
  for (int i = 0; i < WORKERS; i++)
    end (&workers[i]);
  verify_counts ();
  for (int i = 0; i < BLOCKS; i++)
    if (blocks[i].p != NULL)
      release (&blocks[i]);
  verify_counts ();
  if (arenas[OWN] != NULL)
    {
      CHECK_EQUAL (malloc_arena_delete (arenas[OWN]), 0);
      arenas[OWN] = NULL;
    }
  return 0;
}
