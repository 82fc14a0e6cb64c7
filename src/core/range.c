#include "range.h"

#include <errno.h>

enum
{
  EXACT_BINS = 17,     /* of 0 to 16 pages; above, eight bins per doubling */
  ROUNDED_PAGES = 512, /* larger ranges have no more pages than they need */
  BINNED_PAGES = 2048,
  MUCH = 256,   /* pages that take longer to move than others to open what they need anew */
  CROWD = 8192, /* ranges: a quarter of the mappings that a process has by default */
  /* Bytes that may stay ready. Below, slabs, which are opened by several pages, would lock too much at once. */
  SLABS_LEAST = 1 << 20
};

/* Of all arenas. */
static _Atomic unsigned ranges;
static _Atomic size_t warm_locked; /* bytes */

/* ---- bins ---- */

static unsigned
bin_of (size_t pages)
{
  if (pages < EXACT_BINS)
    return (unsigned)pages;
  unsigned top = 63 - (unsigned)__builtin_clzl (pages - 1);
  return EXACT_BINS + (top - 4) * 8 + (unsigned)((pages - 1) >> (top - 3) & 7);
}

/* The most pages that bin_of puts there. */
static size_t
bin_pages (unsigned bin)
{
  if (bin < EXACT_BINS)
    return bin;
  unsigned top = 4 + (bin - EXACT_BINS) / 8;
  return ((size_t)(bin - EXACT_BINS) % 8 + 9) << (top - 3);
}

/* MA_BINS for what is never kept. */
static unsigned
bin_for (size_t pages)
{
  return pages <= BINNED_PAGES ? bin_of (pages) : MA_BINS;
}

size_t
ma_range_pages (const malloc_arena *arena, size_t pages)
{
  return pages <= ROUNDED_PAGES && !arena->is_isolated ? bin_pages (bin_of (pages)) : pages;
}

/* ---- opened and closed ---- */

/* Whether a range is of a block that may be in a slab instead: larger ones take nothing from what of these is ready. */
static int
is_small (size_t pages)
{
  return (pages - 1) << MA_PAGE_SHIFT < MA_DENSE_MOST;
}

static void
count_ranged (malloc_arena *arena, size_t pages, int is_more)
{
  size_t bytes = is_small (pages) ? pages << MA_PAGE_SHIFT : 0;
  atomic_fetch_add_explicit (&arena->ranged, is_more ? bytes : -bytes, memory_order_relaxed);
}

static void
link_range (malloc_arena *arena, struct ma_unit *unit)
{
  atomic_fetch_add_explicit (&ranges, 1, memory_order_relaxed);
  count_ranged (arena, unit->pages, 1);
  pthread_mutex_lock (&arena->lock);
  unit->heap_previous = NULL;
  unit->heap_next = arena->larges;
  if (arena->larges)
    arena->larges->heap_previous = unit;
  arena->larges = unit;
  pthread_mutex_unlock (&arena->lock);
}

static void
unlink_range (malloc_arena *arena, struct ma_unit *unit)
{
  atomic_fetch_sub_explicit (&ranges, 1, memory_order_relaxed);
  count_ranged (arena, unit->pages, 0);
  pthread_mutex_lock (&arena->lock);
  if (unit->heap_previous)
    unit->heap_previous->heap_next = unit->heap_next;
  else
    arena->larges = unit->heap_next;
  if (unit->heap_next)
    unit->heap_next->heap_previous = unit->heap_previous;
  pthread_mutex_unlock (&arena->lock);
}

/* A fork comes before or after both, the list and what the kernel knows: a child reserves again
 * what it is told of, and what it has not must not be anybody's. Elsewhere the child has it all. */
static void
hold_fork (malloc_arena *arena, int hold)
{
  if (arena->is_secretmem || arena->fork_policy == MALLOC_ARENA_FORK_REFUSE)
    (hold ? pthread_mutex_lock : pthread_mutex_unlock) (&arena->fork_lock);
}

