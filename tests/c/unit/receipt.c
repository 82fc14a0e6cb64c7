/* What a receipt says is what /proc/self/smaps says; and before the first arena there is nothing to
 * say: no reservation, no lock, no file. */
#include "check.h"

#include <sys/mman.h>

struct totals
{
  size_t locked, reserved;
};

static void
add (const struct check_mapping *m, void *data)
{
  struct totals *totals = data;
  if (check_flag (m, "lo"))
    totals->locked += m->end - m->start;
  if (m->mode[0] == '-' && m->end - m->start >= (size_t)1 << 28)
    totals->reserved += m->end - m->start;
}

static struct totals
totals (void)
{
  struct totals sum = { 0 };
  check_mappings (0, UINTPTR_MAX, add, &sum);
  return sum;
}

static void
nothing_before (void)
{
  for (unsigned i = 0; i < 100; i++)
    free (check_hide (malloc (i * 1000)));
  struct totals sum = totals ();
  CHECK_EQUAL (sum.locked, 0);
  CHECK (check_emulated () || CHECK_SANITIZED
         || sum.reserved == 0); /* they make reservations of its own */
  CHECK_EQUAL (check_bounds ().base, 0);
  CHECK_EQUAL (check_bounds ().size, 0);
}

/* What an emulator does not give. */
static unsigned lost;

static void
expect (malloc_arena *arena, unsigned obtained)
{
  struct malloc_arena_receipt receipt = check_honest (arena);
  CHECK_EQUAL (receipt.obtained, obtained);
  CHECK_EQUAL (receipt.requested, obtained | lost);
}

static const char *block;

static void
follow (malloc_arena *arena, unsigned obtained)
{
  static char *blocks[3000];
  for (size_t i = 0; i < 3000; i++)
    {
      size_t size = i * 11 % 3000 + (i % 100 == 0) * 60000;
      blocks[i] = malloc_arena (arena, malloc, size + 1);
      CHECK (blocks[i] != NULL);
      blocks[i][size] = 1;
      if (i % 500 == 0)
        expect (arena, obtained);
      /* Each block that is in use: the flags of the very mapping. */
      if (i % 97 == 0)
        {
          struct check_mapping m = check_mapping_of (blocks[i]);
          CHECK_EQUAL (check_flag (&m, "lo"), (obtained & MALLOC_ARENA_LOCKED) != 0);
          CHECK_EQUAL (check_flag (&m, "dd"), (obtained & MALLOC_ARENA_UNDUMPED) != 0);
          bool is_absent = (obtained & MALLOC_ARENA_FORK_REFUSED) != 0;
          CHECK_EQUAL (check_flag (&m, "dc"), is_absent);
          CHECK_EQUAL (check_flag (&m, "wf"),
                       (obtained & MALLOC_ARENA_FORK_WIPED) != 0 && !is_absent);
        }
    }
  expect (arena, obtained);
  struct malloc_arena_stats stats = check_stats (arena);
  struct malloc_arena_receipt receipt = check_receipt (arena);
  CHECK_EQUAL (stats.mapped_bytes, receipt.mapped_bytes);
  CHECK_EQUAL (stats.locked_bytes, receipt.locked_bytes);
  CHECK (stats.mapped_bytes >= stats.live_bytes);
  for (size_t i = 0; i < 3000; i++)
    {
      free (blocks[i * 1117 % 3000]);
      if (i % 500 == 0)
        expect (arena, obtained);
    }
  expect (arena, obtained);
}

static unsigned refusing; /* what is obtained of an arena that refuses its memory to children */

static void
child_follows (void *data)
{
  CHECK_EQUAL (check_receipt (data).mapped_bytes, 0);
  follow (data, refusing);
  char *p = malloc_arena (data, malloc, 100);
  pid_t pid = fork ();
  if (pid == 0)
    {
      CHECK_FAULTS (p);
      _exit (0);
    }
  CHECK_EQUAL (check_wait (pid, -1).exit_code, 0);
}

