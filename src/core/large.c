#include "large.h"

#include <errno.h>
#include <string.h>
#include <sys/single_threaded.h>

#include "fatal.h"
#include "tag.h"
#include "wipe.h"

enum
{
  EXACT_BINS = 17,     /* of 0 to 16 pages; above, eight bins per doubling */
  ROUNDED_PAGES = 512, /* larger blocks get no more pages than they need */
  BINNED_PAGES = 2048,
  LEAD = 16,            /* most canary bytes before a block */
  VERIFIED_BYTES = 512, /* of a warm block are all looked at, and of the rest a line in every */
  SAMPLE_STEP = 512,    /* so many bytes: a third pass over it all would cost too much */
  SAMPLE = 64,
  /* A block that grew gets a half more than it needs, up to so many pages; of what is ready twice as much, up
   * to so many more. */
  SPARE_PAGES = MA_UNIT_PAGES,
  SPARE_READY = 4 * MA_UNIT_PAGES,
  MOVED_BYTES = 256 << 10, /* in the time of two calls of the kernel and a few faults */
  CROWD = 8192             /* ranges: a quarter of the mappings that a process has by default */
};

/* Of all arenas. */
static _Atomic unsigned ranges;
static _Atomic size_t warm_locked; /* bytes */

/* ---- what threads share ---- */

/* A locked instruction takes five nanoseconds, and a block that is warm has five: not while there is one
 * thread. */
static void
count (_Atomic size_t *n, size_t more)
{
  if (__libc_single_threaded)
    atomic_store_explicit (n, atomic_load_explicit (n, memory_order_relaxed) + more,
                           memory_order_relaxed);
  else
    atomic_fetch_add_explicit (n, more, memory_order_relaxed);
}

/* Whether the block lived until now: of two that free it, one is told so. */
static int
end_life (struct ma_unit *unit)
{
  int before;
  if (!__libc_single_threaded)
    before = atomic_exchange_explicit (&unit->large, MA_LARGE_FREED, memory_order_acq_rel);
  else
    {
      before = atomic_load_explicit (&unit->large, memory_order_relaxed);
      atomic_store_explicit (&unit->large, MA_LARGE_FREED, memory_order_relaxed);
    }
  return before == MA_LARGE_LIVE;
}

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

/* What a block that needs so many pages gets. In an isolated arena the page before the first must be
 * inaccessible: no spare ones. */
static size_t
rounded_pages (const malloc_arena *arena, size_t pages)
{
  return pages <= ROUNDED_PAGES && !arena->is_isolated ? bin_pages (bin_of (pages)) : pages;
}

/* ---- canaries: LEAD bytes before the block, and after it up to the guard (or a page, where a large
 * alignment leaves more) ---- */

static inline unsigned char
canary_byte (const char *at)
{
  return (unsigned char)(ma_sealed.canary >> ((uintptr_t)at & 7) * 8);
}

typedef uint64_t ma_aligned_word __attribute__ ((may_alias));

static void
fill (char *from, const char *to)
{
  for (; from < to && (uintptr_t)from & 7; from++)
    *(unsigned char *)from = canary_byte (from);
  for (; to - from >= 8; from += 8)
    *(ma_aligned_word *)from = ma_sealed.canary;
  for (; from < to; from++)
    *(unsigned char *)from = canary_byte (from);
}

static int
is_filled (const char *from, const char *to)
{
  uint64_t damage = 0;
  for (; from < to && (uintptr_t)from & 7; from++)
    damage |= *(const unsigned char *)from ^ canary_byte (from);
  for (; to - from >= 8; from += 8)
    damage |= *(const ma_aligned_word *)from ^ ma_sealed.canary;
  for (; from < to; from++)
    damage |= *(const unsigned char *)from ^ canary_byte (from);
  return damage == 0;
}

static char *
lead_of (const struct ma_unit *unit, char *block)
{
  char *start = ma_large_start (unit);
  return block - start < LEAD ? start : block - LEAD;
}

static char *
tail_end_of (const struct ma_unit *unit, char *tail)
{
  char *end = ma_large_end (unit);
  return (size_t)(end - tail) < MA_PAGE ? end : tail + MA_PAGE;
}

/* Whether the canaries are the usual ones: LEAD bytes before the block, and after it the few that its size was
 * rounded up by. These end with the range, in its last two words, of which the block has the rest: there is
 * one of at least a byte, at a multiple of 16. */
static inline int
is_usual (const char *lead, const char *block, const char *tail, const char *end)
{
  return likely (block - lead == LEAD) && likely (end - tail < 16);
}

