/* vm.max_map_count. Someone uses it up: free still succeeds and wipes, malloc may fail with ENOMEM, the
 * receipt stays true, and all is well when there is room again. We do not use it up ourselves, but for
 * isolated blocks, each of which is to have a mapping; then the same holds. */
#include "check.h"

#include <sys/mman.h>
#include <sys/syscall.h>

/* In place of the C library's, for the library too: the kernel makes no mapping, and a change of many pages ends
 * after the first, as where the next one is in another mapping that cannot be split. */
static bool is_half;

int
mprotect (void *p, size_t size, int protection)
{
  if (!is_half || protection != PROT_NONE)
    return (int)syscall (SYS_mprotect, p, size, protection);
  syscall (SYS_mprotect, p, CHECK_PAGE, protection);
  errno = ENOMEM;
  return -1;
}

void *
mmap (void *p, size_t size, int protection, int flags, int fd, off_t offset)
{
  if (is_half && flags & MAP_FIXED)
    {
      errno = ENOMEM;
      return MAP_FAILED;
    }
  return (void *)syscall (SYS_mmap, p, size, protection, flags, fd, offset);
}

static char *hoard;
static size_t hoarded;

/* Alternating protections: a mapping for each page. */
static void
use_up (void)
{
  size_t page = CHECK_PAGE, count = 140000;
  hoarded = count * page;
  hoard = mmap (NULL, hoarded, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK (hoard != MAP_FAILED);
  size_t i = 1;
  while (i < count && mprotect (hoard + i * page, page, PROT_READ | PROT_WRITE) == 0)
    i += 2;
  if (i >= count)
    check_skip ("vm.max_map_count is too high to be used up in a test");
  /* The very last one. */
  while (mmap (NULL, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED
         && mmap (NULL, page, PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED)
    ;
}

enum
{
  COUNT = 800
};
static char *blocks[COUNT];
static size_t sizes[COUNT];

/* The mapping that a live block is in has the properties that the receipt claims. */
static void
has_properties (const struct check_mapping *m, void *data)
{
  const struct malloc_arena_receipt *receipt = data;
  for (size_t i = 0; i < COUNT; i++)
    {
      uintptr_t p = (uintptr_t)blocks[i];
      if (p < m->start || p >= m->end)
        continue;
      CHECK (check_flag (m, "lo") || !(receipt->obtained & MALLOC_ARENA_LOCKED));
      CHECK (check_flag (m, "dd") || !(receipt->obtained & MALLOC_ARENA_UNDUMPED));
      bool is_absent = receipt->obtained & MALLOC_ARENA_FORK_REFUSED;
      CHECK (check_flag (m, is_absent ? "dc" : "wf")
             || !(receipt->obtained & MALLOC_ARENA_FORK_WIPED));
    }
}

static void
check_properties (malloc_arena *arena)
{
  struct malloc_arena_receipt receipt = check_receipt (arena);
  struct ma_region region = check_bounds ();
  check_mappings (region.base, region.base + region.size, has_properties, &receipt);
}

static void
make (malloc_arena *arena, size_t i, bool may_fail)
{
  sizes[i] = 1 + i * 37 % 3000 + (i % 40 == 0) * 50000;
  errno = 0;
  blocks[i] = malloc_arena (arena, malloc, sizes[i]);
  if (blocks[i] == NULL)
    {
      CHECK (may_fail);
      CHECK_EQUAL (errno, ENOMEM);
      return;
    }
  CHECK (check_all (blocks[i], 0, sizes[i]));
  memset (blocks[i], 0x42, sizes[i]);
}

static void
drop (size_t i)
{
  uintptr_t place = (uintptr_t)blocks[i];
  errno = EXDEV;
  free (blocks[i]);
  CHECK_EQUAL (errno, EXDEV);
  if (place != 0 && check_touch ((void *)place, false) == 0)
    CHECK (check_all ((void *)place, 0, sizes[i]));
  blocks[i] = NULL;
}

static void
with (unsigned kind)
{
  struct malloc_arena_options options = { .size = sizeof options, .kind = kind };
  malloc_arena *arena = malloc_arena_new (&options);
  CHECK (arena != NULL);
  for (size_t i = 0; i < COUNT; i++)
    make (arena, i, false);
  unsigned before = check_receipt (arena).obtained;
  use_up ();
  for (size_t i = 0; i < COUNT; i += 2)
    drop (i);
  CHECK_EQUAL (check_stats (arena).live_blocks, COUNT / 2);
  CHECK_EQUAL (check_receipt (arena).obtained, before); /* free takes nothing from the others */
  for (size_t i = 1; i < COUNT; i += 2)
    CHECK (check_all (blocks[i], 0x42, sizes[i]));
  check_properties (arena);
  /* What can be had is good, what cannot is ENOMEM. */
  for (size_t i = 0; i < COUNT; i += 2)
    make (arena, i, true);
  check_properties (arena);
  munmap (hoard, hoarded);
  for (size_t i = 0; i < COUNT; i++)
    drop (i);
  CHECK_EQUAL (check_stats (arena).live_blocks, 0);
  for (size_t i = 0; i < COUNT; i++)
    make (arena, i, false);
  check_honest (arena);
  for (size_t i = 0; i < COUNT; i++)
    drop (i);
}

/* What could be closed in part only has all its properties when it is used next. */
static void
half_closed (unsigned fork)
{
  enum
  {
    LARGE = 1 << 20
  };
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = HEAP_SECURE, .fork = fork };
  malloc_arena *arena = malloc_arena_new (&options);
  CHECK (arena != NULL);
  char *large = malloc_arena (arena, malloc, LARGE);
  CHECK (large != NULL);
  memset (large, 0x42, LARGE);
  for (int turn = 0; turn < 3; turn++)
    {
      is_half = false;
      for (size_t i = 0; i < COUNT; i++)
        {
          sizes[i] = 100 + i % 900;
          blocks[i] = malloc_arena (arena, malloc, sizes[i]);
          CHECK (blocks[i] != NULL);
          CHECK (check_all (blocks[i], 0, sizes[i]));
          memset (blocks[i], 0x42, sizes[i]);
          size_t unit = 16 * CHECK_PAGE;
          CHECK_FAULTS ((char *)((uintptr_t)blocks[i] & ~(unit - 1)) + unit - CHECK_PAGE);
        }
      check_properties (arena);
      is_half = true;
      for (size_t i = 0; i < COUNT; i++)
        drop (i);
      malloc_arena_trim (arena);
      size_t less = LARGE - (size_t)(turn + 1) * 200000;
      large = realloc (large, less);
      CHECK (large != NULL);
      CHECK (check_all (large, 0x42, less));
      is_half = false;
      large = realloc (large, less + 100000);
      CHECK (large != NULL);
      memset (large, 0x42, less + 100000);
      check_properties (arena);
    }
  free (large);
}

static void
count_one (const struct check_mapping *m, void *data)
{
  (void)m;
  (*(size_t *)data)++;
}

static size_t
mappings (void)
{
  size_t count = 0;
  check_mappings (0, UINTPTR_MAX, count_one, &count);
  return count;
}

enum
{
  MANY = 70000
};
static char *many[MANY];

static void
with_many (unsigned kind)
{
  struct malloc_arena_options options = { .size = sizeof options, .kind = kind };
  malloc_arena *arena = malloc_arena_new (&options);
  CHECK (arena != NULL);
  size_t before = mappings ();
  size_t count = 0;
  while (count < MANY && (many[count] = malloc_arena (arena, malloc, 2100 + count % 9000)) != NULL)
    {
      *many[count] = (char)count;
      count++;
    }
  if (kind & HEAP_ISOLATED)
    CHECK_EQUAL (count < MANY ? errno : ENOMEM, ENOMEM);
  else
    {
      CHECK_EQUAL (count, MANY);
      CHECK (mappings () < 30000);
    }
  for (size_t i = 0; i < count; i++)
    CHECK_EQUAL (*many[i], (char)i);
  /* Every second one first: none joins a neighbour. */
  for (size_t i = 0; i < count; i += 2)
    free (many[i]);
  for (size_t i = 1; i < count; i += 2)
    free (many[i]);
  CHECK_EQUAL (check_stats (arena).live_blocks, 0);
  /* Two for each page of 3 MiB that stay ready, at most. */
  CHECK (mappings () < before + 1600);
  free (malloc_arena (arena, malloc, 1 << 20));
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
  CHECK (mappings () <= before);
}

/* In a child, the ranges that it has: those that its parent alone has are no reason to put a large block into a slab,
 * where no guard follows it. */
enum
{
  CROWD = 8300
};

static void
child_has_few (void *data)
{
  char *p = malloc_arena (data, malloc, CHECK_PAGE);
  CHECK (p != NULL);
  CHECK_FAULTS (p + CHECK_PAGE);
  free (p);
}

static void
forked (void)
{
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = HEAP_SECURE, .fork = MALLOC_ARENA_FORK_REFUSE };
  malloc_arena *arena = malloc_arena_new (&options);
  CHECK (arena != NULL);
  for (size_t i = 0; i < CROWD; i++)
    CHECK ((many[i] = malloc_arena (arena, malloc, CHECK_PAGE)) != NULL);
  CHECK_READABLE (many[CROWD - 1] + CHECK_PAGE); /* the control: in a slab */
  CHECK_EQUAL (check_child (child_has_few, arena).exit_code, 0);
  for (size_t i = 0; i < CROWD; i++)
    free (many[i]);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

int
main (int argc, char **argv)
{
  if (argc > 1 && strcmp (argv[1], "forked") == 0)
    {
      forked ();
      return 0;
    }
  if (argc > 1 && strncmp (argv[1], "many", 4) == 0)
    {
      with_many (strcmp (argv[1], "many isolated") == 0 ? HEAP_SECURE | HEAP_ISOLATED
                                                        : HEAP_SECURE);
      return 0;
    }
  if (argc > 1 && strncmp (argv[1], "half", 4) == 0)
    {
      half_closed (strcmp (argv[1], "half refused") == 0 ? MALLOC_ARENA_FORK_REFUSE
                                                         : MALLOC_ARENA_FORK_WIPE);
      return 0;
    }
  if (argc > 1)
    {
      with (strcmp (argv[1], "isolated") == 0 ? HEAP_SECURE | HEAP_ISOLATED : HEAP_SECURE);
      return 0;
    }
  if (check_emulated ())
    check_skip ("mappings are counted by the kernel below the emulator, with its own");
  static const char *const kinds[]
      = { "secure", "isolated", "many", "many isolated", "forked", "half", "half refused" };
  for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++)
    {
      struct check_outcome outcome = check_again (kinds[i], NULL);
      if (outcome.exit_code == CHECK_SKIP_CODE)
        return CHECK_SKIP_CODE;
      if (outcome.exit_code != 0)
        CHECK_FAIL ("%s: exit %d, signal %d: %s", kinds[i], outcome.exit_code, outcome.signal,
                    outcome.text);
    }
  return 0;
}