/* The range back to the kernel and its units to the region. Its contents are wiped already. */
static void
close_range (malloc_arena *arena, struct ma_unit *unit)
{
  size_t bytes = unit->pages << MA_PAGE_SHIFT;
  char *start = ma_range_start (unit);
  if (unit->is_locked)
    ma_heap_unlocked (arena, bytes);
  ma_heap_refund (arena, bytes);
  hold_fork (arena, 1);
  unlink_range (arena, unit);
  int refused = ma_heap_close (start, bytes, unit->state);
  if (refused)
    {
      /* No mapping can be split any more. The pages go back; the address space is not used again, as
       * what the kernel was told of it could not be taken back. */
      os_discard (start, bytes, unit->is_locked);
      os_close (start, bytes);
      ma_heap_lost (unit, unit->units, unit->state);
    }
  unit->state = 0;
  hold_fork (arena, 0);
  if (refused)
    return;
  size_t units = unit->units;
  ma_region_give (unit, units);
  if (arena->is_plain)
    ma_region_forget (unit, units);
}

static void
add_tails (struct ma_unit *unit, uint32_t from, uint32_t to)
{
  for (uint32_t i = from; i < to; i++)
    {
      unit[i].local = unit->local;
      unit[i].back = i;
      __atomic_store_n (&unit[i].kind, MA_UNIT_TAIL, __ATOMIC_RELEASE);
    }
}

/* Units that hold so many pages and a guard. */
static size_t
units_for (size_t pages)
{
  return (pages + 1 + MA_UNIT_PAGES - 1) / MA_UNIT_PAGES;
}

struct ma_unit *
ma_range_open (struct ma_local *local, size_t pages, int less_will_do)
{
  malloc_arena *arena = local->arena;
  size_t bytes = pages << MA_PAGE_SHIFT;
  size_t units = units_for (pages);
  if (units >= ma_region_units () || ma_heap_charge (arena, bytes, 0))
    return NULL;
  struct ma_unit *unit = ma_region_take (units, 1);
  if (unit == NULL)
    {
      ma_heap_refund (arena, bytes);
      return NULL;
    }
  unit->units = (uint32_t)units;
  unit->pages = pages;
  unit->end = ma_unit_base (unit) + bytes;
  unit->local = local;
  unit->serial = arena->serial;
  unit->tag = local->is_tagged ? unit->tag & 15 : 0;
  unit->state = 0;
  unit->is_locked = 0;
  unit->is_new = 1;
  atomic_store_explicit (&unit->large, MA_LARGE_FREED, memory_order_relaxed);
  char *start = ma_range_start (unit);
  hold_fork (arena, 1);
  int refused = ma_heap_open (arena, start, bytes, &unit->state);
  link_range (arena, unit);
  hold_fork (arena, 0);
  if (refused == 0)
    {
      int locked;
      int unlockable = ma_heap_lock (arena, start, bytes, unit->state, &locked);
      /* The limit may be spent on what nobody uses. */
      if (unlockable && !less_will_do && ma_heap_may_reclaim (local))
        {
          pthread_mutex_lock (&local->lock);
          ma_local_reclaim (local);
          pthread_mutex_unlock (&local->lock);
          ma_left_reclaim (NULL);
          ma_others_reclaim (arena);
          unlockable = ma_heap_lock (arena, start, bytes, unit->state, &locked);
          ma_heap_reclaimed (local, unlockable);
        }
      __atomic_store_n (&unit->is_locked, locked, __ATOMIC_RELAXED); /* walks see it */
      if (unlockable)
        refused = less_will_do ? ENOMEM : ma_heap_unlockable (arena, unlockable);
    }
  if (refused)
    {
      close_range (arena, unit);
      return NULL;
    }
  add_tails (unit, 1, (uint32_t)units);
  unit->bin = bin_for (pages);
  unit->kind = MA_UNIT_LARGE;
  return unit;
}

