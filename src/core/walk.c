#include "walk.h"

#include <stddef.h>
#include <string.h>

#include "range.h"
#include "receipt.h"

struct walk
{
  char *out;
  size_t extent_size;
  size_t count;
  size_t found;
  malloc_arena *arena;
};

static void
put (struct walk *walk, unsigned type, unsigned state, unsigned flags, const char *address,
     size_t bytes, size_t block)
{
  if (walk->found++ >= walk->count)
    return;
  struct malloc_arena_extent extent = {
    .address = (void *)(uintptr_t)address,
    .bytes = bytes,
    .block = block,
    .arena = walk->arena,
    .name = walk->arena->name,
    .type = type,
    .state = state,
    .flags = flags,
    .kind = walk->arena->kind,
  };
  memcpy (walk->out + (walk->found - 1) * walk->extent_size, &extent, walk->extent_size);
}

/* The owner writes them without a lock and without atomics, as its fast paths pay nothing for
 * pictures; an aligned word is read whole on every machine this runs on. */
__attribute__ ((no_sanitize_thread)) static size_t
size_of (const struct ma_unit *unit, unsigned slot)
{
  if (!unit->is_block) /* nothing says what was asked for */
    return unit->slot;
  size_t size = *(const volatile uint16_t *)&unit->sizes[slot];
  size -= size != 0;
  return size <= unit->slot ? size : unit->slot;
}

__attribute__ ((no_sanitize_thread)) static void
read_block (const struct ma_unit *unit, const char **block, size_t *size)
{
  *block = *(char *const volatile *)&unit->block;
  *size = *(const volatile size_t *)&unit->size;
}

/* What the kernel granted for the unit's memory, locks not counted. */
static unsigned
flags_of (const malloc_arena *arena, const struct ma_unit *unit)
{
  unsigned flags = (arena->is_isolated ? MALLOC_ARENA_ISOLATED : 0)
                   | (arena->is_tagged ? MALLOC_ARENA_TAGGED : 0);
  if (unit->state & MA_UNIT_SECRET
      || (!(unit->state & MA_UNIT_DUMPED) && ma_sealed.dump_refused == 0))
    flags |= MALLOC_ARENA_UNDUMPED;
  if (unit->state & MA_UNIT_SECRET)
    flags |= MALLOC_ARENA_SECRETMEM;
  if (unit->state & (MA_UNIT_FORK_WIPE | MA_UNIT_FORK_ABSENT)
      && arena->fork_policy != MALLOC_ARENA_FORK_KEEP)
    flags |= MALLOC_ARENA_FORK_WIPED
             | (arena->fork_policy == MALLOC_ARENA_FORK_REFUSE ? MALLOC_ARENA_FORK_REFUSED : 0);
  else if (arena->fork_policy == MALLOC_ARENA_FORK_KEEP)
    flags |= MALLOC_ARENA_FORK_KEPT;
  return flags;
}

static unsigned
page_mask (const struct ma_unit *unit, unsigned slot)
{
  size_t from = (size_t)slot * unit->slot;
  unsigned first = (unsigned)(from >> MA_PAGE_SHIFT);
  unsigned last = (unsigned)((from + unit->slot - 1) >> MA_PAGE_SHIFT);
  return ((2u << last) - 1) & ~((1u << first) - 1);
}

static void
walk_slab (struct walk *walk, const struct ma_unit *unit)
{
  unsigned opened = (1u << unit->opened) - 1;
  unsigned flags = flags_of (walk->arena, unit);
  int is_guarded = (unit->state & (MA_UNIT_GUARDED | MA_UNIT_SECRET)) != 0;
  flags |= is_guarded ? MALLOC_ARENA_GUARDED : 0;
  put (walk, MALLOC_ARENA_EXTENT_SLAB, 0,
       flags | ((unit->locked & opened) == opened ? MALLOC_ARENA_LOCKED : 0), ma_unit_base (unit),
       (size_t)unit->opened << MA_PAGE_SHIFT, unit->slot);
  for (unsigned slot = 0; slot < unit->avail; slot++)
    {
      uint64_t bit = (uint64_t)1 << (slot & 63);
      unsigned pages = page_mask (unit, slot);
      int is_remote
          = (atomic_load_explicit (&unit->remote[slot / 64], memory_order_acquire) & bit) != 0;
      int is_free = (__atomic_load_n (&unit->free[slot / 64], __ATOMIC_RELAXED) & bit) != 0;
      unsigned state = is_free              ? MALLOC_ARENA_EXTENT_FREE
                       : unit->away & pages ? MALLOC_ARENA_EXTENT_RETURNED
                       : is_remote          ? MALLOC_ARENA_EXTENT_QUARANTINED
                                            : MALLOC_ARENA_EXTENT_LIVE;
      put (walk, MALLOC_ARENA_EXTENT_SLOT, state,
           flags | ((unit->locked & pages) == pages ? MALLOC_ARENA_LOCKED : 0),
           ma_unit_base (unit) + (size_t)slot * unit->slot, unit->slot,
           state == MALLOC_ARENA_EXTENT_LIVE ? size_of (unit, slot) : 0);
    }
  if (is_guarded)
    put (walk, MALLOC_ARENA_EXTENT_GUARD, 0, 0,
         ma_unit_base (unit) + ((size_t)MA_SLAB_PAGES << MA_PAGE_SHIFT), MA_PAGE, 0);
}

