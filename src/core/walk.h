/* walk.h - what lies where in the arenas, for pictures: from inside as a flat array, and for readers
 * outside the process where to find the same. */
#ifndef MA_WALK_H
#define MA_WALK_H

#include "arena.h"

/* As malloc_arena_walk, its arguments checked. */
ptrdiff_t ma_walk (malloc_arena *arena, struct malloc_arena_extent *extents, size_t extent_size,
                   size_t count);

/* Where another process, or who has a core file, finds an arena's structures: python/malloc_arena/
 * snapshot.py reads them by it, whatever version of the library it meets. A change of what a member
 * means, or of their order here, is a new VERSION. Offsets unless said otherwise. */
struct ma_layout
{
  uint32_t version;
  uint32_t arena_count;
  const unsigned *page_shift; /* NULL: 12 */
  const void *sealed;
  malloc_arena *const *arenas;
  uint32_t sealed_base, sealed_size, sealed_units, sealed_dump_refused;
  uint32_t arena_magic, arena_kind, arena_fork_policy, arena_limit, arena_name, arena_mapped,
      arena_locals, arena_larges;
  uint32_t local_heaps, local_next;
  uint32_t unit_size; /* in bytes */
  uint32_t unit_sizes, unit_slot, unit_avail, unit_kind, unit_state, unit_opened, unit_away,
      unit_locked, unit_large, unit_heap_next, unit_heap_units, unit_free, unit_remote,
      unit_is_block, unit_block, unit_block_size, unit_pages, unit_end, unit_is_locked;
  uint32_t words; /* of unit_free and unit_remote */
};
extern MA_EXPORT const struct ma_layout ma_layout;

#endif