int
ma_range_crowded (void)
{
  return atomic_load_explicit (&ranges, memory_order_relaxed) >= CROWD;
}

int
ma_range_spent (struct ma_local *local, size_t size)
{
  const malloc_arena *arena = local->arena;
  size_t most = arena->warm_most < arena->warm_lockable ? arena->warm_most : arena->warm_lockable;
  size_t used = atomic_load_explicit (&arena->ranged, memory_order_relaxed) - local->warm_small;
  if (likely (used + size <= most) || most < SLABS_LEAST || arena->is_secretmem
      || !__libc_single_threaded)
    return 0;
  ma_range_collect (local);
  size_t pages = (size + MA_PAGE - 1) >> MA_PAGE_SHIFT;
  return !ma_range_is_ready (local, pages, pages + pages / 4);
}

/* ---- another number of pages ---- */

/* Whether a range that gets PAGES is locked, or might be in another place: not one that is longer than the limit, which
 * would move at each step else. */
static int
is_lockable (const malloc_arena *arena, const struct ma_unit *unit, size_t pages)
{
  return unit->is_locked || !arena->is_secure || pages << MA_PAGE_SHIFT <= os_lock_limit ();
}

enum growth
{
  GROWN,
  NEVER,  /* such ranges do not grow */
  STUCK,  /* something else lies there */
  REFUSED /* a limit is met */
};

static enum growth
grow (malloc_arena *arena, struct ma_unit *unit, size_t pages)
{
  size_t units = units_for (pages);
  size_t bytes = (pages - unit->pages) << MA_PAGE_SHIFT;
  uint8_t state = 0;
  /* A file of secret memory has the size that it has. A few pages of secrets are soon copied, and their
   * old place then is one that was freed, not one in the middle of the block. */
  if (unit->state & MA_UNIT_SECRET || (unit->pages < MA_UNIT_PAGES && !arena->is_plain))
    return NEVER;
  if (ma_heap_charge (arena, bytes, 0))
    return REFUSED;
  if (units > unit->units && !ma_region_extend (unit + unit->units, units - unit->units))
    {
      ma_heap_refund (arena, bytes);
      return STUCK;
    }
  int locked = 0;
  hold_fork (arena, 1);
  if (ma_heap_open (arena, unit->end, bytes, &state) || state != unit->state
      || (is_lockable (arena, unit, pages)
          && (ma_heap_lock (arena, unit->end, bytes, state, &locked) || locked != unit->is_locked)))
    {
      if (locked)
        ma_heap_unlocked (arena, bytes);
      ma_heap_refund (arena, bytes);
      /* What cannot be closed stays the run's, which would otherwise end in open pages. */
      if (ma_heap_close (unit->end, bytes, state) == 0 && units > unit->units)
        ma_region_give (unit + unit->units, units - unit->units);
      hold_fork (arena, 0);
      return REFUSED;
    }
  pthread_mutex_lock (&arena->lock);
  if (units > unit->units)
    {
      add_tails (unit, unit->units, (uint32_t)units);
      unit->units = (uint32_t)units;
    }
  count_ranged (arena, unit->pages, 0);
  count_ranged (arena, pages, 1);
  unit->pages = pages;
  unit->end += bytes;
  unit->is_new = 1;
  unit->bin = bin_for (pages);
  pthread_mutex_unlock (&arena->lock);
  hold_fork (arena, 0);
  return GROWN;
}

int
ma_range_grow (malloc_arena *arena, struct ma_unit *unit, size_t pages)
{
  enum growth growth = grow (arena, unit, pages);
  /* What threads that are gone have left must not be in the way of what takes much to be moved. */
  if ((growth == REFUSED || (growth == STUCK && pages >= MUCH)) && ma_left_reclaim (NULL))
    growth = grow (arena, unit, pages);
  return growth == GROWN;
}

/* Whether the end of a range that could be closed in part only is as the rest of it again. Of secret memory nothing was
 * closed. */
