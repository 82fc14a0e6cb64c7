/* RLIMIT_AS: the reservation steps down, and where nothing is left the answer is ENOMEM. */
#include "check.h"

static void
within (size_t limit)
{
  struct rlimit lower = { limit, limit };
  CHECK_EQUAL (setrlimit (RLIMIT_AS, &lower), 0);
  errno = 0;
  malloc_arena *arena = malloc_arena_get (HEAP_SECURE);
  if (limit < (size_t)64 << 20)
    {
      if (arena == NULL)
        CHECK_EQUAL (errno, ENOMEM);
      free (check_hide (malloc (100))); /* the ordinary malloc is none the worse */
      if (arena == NULL)
        return;
    }
  CHECK (arena != NULL);
  CHECK (check_bounds ().size < limit);
  char *p = malloc_arena (arena, malloc, 1000), *q = malloc_arena (arena, malloc, 100000);
  CHECK (p != NULL && q != NULL);
  memset (p, 1, 1000);
  memset (q, 1, 100000);
  check_honest (arena);
  /* To the end of the region, which is an error and no more. */
  static void *blocks[8000];
  size_t count = 0;
  errno = 0;
  while (count < 8000 && (blocks[count] = malloc_arena (arena, malloc, 1 << 20)) != NULL)
    count++;
  if (count < 8000)
    CHECK_EQUAL (errno, ENOMEM);
  CHECK (count >= 4);
  CHECK (check_all (p, 1, 1000) && check_all (q, 1, 100000));
  for (size_t i = 0; i < count; i++)
    free (blocks[i]);
  void *again = malloc_arena (arena, malloc, 1 << 20);
  CHECK (again != NULL);
  free (again);
  free (p);
  free (q);
  CHECK_EQUAL (check_stats (arena).live_blocks, 0);
}

int
main (int argc, char **argv)
{
  if (argc > 1)
    {
      within ((size_t)strtoul (argv[1], NULL, 10) << 20);
      return 0;
    }
  if (check_emulated ())
    check_skip ("the emulator of this kernel takes no limit of address space");
  static const char *const megabytes[] = { "16", "40", "128", "256", "1024", "4096" };
  for (unsigned i = 0; i < 6; i++)
    {
      struct check_outcome outcome = check_again (megabytes[i], NULL);
      if (outcome.exit_code != 0)
        CHECK_FAIL ("%s MiB: exit %d, signal %d: %s", megabytes[i], outcome.exit_code,
                    outcome.signal, outcome.text);
    }
  return 0;
}
