/* Each call of os.h fails once, at each place where it is made, and again with all calls after it; and
 * each function fails always. The story ends well, or with a clean error; the receipts claim no
 * more than the kernel's flags show; and another process finds nothing of what was freed. */
#include "faults.h"
#include "scan.h"

#include <malloc.h>

enum
{
  BLOCKS = 24,
  ARENAS = 8
};

static const struct
{
  const char *name;
  unsigned kind;
  unsigned fork;
  unsigned lock;
} kinds[ARENAS] = {
  { "secure", HEAP_SECURE, MALLOC_ARENA_FORK_WIPE, 0 },
  { "isolated", HEAP_SECURE | HEAP_ISOLATED, MALLOC_ARENA_FORK_WIPE, 0 },
  { "kept", HEAP_SECURE, MALLOC_ARENA_FORK_KEEP, 0 },
  { "refused", HEAP_SECURE, MALLOC_ARENA_FORK_REFUSE, 0 },
  { "required", HEAP_SECURE, MALLOC_ARENA_FORK_WIPE, MALLOC_ARENA_LOCK_REQUIRE },
  { "hidden", HEAP_SECURE | HEAP_SECRETMEM, MALLOC_ARENA_FORK_WIPE, 0 },
  { "hidden, kept", HEAP_SECURE | HEAP_SECRETMEM, MALLOC_ARENA_FORK_KEEP, 0 },
  { "plain", HEAP_DEFAULT, 0, 0 },
};
static const size_t sizes[BLOCKS]
    = { 16,   32,   48,   100,   200,   300,   500,   800,   1000,  1500,   2000,   3000,
        4000, 6000, 9000, 12000, 16000, 20000, 40000, 70000, 90000, 150000, 300000, 700000 };

static unsigned char *block[BLOCKS];
static size_t size_of[BLOCKS];
static int tube[2];
static int is_secure;

static void
verify (int i)
{
  CHECK (scan_is_filled (block[i], size_of[i], size_of[i], 0, (uint64_t)i));
}

static void
make (int i, size_t size)
{
  errno = 0;
  block[i] = malloc (size);
  if (block[i] == NULL)
    {
      CHECK_EQUAL (errno, ENOMEM);
      return;
    }
  size_of[i] = size;
  if (is_secure)
    scan_fill (block[i], size, 0, (uint64_t)i);
}

static void
resize (int i, size_t size)
{
  if (block[i] == NULL)
    return;
  errno = 0;
  unsigned char *moved = realloc (block[i], size);
  if (moved == NULL)
    {
      CHECK_EQUAL (errno, ENOMEM);
      if (is_secure)
        verify (i);
      return;
    }
  if (is_secure)
    {
      CHECK (scan_is_filled (moved, size < size_of[i] ? size : size_of[i], 0, 0, (uint64_t)i));
      scan_fill (moved, size, 0, (uint64_t)i);
    }
  block[i] = moved;
  size_of[i] = size;
}

/* A byte of freed memory, which may be there or not: zero or a refusal. Also of secret memory, which
 * the scanner cannot read. */
static void
expect_wiped (const unsigned char *p, size_t size)
{
  unsigned char now[16];
  size_t n = size < sizeof now ? size : sizeof now;
  if (write (tube[1], p, n) == (ssize_t)n)
    {
      CHECK_EQUAL (read (tube[0], now, n), n);
      CHECK (check_all (now, 0, n));
    }
  else
    CHECK_EQUAL (errno, EFAULT);
}

static void
drop (int i)
{
  unsigned char *p = block[i];
  if (p == NULL)
    return;
  if (is_secure)
    verify (i);
  errno = EXDEV;
  free (p);
  CHECK_EQUAL (errno, EXDEV);
  block[i] = NULL;
  if (is_secure)
    expect_wiped (p, size_of[i]);
}

static void
expect_flags (const struct check_mapping *m, void *data)
{
  const struct malloc_arena_receipt *receipt = data;
  for (int i = 0; i < BLOCKS; i++)
    {
      if (block[i] == NULL || (uintptr_t)block[i] - m->start >= m->end - m->start)
        continue;
      if (receipt->obtained & MALLOC_ARENA_LOCKED)
        CHECK (check_flag (m, "lo"));
      if (receipt->obtained & MALLOC_ARENA_UNDUMPED)
        CHECK (check_flag (m, "dd"));
      if (receipt->obtained & MALLOC_ARENA_FORK_WIPED)
        CHECK (check_flag (m, "wf") || check_flag (m, "dc"));
    }
}

/* The receipt may say less than is so, never more. */
static void
expect_honest (malloc_arena *arena)
{
  struct malloc_arena_receipt receipt = check_receipt (arena);
  CHECK_EQUAL (receipt.obtained & ~receipt.requested, 0);
  CHECK (receipt.locked_bytes <= receipt.mapped_bytes);
  struct ma_region region = check_bounds ();
  check_mappings (region.base, region.base + region.size, expect_flags, &receipt);
}

static void *
free_half (void *arena)
{
  malloc_arena_enter (arena);
  for (int i = 0; i < BLOCKS; i += 2)
    drop (i);
  void *p = malloc (100);
  malloc_arena_leave (arena);
  free (p);
  return NULL;
}

static void
in_child (void *data)
{
  malloc_arena *arena = data;
  struct malloc_arena_receipt receipt = check_receipt (arena);
  alarm (60);
  for (int i = 0; i < BLOCKS; i++)
    {
      if (block[i] == NULL)
        continue;
      unsigned char *p = block[i];
      if (is_secure && receipt.obtained & MALLOC_ARENA_FORK_WIPED
          && !(receipt.requested & MALLOC_ARENA_SECRETMEM) && check_touch (p, false) == 0)
        CHECK (check_all (p, 0, size_of[i]));
      if (is_secure && receipt.obtained & MALLOC_ARENA_FORK_KEPT)
        verify (i);
    }
  malloc_arena_enter (arena);
  for (int i = 0; i < BLOCKS; i++)
    {
      void *p = malloc (sizes[i]);
      if (p != NULL)
        memset (p, 1, sizes[i]);
      free (p);
    }
  malloc_arena_leave (arena);
}