static int
reopen (malloc_arena *arena, const struct ma_unit *unit, void *tail, size_t bytes)
{
  if (unit->state & MA_UNIT_SECRET)
    return 1;
  uint8_t state = ma_heap_unsure (unit->state);
  return ma_heap_open (arena, tail, bytes, &state) == 0 && state == unit->state
         && (!unit->is_locked || os_lock (tail, bytes) == 0);
}

void
ma_range_shrink (malloc_arena *arena, struct ma_unit *unit, size_t pages)
{
  size_t units = units_for (pages);
  size_t bytes = (unit->pages - pages) << MA_PAGE_SHIFT;
  char *tail = unit->end - bytes;
  int refused = ma_heap_close (tail, bytes, unit->state);
  if (refused && reopen (arena, unit, tail, bytes))
    return;
  if (refused)
    {
      os_discard (tail, bytes, unit->is_locked);
      ma_heap_refused (arena, MALLOC_ARENA_GUARDED, refused);
    }
  if (unit->is_locked)
    ma_heap_unlocked (arena, bytes);
  ma_heap_refund (arena, bytes);
  size_t more = unit->units - units;
  pthread_mutex_lock (&arena->lock);
  unit->units = (uint32_t)units;
  count_ranged (arena, unit->pages, 0);
  count_ranged (arena, pages, 1);
  unit->pages = pages;
  unit->end -= bytes;
  unit->bin = bin_for (pages);
  pthread_mutex_unlock (&arena->lock);
  if (refused && more != 0)
    ma_heap_lost (unit + units, more, unit->state);
  else if (more != 0)
    ma_region_give (unit + units, more);
}

/* ---- what stays ready: wiped ranges, by bin, the last one first ---- */

/* Where a range that is ready is linked: of PAGES to MOST. */
static struct ma_unit **
find_warm (struct ma_local *local, size_t pages, size_t most)
{
  for (unsigned bin = bin_for (pages); bin < MA_BINS && bin_pages (bin) <= most; bin++)
    for (struct ma_unit **link = &local->warm[bin]; *link; link = &(*link)->next)
      if ((*link)->pages >= pages)
        return link;
  return NULL;
}

/* In what all threads and arenas may have together. */
static void
count_shared (malloc_arena *arena, int is_locked, size_t more)
{
  if (is_locked)
    ma_count (&warm_locked, more);
  if (arena->limit != 0)
    ma_count (&arena->warm, more);
}

static void
count_warm (struct ma_local *local, const struct ma_unit *unit, int is_more)
{
  size_t bytes = unit->pages << MA_PAGE_SHIFT;
  bytes = is_more ? bytes : -bytes;
  local->warm_bytes += bytes;
  if (is_small (unit->pages))
    local->warm_small += bytes;
  count_shared (local->arena, unit->is_locked, bytes);
}

static struct ma_unit *
take_warm (struct ma_local *local, struct ma_unit **link)
{
  struct ma_unit *unit = *link;
  *link = unit->next;
  count_warm (local, unit, 0);
  return unit;
}

struct ma_unit *
ma_range_ready (struct ma_local *local, size_t pages, size_t most)
{
  int is_isolated = local->arena->is_isolated;
  ma_range_collect (local);
  local->was_asked = 1;
  struct ma_unit **link = find_warm (local, pages, is_isolated ? pages : most);
  if (link == NULL)
    return NULL;
  if (is_isolated && os_open (ma_range_start (*link), (*link)->pages << MA_PAGE_SHIFT))
    return NULL;
  struct ma_unit *unit = take_warm (local, link);
  /* The limit was met when it was opened: it may be free by now. */
  if (!unit->is_locked)
    ma_heap_lock (local->arena, ma_range_start (unit), unit->pages << MA_PAGE_SHIFT, unit->state,
                  &unit->is_locked);
  return unit;
}

int
ma_range_is_ready (struct ma_local *local, size_t pages, size_t most)
{
  return find_warm (local, pages, most) != NULL;
}

