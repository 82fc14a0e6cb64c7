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

/* Whatever little is left, there is an answer: an arena that works, or ENOMEM. */
static void *
use (void *arena)
{
  malloc_arena_enter (NULL);
  malloc_arena_leave (NULL);
  if (arena == NULL)
    return NULL;
  for (size_t size = 10; size < (size_t)64 << 20; size *= 3)
    {
      char *p = malloc_arena (arena, malloc, size);
      if (p != NULL)
        memset (p, 1, size < 9000 ? size : 9000);
      else
        CHECK_EQUAL (errno, ENOMEM);
      free (p);
    }
  return NULL;
}

static void
with_room (void *room)
{
  size_t limit = check_status ("VmSize") + (size_t)room;
  struct rlimit lower = { limit, limit };
  CHECK_EQUAL (setrlimit (RLIMIT_AS, &lower), 0);
  static const unsigned kinds[] = { HEAP_SECURE, HEAP_DEFAULT, HEAP_SECURE | HEAP_ISOLATED };
  malloc_arena_enter (NULL);
  for (unsigned i = 0; i < 3; i++)
    {
      struct malloc_arena_options options = { .size = sizeof options, .kind = kinds[i] };
      errno = 0;
      malloc_arena *arena = malloc_arena_new (&options);
      if (arena == NULL)
        CHECK_EQUAL (errno, ENOMEM);
      use (arena);
      pthread_t thread;
      if (pthread_create (&thread, NULL, use, arena) == 0)
        pthread_join (thread, NULL);
      if (arena != NULL)
        CHECK_EQUAL (malloc_arena_delete (arena), 0);
    }
  malloc_arena_leave (NULL);
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
  for (size_t room = 0; room < (size_t)120 << 20;
       room += room < (size_t)1 << 20 ? 8192 : 1234 << 10)
    {
      struct check_outcome outcome = check_child (with_room, (void *)room);
      if (outcome.exit_code != 0)
        CHECK_FAIL ("%zu bytes of room: exit %d, signal %d", room, outcome.exit_code,
                    outcome.signal);
    }
  return 0;
}