static void
walk_local (struct ma_local *local, void *data)
{
  for (struct ma_unit *heap = local->heaps; heap; heap = heap->heap_next)
    {
      put (data, MALLOC_ARENA_EXTENT_HEAP, 0, 0, ma_unit_base (heap),
           (size_t)heap->heap_units << MA_UNIT_SHIFT, 0);
      for (uint32_t i = 0; i < heap->heap_units; i++)
        if (heap[i].kind == MA_UNIT_DENSE)
          walk_slab (data, heap + i);
    }
}

static void
walk_large (struct walk *walk, const struct ma_unit *unit)
{
  const char *start = ma_range_start (unit);
  const char *end = unit->end;
  int is_live = atomic_load_explicit (&unit->large, memory_order_acquire) == MA_LARGE_LIVE;
  unsigned state = is_live ? MALLOC_ARENA_EXTENT_LIVE : MALLOC_ARENA_EXTENT_FREE;
  unsigned flags
      = flags_of (walk->arena, unit) | MALLOC_ARENA_GUARDED
        | (__atomic_load_n (&unit->is_locked, __ATOMIC_RELAXED) ? MALLOC_ARENA_LOCKED : 0);
  put (walk, MALLOC_ARENA_EXTENT_LARGE, state, flags, start, (size_t)(end - start), 0);
  if (start != ma_unit_base (unit))
    put (walk, MALLOC_ARENA_EXTENT_GUARD, 0, 0, ma_unit_base (unit),
         (size_t)(start - ma_unit_base (unit)), 0);
  const char *block;
  size_t size;
  read_block (unit, &block, &size);
  if (is_live && block >= start && block < end && size <= (size_t)(end - block))
    put (walk, MALLOC_ARENA_EXTENT_SLOT, state, flags, block, (size_t)(end - block), size);
  put (walk, MALLOC_ARENA_EXTENT_GUARD, 0, 0, end, MA_PAGE, 0);
}

static void
walk_arena (malloc_arena *arena, void *data)
{
  struct walk *walk = data;
  struct malloc_arena_receipt receipt = { .size = sizeof receipt };
  walk->arena = arena;
  ma_receipt (arena, &receipt);
  put (walk, MALLOC_ARENA_EXTENT_ARENA, 0, receipt.obtained, NULL, receipt.mapped_bytes,
       arena->limit);
  ma_arena_locals (arena, walk_local, walk);
  pthread_mutex_lock (&arena->lock);
  for (const struct ma_unit *unit = arena->larges; unit; unit = unit->heap_next)
    walk_large (walk, unit);
  pthread_mutex_unlock (&arena->lock);
}

ptrdiff_t
ma_walk (malloc_arena *arena, struct malloc_arena_extent *extents, size_t extent_size, size_t count)
{
  struct walk walk = { (char *)extents, extent_size, count, 0, NULL };
  if (arena)
    walk_arena (arena, &walk);
  else
    ma_arena_each (walk_arena, &walk);
  return (ptrdiff_t)walk.found;
}

#define AT(type, member) (uint32_t)offsetof (type, member)
const struct ma_layout ma_layout = {
  .version = 2,
#ifndef __x86_64__
  .page_shift = &ma_page_shift,
#endif
  .sealed = &ma_sealed,
  .arenas = ma_arena_table,
  .arena_count = MA_ARENAS,
  .sealed_base = AT (union ma_sealed_page, sealed.region.base),
  .sealed_size = AT (union ma_sealed_page, sealed.region.size),
  .sealed_units = AT (union ma_sealed_page, sealed.units),
  .sealed_dump_refused = AT (union ma_sealed_page, sealed.dump_refused),
  .arena_magic = AT (struct malloc_arena, magic),
  .arena_kind = AT (struct malloc_arena, kind),
  .arena_fork_policy = AT (struct malloc_arena, fork_policy),
  .arena_limit = AT (struct malloc_arena, limit),
  .arena_name = AT (struct malloc_arena, name),
  .arena_mapped = AT (struct malloc_arena, mapped),
  .arena_locals = AT (struct malloc_arena, locals),
  .arena_larges = AT (struct malloc_arena, larges),
  .local_heaps = AT (struct ma_local, heaps),
  .local_next = AT (struct ma_local, next),
  .unit_size = sizeof (struct ma_unit),
  .unit_sizes = AT (struct ma_unit, sizes),
  .unit_slot = AT (struct ma_unit, slot),
  .unit_avail = AT (struct ma_unit, avail),
  .unit_kind = AT (struct ma_unit, kind),
  .unit_state = AT (struct ma_unit, state),
  .unit_opened = AT (struct ma_unit, opened),
  .unit_away = AT (struct ma_unit, away),
  .unit_locked = AT (struct ma_unit, locked),
  .unit_large = AT (struct ma_unit, large),
  .unit_heap_next = AT (struct ma_unit, heap_next),
  .unit_heap_units = AT (struct ma_unit, heap_units),
  .unit_free = AT (struct ma_unit, free),
  .unit_remote = AT (struct ma_unit, remote),
  .unit_is_block = AT (struct ma_unit, is_block),
  .unit_block = AT (struct ma_unit, block),
  .unit_block_size = AT (struct ma_unit, size),
  .unit_pages = AT (struct ma_unit, pages),
  .unit_end = AT (struct ma_unit, end),
  .unit_is_locked = AT (struct ma_unit, is_locked),
  .words = MA_WORDS,
};