/* How many bytes too many are warm with BYTES more of LOCAL; none if it has only the least that each may. */
static size_t
excess (const struct ma_local *local, size_t bytes, int is_locked)
{
  const malloc_arena *arena = local->arena;
  size_t mine = local->warm_bytes + bytes;
  if (mine <= MA_WARM_LEAST)
    return 0;
  size_t all = atomic_load_explicit (&warm_locked, memory_order_relaxed) + bytes;
  size_t too_many = mine > arena->warm_most ? mine - arena->warm_most : 0;
  if (is_locked && all > arena->warm_lockable + too_many)
    too_many = all - arena->warm_lockable;
  /* Else others would find a limit spent on what nobody uses. */
  all = atomic_load_explicit (&arena->warm, memory_order_relaxed) + bytes;
  if (arena->limit != 0 && all > arena->warm_shared + too_many)
    too_many = all - arena->warm_shared;
  return too_many;
}

/* Whether BYTES more may stay warm, after others of LOCAL made room: those that were there when this was so last, and
 * have not been asked for since, if anything was; and then, bin by bin, any. But a large one that is more than half too
 * much does not stay: if the same is done again and again, it is opened each time, and else all the others were. */
static int
make_room (struct ma_local *local, size_t bytes, int is_locked)
{
  const malloc_arena *arena = local->arena;
  if (likely (excess (local, bytes, is_locked) == 0))
    return 1;
  if (bytes > arena->warm_most || (is_locked && bytes > arena->warm_lockable))
    return 0;
  int saved = errno;
  pthread_mutex_lock (&local->lock);
  if (local->was_asked)
    {
      for (unsigned bin = 0; bin < MA_BINS; bin++)
        for (struct ma_unit **link = &local->warm[bin]; *link != NULL;)
          if ((*link)->epoch != local->warm_epoch)
            close_range (local->arena, take_warm (local, link));
          else
            link = &(*link)->next;
      local->warm_epoch++;
      local->was_asked = 0;
    }
  if (bytes <= MA_WARM_LEAST || excess (local, bytes, is_locked) <= bytes / 2)
    for (; local->warm_bytes != 0 && excess (local, bytes, is_locked) != 0;
         local->warm_hand = (local->warm_hand + 1) % MA_BINS)
      if (local->warm[local->warm_hand] != NULL)
        close_range (local->arena, take_warm (local, &local->warm[local->warm_hand]));
  pthread_mutex_unlock (&local->lock);
  errno = saved;
  return excess (local, bytes, is_locked) == 0;
}

/* ---- from one thread to another ---- */

/* Whether the range is given back to the thread that made its block, which may go on to make others for this one to
 * free: here it would be of no use, and there another would be opened each time. */
static int
give_back (struct ma_unit *unit)
{
  struct ma_local *maker = unit->local;
  malloc_arena *arena = maker->arena;
  size_t bytes = unit->pages << MA_PAGE_SHIFT;
  size_t locked = atomic_load_explicit (&warm_locked, memory_order_relaxed) + bytes;
  size_t shared = atomic_load_explicit (&arena->warm, memory_order_relaxed) + bytes;
  if (arena->is_isolated || arena->is_secretmem || unit->bin >= MA_BINS
      || atomic_load_explicit (&maker->owner, memory_order_relaxed) == MA_NOBODY
      || (unit->is_locked && locked > arena->warm_lockable)
      || (arena->limit != 0 && shared > arena->warm_shared)
      || atomic_load_explicit (&maker->returned_bytes, memory_order_relaxed) + bytes
             > MA_RETURNED_MOST)
    return 0;
  atomic_fetch_add_explicit (&maker->returned_bytes, bytes, memory_order_relaxed);
  count_shared (arena, unit->is_locked, bytes);
  unit->next = atomic_load_explicit (&maker->returned, memory_order_relaxed);
  while (!atomic_compare_exchange_weak_explicit (&maker->returned, &unit->next, unit,
                                                 memory_order_release, memory_order_relaxed))
    ;
  return 1;
}

