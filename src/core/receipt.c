#include "receipt.h"

#include <string.h>

#include "dense.h"
#include "os.h"

static unsigned
requested (const malloc_arena *arena)
{
  unsigned properties = MALLOC_ARENA_GUARDED;
  if (arena->is_secure)
    {
      properties |= MALLOC_ARENA_UNDUMPED;
      if (arena->lock_policy != MALLOC_ARENA_LOCK_OFF)
        properties |= MALLOC_ARENA_LOCKED;
    }
  if (arena->is_secretmem)
    properties |= MALLOC_ARENA_SECRETMEM;
  if (arena->is_tagged)
    properties |= MALLOC_ARENA_TAGGED;
  if (arena->is_isolated)
    properties |= MALLOC_ARENA_ISOLATED;
  properties |= arena->fork_policy == MALLOC_ARENA_FORK_KEEP ? MALLOC_ARENA_FORK_KEPT
                                                             : MALLOC_ARENA_FORK_WIPED;
  if (arena->fork_policy == MALLOC_ARENA_FORK_REFUSE)
    properties |= MALLOC_ARENA_FORK_REFUSED;
  return properties;
}

void
ma_receipt (malloc_arena *arena, struct malloc_arena_receipt *receipt)
{
  receipt->requested = requested (arena);
  /* Of the same moment: other threads take memory and give it back meanwhile, but not always. */
  for (unsigned i = 0; i < 100; i++)
    {
      receipt->mapped_bytes = atomic_load (&arena->mapped);
      receipt->locked_bytes = atomic_load (&arena->locked);
      if (receipt->mapped_bytes == atomic_load (&arena->mapped)
          && receipt->locked_bytes == atomic_load (&arena->locked))
        break;
    }
  receipt->obtained = receipt->requested;
  for (unsigned i = 0; i < MALLOC_ARENA_PROPERTIES; i++)
    {
      unsigned property = 1u << i;
      int refused = atomic_load (&arena->refused[i]);
      /* Whether memory is locked is counted: what was refused once may be given back by now. */
      if (property == MALLOC_ARENA_LOCKED && receipt->locked_bytes >= receipt->mapped_bytes)
        refused = 0;
      /* Of each thread by itself, and of this one now. */
      if (property == MALLOC_ARENA_TAGGED && arena->is_tagged && !refused)
        refused = os_tags_checked ();
      receipt->reason[i] = receipt->requested & property ? refused : 0;
      if (refused)
        receipt->obtained &= ~property;
    }
  if (!(receipt->obtained & MALLOC_ARENA_FORK_WIPED))
    receipt->obtained &= ~MALLOC_ARENA_FORK_REFUSED;
}

struct sum
{
  size_t blocks;
  size_t bytes;
  size_t peak;
};

static void
add (struct ma_local *local, void *data)
{
  struct sum *sum = data;
  size_t bytes;
  sum->blocks += ma_slab_live (local, &bytes);
  sum->bytes += bytes;
  sum->peak += ma_peak_bytes (local);
}

static void
add_classes (struct ma_local *local, void *data)
{
  ma_slab_classes (local, data);
}

_Static_assert (MA_CLASSES < MALLOC_ARENA_CLASSES, "one more is for large blocks");

/* Those that hold something, the smallest slots first, then the large blocks. */
static void
fill_classes (malloc_arena *arena, struct malloc_arena_stats *stats)
{
  struct malloc_arena_class classes[MA_CLASSES + 1];
  memset (classes, 0, sizeof classes);
  ma_arena_locals (arena, add_classes, classes);
  struct malloc_arena_class *large = &classes[MA_CLASSES];
  large->live_blocks = atomic_load (&arena->large_blocks);
  large->live_bytes = atomic_load (&arena->large_bytes);
  large->mapped_bytes = atomic_load (&arena->mapped);
  for (unsigned i = 0; i < MA_CLASSES; i++)
    {
      classes[i].slot_bytes = ma_class_slot[i];
      /* The threads go on meanwhile. */
      large->mapped_bytes -= classes[i].mapped_bytes < large->mapped_bytes ? classes[i].mapped_bytes
                                                                           : large->mapped_bytes;
    }
  memset (stats->by_class, 0, sizeof stats->by_class);
  stats->classes = 0;
  for (unsigned i = 0; i <= MA_CLASSES; i++)
    if (classes[i].mapped_bytes != 0)
      stats->by_class[stats->classes++] = classes[i];
}

void
ma_stats (malloc_arena *arena, struct malloc_arena_stats *stats)
{
  if (stats->size >= sizeof *stats)
    fill_classes (arena, stats);
  struct sum sum = { 0, 0, 0 };
  ma_arena_locals (arena, add, &sum);
  stats->live_blocks = sum.blocks + atomic_load (&arena->large_blocks);
  stats->live_bytes = sum.bytes + atomic_load (&arena->large_bytes);
  stats->limit_bytes = arena->limit;
  /* Those of threads, and of large blocks, need not have been at one time. */
  stats->peak_bytes = sum.peak + atomic_load (&arena->large_peak);
  if (arena->limit != 0 && stats->peak_bytes > arena->limit)
    stats->peak_bytes = arena->limit;
  stats->mapped_bytes = atomic_load (&arena->mapped);
  stats->locked_bytes = atomic_load (&arena->locked);
}
