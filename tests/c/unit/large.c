/* Large blocks that change their size: in place where there is room, with one copy of what they hold at
 * any time, guarded as before unless they grew, and what they leave is wiped and given back at once. In an isolated
 * arena they move: what points to the old place must fault. And what of them stays ready: enough, and not
 * too much. */
#include "check.h"

#include <malloc.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum
{
  MIB = 1 << 20
};

static malloc_arena *
new_arena (unsigned kind, size_t limit)
{
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = kind, .name = "large", .limit = limit };
  malloc_arena *arena = malloc_arena_new (&options);
  CHECK (arena != NULL);
  return arena;
}

/* Bytes of value BYTE in runs of 64 and more, anywhere in the region's present pages, by the kernel's
 * own eyes: the memory of the process as a file. */
struct search
{
  int memory;
  unsigned char byte;
  size_t found;
};

static void
search_mapping (const struct check_mapping *m, void *data)
{
  static unsigned char bytes[1 << 16];
  struct search *search = data;
  if (m->rss == 0)
    return;
  for (uintptr_t at = m->start; at < m->end; at += CHECK_PAGE)
    {
      /* A guard page cannot be read, and holds nothing. */
      if (pread (search->memory, bytes, CHECK_PAGE, (off_t)at) != (ssize_t)CHECK_PAGE)
        continue;
      for (size_t i = 0, run = 0; i < CHECK_PAGE; i++)
        {
          run = bytes[i] == search->byte ? run + 1 : 0;
          search->found += run == 64 ? 64 : run > 64;
        }
    }
}

static size_t
count_bytes (unsigned char byte)
{
  struct ma_region region = check_bounds ();
  struct search search = { open ("/proc/self/mem", O_RDONLY | O_CLOEXEC), byte, 0 };
  CHECK (search.memory >= 0);
  check_mappings (region.base, region.base + region.size, search_mapping, &search);
  close (search.memory);
  return search.found;
}

static void
check_block (char *p, size_t size)
{
  CHECK_EQUAL (malloc_usable_size (p), size);
  CHECK_EQUAL ((uintptr_t)p % 16, 0);
}

static void
check_guarded (unsigned kind, char *p, size_t size)
{
  size_t page = CHECK_PAGE;
  uintptr_t guard = ((uintptr_t)p + size + page - 1) / page * page;
  check_block (p, size);
  if (kind == HEAP_DEFAULT)
    return;
  CHECK (guard - ((uintptr_t)p + size) < 16);
  CHECK_FAULTS ((void *)guard);
}

/* There may be room before the guard of a block that grew. */
static void
check_grown (unsigned kind, char *p, size_t size)
{
  if (kind & HEAP_ISOLATED)
    check_guarded (kind, p, size);
  else
    check_block (p, size);
}

