/* A freed block of a secure arena is zero at once, and its page goes back to the kernel when the last
 * block in it is freed. */
#include "check.h"

#include "wipe.h"

static malloc_arena *secure;

/* ---- the loops, by each of the ways that a CPU may take ---- */

MA_LONG_WAYS (16, )
#ifdef MA_WIDE
MA_LONG_WAYS (32, MA_TARGET_32)
MA_LONG_WAYS (64, MA_TARGET_64)
#endif

enum
{
  MARGIN = 64,
  MOST = 33000
};

static unsigned char from_memory[MARGIN + MOST + MARGIN], to_memory[MARGIN + MOST + MARGIN];

static size_t
next_size (size_t size)
{
  return size < 1100 ? size + 1 : size * 9 / 8 + 5;
}

static void
moves (const char *name, void (*move) (void *, void *, size_t))
{
  for (size_t size = 0; size < MOST - MARGIN; size = next_size (size))
    {
      unsigned char *from = from_memory + MARGIN + size % 17, *to = to_memory + MARGIN + size % 3;
      memset (from_memory, 0xa5, sizeof from_memory);
      memset (to_memory, 0x5a, sizeof to_memory);
      for (size_t i = 0; i < size; i++)
        from[i] = (unsigned char)(i * 7 + i / 256 + 1);
      move (to, from, size);
      for (size_t i = 0; i < size; i++)
        if (to[i] != (unsigned char)(i * 7 + i / 256 + 1))
          CHECK_FAIL ("%s: %zu bytes: byte %zu is %d", name, size, i, to[i]);
      CHECK (check_all (from, 0, size));
      CHECK (check_all (from_memory, 0xa5, (size_t)(from - from_memory)));
      CHECK (check_all (from + size, 0xa5, MARGIN - 17));
      CHECK (check_all (to_memory, 0x5a, (size_t)(to - to_memory)));
      CHECK (check_all (to + size, 0x5a, MARGIN - 3));
    }
  printf ("moved: %s\n", name);
}

static void
wipe_once (const char *name, void (*wipe) (void *, size_t), unsigned char *from, size_t size)
{
  wipe (from, size);
  if (!check_all (from, 0, size))
    CHECK_FAIL ("%s: %zu bytes are not zero", name, size);
  CHECK (check_all (from_memory, 0xa5, (size_t)(from - from_memory)));
  CHECK (check_all (from + size, 0xa5, MARGIN - 17));
}

/* Also where all is zero but for one byte, wherever it is. */
static void
wipes (const char *name, void (*wipe) (void *, size_t))
{
  memset (from_memory, 0xa5, sizeof from_memory);
  for (size_t size = 0; size < MOST - MARGIN; size = next_size (size))
    {
      unsigned char *from = from_memory + MARGIN + size % 17;
      memset (from, 0xa5, size);
      wipe_once (name, wipe, from, size);
      for (size_t at = size % 31; at < size; at += size < 4000 ? 371 : 37)
        {
          from[at] = (unsigned char)(1u << at % 8);
          wipe_once (name, wipe, from, size);
        }
      memset (from, 0xa5, size);
    }
  printf ("wiped: %s\n", name);
}

/* One byte is seen wherever it is promised, and nowhere beside the lines that are asked about. */
static void
looks (const char *name, int (*looks_zero) (const void *, size_t))
{
  unsigned char *from = (unsigned char *)(((uintptr_t)from_memory + MARGIN + 63) & ~(uintptr_t)63);
  memset (from_memory, 0xa5, sizeof from_memory);
  for (size_t size = 64; size <= 8192; size += 64)
    {
      memset (from, 0, size);
      CHECK (looks_zero (from, size));
      for (size_t at = 0; at < size; at++)
        {
          from[at] = (unsigned char)(1u << at % 8);
          if ((at < 512 || at >= size - 64 || at % 512 < 64) && looks_zero (from, size))
            CHECK_FAIL ("%s: %zu bytes: not seen: byte %zu", name, size, at);
          from[at] = 0;
        }
    }
  printf ("looked at: %s\n", name);
}