static void
story (int kind)
{
  struct malloc_arena_options options = { .size = sizeof options, .name = kinds[kind].name };
  options.kind = kinds[kind].kind;
  options.fork = kinds[kind].fork;
  options.lock = kinds[kind].lock;
  is_secure = options.kind != HEAP_DEFAULT;
  errno = 0;
  malloc_arena *arena = malloc_arena_new (&options);
  if (arena == NULL)
    {
      CHECK (errno == ENOMEM || errno == EPERM || errno == ENOTSUP);
      return;
    }
  malloc_arena_enter (arena);
  for (int i = 0; i < BLOCKS; i++)
    make (i, sizes[i]);
  expect_honest (arena);
  for (int i = 0; i < BLOCKS; i++)
    resize (i, i % 3 == 0 ? size_of[i] * 3 : i % 3 == 1 ? size_of[i] / 3 + 1 : size_of[i] + 20);
  malloc_arena_leave (arena);
  struct check_outcome outcome = check_child (in_child, arena);
  if (outcome.exit_code != 0)
    CHECK_FAIL ("child: exit %d, signal %d", outcome.exit_code, outcome.signal);
  pthread_t thread;
  CHECK_EQUAL (pthread_create (&thread, NULL, free_half, arena), 0);
  CHECK_EQUAL (pthread_join (thread, NULL), 0);
  malloc_arena_enter (arena);
  for (int i = 0; i < BLOCKS; i += 2)
    make (i, sizes[BLOCKS - 1 - i]);
  expect_honest (arena);
  for (int i = 0; i < BLOCKS; i++)
    drop (i);
  malloc_arena_leave (arena);
  malloc_trim (0);
  struct malloc_arena_stats stats = check_stats (arena);
  CHECK_EQUAL (stats.live_blocks, 0);
  CHECK_EQUAL (stats.live_bytes, 0);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* One run of the story in a process of its own, which lives until it has been searched. What it says of
 * refused locks is as it should be, and shown only where something else is not. */
static void
run (int kind, const char *what, unsigned long at)
{
  int done[2], go[2], errors[2];
  CHECK (pipe (done) == 0 && pipe (go) == 0 && pipe (errors) == 0);
  atomic_store (&faults->calls, 0);
  atomic_store (&faults->failed, 0);
  pid_t pid = fork ();
  CHECK (pid >= 0);
  if (pid == 0)
    {
      char c = 0;
      CHECK (pipe (tube) == 0 && dup2 (errors[1], STDERR_FILENO) >= 0);
      alarm (100);
      story (kind);
      CHECK (write (done[1], &c, 1) == 1 && read (go[0], &c, 1) == 1);
      _exit (0);
    }
  close (done[1]);
  close (go[0]);
  close (errors[1]);
  char c;
  bool is_done = read (done[0], &c, 1) == 1;
  struct scan scan = { .needle = 0, .is_expected = scan_expects_nothing };
  if (is_done)
    {
      scan_process (&scan, pid);
      CHECK (write (go[1], &c, 1) == 1);
    }
  close (done[0]);
  close (go[1]);
  struct check_outcome outcome = check_wait (pid, errors[0]);
  if (!is_done || outcome.exit_code != 0)
    CHECK_FAIL ("%s: %s %lu: exit %d, signal %d: %s", kinds[kind].name, what, at, outcome.exit_code,
                outcome.signal, outcome.text);
  if (scan.found != 0)
    CHECK_FAIL ("%s: %s %lu: %zu places are not wiped, the first at %p in %s", kinds[kind].name,
                what, at, scan.found, (void *)scan.first, scan.mapping);
}

/* positions [KIND [PLACE]]: all of it, one kind, or that from one place on. */
int
main (int argc, char **argv)
{
  if (check_emulated ())
    check_skip ("an emulator's memory is not that of its program");
  if (getenv ("MALLOC_ARENA_OPTIONS") == NULL)
    {
      CHECK_EQUAL (setenv ("MALLOC_ARENA_OPTIONS", "region_size=256M", 1), 0);
      check_execute (argv);
    }
  faults = mmap (NULL, sizeof *faults, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK (faults != MAP_FAILED);
  unsigned long runs = 0, failed = 0;
  for (int kind = 0; kind < ARENAS; kind++)
    {
      if (argc > 1 && atoi (argv[1]) != kind)
        continue;
      for (int onward = 0; onward < 2; onward++)
        for (unsigned long at = argc > 2 ? strtoul (argv[2], NULL, 10) : 1;;
             at += onward ? 3 : 1, runs++)
          {
            atomic_store (&faults->at, at);
            atomic_store (&faults->onward, onward);
            run (kind, onward ? "all calls from" : "call", at);
            failed += faults->failed;
            if (faults->failed == 0)
              break;
          }
      atomic_store (&faults->at, 1);
      atomic_store (&faults->onward, 1);
      for (int function = 0; function < FAULT_FUNCTIONS; function++, runs++)
        {
          atomic_store (&faults->only, function + 1);
          run (kind, fault_names[function], 0);
          failed += faults->failed;
        }
      atomic_store (&faults->only, 0);
    }
  dprintf (STDOUT_FILENO, "%lu runs, %lu calls failed\n", runs, failed);
  return 0;
}
