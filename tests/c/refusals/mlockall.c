/* After mlockall (MCL_FUTURE) the kernel takes no guard markers on new memory: protection instead. What is reserved and
 * not used is neither made present by mlockall (MCL_CURRENT) nor counted as memory that may be written. */
#include "check.h"

#include <sys/mman.h>

static void
used_before (void *unused)
{
  (void)unused;
  size_t data = check_status ("VmData");
  malloc_arena *arena = malloc_arena_get (HEAP_SECURE);
  CHECK (arena != NULL);
  char *p = malloc_arena (arena, malloc, 1000), *q = malloc_arena (arena, malloc, 1000000);
  CHECK (p != NULL && q != NULL);
  dprintf (STDOUT_FILENO, "VmData %zu MiB more", (check_status ("VmData") - data) >> 20);
  CHECK (check_emulated () || check_status ("VmData") < data + ((size_t)32 << 20));
  if (mlockall (MCL_CURRENT) != 0)
    {
      dprintf (STDOUT_FILENO, "; mlockall is refused here (ulimit -l)\n");
      return;
    }
  dprintf (STDOUT_FILENO, "; once locked VmRSS %zu MiB\n", check_status ("VmRSS") >> 20);
  CHECK (check_emulated () || check_status ("VmRSS") < (size_t)64 << 20);
  /* New parts of the tables are opened in what is locked. */
  static char *blocks[4096];
  for (unsigned i = 0; i < 4096; i++)
    CHECK ((blocks[i] = malloc_arena (arena, malloc, 2000)) != NULL);
  for (unsigned i = 0; i < 4096; i++)
    free (blocks[i]);
  free (p);
  free (q);
  CHECK_EQUAL (check_stats (arena).live_blocks, 0);
}

int
main (void)
{
  struct check_outcome outcome = check_child (used_before, NULL);
  if (outcome.exit_code != 0)
    CHECK_FAIL ("used before: exit %d, signal %d", outcome.exit_code, outcome.signal);
  if (mlockall (MCL_CURRENT | MCL_FUTURE) != 0)
    check_skip ("mlockall is refused here (ulimit -l)");
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = HEAP_SECURE | HEAP_ISOLATED };
  malloc_arena *arena = malloc_arena_new (&options);
  if (arena == NULL && errno == ENOMEM)
    check_skip ("the reservation cannot be locked");
  CHECK (arena != NULL);
  char *p = malloc_arena (arena, malloc, CHECK_PAGE);
  CHECK (p != NULL);
  memset (p, 1, CHECK_PAGE);
  CHECK_FAULTS (p + CHECK_PAGE);
  CHECK_FAULTS (p - 1);
  dprintf (STDOUT_FILENO, "VmRSS %zu MiB, VmLck %zu MiB\n", check_status ("VmRSS") >> 20,
           check_status ("VmLck") >> 20);
  /* The bookkeeping is not locked; an emulator's own memory is. */
  CHECK (check_emulated () || check_status ("VmLck") < (size_t)64 << 20);
  check_honest (arena);
  free (p);
  CHECK_FAULTS (p);
  return 0;
}
