/* The walk: every block is in it once with its size, exact while nobody else allocates, whole while
 * others do, and usable in a child. */
#include "check.h"

#include <stdatomic.h>

enum
{
  MOST = 400000
};
static struct malloc_arena_extent extents[MOST];
static size_t count;

static void
walk (malloc_arena *arena)
{
  ptrdiff_t found = malloc_arena_walk (arena, extents, sizeof *extents, MOST);
  CHECK (found > 0 && found <= MOST);
  count = (size_t)found;
}

static bool
is_ours (const char *from, const char *to)
{
  static struct ma_region region;
  if (region.size == 0)
    region = check_bounds ();
  return (uintptr_t)from >= region.base && (uintptr_t)to <= region.base + region.size;
}

/* Where it must be inside of: the last container of its arena. Sums must be the arena's own. */
static void
check_shape (void)
{
  const struct malloc_arena_extent *heap = NULL, *in = NULL;
  for (size_t i = 0; i < count; i++)
    {
      const struct malloc_arena_extent *at = &extents[i];
      char *from = at->address;
      char *to = from != NULL ? from + at->bytes : NULL; /* an arena has no address */
      switch (at->type)
        {
        case MALLOC_ARENA_EXTENT_ARENA: heap = in = NULL; break;
        case MALLOC_ARENA_EXTENT_HEAP:
          heap = at;
          in = NULL;
          CHECK (is_ours (from, to));
          break;
        case MALLOC_ARENA_EXTENT_SLAB:
          in = at;
          CHECK (heap && from >= (char *)heap->address
                 && to <= (char *)heap->address + heap->bytes);
          break;
        case MALLOC_ARENA_EXTENT_LARGE:
          in = at;
          CHECK (is_ours (from, to));
          break;
        case MALLOC_ARENA_EXTENT_SLOT:
          CHECK (in && from >= (char *)in->address && to <= (char *)in->address + in->bytes);
          CHECK (at->block <= at->bytes);
          CHECK (at->state >= MALLOC_ARENA_EXTENT_LIVE
                 && at->state <= MALLOC_ARENA_EXTENT_RETURNED);
          break;
        default:
          CHECK_EQUAL (at->type, MALLOC_ARENA_EXTENT_GUARD);
          CHECK (in && (to <= (char *)in->address || from >= (char *)in->address + in->bytes));
        }
    }
}

static const struct malloc_arena_extent *
slot_of (const void *p)
{
  const struct malloc_arena_extent *found = NULL;
  for (size_t i = 0; i < count; i++)
    if (extents[i].type == MALLOC_ARENA_EXTENT_SLOT && (char *)p >= (char *)extents[i].address
        && (char *)p < (char *)extents[i].address + extents[i].bytes)
      {
        CHECK (found == NULL);
        found = &extents[i];
      }
  return found;
}

static size_t
number_of (unsigned type, unsigned state)
{
  size_t number = 0;
  for (size_t i = 0; i < count; i++)
    number += extents[i].type == type && (state == 0 || extents[i].state == state);
  return number;
}

static void
check_live (malloc_arena *arena)
{
  struct malloc_arena_stats stats = check_stats (arena);
  size_t bytes = 0;
  walk (arena);
  check_shape ();
  for (size_t i = 0; i < count; i++)
    if (extents[i].state == MALLOC_ARENA_EXTENT_LIVE && extents[i].type == MALLOC_ARENA_EXTENT_SLOT)
      bytes += extents[i].block;
  CHECK_EQUAL (number_of (MALLOC_ARENA_EXTENT_SLOT, MALLOC_ARENA_EXTENT_LIVE), stats.live_blocks);
  CHECK_EQUAL (bytes, stats.live_bytes);
  CHECK_EQUAL (extents[0].type, MALLOC_ARENA_EXTENT_ARENA);
  CHECK_EQUAL (extents[0].bytes, stats.mapped_bytes);
  CHECK_EQUAL (extents[0].block, stats.limit_bytes);
}