/* Of a word: its last N bytes; none if N is negative. */
static inline uint64_t
last_bytes (ptrdiff_t n)
{
  return n <= 0 ? 0 : n >= 8 ? UINT64_MAX : UINT64_MAX << (64 - 8 * n);
}

static void
place (struct ma_unit *unit, char *block, size_t size)
{
  unit->block = block;
  unit->size = size;
  char *lead = lead_of (unit, block);
  char *tail = block + size;
  char *end = tail_end_of (unit, tail);
  if (!is_usual (lead, block, tail, end))
    {
      fill (lead, block);
      fill (tail, end);
      return;
    }
  uint64_t canary = ma_sealed.canary;
  ma_aligned_word *first = (ma_aligned_word *)lead, *last = (ma_aligned_word *)end - 1;
  uint64_t mask = last_bytes (end - tail), mask_before = last_bytes (end - tail - 8);
  first[0] = first[1] = canary;
  last[0] = (last[0] & ~mask) | (canary & mask);
  last[-1] = (last[-1] & ~mask_before) | (canary & mask_before);
}

static int
is_wiped_by_fork (const struct ma_unit *unit, const char *from, const char *to)
{
  if (!(unit->state & (MA_UNIT_FORK_WIPE | MA_UNIT_SECRET)) || *ma_sealed.unforked)
    return 0;
  for (; from < to; from++)
    if (*from != 0)
      return 0;
  return 1;
}

static int
is_intact (const struct ma_unit *unit)
{
  char *block = unit->block;
  char *lead = lead_of (unit, block);
  char *tail = block + unit->size;
  char *end = tail_end_of (unit, tail);
  int intact;
  if (is_usual (lead, block, tail, end))
    {
      uint64_t canary = ma_sealed.canary;
      const ma_aligned_word *first = (ma_aligned_word *)lead, *last = (ma_aligned_word *)end - 1;
      uint64_t damage = (first[0] ^ canary) | (first[1] ^ canary)
                        | ((last[0] ^ canary) & last_bytes (end - tail))
                        | ((last[-1] ^ canary) & last_bytes (end - tail - 8));
      intact = damage == 0;
    }
  else
    intact = is_filled (lead, block) && is_filled (tail, end);
  return likely (intact)
         || (is_wiped_by_fork (unit, lead, block) && is_wiped_by_fork (unit, tail, end));
}

/* ---- ranges ---- */