/* 24 MiB grow by 1 MiB steps under a limit that two copies do not fit, and shrink again. */
static void
in_place (unsigned kind)
{
  malloc_arena *arena = new_arena (kind, 40 * MIB);
  size_t size = 24 * MIB;
  char *p = malloc_arena (arena, malloc, size);
  CHECK (p != NULL);
  memset (p, 0x5a, size);
  char *first = p;
  size_t mappings = check_count_mappings ();
  while (size < 36 * MIB)
    {
      size_t next = size + MIB + 7;
      CHECK ((p = realloc (p, next)) != NULL);
      CHECK (check_all (p, 0x5a, size));
      CHECK (kind == HEAP_DEFAULT || check_all (p + size, 0, next - size));
      memset (p + size, 0x5a, next - size);
      size = next;
      check_block (p, size);
      /* Up to 512 pages ranges have one of eight sizes in a doubling. */
      size_t rounding = size <= 512 * CHECK_PAGE ? size / 8 : 0;
      CHECK (check_stats (arena).mapped_bytes <= size + rounding + 2 * CHECK_PAGE);
      CHECK_EQUAL (check_stats (arena).live_bytes, size);
    }
  CHECK_EQUAL (check_stats (arena).peak_bytes, size);
  CHECK_EQUAL (check_count_mappings (), mappings);
  CHECK (kind != HEAP_DEFAULT || p == first);
  CHECK ((uintptr_t)(p > first ? p - first : first - p) < CHECK_PAGE);
  if (kind & HEAP_SECURE)
    {
      CHECK (count_bytes (0x5a) >= size - 64 * 1024);
      CHECK (count_bytes (0x5a) <= size);
    }
  /* Down: the pages are the kernel's at once. */
  for (size_t next = size / 3; next > MIB / 2; next /= 3)
    {
      CHECK ((p = realloc (p, next)) != NULL);
      CHECK (check_all (p, 0x5a, next));
      check_guarded (kind, p, next);
      size_t held = next + next / 8 + 16 * CHECK_PAGE;
      CHECK (check_region ().present <= held);
      CHECK (check_stats (arena).mapped_bytes <= held);
      if (kind & HEAP_SECURE)
        CHECK (count_bytes (0x5a) <= next);
      /* Not worth a call: the pages stay, and what the block left in them is gone as well. */
      size_t mapped = check_stats (arena).mapped_bytes;
      CHECK ((p = realloc (p, next / 4 * 3)) != NULL);
      check_guarded (kind, p, next / 4 * 3);
      CHECK_EQUAL (check_stats (arena).mapped_bytes, mapped);
      if (kind & HEAP_SECURE)
        CHECK (count_bytes (0x5a) <= next / 4 * 3);
    }
  if (kind & HEAP_SECURE)
    check_honest (arena);
  free (p);
  CHECK_EQUAL (count_bytes (0x5a), kind & HEAP_SECURE ? 0 : count_bytes (0x5a));
  malloc_arena_trim (arena);
  CHECK_EQUAL (check_stats (arena).mapped_bytes, 0);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* A neighbour in the way: the block moves, whole, and its old place is wiped. */
static void
moved (unsigned kind)
{
  malloc_arena *arena = new_arena (kind, 0);
  char *a = malloc_arena (arena, malloc, 3 * MIB);
  char *b = malloc_arena (arena, malloc, 3 * MIB);
  CHECK (a != NULL && b != NULL);
  memset (a, 0x5a, 3 * MIB);
  memset (b, 0x43, 3 * MIB);
  a = realloc (a, 5 * MIB);
  CHECK (a != NULL);
  CHECK (check_all (a, 0x5a, 3 * MIB));
  CHECK (check_all (b, 0x43, 3 * MIB));
  check_grown (kind, a, 5 * MIB);
  if (kind & HEAP_SECURE)
    CHECK (count_bytes (0x5a) <= 3 * MIB);
  free (a);
  free (b);
  if (kind & HEAP_SECURE)
    CHECK_EQUAL (count_bytes (0x5a), 0);
  CHECK_EQUAL (check_stats (arena).live_bytes, 0);
  malloc_arena_trim (arena);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* A block that grows bit by bit moves now and then, not at each step, in an isolated arena excepted; with a neighbour
 * in the way, and where the arena's limit leaves nothing to spare. It has what a block has: its size, zeros where it
 * grew, no copy of what it holds; and ends at its guard when it shrinks. */
static void
steps (unsigned kind, size_t limit, size_t from, size_t to, size_t step, size_t most_moves)
{
  malloc_arena *arena = new_arena (kind, limit);
  size_t size = from, moves = 0;
  char *p = malloc_arena (arena, malloc, size);
  char *wall = malloc_arena (arena, malloc, from);
  CHECK (p != NULL && wall != NULL);
  memset (p, 0x5a, size);
  memset (wall, 0x43, from);
  for (unsigned n = 0; size < to; n++)
    {
      size_t next = size + 1 + (step - 1) * (n % 3) / 2;
      char *q = realloc (p, next);
      CHECK (q != NULL);
      moves += p != q;
      p = q;
      CHECK (kind == HEAP_DEFAULT || check_all (p + size, 0, next - size));
      memset (p + size, 0x5a, next - size);
      size = next;
      if (n % 4096 == 0)
        {
          check_block (p, size);
          CHECK (check_all (p, 0x5a, size));
          CHECK (!(kind & HEAP_SECURE) || count_bytes (0x5a) <= size);
          /* No more than the limit has to spare; else what any block of its size has. */
          size_t rounding = size <= 512 * CHECK_PAGE ? size / 8 : 0;
          malloc_arena_trim (arena);
          size_t mapped = check_stats (arena).mapped_bytes - from;
          CHECK (limit == 0 || mapped <= limit / 4 || mapped <= size + rounding + 2 * CHECK_PAGE);
        }
    }
  if (moves > most_moves)
    dprintf (STDERR_FILENO, "%zu moves\n", moves);
  CHECK (moves <= most_moves);
  CHECK (check_all (p, 0x5a, size));
  CHECK (check_all (wall, 0x43, from));
  CHECK_EQUAL (check_stats (arena).live_bytes, size + from);
  CHECK ((p = realloc (p, size - 1)) != NULL);
  check_guarded (kind, p, size - 1);
  CHECK (check_all (p, 0x5a, size - 1));
  CHECK ((p = realloc (p, size + 99)) != NULL);
  CHECK (kind == HEAP_DEFAULT || check_all (p + size - 1, 0, 100));
  if (limit == 0)
    {
      CHECK ((p = realloc (p, size + size / 4)) != NULL);
      check_grown (kind, p, size + size / 4);
      CHECK (kind == HEAP_DEFAULT || check_all (p + size - 1, 0, size / 4 + 1));
    }
  CHECK (check_all (p, 0x5a, size - 1));
  if (kind & HEAP_SECURE)
    {
      CHECK (count_bytes (0x5a) <= size);
      check_honest (arena);
    }
  free (p);
  free (wall);
  if (kind & HEAP_SECURE)
    CHECK_EQUAL (count_bytes (0x5a), 0);
  malloc_arena_trim (arena);
  CHECK_EQUAL (check_stats (arena).mapped_bytes, 0);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* What is written far behind such a block, past its canary, does not outlive it. */
static void
strays (void)
{
  malloc_arena *arena = new_arena (HEAP_SECURE, 0);
  size_t size = 150000;
  char *p = malloc_arena (arena, malloc, size);
  CHECK (p != NULL);
  for (unsigned i = 0; i < 10; i++)
    CHECK ((p = realloc (p, size += 100)) != NULL);
  memset (check_hide (p + size + 5000), 0x5a, 100);
  free (p);
  CHECK_EQUAL (count_bytes (0x5a), 0);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

static void
grow_in_child (void *data)
{
  char *p = data;
  size_t size = malloc_usable_size (p);
  for (size_t i = 0; i < 100; i++)
    CHECK ((p = realloc (p, size += 100)) != NULL);
  check_block (p, size);
  free (p);
}

/* A forked child finds zeros in place of its canary, and goes on. */
static void
steps_after_fork (void)
{
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = HEAP_SECURE, .fork = MALLOC_ARENA_FORK_WIPE };
  malloc_arena *arena = malloc_arena_new (&options);
  CHECK (arena != NULL);
  char *p = malloc_arena (arena, malloc, 100000);
  for (size_t i = 1; i <= 3; i++)
    CHECK ((p = realloc (p, 100000 + 100 * i)) != NULL);
  CHECK_EQUAL (check_child (grow_in_child, p).exit_code, 0);
  CHECK ((p = realloc (p, 100400)) != NULL);
  free (p);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* Many sizes, up and down, against a copy. */
static void
walk (unsigned kind)
{
  enum
  {
    BLOCKS = 8,
    MOST = 3 * MIB
  };
  malloc_arena *arena = new_arena (kind, 0);
  unsigned char *blocks[BLOCKS] = { NULL };
  size_t sizes[BLOCKS] = { 0 };
  uint32_t seed = 7;
  for (unsigned step = 0; step < 1500; step++)
    {
      seed = seed * 1664525u + 1013904223u;
      unsigned i = (seed >> 24) % BLOCKS;
      size_t size = (seed >> 8) % MOST;
      if (step % 3 != 0)
        size = size % (64 << 10) + 5000;
      malloc_arena_enter (arena);
      unsigned char *p = realloc (blocks[i], size + 1);
      malloc_arena_leave (arena);
      CHECK (p != NULL);
      size_t kept = sizes[i] < size + 1 ? sizes[i] : size + 1;
      for (size_t at = 0; at < kept; at += 997)
        CHECK_EQUAL (p[at], (unsigned char)(at * 31 + i));
      for (size_t at = 0; at < size + 1; at += 997)
        p[at] = (unsigned char)(at * 31 + i);
      blocks[i] = p;
      sizes[i] = size + 1;
    }
  size_t live = 0;
  for (unsigned i = 0; i < BLOCKS; i++)
    live += sizes[i];
  CHECK_EQUAL (check_stats (arena).live_bytes, live);
  if (kind & HEAP_SECURE)
    check_honest (arena);
  for (unsigned i = 0; i < BLOCKS; i++)
    free (blocks[i]);
  malloc_arena_trim (arena);
  CHECK_EQUAL (check_stats (arena).mapped_bytes, 0);
  CHECK_EQUAL (check_region ().present, 0);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* Sizes about every border between slots, and between slots and pages, at every alignment. */
static void
aligned (unsigned kind)
{
  static const size_t borders[] = { 2048, 16384, 20480, 30720, 61440, 65536 };
  malloc_arena *arena = malloc_arena_get (kind);
  for (size_t i = 0; i < sizeof borders / sizeof borders[0]; i++)
    for (size_t size = borders[i] - 40; size <= borders[i] + 8; size++)
      for (size_t alignment = 16; alignment <= 8192; alignment *= 2)
        {
          unsigned char *p = malloc_arena (arena, aligned_alloc, alignment, size);
          CHECK (p != NULL && (uintptr_t)p % alignment == 0);
          CHECK_EQUAL (malloc_usable_size (p), size);
          p[0] = p[size - 1] = 1;
          free (p);
        }
}

/* ---- what stays ready ---- */

enum
{
  LIMIT = 8 * MIB,
  KEPT = LIMIT / 8 * 3,    /* of the arena's limit by each thread, of the lock limit by all */
  KEPT_LEAST = 256 * 1024, /* whatever the others do */
  THREADS = 14             /* what they keep at least is all that may be kept */
};

static malloc_arena *
unlocked_arena (void)
{
  struct malloc_arena_options options = {
    .size = sizeof options, .kind = HEAP_SECURE, .limit = LIMIT, .lock = MALLOC_ARENA_LOCK_OFF
  };
  malloc_arena *arena = malloc_arena_new (&options);
  CHECK (arena != NULL);
  return arena;
}

static void
use (malloc_arena *arena, const size_t *sizes, size_t n)
{
  char *blocks[20];
  for (size_t i = 0; i < n; i++)
    {
      CHECK ((blocks[i] = malloc_arena (arena, malloc, sizes[i])) != NULL);
      memset (blocks[i], 0x5a, sizes[i]);
    }
  for (size_t i = 0; i < n; i++)
    free (blocks[i]);
}

static void
grow (malloc_arena *arena, size_t to)
{
  char *p = NULL;
  malloc_arena_enter (arena);
  for (size_t size = 5000, before = 0; size < to; before = size, size += size / 8)
    {
      CHECK ((p = realloc (p, size)) != NULL);
      memset (p + before, 0x5a, size - before);
    }
  malloc_arena_leave (arena);
  free (p);
}

/* A block that becomes less again and again. */
static void
halve (malloc_arena *arena)
{
  size_t size = 200000;
  char *p = malloc_arena (arena, malloc, size);
  CHECK (p != NULL);
  memset (p, 0x5a, size);
  for (; size > 5000; size /= 2)
    {
      CHECK ((p = realloc (p, size / 2)) != NULL);
      CHECK (check_all (p, 0x5a, size / 2));
      CHECK_EQUAL (malloc_usable_size (p), size / 2);
    }
  free (p);
}

/* Also where a limit leaves no room for another. */
static void
halve_at_limit (void)
{
  malloc_arena *arena = unlocked_arena ();
  char *p = malloc_arena (arena, malloc, 200000);
  CHECK (p != NULL);
  memset (p, 0x5a, 200000);
  static char *rest[LIMIT / 4096];
  size_t n = 0;
  for (size_t size = MIB; size > 3000; size = size > 10000 ? size / 2 : size - 1000)
    while ((rest[n] = malloc_arena (arena, malloc, size)) != NULL)
      n++;
  CHECK ((p = realloc (p, 60000)) != NULL);
  CHECK (check_all (p, 0x5a, 60000));
  CHECK (count_bytes (0x5a) <= 60000);
  free (p);
  while (n > 0)
    free (rest[--n]);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* Blocks of sizes that come again and again need no new pages, also after others had their turn. */
static void
ready (void)
{
  static const size_t sizes[] = { 2 * MIB + 5, 500000, 100000, 20000 };
  malloc_arena *arena = unlocked_arena ();
  size_t others[20];
  for (size_t i = 0; i < 20; i++)
    others[i] = 50000;
  use (arena, others, 20);
  for (size_t round = 0; round < 2; round++)
    use (arena, sizes, 4);
  long before = check_faults ();
  for (size_t round = 0; round < 20; round++)
    use (arena, sizes, 4);
  CHECK (check_faults () - before < 100);
  for (size_t round = 0; round < 4; round++)
    grow (arena, 200000);
  before = check_faults ();
  for (size_t round = 0; round < 20; round++)
    grow (arena, 200000);
  CHECK (check_faults () - before < 100);
  for (size_t round = 0; round < 6; round++)
    grow (arena, MIB);
  before = check_faults ();
  for (size_t round = 0; round < 20; round++)
    grow (arena, MIB);
  CHECK (check_faults () - before < 20 * MIB / (long)CHECK_PAGE / 4);
  for (size_t round = 0; round < 3; round++)
    halve (arena);
  before = check_faults ();
  for (size_t round = 0; round < 20; round++)
    halve (arena);
  CHECK (check_faults () - before < 100);
  /* More than may stay: the last one does not, and all others do. */
  static const size_t many[]
      = { 5000, 10000, 20000, 40000, 80000, 160000, 320000, 640000, 1400000, 2600000 };
  for (size_t round = 0; round < 3; round++)
    use (arena, many, 10);
  before = check_faults ();
  for (size_t round = 0; round < 20; round++)
    use (arena, many, 10);
  CHECK (check_faults () - before < 20 * (2600000 / (long)CHECK_PAGE + 5));
  /* Two of them, and the others are there still. */
  static const size_t twice[] = { 20000, 80000, 320000, 640000, 1400000, 2600000, 2600000 };
  for (size_t round = 0; round < 4; round++)
    use (arena, twice, 7);
  before = check_faults ();
  use (arena, twice, 5);
  CHECK (check_faults () - before < 50);
  CHECK_EQUAL (count_bytes (0x5a), 0);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* ---- what was never written ---- */

/* Stand before the C library's, for the library as well: what the kernel might say of pages that are in swap, every third
 * 64 of them, and to whom it may refuse to drop them. */
static bool is_swapping, is_refusing;

int
mincore (void *p, size_t size, unsigned char *present)
{
  long result = syscall (SYS_mincore, p, size, present);
  for (size_t i = 0; is_swapping && result == 0 && i < size / CHECK_PAGE; i++)
    if (((uintptr_t)p / CHECK_PAGE + i) / 64 % 3 == 0)
      present[i] = 0;
  return (int)result;
}

int
madvise (void *p, size_t size, int advice)
{
  if (is_refusing && (advice == MADV_DONTNEED || advice == 24 /* MADV_DONTNEED_LOCKED */))
    {
      errno = EINVAL;
      return -1;
    }
  return (int)syscall (SYS_madvise, p, size, advice);
}

/* A block of SIZE of which a few pages far apart were written. */
static char *
sparse (malloc_arena *arena, size_t size)
{
  char *p = malloc_arena (arena, malloc, size);
  CHECK (p != NULL);
  for (size_t at = size - 70; at > size / 8; at -= size / 8)
    memset (p + at, 0x5a, 64);
  memset (p, 0x5a, 5000);
  return p;
}

/* Pages of a block that nobody wrote cost nothing when it is freed, cut off or left; nothing of the others stays. */
static void
untouched (unsigned lock)
{
  enum
  {
    MUCH = 32 * MIB,
    LEAST = 2 * MIB
  };
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = HEAP_SECURE, .lock = lock };
  malloc_arena *arena = malloc_arena_new (&options);
  CHECK (arena != NULL);
  long before = check_faults ();
  char *p = sparse (arena, MUCH);
  free (p);
  CHECK_EQUAL (count_bytes (0x5a), 0);
  p = sparse (arena, MUCH);
  CHECK ((p = realloc (p, MUCH / 16)) != NULL); /* where it is */
  CHECK (check_all (p, 0x5a, 5000));
  CHECK (count_bytes (0x5a) <= 5000);
  free (p);
  CHECK_EQUAL (count_bytes (0x5a), 0);
  p = sparse (arena, MUCH);
  CHECK ((p = realloc (p, 100)) != NULL); /* to a slot */
  CHECK (check_all (p, 0x5a, 100));
  free (p);
  CHECK_EQUAL (count_bytes (0x5a), 0);
  /* An emulator's kernel is not asked. */
  CHECK (check_emulated () || check_faults () - before < MUCH / (long)CHECK_PAGE / 4);
  /* A range that stays ready is all zero, whatever the state of its pages. */
  for (unsigned round = 0; round < 8; round++)
    {
      is_swapping = round & 1;
      is_refusing = round & 2;
      p = round & 4 ? sparse (arena, LEAST) : malloc_arena (arena, malloc, LEAST);
      CHECK (p != NULL);
      if (!(round & 4))
        memset (p, 0x5a, LEAST);
      size_t place = (uintptr_t)p;
      free (p);
      CHECK_EQUAL (count_bytes (0x5a), 0);
      CHECK ((p = malloc_arena (arena, malloc, LEAST)) != NULL);
      CHECK_EQUAL ((uintptr_t)p, place);
      CHECK (check_all (p, 0, LEAST));
      memset (p, 0x5a, LEAST);
      CHECK ((p = realloc (p, LEAST / 3)) != NULL);
      CHECK (count_bytes (0x5a) <= LEAST / 3);
      free (p);
      CHECK_EQUAL (count_bytes (0x5a), 0);
      is_swapping = is_refusing = false;
      malloc_arena_trim (arena);
    }
  check_honest (arena);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* Sizes that share a bin do not share ranges that are too short; larger blocks have no pages to spare. */
static void
fitting (void)
{
  malloc_arena *arena = unlocked_arena ();
  for (size_t size = 3 * MIB - 100 * CHECK_PAGE; size < 3 * MIB; size += 7 * CHECK_PAGE)
    {
      use (arena, &(size_t){ size - 3 * CHECK_PAGE }, 1);
      char *p = malloc_arena (arena, malloc, size);
      CHECK (p != NULL);
      memset (p, 0x5a, size);
      check_guarded (HEAP_SECURE, p, size);
      CHECK (check_stats (arena).mapped_bytes < 2 * size + MIB / 4);
      free (p);
      malloc_arena_trim (arena);
      CHECK ((p = malloc_arena (arena, malloc, size)) != NULL);
      CHECK (check_stats (arena).mapped_bytes <= size + 2 * CHECK_PAGE);
      free (p);
    }
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

static pthread_barrier_t barrier;

static void *
keeper (void *arena)
{
  static const size_t sizes[] = { 50000, 100000, 200000, 400000, 800000 };
  use (arena, sizes, 5);
  pthread_barrier_wait (&barrier);
  use (arena, sizes, 5);
  pthread_barrier_wait (&barrier);
  pthread_barrier_wait (&barrier);
  return NULL;
}

/* And what stays is bounded, whatever was freed, */
static void
bounded (void)
{
  malloc_arena *arena = unlocked_arena ();
  size_t most = check_region ().present + KEPT + 64 * CHECK_PAGE;
  static void *blocks[LIMIT / MIB * 10];
  size_t n = 0;
  for (size_t left = LIMIT - MIB, size = 5000; left > size; left -= size + 4 * CHECK_PAGE)
    {
      size = size * 77 % 199999 + 5000;
      if ((blocks[n] = malloc_arena (arena, malloc, size)) == NULL)
        break;
      memset (blocks[n++], 0x5a, size);
    }
  while (n > 0)
    free (blocks[--n]);
  CHECK (check_region ().present <= most);
  CHECK (check_stats (arena).mapped_bytes <= KEPT + 64 * CHECK_PAGE);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* and however many threads and arenas there are that have it locked. */
static void
bounded_for_all (void)
{
  struct rlimit limit;
  CHECK_EQUAL (getrlimit (RLIMIT_MEMLOCK, &limit), 0);
  if (limit.rlim_cur < LIMIT)
    {
      puts ("left out: what all threads keep, with a lock limit of less than 8 MiB");
      return;
    }
  limit.rlim_cur = LIMIT;
  CHECK_EQUAL (setrlimit (RLIMIT_MEMLOCK, &limit), 0);
  size_t before = check_region ().present;
  malloc_arena *arena = new_arena (HEAP_SECURE, 0);
  pthread_t threads[THREADS];
  CHECK_EQUAL (pthread_barrier_init (&barrier, NULL, THREADS + 1), 0);
  for (size_t i = 0; i < THREADS; i++)
    CHECK_EQUAL (pthread_create (&threads[i], NULL, keeper, arena), 0);
  pthread_barrier_wait (&barrier);
  pthread_barrier_wait (&barrier);
  size_t most = KEPT + THREADS * (size_t)(KEPT_LEAST + 4 * CHECK_PAGE);
  CHECK (check_region ().present - before <= most);
  CHECK (check_region ().present - before >= KEPT / 2);
  /* Who comes when the others have all keeps the least that each may, and no more; what cannot stay does not make that
   * go. */
  static const size_t least[] = { 20000, 30000 };
  use (arena, least, 2);
  size_t present = check_region ().present;
  use (arena, &(size_t){ 300000 }, 1);
  CHECK_EQUAL (check_region ().present, present);
  long found = check_faults ();
  use (arena, least, 2);
  CHECK (check_faults () - found < 5);
  pthread_barrier_wait (&barrier);
  for (size_t i = 0; i < THREADS; i++)
    pthread_join (threads[i], NULL);
  malloc_arena_trim (arena);
  CHECK_EQUAL (check_stats (arena).mapped_bytes, 0);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* What was written behind the canary of a block that a large alignment keeps from its guard is gone with it. */
static void
aligned_stray (void)
{
  malloc_arena *arena = new_arena (HEAP_SECURE, 0);
  char *p = malloc_arena (arena, aligned_alloc, (size_t)1 << 16, (size_t)70000);
  CHECK (p != NULL);
  memset (check_hide (p) + 70000 + 2 * CHECK_PAGE, 0x5a, 12);
  free (p);
  CHECK_EQUAL (count_bytes (0x5a), 0);
  char *q = malloc_arena (arena, calloc, (size_t)1, (size_t)190000);
  CHECK (q != NULL && check_all (q, 0, 190000));
  free (q);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* Where more blocks are in use than pages may stay ready, and nobody else frees any, those that are not large have none
 * of their own, so that it takes no call of the kernel to make them again; and have when there are fewer. */
static void
too_many_to_stay_ready (void)
{
  enum
  {
    SIZE = 3000,
    MANY = 2500 /* 8 MiB hold 2,048 */
  };
  static char *many[MANY];
  malloc_arena *arena = new_arena (HEAP_SECURE, 0);
  /* Which takes nothing from what may stay ready of the others. */
  char *vast = malloc_arena (arena, malloc, (size_t)20 * MIB);
  CHECK (vast != NULL);
  for (int round = 0; round < 3; round++)
    {
      for (size_t i = 0; i < MANY; i++)
        {
          CHECK ((many[i] = malloc_arena (arena, malloc, (size_t)SIZE)) != NULL);
          CHECK (check_all (many[i], 0, SIZE));
          memset (many[i], 0x5a, SIZE);
        }
      CHECK_FAULTS (many[0] + CHECK_PAGE);
      CHECK_READABLE (many[MANY - 1] + CHECK_PAGE);
      char *large = malloc_arena (arena, malloc, (size_t)20000);
      CHECK (large != NULL);
      CHECK_FAULTS (large + 20480);
      free (large);
      for (size_t i = 0; i < MANY; i++)
        free (many[i]);
      CHECK_EQUAL (count_bytes (0x5a), 0);
      CHECK_EQUAL (check_stats (arena).live_blocks, 1);
    }
  char *p = malloc_arena (arena, malloc, (size_t)SIZE);
  CHECK (p != NULL);
  CHECK_FAULTS (p + CHECK_PAGE);
  free (p);
  free (vast);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

enum
{
  LEFT_SIZE = 12000,
  LEFT = 3000
};
static char *left[LEFT];

static void *
leave_blocks (void *arena)
{
  for (size_t i = 0; i < LEFT; i++)
    CHECK ((left[i] = malloc_arena (arena, malloc, (size_t)LEFT_SIZE)) != NULL);
  pthread_barrier_wait (&barrier);
  pthread_barrier_wait (&barrier);
  return NULL;
}

/* But a slab is its maker's: what others free there is given back by that thread, which may be idle for good. */
static void
freed_by_another (void)
{
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = HEAP_SECURE, .lock = MALLOC_ARENA_LOCK_OFF };
  malloc_arena *arena = malloc_arena_new (&options);
  CHECK (arena != NULL);
  pthread_t thread;
  CHECK_EQUAL (pthread_barrier_init (&barrier, NULL, 2), 0);
  CHECK_EQUAL (pthread_create (&thread, NULL, leave_blocks, arena), 0);
  pthread_barrier_wait (&barrier);
  CHECK (check_stats (arena).mapped_bytes >= LEFT * LEFT_SIZE);
  for (size_t i = 0; i < LEFT; i++)
    free (left[i]);
  /* What stays ready without a limit, and what is given back to its maker. */
  CHECK (check_stats (arena).mapped_bytes <= 10 * MIB);
  pthread_barrier_wait (&barrier);
  pthread_join (thread, NULL);
  malloc_arena_trim (arena);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

int
main (void)
{
  static const unsigned kinds[] = { HEAP_DEFAULT, HEAP_SECURE, HEAP_SECURE | HEAP_ISOLATED };
  too_many_to_stay_ready (); /* first: with one thread */
  for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
    {
      if (!(kinds[i] & HEAP_ISOLATED))
        in_place (kinds[i]);
      moved (kinds[i]);
      walk (kinds[i]);
      if (kinds[i] & HEAP_ISOLATED)
        continue;
      steps (kinds[i], 0, 5000, 100000, 20, 40);
      steps (kinds[i], 0, 65536, MIB, 300, 40);
      steps (kinds[i], 12 * MIB, 3 * MIB, 4 * MIB, 300, 20);
    }
  strays ();
  steps_after_fork ();
  untouched (MALLOC_ARENA_LOCK_OFF);
  untouched (MALLOC_ARENA_LOCK_PREFER);
  for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
    aligned (kinds[i]);
  ready ();
  fitting ();
  bounded ();
  halve_at_limit ();
  bounded_for_all ();
  freed_by_another ();
  aligned_stray ();
  return 0;
}