static void
step_by_step (unsigned kind, unsigned fork_policy)
{
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = kind, .name = "walked", .limit = 64 << 20 };
  options.fork = fork_policy;
  malloc_arena *arena = malloc_arena_new (&options);
  CHECK (arena != NULL);
  static void *blocks[300];
  for (size_t i = 0; i < 300; i++)
    CHECK ((blocks[i] = malloc_arena (arena, malloc, i * 37)) != NULL);
  check_live (arena);
  for (size_t i = 0; i < 300; i++)
    {
      const struct malloc_arena_extent *slot = slot_of (blocks[i]);
      CHECK (slot != NULL);
      CHECK (slot->address == blocks[i]);
      CHECK_EQUAL (slot->block, i * 37);
      CHECK_EQUAL (slot->state, (unsigned)MALLOC_ARENA_EXTENT_LIVE);
      CHECK (slot->arena == arena && strcmp (slot->name, "walked") == 0 && slot->kind == kind);
      if (i % 30 == 0) /* what the kernel says of the page */
        {
          struct check_mapping page = check_mapping_of (blocks[i]);
          CHECK_EQUAL ((slot->flags & MALLOC_ARENA_LOCKED) != 0, check_flag (&page, "lo"));
          CHECK_EQUAL ((slot->flags & MALLOC_ARENA_UNDUMPED) != 0, check_flag (&page, "dd"));
          CHECK_EQUAL ((slot->flags & MALLOC_ARENA_FORK_REFUSED) != 0, check_flag (&page, "dc"));
          CHECK_EQUAL ((slot->flags & MALLOC_ARENA_FORK_WIPED) != 0,
                       check_flag (&page, "wf") || check_flag (&page, "dc"));
        }
    }
  for (size_t i = 0; i < count && !CHECK_SANITIZED; i++)
    if (extents[i].type == MALLOC_ARENA_EXTENT_GUARD)
      CHECK_FAULTS (extents[i].address);
  for (size_t i = 0; i < 300; i += 2)
    free (blocks[i]);
  check_live (arena);
  for (size_t i = 1; i < 300; i += 2)
    free (blocks[i]);
  check_live (arena);
  CHECK_EQUAL (number_of (MALLOC_ARENA_EXTENT_SLOT, MALLOC_ARENA_EXTENT_LIVE), 0);

  /* Less room than there is: nothing is written beyond it. */
  memset (extents, 0x5a, 4 * sizeof *extents);
  CHECK (malloc_arena_walk (arena, extents, sizeof *extents, 1) >= 1);
  CHECK_EQUAL (extents[0].type, MALLOC_ARENA_EXTENT_ARENA);
  CHECK_EQUAL (extents[1].type, 0x5a5a5a5au);
  CHECK (malloc_arena_walk (arena, NULL, sizeof *extents, 0) >= 1);

  CHECK_EQUAL (malloc_arena_delete (arena), 0);
  errno = 0;
  CHECK_EQUAL (malloc_arena_walk (arena, extents, sizeof *extents, MOST), -1);
  CHECK_EQUAL (errno, EINVAL);
}

static void *
free_it (void *p)
{
  free (p);
  return NULL;
}

static void
freed_elsewhere (void)
{
  malloc_arena *arena = malloc_arena_get (HEAP_SECURE);
  void *p = malloc_arena (arena, malloc, 700);
  pthread_t thread;
  CHECK_EQUAL (pthread_create (&thread, NULL, free_it, p), 0);
  pthread_join (thread, NULL);
  walk (arena);
  CHECK_EQUAL (slot_of (p)->state, (unsigned)MALLOC_ARENA_EXTENT_QUARANTINED);
  CHECK_EQUAL (slot_of (p)->block, 0);
}

static atomic_int stop;

static void *
busy (void *data)
{
  size_t seed = (size_t)data;
  void *mine[64] = { NULL };
  malloc_arena_enter (malloc_arena_get (HEAP_SECURE));
  while (!stop)
    {
      seed = seed * 6364136223846793005u + 1;
      void **at = &mine[(seed >> 33) % 64];
      free (*at);
      *at = malloc ((seed >> 40) % 3000);
    }
  for (size_t i = 0; i < 64; i++)
    free (mine[i]);
  malloc_arena_leave (malloc_arena_get (HEAP_SECURE));
  return NULL;
}

static void
while_others_allocate (void)
{
  enum
  {
    THREADS = 3,
    KEPT = 200
  };
  malloc_arena *arena = malloc_arena_get (HEAP_SECURE);
  pthread_t threads[THREADS];
  void *kept[KEPT];
  for (size_t i = 0; i < KEPT; i++)
    CHECK ((kept[i] = malloc_arena (arena, malloc, 8 + i * 11)) != NULL);
  for (size_t t = 0; t < THREADS; t++)
    CHECK_EQUAL (pthread_create (&threads[t], NULL, busy, (void *)(t + 1)), 0);
  for (int i = 0; i < 200; i++)
    {
      walk (i % 2 ? NULL : arena);
      check_shape ();
      const struct malloc_arena_extent *slot = slot_of (kept[i % KEPT]);
      CHECK (slot && slot->state == MALLOC_ARENA_EXTENT_LIVE
             && slot->block == 8 + (size_t)(i % KEPT) * 11);
    }
  /* A child has the walking thread alone, and whole arenas. */
  pid_t pid = fork ();
  if (pid == 0)
    {
      walk (arena);
      check_shape ();
      _exit (slot_of (kept[7]) ? 0 : 1);
    }
  int status;
  CHECK_EQUAL (waitpid (pid, &status, 0), pid);
  CHECK_EQUAL (status, 0);
  stop = 1;
  for (size_t t = 0; t < THREADS; t++)
    pthread_join (threads[t], NULL);
  for (size_t i = 0; i < KEPT; i++)
    free (kept[i]);
}

int
main (void)
{
  CHECK_EQUAL (malloc_arena_walk (NULL, extents, sizeof *extents, MOST), 0);
  step_by_step (HEAP_DEFAULT, 0);
  step_by_step (HEAP_SECURE, 0);
  step_by_step (HEAP_SECURE, MALLOC_ARENA_FORK_REFUSE);
  step_by_step (HEAP_SECURE | HEAP_ISOLATED, 0);
  freed_elsewhere ();
  while_others_allocate ();
  errno = 0;
  CHECK_EQUAL (malloc_arena_walk (NULL, extents, 8, MOST), -1);
  CHECK_EQUAL (errno, EINVAL);
  CHECK_EQUAL (malloc_arena_walk (NULL, NULL, sizeof *extents, 1), -1);
  return 0;
}
