/* After mlockall (MCL_FUTURE) the kernel takes no guard markers on new memory: protection instead. */
#include "check.h"

#include <sys/mman.h>

int
main (void)
{
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
