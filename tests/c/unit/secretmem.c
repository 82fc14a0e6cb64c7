/* HEAP_SECRETMEM: memory that no other process can read, not even one that may trace this one, and
 * that no two processes ever share. */
#include "check.h"

#include <sys/uio.h>

/* What a child of ours, which may read all of our memory, gets to see of N bytes at P; -1: nothing. */
static int
seen_from_outside (const void *p, int byte, size_t n)
{
  pid_t self = getpid ();
  pid_t child = fork ();
  CHECK (child != -1);
  if (child == 0)
    {
      char bytes[64];
      char path[64];
      memset (bytes, 0, sizeof bytes);
      snprintf (path, sizeof path, "/proc/%d/mem", self);
      int fd = open (path, O_RDONLY);
      CHECK (fd != -1);
      struct iovec to = { bytes, n }, from = { (void *)(uintptr_t)p, n };
      int by_file
          = pread (fd, bytes, n, (off_t)(uintptr_t)p) == (ssize_t)n && check_all (bytes, byte, n);
      memset (bytes, 0, sizeof bytes);
      int by_call = process_vm_readv (self, &to, 1, &from, 1, 0) == (ssize_t)n
                    && check_all (bytes, byte, n);
      _exit (by_file && by_call ? 2 : by_file || by_call ? 1 : 0);
    }
  int status;
  CHECK (waitpid (child, &status, 0) == child && WIFEXITED (status));
  return WEXITSTATUS (status);
}

static malloc_arena *
make (unsigned kind, unsigned fork_policy)
{
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = kind, .fork = fork_policy, .name = "hidden" };
  return malloc_arena_new (&options);
}

static void
child_of (malloc_arena *arena, int is_kept)
{
  static const size_t sizes[] = { 20, 500, 4096, 100000 };
  enum
  {
    BLOCKS = sizeof sizes / sizeof *sizes
  };
  unsigned char *blocks[BLOCKS];
  for (unsigned i = 0; i < BLOCKS; i++)
    memset (blocks[i] = malloc_arena (arena, malloc, sizes[i]), 0x51, sizes[i]);
  pid_t child = fork ();
  CHECK (child != -1);
  if (child == 0)
    {
      for (unsigned i = 0; i < BLOCKS; i++)
        {
          CHECK (check_all (blocks[i], is_kept ? 0x51 : 0, sizes[i]));
          memset (blocks[i], 0x52, sizes[i]);
          struct check_mapping mapping = check_mapping_of (blocks[i]);
          CHECK (check_flag (&mapping, "lo") && check_flag (&mapping, "dd"));
          free (blocks[i]);
          CHECK ((blocks[i] = malloc_arena (arena, malloc, sizes[i])) != NULL);
        }
      struct malloc_arena_receipt receipt = { .size = sizeof receipt };
      CHECK_EQUAL (malloc_arena_receipt (arena, &receipt), 0);
      CHECK_EQUAL (receipt.obtained, receipt.requested);
      _exit (0);
    }
  int status;
  CHECK (waitpid (child, &status, 0) == child);
  CHECK (WIFEXITED (status) && WEXITSTATUS (status) == 0);
  /* Nothing of what the child wrote. */
  for (unsigned i = 0; i < BLOCKS; i++)
    {
      CHECK (check_all (blocks[i], 0x51, sizes[i]));
      free (blocks[i]);
    }
}

static void
add_size (const struct check_mapping *m, void *data)
{
  struct ma_region region = check_bounds ();
  uintptr_t end = region.base + region.size;
  *(size_t *)data
      += (m->end < end ? m->end : end) - (m->start > region.base ? m->start : region.base);
}

/* A mapping that the lock limit refuses must not take away what lay in its place: another mapping would
 * come to lie in the hole, and be ours. */
static void
over_the_limit (malloc_arena *hidden)
{
  struct ma_region region = check_bounds ();
  check_memlock (1 << 20);
  for (int i = 0; i < 40; i++)
    {
      char *p = malloc_arena (hidden, malloc, 100000);
      CHECK (p != NULL);
      memset (p, 0x54, 100000);
    }
  CHECK (!(check_receipt (hidden).obtained & MALLOC_ARENA_SECRETMEM));
  size_t size = 0;
  check_mappings (region.base, region.base + region.size, add_size, &size);
  CHECK_EQUAL (size, region.size);
}

/* The line names the reason. */
static void
without_descriptors (void *hidden)
{
  struct rlimit none = { 0, 0 };
  CHECK_EQUAL (setrlimit (RLIMIT_NOFILE, &none), 0);
  CHECK (malloc_arena (hidden, malloc, 200000) != NULL);
}

int
main (void)
{
  CHECK (make (HEAP_SECRETMEM, 0) == NULL && errno == EINVAL);
  malloc_arena *hidden = malloc_arena_get (HEAP_SECURE | HEAP_SECRETMEM);
  if (hidden == NULL && errno == ENOTSUP)
    check_skip ("this kernel has no memfd_secret");
  CHECK (hidden != NULL);

  /* The control: locked memory of the usual kind is there for whoever may trace. */
  unsigned char *open_secret = malloc_arena (malloc_arena_get (HEAP_SECURE), malloc, 32);
  unsigned char *secret = malloc_arena (hidden, malloc, 32);
  memset (open_secret, 0x53, 32);
  memset (secret, 0x53, 32);
  CHECK_EQUAL (seen_from_outside (open_secret, 0x53, 32), 2);
  CHECK_EQUAL (seen_from_outside (secret, 0x53, 32), 0);

  struct malloc_arena_receipt receipt = { .size = sizeof receipt };
  CHECK_EQUAL (malloc_arena_receipt (hidden, &receipt), 0);
  CHECK (receipt.obtained & MALLOC_ARENA_SECRETMEM);
  CHECK (receipt.obtained & MALLOC_ARENA_LOCKED);
  CHECK_EQUAL (receipt.obtained, receipt.requested);
  struct check_mapping mapping = check_mapping_of (secret);
  CHECK (check_flag (&mapping, "lo") && check_flag (&mapping, "dd") && check_flag (&mapping, "dc"));

  /* Wiped at free, as anywhere. */
  free (secret);
  CHECK (check_all (secret, 0, 32));
  free (open_secret);

  malloc_arena *kept = make (HEAP_SECURE | HEAP_SECRETMEM, MALLOC_ARENA_FORK_KEEP);
  malloc_arena *isolated = malloc_arena_get (HEAP_SECURE | HEAP_SECRETMEM | HEAP_ISOLATED);
  CHECK (kept != NULL && isolated != NULL);
  child_of (hidden, 0);
  child_of (kept, 1);
  child_of (isolated, 0);
  child_of (hidden, 0); /* warm blocks are there as well now */
  child_of (kept, 1);

  unsigned char *p = malloc_arena (isolated, malloc, CHECK_PAGE);
  CHECK_FAULTS (p + CHECK_PAGE);
  free (p);
  CHECK_FAULTS (p);
  CHECK_EQUAL (malloc_arena_delete (kept), 0);
  struct check_outcome outcome = check_child_text (without_descriptors, hidden);
  CHECK_EQUAL (outcome.exit_code, 0);
  CHECK (strstr (outcome.text, "ordinary locked memory (EMFILE)") != NULL);
  over_the_limit (hidden);
  return 0;
}