/* The ranges that were given back, linked by NEXT, in nobody's account any more. */
static struct ma_unit *
take_returned (struct ma_local *local)
{
  struct ma_unit *first = atomic_exchange_explicit (&local->returned, NULL, memory_order_acquire);
  for (struct ma_unit *unit = first; unit != NULL; unit = unit->next)
    {
      size_t bytes = unit->pages << MA_PAGE_SHIFT;
      atomic_fetch_sub_explicit (&local->returned_bytes, bytes, memory_order_relaxed);
      count_shared (local->arena, unit->is_locked, -bytes);
    }
  return first;
}

/* By the owner: keeps it ready, or closes it. */
static void
keep (struct ma_local *local, struct ma_unit *unit)
{
  malloc_arena *arena = unit->local->arena;
  size_t bytes = unit->pages << MA_PAGE_SHIFT;
  unsigned bin = unit->bin;
  if (local != NULL && bin < (arena->is_isolated ? EXACT_BINS : MA_BINS)
      && make_room (local, bytes, unit->is_locked)
      && (!arena->is_isolated || os_close (ma_range_start (unit), bytes) == 0))
    {
      count_warm (local, unit, 1);
      unit->is_new = unit->is_sparse;
      unit->is_sparse = 0;
      unit->epoch = local->warm_epoch;
      unit->next = local->warm[bin];
      local->warm[bin] = unit;
      return;
    }
  int saved = errno;
  close_range (arena, unit);
  errno = saved;
}

void
ma_range_collect (struct ma_local *local)
{
  if (likely (atomic_load_explicit (&local->returned, memory_order_relaxed) == NULL))
    return;
  for (struct ma_unit *unit = take_returned (local), *next; unit != NULL; unit = next)
    {
      next = unit->next;
      keep (local, unit);
    }
}

void
ma_range_give (struct ma_local *local, struct ma_unit *unit)
{
  if (local == unit->local || !give_back (unit))
    keep (local, unit);
}

int
ma_range_flush (struct ma_local *local)
{
  int any = 0;
  for (struct ma_unit *unit = take_returned (local), *next; unit != NULL; unit = next, any = 1)
    {
      next = unit->next;
      close_range (local->arena, unit);
    }
  for (unsigned bin = 0; bin < MA_BINS; bin++)
    while (local->warm[bin])
      {
        close_range (local->arena, take_warm (local, &local->warm[bin]));
        any = 1;
      }
  return any;
}

void
ma_range_forked (void)
{
  atomic_store (&warm_locked, 0);
  atomic_store (&ranges, 0);
}

void
ma_range_inherited (malloc_arena *arena)
{
  atomic_store (&arena->ranged, 0);
  for (const struct ma_unit *unit = arena->larges; unit; unit = unit->heap_next)
    {
      atomic_fetch_add_explicit (&ranges, 1, memory_order_relaxed);
      count_ranged (arena, unit->pages, 1);
    }
}

void
ma_range_after_fork (struct ma_local *local)
{
  local->warm_bytes = local->warm_small = 0;
  for (struct ma_unit *unit = atomic_exchange (&local->returned, NULL), *next; unit; unit = next)
    {
      next = unit->next;
      unit->next = local->warm[unit->bin];
      local->warm[unit->bin] = unit;
    }
  atomic_store (&local->returned_bytes, 0);
  for (unsigned bin = 0; bin < MA_BINS; bin++)
    for (struct ma_unit **link = &local->warm[bin]; *link;)
      {
        struct ma_unit *unit = *link;
        size_t bytes = unit->pages << MA_PAGE_SHIFT;
        if (unit->state & MA_UNIT_OPEN)
          {
            count_warm (local, unit, 1);
            link = &unit->next;
            continue;
          }
        /* Nor is its address space, of which nobody knows what lies there. */
        *link = unit->next;
        unlink_range (local->arena, unit);
        ma_heap_refund (local->arena, bytes);
      }
}