static void
long_ways (void)
{
  wipes ("ma_wipe", ma_wipe);
  moves ("16 bytes", move_16);
  wipes ("16 bytes", wipe_back_16);
  looks ("16 bytes", looks_zero_16);
#ifdef MA_WIDE
  if (ma_vector_width () < 32)
    {
      puts ("left out: vectors of 32 bytes, which this CPU has not");
      return;
    }
  moves ("32 bytes", move_32);
  wipes ("32 bytes", wipe_back_32);
  looks ("32 bytes", looks_zero_32);
  if (ma_vector_width () < 64)
    {
      puts ("left out: vectors of 64 bytes, which this CPU has not");
      return;
    }
  moves ("64 bytes", move_64);
  wipes ("64 bytes", wipe_back_64);
  looks ("64 bytes", looks_zero_64);
#endif
}

/* What was never written either; valgrind has nothing to say of it. */
static void
wipes_undefined (void)
{
  char room[20000];
  ma_wipe (check_hide (room), sizeof room);
  CHECK (check_all (room, 0, sizeof room));
}

/* ---- blocks ---- */

/* Some neighbours live on and keep the memory mapped, so the freed places can be read. */
static void
wiped_at_free (size_t size)
{
  char *blocks[64];
  for (size_t i = 0; i < 64; i++)
    {
      blocks[i] = malloc_arena (secure, malloc, size);
      memset (blocks[i], 0x42, size);
    }
  for (size_t i = 0; i < 64; i++)
    {
      if (i % 16 == 0)
        continue;
      uintptr_t place = (uintptr_t)blocks[i];
      free (blocks[i]);
      CHECK_READABLE ((void *)place);
      CHECK (check_all ((void *)place, 0, size));
    }
  for (size_t i = 0; i < 64; i += 16)
    {
      CHECK (check_all (blocks[i], 0x42, size));
      free (blocks[i]);
    }
}

/* A large block that grows is whole at its new place, and nothing of it is at the one it had, if that is another. Whether the
 * places are there to be looked at. */
static bool
wiped_where_it_was (size_t size)
{
  char *p = malloc_arena (secure, malloc, size);
  for (size_t i = 0; i < size; i++)
    p[i] = (char)(i % 251 + 1);
  uintptr_t place = (uintptr_t)p;
  char *q = realloc (p, 2 * size);
  CHECK (q != NULL);
  for (size_t i = 0; i < size; i++)
    if (q[i] != (char)(i % 251 + 1))
      CHECK_FAIL ("%zu bytes grew: byte %zu is %d", size, i, q[i]);
  CHECK (check_all (q + size, 0, size));
  bool is_kept = check_touch ((void *)place, false) == 0;
  if (is_kept && (place + size <= (uintptr_t)q || place >= (uintptr_t)q + 2 * size))
    CHECK (check_all ((void *)place, 0, size));
  place = (uintptr_t)q;
  free (q);
  is_kept = is_kept && check_touch ((void *)place, false) == 0;
  if (is_kept)
    CHECK (check_all ((void *)place, 0, 2 * size));
  return is_kept;
}

static void *
free_here (void *p)
{
  free (p);
  return NULL;
}

/* The freeing thread wipes, at once; not the owner when it comes to look. */
static void
wiped_by_another_thread (void)
{
  char *keep = malloc_arena (secure, malloc, 120), *p = malloc_arena (secure, malloc, 120);
  memset (p, 0x42, 120);
  uintptr_t place = (uintptr_t)p;
  pthread_t thread;
  CHECK_EQUAL (pthread_create (&thread, NULL, free_here, p), 0);
  pthread_join (thread, NULL);
  CHECK (check_all ((void *)place, 0, 120));
  free (keep);
}

/* Nothing of many secrets is left anywhere in the region once they are freed. */
struct search
{
  const char *needle;
  size_t size, found;
};