static void
link_range (malloc_arena *arena, struct ma_unit *unit)
{
  atomic_fetch_add_explicit (&ranges, 1, memory_order_relaxed);
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
  char *start = ma_large_start (unit);
  ma_heap_refund (arena, bytes);
  if (unit->is_locked)
    ma_heap_unlocked (arena, bytes);
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

/* A new range of at least PAGES, all zero; NULL and the errno. With LESS_WILL_DO no step down, and nothing is
 * given up, to get it. */
static struct ma_unit *
open_range (struct ma_local *local, size_t pages, int less_will_do, int *refused)
{
  malloc_arena *arena = local->arena;
  size_t bytes = pages << MA_PAGE_SHIFT;
  size_t units = units_for (pages);
  *refused = ENOMEM;
  if (units >= ma_region_units () || ma_heap_charge (arena, bytes))
    return NULL;
  struct ma_unit *unit = ma_region_take (units, 1);
  if (unit == NULL)
    {
      ma_heap_refund (arena, bytes);
      return NULL;
    }
  unit->units = (uint32_t)units;
  unit->pages = pages;
  unit->end = unit->base + bytes;
  unit->local = local;
  unit->serial = arena->serial;
  unit->tag = local->is_tagged ? unit->tag & 15 : 0;
  unit->state = 0;
  unit->is_locked = 0;
  atomic_store_explicit (&unit->large, MA_LARGE_FREED, memory_order_relaxed);
  char *start = ma_large_start (unit);
  hold_fork (arena, 1);
  *refused = ma_heap_open (arena, start, bytes, &unit->state);
  link_range (arena, unit);
  hold_fork (arena, 0);
  if (*refused == 0)
    {
      int unlockable = ma_heap_lock (arena, start, bytes, unit->state, &unit->is_locked);
      /* The limit may be spent on what nobody uses. */
      if (unlockable && !less_will_do)
        {
          pthread_mutex_lock (&local->lock);
          ma_local_reclaim (local);
          ma_others_reclaim (arena);
          unlockable = ma_heap_lock (arena, start, bytes, unit->state, &unit->is_locked);
          pthread_mutex_unlock (&local->lock);
        }
      if (unlockable)
        *refused = less_will_do ? ENOMEM : ma_heap_unlockable (arena, unlockable);
    }
  if (*refused)
    {
      close_range (arena, unit);
      return NULL;
    }
  add_tails (unit, 1, (uint32_t)units);
  unit->bin = bin_for (pages);
  unit->kind = MA_UNIT_LARGE;
  return unit;
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

static struct ma_unit *
take_warm (struct ma_local *local, struct ma_unit **link)
{
  struct ma_unit *unit = *link;
  size_t bytes = unit->pages << MA_PAGE_SHIFT;
  *link = unit->next;
  local->warm_bytes -= bytes;
  if (unit->is_locked)
    count (&warm_locked, -bytes);
  return unit;
}

/* NULL if there is none. */
static struct ma_unit *
pop_warm (struct ma_local *local, size_t pages, size_t most)
{
  int is_isolated = local->arena->is_isolated;
  struct ma_unit **link = find_warm (local, pages, is_isolated ? pages : most);
  if (link == NULL)
    return NULL;
  if (is_isolated && os_open (ma_large_start (*link), (*link)->pages << MA_PAGE_SHIFT))
    return NULL;
  struct ma_unit *unit = take_warm (local, link);
  /* The limit was met when it was opened: it may be free by now. */
  if (!unit->is_locked)
    ma_heap_lock (local->arena, ma_large_start (unit), unit->pages << MA_PAGE_SHIFT, unit->state,
                  &unit->is_locked);
  return unit;
}

/* How many bytes too many LOCAL has warm with BYTES more. */
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
  return too_many < mine - MA_WARM_LEAST ? too_many : mine - MA_WARM_LEAST;
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

int
ma_large_flush (struct ma_local *local)
{
  int any = 0;
  for (unsigned bin = 0; bin < MA_BINS; bin++)
    while (local->warm[bin])
      {
        close_range (local->arena, take_warm (local, &local->warm[bin]));
        any = 1;
      }
  return any;
}

void
ma_large_forked (void)
{
  atomic_store (&warm_locked, 0);
}

void
ma_large_after_fork (struct ma_local *local)
{
  local->warm_bytes = 0;
  for (unsigned bin = 0; bin < MA_BINS; bin++)
    for (struct ma_unit **link = &local->warm[bin]; *link;)
      {
        struct ma_unit *unit = *link;
        size_t bytes = unit->pages << MA_PAGE_SHIFT;
        if (unit->state & MA_UNIT_OPEN)
          {
            local->warm_bytes += bytes;
            if (unit->is_locked)
              count (&warm_locked, bytes);
            link = &unit->next;
            continue;
          }
        /* Nor is its address space, of which nobody knows what lies there. */
        *link = unit->next;
        unlink_range (local->arena, unit);
        ma_heap_refund (local->arena, bytes);
      }
}

/* ---- alloc ---- */

static __attribute__ ((noinline)) MA_CLONED int
is_still_zero (const char *p, size_t size)
{
  typedef long long vector __attribute__ ((vector_size (32), aligned (16), may_alias));
  /* Whole cache lines around the request: the range is zero beyond it as well. */
  const char *from = (const char *)((uintptr_t)p & ~(uintptr_t)(SAMPLE - 1));
  const char *to = (const char *)os_round_up ((uintptr_t)p + size, SAMPLE);
  if (to - from <= VERIFIED_BYTES)
    return ma_is_zero (from, (size_t)(to - from));
  /* One test for all samples: one for each took a twentieth of a large block's time. */
  vector seen = { 0, 0, 0, 0 };
  for (const char *at = from + VERIFIED_BYTES; at < to - SAMPLE; at += SAMPLE_STEP)
    seen |= ((const vector *)at)[0] | ((const vector *)at)[1];
  return ma_is_zero (from, VERIFIED_BYTES) & ma_is_zero (to - SAMPLE, SAMPLE)
         & ((seen[0] | seen[1] | seen[2] | seen[3]) == 0);
}

static void
note_peak (malloc_arena *arena)
{
  size_t now = atomic_load_explicit (&arena->large_bytes, memory_order_relaxed);
  size_t peak = atomic_load_explicit (&arena->large_peak, memory_order_relaxed);
  while (now > peak
         && !atomic_compare_exchange_weak_explicit (&arena->large_peak, &peak, now,
                                                    memory_order_relaxed, memory_order_relaxed))
    ;
}

/* The pointer that the block is known by from now on. Slots have neighbours, ranges have none, so that
 * all tags are good but the last one. */
static void *
give_tag (struct ma_unit *unit)
{
#if MA_HAS_TAGS
  if (unit->local->is_tagged)
    {
      unit->tag = ma_tag_choose (1u << unit->tag | MA_TAG_NONE);
      ma_tag_memory (ma_tagged (unit->block, unit->tag), unit->size);
    }
#endif
  return ma_tagged (unit->block, unit->tag);
}

static void
take_tag (const struct ma_unit *unit)
{
  if (MA_HAS_TAGS && unit->local->is_tagged)
    ma_tag_memory (unit->block, unit->size);
}

/* The place of a block in its range, and all that is known of it. */
static void *
settle (struct ma_local *local, struct ma_unit *unit, int is_warm, size_t size, size_t align)
{
  malloc_arena *arena = local->arena;
  /* An empty block needs an address of its own, before the guard. */
  size_t room = size | (size == 0);
  char *block = (char *)((uintptr_t)(ma_large_end (unit) - room) & ~(uintptr_t)(align - 1));
  if (is_warm && local->is_verified && !is_still_zero (block, size))
    ma_fatal_block ("use after wipe", block, arena->name);
  local->was_asked = 1;
  unit->local = local;
  place (unit, block, size);
  atomic_store_explicit (&unit->large, MA_LARGE_LIVE, memory_order_release);
  count (&arena->large_blocks, 1);
  count (&arena->large_bytes, size);
  note_peak (arena);
  return give_tag (unit);
}

void *
ma_large_alloc (struct ma_local *local, size_t size, size_t align, int *is_zero)
{
  if (align < 16)
    align = 16;
  size_t bytes = os_round_up (size | (size == 0), align);
  if (size > PTRDIFF_MAX || bytes < size || align > PTRDIFF_MAX / 2)
    {
      errno = ENOMEM;
      return NULL;
    }
  if (align > MA_PAGE)
    bytes += align;
  size_t pages = rounded_pages (local->arena, (bytes + MA_PAGE - 1) >> MA_PAGE_SHIFT);
  struct ma_unit *unit = pop_warm (local, pages, pages + pages / 4);
  int is_warm = unit != NULL;
  int refused = 0;
  if (unit == NULL)
    unit = open_range (local, pages, 0, &refused);
  if (unit == NULL)
    {
      pthread_mutex_lock (&local->lock);
      int more = ma_local_reclaim (local);
      pthread_mutex_unlock (&local->lock);
      if (more)
        unit = open_range (local, pages, 0, &refused);
    }
  if (unit == NULL)
    {
      errno = ENOMEM;
      return NULL;
    }
  *is_zero = !is_warm || local->is_wiped;
  return settle (local, unit, is_warm, size, align);
}

/* The most that a block which has grown to PAGES gets of what is ready. */
static size_t
roomy_pages (size_t pages)
{
  return pages + (pages < SPARE_READY ? pages : SPARE_READY);
}

void *
ma_large_grown (struct ma_local *local, size_t size)
{
  malloc_arena *arena = local->arena;
  size_t pages = (size + MA_PAGE - 1) >> MA_PAGE_SHIFT;
  if (size <= arena->spare_most)
    {
      struct ma_unit *unit = pop_warm (local, rounded_pages (arena, pages), roomy_pages (pages));
      if (unit != NULL)
        return settle (local, unit, 1, size, 16);
      pages += pages < SPARE_PAGES * 2 ? pages / 2 : SPARE_PAGES;
      pages = rounded_pages (arena, pages);
      size_t mapped = atomic_load_explicit (&arena->mapped, memory_order_relaxed);
      int refused;
      if (mapped + (pages << MA_PAGE_SHIFT) <= arena->spare_most
          && (unit = open_range (local, pages, 1, &refused)) != NULL)
        return settle (local, unit, 0, size, 16);
    }
  int is_zero;
  return ma_large_alloc (local, size, 16, &is_zero);
}

/* ---- free ---- */

/* Aborts unless P is the pointer of the block that lives there. */
static void
check_pointer (const struct ma_unit *unit, const void *p)
{
  const char *name = unit->local->arena->name;
  int is_live = atomic_load_explicit (&unit->large, memory_order_acquire) == MA_LARGE_LIVE;
  const char *bare = ma_tagged (p, 0);
  if (unlikely (bare != unit->block))
    ma_fatal_block (is_live && bare > unit->block && bare < unit->block + unit->size
                        ? "interior pointer"
                        : "invalid free",
                    p, name);
  if (unlikely (!is_live))
    ma_fatal_block ("double free", p, name);
  if (unlikely (p != ma_tagged (unit->block, unit->tag)))
    ma_fatal_block (unit->local->is_tagged ? "stale pointer" : "invalid free", p, name);
}

static void
check_canaries (const struct ma_unit *unit, const void *p)
{
  if (MA_HAS_TAGS && unit->local->is_tagged)
    ma_tag_unchecked ();
  if (unlikely (!is_intact (unit)))
    ma_fatal_block ("canary overwritten", p, unit->local->arena->name);
  if (MA_HAS_TAGS && unit->local->is_tagged)
    ma_tag_checked ();
}

static size_t
checked (const struct ma_unit *unit, const void *p)
{
  check_pointer (unit, p);
  check_canaries (unit, p);
  return unit->size;
}

size_t
ma_large_check (struct ma_unit *unit, const void *p)
{
  return checked (ma_large_head (unit), p);
}

/* Moves the block's first KEPT bytes to TO, and wipes the rest of it and its canaries. */
static void
leave (struct ma_unit *unit, void *to, size_t kept)
{
  char *rest = lead_of (unit, unit->block);
  if (kept > 0)
    {
      ma_wipe_inline (rest, (size_t)(unit->block - rest));
      ma_move (to, unit->block, kept);
      rest = unit->block + kept;
    }
  ma_wipe_back (rest, (size_t)(tail_end_of (unit, unit->block + unit->size) - rest));
}

void
ma_large_free (struct ma_local *local, struct ma_unit *unit, void *p, void *to, size_t kept)
{
  unit = ma_large_head (unit);
  malloc_arena *arena = unit->local->arena;
  check_pointer (unit, p);
  /* Before a look at the memory, which whoever is first may have given back. */
  if (unlikely (!end_life (unit)))
    ma_fatal_block ("double free", p, arena->name);
  if (to == NULL) /* else ma_large_resize has looked at them */
    check_canaries (unit, p);
  size_t size = unit->size;
  char *start = ma_large_start (unit);
  take_tag (unit);
  if (arena->is_wiped)
    leave (unit, to, kept);
  else if (kept > 0)
    memcpy (to, unit->block, kept);
  count (&arena->large_blocks, (size_t)-1);
  count (&arena->large_bytes, -size);
  size_t bytes = unit->pages << MA_PAGE_SHIFT;
  unsigned bin = unit->bin;
  if (local != NULL && bin < (arena->is_isolated ? EXACT_BINS : MA_BINS)
      && make_room (local, bytes, unit->is_locked)
      && (!arena->is_isolated || os_close (start, bytes) == 0))
    {
      if (unit->is_locked)
        count (&warm_locked, bytes);
      unit->epoch = local->warm_epoch;
      unit->next = local->warm[bin];
      local->warm[bin] = unit;
      local->warm_bytes += bytes;
      return;
    }
  int saved = errno;
  close_range (arena, unit);
  errno = saved;
}

/* The range's first page stays where it is; the new ones are zero. 0 where there is no room, or not with
 * the same properties. */
static int
grow (malloc_arena *arena, struct ma_unit *unit, size_t pages)
{
  size_t units = units_for (pages);
  size_t bytes = (pages - unit->pages) << MA_PAGE_SHIFT;
  uint8_t state = 0;
  /* A file of secret memory has the size that it has. A few pages of secrets are soon copied, and their
   * old place then is one that was freed, not one in the middle of the block. */
  if (unit->state & MA_UNIT_SECRET || (unit->pages < MA_UNIT_PAGES && !arena->is_plain)
      || ma_heap_charge (arena, bytes))
    return 0;
  if (units > unit->units && !ma_region_extend (unit + unit->units, units - unit->units))
    {
      ma_heap_refund (arena, bytes);
      return 0;
    }
  int locked = 0;
  if (ma_heap_open (arena, unit->end, bytes, &state) || state != unit->state
      || ma_heap_lock (arena, unit->end, bytes, state, &locked) || locked != unit->is_locked)
    {
      if (locked)
        ma_heap_unlocked (arena, bytes);
      ma_heap_refund (arena, bytes);
      /* What cannot be closed stays the run's, which would otherwise end in open pages. */
      if (ma_heap_close (unit->end, bytes, state) == 0 && units > unit->units)
        ma_region_give (unit + unit->units, units - unit->units);
      return 0;
    }
  pthread_mutex_lock (&arena->lock);
  if (units > unit->units)
    {
      add_tails (unit, unit->units, (uint32_t)units);
      unit->units = (uint32_t)units;
    }
  unit->pages = pages;
  unit->end += bytes;
  unit->bin = bin_for (pages);
  pthread_mutex_unlock (&arena->lock);
  return 1;
}

/* What is in the pages that go is wiped already. Where they cannot be closed they stay. */
static void
shrink (malloc_arena *arena, struct ma_unit *unit, size_t pages)
{
  size_t units = units_for (pages);
  size_t bytes = (unit->pages - pages) << MA_PAGE_SHIFT;
  if (ma_heap_close (unit->end - bytes, bytes, unit->state))
    return;
  ma_heap_refund (arena, bytes);
  if (unit->is_locked)
    ma_heap_unlocked (arena, bytes);
  size_t more = unit->units - units;
  pthread_mutex_lock (&arena->lock);
  unit->units = (uint32_t)units;
  unit->pages = pages;
  unit->end -= bytes;
  unit->bin = bin_for (pages);
  pthread_mutex_unlock (&arena->lock);
  if (more != 0)
    ma_region_give (unit + units, more);
}

/* Another size, in the arena's accounts as well. */
static void
resized (struct ma_unit *unit, size_t size)
{
  malloc_arena *arena = unit->local->arena;
  count (&arena->large_bytes, size - unit->size);
  unit->size = size;
  note_peak (arena);
}

/* Whether to move to a range that is ready takes less time than to ask the kernel for more pages. */
static int
moves_better (struct ma_local *local, size_t size, size_t pages)
{
  return size <= MOVED_BYTES && local != NULL && size <= local->arena->spare_most
         && find_warm (local, pages, roomy_pages (pages)) != NULL;
}

void *
ma_large_resize (struct ma_local *local, struct ma_unit *unit, void *p, size_t size,
                 size_t *size_before)
{
  unit = ma_large_head (unit);
  size_t before = *size_before = checked (unit, p);
  malloc_arena *arena = unit->local->arena;
  if (size < arena->threshold || size > PTRDIFF_MAX - MA_UNIT)
    return NULL;
  char *start = ma_large_start (unit);
  size_t room = os_round_up (size | (size == 0), 16);
  /* Most steps of a block that grows bit by bit end in the bytes that its size was rounded up by. */
  if (unit->block == unit->end - room && tail_end_of (unit, unit->block + before) == unit->end
      && !arena->is_plain && !unit->local->is_tagged)
    {
      resized (unit, size);
      if (size > before)
        ma_wipe_inline (unit->block + before, size - before); /* canary no more */
      else
        place (unit, unit->block, size);
      return p;
    }
  size_t pages
      = (room + (arena->is_plain ? (size_t)((char *)p - start) : 0) + MA_PAGE - 1) >> MA_PAGE_SHIFT;
  pages = rounded_pages (arena, pages);
  /* In an isolated arena a stale pointer has to fault: only sizes of as many pages stay. */
  if (arena->is_isolated && pages != unit->pages)
    return NULL;
  char *old_end = unit->end;
  if (pages > unit->pages && (moves_better (local, size, pages) || !grow (arena, unit, pages)))
    return NULL;
  /* A little less is no reason to go to the kernel. */
  int is_less = pages < unit->pages / 2;
  if (is_less && unit->state & MA_UNIT_SECRET)
    return NULL;
  char *end = is_less ? start + (pages << MA_PAGE_SHIFT) : unit->end;
  char *block = arena->is_plain ? p : (char *)((uintptr_t)(end - room) & ~(uintptr_t)15);
  size_t kept = size < before ? size : before;
  take_tag (unit);
  char *old = unit->block;
  char *lead = lead_of (unit, old);
  if (block != old)
    memmove (block, old, kept);
  if (!arena->is_plain)
    {
      /* What the block left behind: before its new start, and after what was kept, in pages that are
       * not new. */
      if (block > lead)
        ma_wipe_inline (lead, (size_t)(block - lead));
      if (block + kept < old_end)
        ma_wipe_inline (block + kept, (size_t)(old_end - block) - kept);
    }
  if (is_less)
    shrink (arena, unit, pages);
  resized (unit, size);
  place (unit, block, size);
  return give_tag (unit);
}

int
ma_large_crowded (void)
{
  return atomic_load_explicit (&ranges, memory_order_relaxed) >= CROWD;
}