static bool
can_lock (size_t size)
{
  void *p = mmap (NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK (p != MAP_FAILED);
  bool locked = (check_emulated () ? mlock (p, size) : mlock2 (p, size, MLOCK_ONFAULT)) == 0;
  munmap (p, size);
  return locked;
}

int
main (int argc, char **argv)
{
  if (!can_lock ((size_t)64 << 20))
    check_skip ("64 MiB cannot be locked here (ulimit -l)");
  nothing_before ();
  if (argc < 2)
    {
      /* One arena to a process, or the region's mappings are of several. */
      static const char *const modes[]
          = { "secure", "isolated", "default", "keep", "refuse", "off", "many" };
      for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        {
          struct check_outcome outcome = check_again (modes[i], NULL);
          if (outcome.exit_code != 0)
            CHECK_FAIL ("%s: %s", modes[i], outcome.text);
          CHECK_EQUAL (strlen (outcome.text), 0);
        }
      return 0;
    }
  unsigned all = MALLOC_ARENA_LOCKED | MALLOC_ARENA_UNDUMPED | MALLOC_ARENA_FORK_WIPED
                 | MALLOC_ARENA_GUARDED;
  lost = check_emulated () ? MALLOC_ARENA_UNDUMPED | MALLOC_ARENA_FORK_WIPED : 0;
  all &= ~lost;
  struct malloc_arena_options options = { .size = sizeof options, .kind = HEAP_SECURE };
  const char *mode = argv[1];
  if (strcmp (mode, "secure") == 0)
    follow (malloc_arena_get (HEAP_SECURE), all);
  else if (strcmp (mode, "isolated") == 0)
    follow (malloc_arena_get (HEAP_SECURE | HEAP_ISOLATED), all | MALLOC_ARENA_ISOLATED);
  else if (strcmp (mode, "default") == 0)
    {
      malloc_arena *arena = malloc_arena_get (HEAP_DEFAULT);
      free (malloc_arena (arena, malloc, 100));
      struct malloc_arena_receipt receipt = check_receipt (arena);
      CHECK_EQUAL (receipt.requested & (MALLOC_ARENA_LOCKED | MALLOC_ARENA_UNDUMPED), 0);
      CHECK_EQUAL (receipt.locked_bytes, 0);
      block = malloc_arena (arena, malloc, 100);
      struct check_mapping m = check_mapping_of (block);
      CHECK (!check_flag (&m, "lo"));
      CHECK_EQUAL (totals ().locked, 0);
    }
  else if (strcmp (mode, "keep") == 0)
    {
      options.fork = MALLOC_ARENA_FORK_KEEP;
      lost &= ~MALLOC_ARENA_FORK_WIPED;
      malloc_arena *arena = malloc_arena_new (&options);
      CHECK (arena != NULL);
      follow (arena, (all & ~MALLOC_ARENA_FORK_WIPED) | MALLOC_ARENA_FORK_KEPT);
    }
  else if (strcmp (mode, "refuse") == 0)
    {
      options.fork = MALLOC_ARENA_FORK_REFUSE;
      lost |= lost & MALLOC_ARENA_FORK_WIPED ? MALLOC_ARENA_FORK_REFUSED : 0;
      malloc_arena *arena = malloc_arena_new (&options);
      CHECK (arena != NULL);
      refusing = all | (MALLOC_ARENA_FORK_REFUSED & ~lost);
      follow (arena, refusing);
      CHECK_EQUAL (check_child (child_follows, arena).exit_code, 0);
    }
  else if (strcmp (mode, "off") == 0)
    {
      options.lock = MALLOC_ARENA_LOCK_OFF;
      malloc_arena *arena = malloc_arena_new (&options);
      CHECK (arena != NULL);
      follow (arena, all & ~MALLOC_ARENA_LOCKED);
      CHECK_EQUAL (totals ().locked, 0);
    }
  else
    {
      /* Locked in chunks as they come into use: a few bytes do not lock megabytes. */
      malloc_arena *arena = malloc_arena_get (HEAP_SECURE);
      block = malloc_arena (arena, malloc, 10);
      CHECK (check_receipt (arena).locked_bytes <= (size_t)256 << 10);
      CHECK (totals ().locked <= (size_t)256 << 10);
      size_t one = check_receipt (arena).locked_bytes;
      for (size_t i = 0; i < 10000; i++)
        CHECK (check_hide (malloc_arena (arena, malloc, 1000)) != NULL);
      CHECK (check_receipt (arena).locked_bytes > one + 10000000 / 2);
      expect (arena, all);
    }
  struct malloc_arena_receipt receipt = { .size = 1 };
  errno = 0;
  CHECK_EQUAL (malloc_arena_receipt (malloc_arena_get (HEAP_SECURE), &receipt), -1);
  CHECK_EQUAL (errno, EINVAL);
  return 0;
}
