/* range.h - runs of units with open pages, one for each large block.
 *
 * A range is a run's first pages; the page after them, and any that follow, are not accessible. One that is given
 * back, wiped, is ready for the next of its size: accessible in ordinary arenas, inaccessible in
 * isolated ones, bounded in both; beyond the bound it goes back to the kernel.
 * Locks: what is ready is its owner's, and, while it changes size or goes, under local->lock. The run and what the
 * kernel knows of it change together, under fork_lock where a child must be told.
 */
#ifndef MA_RANGE_H
#define MA_RANGE_H

#include "heap.h"

/* What a request for so many pages gets. In an isolated arena the page before the first must be inaccessible: no
 * spare ones. */
size_t ma_range_pages (const malloc_arena *arena, size_t pages);
/* A new range of PAGES, all zero; NULL if it cannot be had. With LESS_WILL_DO no step down, and nothing is given up, to
 * get it. */
struct ma_unit *ma_range_open (struct ma_local *local, size_t pages, int less_will_do);
/* One that is ready, of PAGES to MOST, in an isolated arena of PAGES; NULL if there is none. */
struct ma_unit *ma_range_ready (struct ma_local *local, size_t pages, size_t most);
/* Whether there is one. */
int ma_range_is_ready (struct ma_local *local, size_t pages, size_t most);
/* Ends the use of a range that is wiped. LOCAL: the calling thread's part of the arena, or NULL. It is given back to the
 * thread that opened it; or stays ready here, if there is room. */
void ma_range_give (struct ma_local *local, struct ma_unit *unit);
/* By the owner, who makes them ready: what others gave back. */
void ma_range_collect (struct ma_local *local);
/* More pages: the first one stays where it is; the new ones are zero. 0 where there is no room, or not with
 * the same properties. */
int ma_range_grow (malloc_arena *arena, struct ma_unit *unit, size_t pages);
/* Fewer: what is in those that go is wiped already. Where they cannot be closed they stay,
 * or, if the kernel gives back not even what it has taken, are lost to everybody. */
void ma_range_shrink (malloc_arena *arena, struct ma_unit *unit, size_t pages);
/* So many ranges that more of them could exhaust the process's mappings (vm.max_map_count). */
int ma_range_crowded (void);
/* Whether more of the ranges that slabs could have are in use than the arena may keep ready, and no ready one will do for
 * SIZE bytes: where so much comes and goes, another would be opened and closed each time. Not with several threads, as what
 * others free of a slab waits for the one that made it. */
int ma_range_spent (struct ma_local *local, size_t size);
/* What is ready back to the kernel; whether there was anything. Lock held. */
int ma_range_flush (struct ma_local *local);
/* In a forked child, first: the kernel has locked nothing there, and no range is known to be there. */
void ma_range_forked (void);
/* Of each arena, once the list of its ranges is what the child has. */
void ma_range_inherited (malloc_arena *arena);
/* And then: what is ready but could not be had again is not used any more. */
void ma_range_after_fork (struct ma_local *local);

/* First unit of the run that UNIT belongs to. */
static inline struct ma_unit *
ma_range_head (struct ma_unit *unit)
{
  return unit->kind == MA_UNIT_TAIL ? unit - unit->back : unit;
}

static inline char *
ma_range_start (const struct ma_unit *unit)
{
  return unit->end - (unit->pages << MA_PAGE_SHIFT);
}

#endif