static void
search_mapping (const struct check_mapping *m, void *data)
{
  struct search *search = data;
  if (m->mode[0] != 'r')
    return;
  /* /proc/self/mem and not a pointer: guard pages answer with an error, not a fault. */
  int fd = open ("/proc/self/mem", O_RDONLY | O_CLOEXEC);
  CHECK (fd >= 0);
  static unsigned char page[1 << 16];
  for (uintptr_t at = m->start; at < m->end; at += CHECK_PAGE)
    {
      ssize_t got = pread (fd, page, CHECK_PAGE, (off_t)at);
      if (got > 0 && memmem (page, (size_t)got, search->needle, search->size) != NULL)
        search->found++;
    }
  close (fd);
}

static size_t
pages_with (const char *needle, size_t size)
{
  struct search search = { needle, size, 0 };
  check_mappings (check_bounds ().base, check_bounds ().base + check_bounds ().size, search_mapping,
                  &search);
  return search.found;
}

static void
nothing_left (void)
{
  enum
  {
    COUNT = 3000
  };
  static char *blocks[COUNT];
  for (size_t i = 0; i < COUNT; i++)
    {
      size_t size = 20 + i * 7 % 6000;
      blocks[i] = malloc_arena (secure, malloc, size);
      for (size_t at = 0; at + 16 <= size; at += 16)
        memcpy (blocks[i] + at, "correct-horse-ba", 16);
    }
  CHECK (pages_with ("correct-horse-ba", 16) > 1000); /* the search does find */
  for (size_t i = 0; i < COUNT; i++)
    if (i % 3 == 0)
      blocks[i] = realloc (blocks[i], 50 + i % 4000);
  for (size_t i = 0; i < COUNT; i++)
    free (blocks[i * 1117 % COUNT]); /* 1117 and 3000 have no common factor */
  CHECK_EQUAL (pages_with ("correct-horse-ba", 16), 0);
}

/* Resident and locked memory falls again after a burst; what stays warm is bounded and zero. */
static void
add_rss (const struct check_mapping *m, void *data)
{
  size_t *sums = data;
  sums[0] += m->rss;
  sums[1] += m->locked;
}

static void
given_back (size_t size)
{
  size_t count = ((size_t)4 << 20) / size;
  char **blocks = calloc (count, sizeof *blocks);
  size_t before[2] = { 0 }, full[2] = { 0 }, after[2] = { 0 };
  uintptr_t end = check_bounds ().base + check_bounds ().size;
  check_mappings (check_bounds ().base, end, add_rss, before);
  for (size_t i = 0; i < count; i++)
    {
      blocks[i] = malloc_arena (secure, malloc, size);
      CHECK (blocks[i] != NULL);
      memset (blocks[i], 1, size);
    }
  check_mappings (check_bounds ().base, end, add_rss, full);
  CHECK (full[0] >= before[0] + ((size_t)4 << 20) - 16 * CHECK_PAGE);
  struct malloc_arena_receipt receipt = check_receipt (secure);
  if (receipt.obtained & MALLOC_ARENA_LOCKED)
    CHECK (full[1] >= before[1] + ((size_t)4 << 20) - 16 * CHECK_PAGE);
  for (size_t i = 0; i < count; i++)
    free (blocks[i]);
  check_mappings (check_bounds ().base, end, add_rss, after);
  /* Under 1 MiB of the 4 may stay, and slabs in use are whole pages. */
  size_t rest = ((size_t)1 << 20) + 16 * (CHECK_PAGE - 4096);
  CHECK (after[0] < before[0] + rest);
  CHECK (after[1] < before[1] + rest);
  free (blocks);
}

int
main (void)
{
  secure = malloc_arena_get (HEAP_SECURE);
  CHECK (secure != NULL);
  unsigned kept = 0;
  long_ways ();
  wipes_undefined ();
  for (size_t size = 16; size < 2048; size = size * 5 / 3)
    wiped_at_free (size);
  for (size_t size = 4097; size < 300000; size = size * 9 / 8 + 3)
    kept += wiped_where_it_was (size);
  CHECK (kept > 10);
  wiped_by_another_thread ();
  nothing_left ();
  given_back (48);
  given_back (1000);
  given_back (60000);
  return 0;
}
