#include "large.h"

#include <errno.h>
#include <string.h>
#include <sys/single_threaded.h>

#include "fatal.h"
#include "tag.h"
#include "wipe.h"

enum
{
  LEAD = 16,  /* most canary bytes before a block */
  TAIL = 256, /* and after one with room to grow, which looks at them and writes them again */
  /* A block that grew gets more than it needs: so many bytes at most, or that part of its size; of what is ready as many
   * pages again, and so many at most. */
  SPARE = 64 << 10,
  ROOM_PART = 8,
  SPARE_READY = 4 * MA_UNIT_PAGES,
  /* Of what is more to wipe, and new, the kernel is asked which pages are present, */
  PRESENT_LEAST = 256 << 10,
  PRESENT_PAGES = 2048,   /* so many at a time; */
  ABSENT_PAGES = 16,      /* fewer in a row are soon made so */
  MOVED_BYTES = 256 << 10 /* in the time of two calls of the kernel and a few faults */
};

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

/* ---- canaries: LEAD bytes before the block, and after it up to the guard (or a page, where a large
 * alignment leaves more, or TAIL, where room to grow does) ---- */

typedef uint64_t ma_aligned_word __attribute__ ((may_alias));

/* Of a word: the bytes from the one that AT is on, and those up to the one before it (all at a word's start). */
static inline uint64_t
bytes_from (const char *at)
{
  return UINT64_MAX << ((uintptr_t)at & 7) * 8;
}

static inline uint64_t
bytes_before (const char *at)
{
  return UINT64_MAX >> (-(uintptr_t)at & 7) * 8;
}

static inline ma_aligned_word *
word_of (const char *at)
{
  return (ma_aligned_word *)((uintptr_t)at & ~(uintptr_t)7);
}

static inline void
fill_word (ma_aligned_word *word, uint64_t bytes)
{
  *word = (*word & ~bytes) | (ma_sealed.canary & bytes);
}

static void
fill (char *from, const char *to)
{
  if (from >= to)
    return;
  ma_aligned_word *word = word_of (from), *last = word_of (to - 1);
  uint64_t bytes = bytes_from (from);
  for (; word != last; word++, bytes = UINT64_MAX)
    fill_word (word, bytes);
  fill_word (last, bytes & bytes_before (to));
}

static int
is_filled (const char *from, const char *to)
{
  if (from >= to)
    return 1;
  const ma_aligned_word *word = word_of (from), *last = word_of (to - 1);
  uint64_t bytes = bytes_from (from), damage = 0;
  for (; word != last; word++, bytes = UINT64_MAX)
    damage |= (*word ^ ma_sealed.canary) & bytes;
  return (damage | ((*last ^ ma_sealed.canary) & bytes & bytes_before (to))) == 0;
}

static char *
lead_of (const struct ma_unit *unit, char *block)
{
  char *start = ma_range_start (unit);
  return block - start < LEAD ? start : block - LEAD;
}

/* With the range, or with a cache line: what comes after it is looked at line by line. */
static char *
tail_end_of (const struct ma_unit *unit, char *tail)
{
  char *end = unit->end;
  return end - tail <= unit->tail_most
             ? end
             : (char *)os_round_up ((uintptr_t)(tail + unit->tail_most), MA_LINE);
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

/* ---- alloc ---- */

/* Looks at whole cache lines around it: the range is zero beyond it as well. */
static inline int
is_still_zero (const char *p, const char *end)
{
  const char *from = (const char *)((uintptr_t)p & ~(uintptr_t)(MA_LINE - 1));
  return ma_looks_zero (from, os_round_up ((uintptr_t)end, MA_LINE) - (uintptr_t)from);
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

/* Whether blocks may end before their guard. A touch behind one of an isolated or a tagged arena has to fault, secret
 * memory does not grow, and blocks of plain ones stay where they are anyway. */
static inline int
may_have_room (const struct ma_local *local)
{
  const malloc_arena *arena = local->arena;
  return !(arena->is_plain | arena->is_isolated | arena->is_secretmem | local->is_tagged);
}

/* How many bytes more a block has that grew from BEFORE: for a step twice as long, as the next one is of a block that
 * doubles, or for many short ones. */
static size_t
spare_for (size_t before, size_t size)
{
  size_t step = size - before < SPARE ? size - before : SPARE;
  size_t next = 2 * step < size ? 2 * step : size;
  size_t least = size / ROOM_PART;
  return next > least ? next : least;
}

/* The place of a block in its range, and all that is known of it. */
static inline void *
settle (struct ma_local *local, struct ma_unit *unit, int is_warm, size_t size, size_t align,
        int has_room)
{
  malloc_arena *arena = local->arena;
  /* An empty block needs an address of its own, before the guard. */
  size_t room = size | (size == 0);
  char *block = has_room ? ma_range_start (unit)
                         : (char *)((uintptr_t)(unit->end - room) & ~(uintptr_t)(align - 1));
  unit->local = local;
  unit->tail_most = has_room ? TAIL : (unsigned)MA_PAGE;
  if (is_warm && local->is_verified && !is_still_zero (block, tail_end_of (unit, block + size)))
    ma_fatal_block ("use after wipe", block, arena->name);
  place (unit, block, size);
  atomic_store_explicit (&unit->large, MA_LARGE_LIVE, memory_order_release);
  ma_count (&arena->large_blocks, 1);
  ma_count (&arena->large_bytes, size);
  note_peak (arena);
  return give_tag (unit);
}

static inline __attribute__ ((always_inline)) void *
alloc (struct ma_local *local, size_t size, size_t align, int has_room, int *is_zero)
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
  size_t pages = ma_range_pages (local->arena, (bytes + MA_PAGE - 1) >> MA_PAGE_SHIFT);
  struct ma_unit *unit = ma_range_ready (local, pages, pages + pages / 4);
  int is_warm = unit != NULL;
  if (unit == NULL)
    unit = ma_range_open (local, pages, 0);
  if (unit == NULL)
    {
      pthread_mutex_lock (&local->lock);
      ma_local_reclaim (local);
      pthread_mutex_unlock (&local->lock);
      ma_left_reclaim (NULL);
      /* Also if that gave nothing: another thread may have been first. */
      unit = ma_range_open (local, pages, 0);
    }
  if (unit == NULL)
    {
      errno = ENOMEM;
      return NULL;
    }
  *is_zero = !is_warm || local->is_wiped;
  return settle (local, unit, is_warm, size, align, has_room);
}

void *
ma_large_alloc (struct ma_local *local, size_t size, size_t align, int *is_zero)
{
  return alloc (local, size, align, 0, is_zero);
}

/* The most that a block which has grown to PAGES gets of what is ready. */
static size_t
roomy_pages (size_t pages)
{
  return pages + (pages < SPARE_READY ? pages : SPARE_READY);
}

/* And what makes it worth to move more than MOVED_BYTES: from twice as many pages, which are there, to four times. */
static size_t
vast_pages (const malloc_arena *arena, size_t pages)
{
  size_t spare = arena->spare_most >> MA_PAGE_SHIFT;
  return pages + (3 * pages < spare ? 3 * pages : spare);
}

/* Whether the arena has so few that BYTES more may be had which nobody asked for. */
static int
can_spare (const malloc_arena *arena, size_t bytes)
{
  size_t mapped = atomic_load_explicit (&arena->mapped, memory_order_relaxed);
  return mapped <= arena->spare_most && bytes <= arena->spare_most - mapped;
}

void *
ma_large_grown (struct ma_local *local, size_t size, size_t before)
{
  malloc_arena *arena = local->arena;
  int has_room = may_have_room (local);
  if (size <= arena->spare_most)
    {
      size_t pages = (size + MA_PAGE - 1) >> MA_PAGE_SHIFT;
      /* Not the next one that it fits in, which those that grew before have left: each is a copy. */
      struct ma_unit *unit = size > MOVED_BYTES
                                 ? ma_range_ready (local, 2 * pages, vast_pages (arena, pages))
                                 : ma_range_ready (local, pages + pages / 2, roomy_pages (pages));
      if (unit == NULL)
        unit = ma_range_ready (local, ma_range_pages (arena, pages), roomy_pages (pages));
      if (unit != NULL)
        return settle (local, unit, 1, size, 16, has_room);
      pages = (size + spare_for (before, size) + MA_PAGE - 1) >> MA_PAGE_SHIFT;
      pages = ma_range_pages (arena, pages);
      if (can_spare (arena, pages << MA_PAGE_SHIFT)
          && (unit = ma_range_open (local, pages, 1)) != NULL)
        return settle (local, unit, 0, size, 16, has_room);
    }
  int is_zero;
  return alloc (local, size, 16, has_room, &is_zero);
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
  return checked (ma_range_head (unit), p);
}

/* Wipes whole pages from AT on, of which PRESENT tells: one that is not was never written, and a look at it takes a
 * fault, or is in swap, and must not come back from there. So these are dropped. */
static void
wipe_pages (struct ma_unit *unit, char *at, size_t pages, const unsigned char *present)
{
  for (size_t end = pages, first; end > 0; end = first)
    {
      int is_present = present[end - 1] & 1;
      for (first = end; first > 0 && (present[first - 1] & 1) == is_present; first--)
        ;
      char *run = at + (first << MA_PAGE_SHIFT);
      size_t bytes = (end - first) << MA_PAGE_SHIFT;
      if (is_present || end - first < ABSENT_PAGES || os_discard (run, bytes, unit->is_locked))
        ma_wipe_back (run, bytes);
      else
        unit->is_sparse = 1;
    }
}

/* Wipes what may be much, and may never have been written. Of a range that was ready, and of which no page was missing
 * at its last wipe, the kernel is not asked: the question takes a tenth of the time. Secret memory is a file's. */
static void
wipe (struct ma_unit *unit, char *from, char *to)
{
  if (to - from < PRESENT_LEAST || !unit->is_new || unit->state & MA_UNIT_SECRET)
    {
      ma_wipe_back (from, (size_t)(to - from));
      return;
    }
  ma_say_defined (from, (size_t)(to - from));
  char *first = (char *)os_round_up ((uintptr_t)from, MA_PAGE);
  char *last = (char *)((uintptr_t)to & ~(MA_PAGE - 1));
  ma_wipe_back (last, (size_t)(to - last));
  while (last > first)
    {
      unsigned char present[PRESENT_PAGES];
      size_t pages = (size_t)(last - first) >> MA_PAGE_SHIFT;
      if (pages > PRESENT_PAGES)
        pages = PRESENT_PAGES;
      last -= pages << MA_PAGE_SHIFT;
      if (os_present (last, pages << MA_PAGE_SHIFT, present) == 0)
        wipe_pages (unit, last, pages, present);
      else
        ma_wipe_back (last, pages << MA_PAGE_SHIFT);
    }
  ma_wipe_back (from, (size_t)(first - from));
}

/* Whether the room behind the block is looked at, which is all zero. Where it may have pages that were never touched,
 * the look would make them. */
static int
has_checked_room (const struct ma_unit *unit)
{
  return unit->tail_most == TAIL && unit->local->is_verified && !unit->is_new;
}

static _Noreturn void
room_written (const struct ma_unit *unit)
{
  ma_fatal_block ("canary overwritten", unit->block, unit->local->arena->name);
}

/* Moves the block's first KEPT bytes to TO, and wipes the rest of it and its canaries, and up to the guard, where
 * something may have been written: a look at the room of a block that grew is less than a wipe, and tells. */
static void
leave (struct ma_unit *unit, void *to, size_t kept)
{
  char *end = unit->end;
  if (has_checked_room (unit))
    {
      end = tail_end_of (unit, unit->block + unit->size);
      if (unlikely (!ma_is_all_zero (end, (size_t)(unit->end - end))))
        room_written (unit);
    }
  char *rest = lead_of (unit, unit->block);
  if (kept > 0)
    {
      ma_wipe_inline (rest, (size_t)(unit->block - rest));
      ma_move (to, unit->block, kept);
      rest = unit->block + kept;
    }
  wipe (unit, rest, end);
}

void
ma_large_free (struct ma_local *local, struct ma_unit *unit, void *p, void *to, size_t kept)
{
  unit = ma_range_head (unit);
  malloc_arena *arena = unit->local->arena;
  check_pointer (unit, p);
  /* Before a look at the memory, which whoever is first may have given back. */
  if (unlikely (!end_life (unit)))
    ma_fatal_block ("double free", p, arena->name);
  if (to == NULL) /* else ma_large_resize has looked at them */
    check_canaries (unit, p);
  size_t size = unit->size;
  take_tag (unit);
  if (arena->is_wiped)
    leave (unit, to, kept);
  else if (kept > 0)
    memcpy (to, unit->block, kept);
  ma_count (&arena->large_bytes, -size);
  ma_range_give (local, unit);
  /* Last: an arena without a block may be deleted. */
  ma_count (&arena->large_blocks, (size_t)-1);
}

/* Another size, in the arena's accounts as well. */
static void
resized (struct ma_unit *unit, size_t size)
{
  malloc_arena *arena = unit->local->arena;
  ma_count (&arena->large_bytes, size - unit->size);
  unit->size = size;
  note_peak (arena);
}

/* Whether to move to a range that is ready takes less time than to ask the kernel for more pages. */
static int
moves_better (struct ma_local *local, size_t size, size_t pages)
{
  if (local == NULL || size > local->arena->spare_most)
    return 0;
  return size <= MOVED_BYTES
             ? ma_range_is_ready (local, pages, roomy_pages (pages))
             : ma_range_is_ready (local, 2 * pages, vast_pages (local->arena, pages));
}

/* Whether a block with room behind it grew there, which takes no pass over it: what is canary no more is looked at and
 * wiped, and so is what comes after it up to the new canary's end, in samples; at the rest the free looks. */
static int
grow_into_room (struct ma_unit *unit, size_t size)
{
  char *block = unit->block;
  char *tail = block + unit->size, *new_tail = block + size;
  char *end = tail_end_of (unit, tail), *new_end = tail_end_of (unit, new_tail);
  char *no_more = new_tail < end ? new_tail : end;
  char *seen = (char *)os_round_up ((uintptr_t)no_more + 16, 8);
  /* If not, the caller looks at it all: zeros are right in a forked child. */
  if (!is_filled (lead_of (unit, block), block) || !is_filled (tail, seen < end ? seen : end))
    return 0;
  if (has_checked_room (unit) && end < new_end && unlikely (!is_still_zero (end, new_end)))
    room_written (unit);
  ma_wipe_inline (tail, (size_t)(no_more - tail));
  fill (new_tail < end ? end : new_tail, new_end);
  resized (unit, size);
  return 1;
}

/* Where in its range, which may be given pages, a block goes on that grows; NULL if it has to leave it. Where a step
 * makes it move, the next ones do not: it is at the range's start then, with room behind it, of a sixteenth of its
 * size or more, or the range takes pages one by one. */
static char *
make_room (struct ma_local *local, struct ma_unit *unit, size_t size)
{
  malloc_arena *arena = unit->local->arena;
  char *start = ma_range_start (unit);
  char *block = unit->block;
  size_t needed = os_round_up (size, 16);
  size_t spare = size / ROOM_PART;
  if (needed <= (size_t)(unit->end - block))
    return block;
  if (needed + spare / 2 <= (size_t)(unit->end - start))
    return start;
  size_t pages = ma_range_pages (arena, (needed + MA_PAGE - 1) >> MA_PAGE_SHIFT);
  if (pages > unit->pages && moves_better (local, size, pages))
    return NULL;
  size_t from_start = (size_t)(block - start) + needed;
  size_t roomy = ma_range_pages (arena, (from_start + spare + MA_PAGE - 1) >> MA_PAGE_SHIFT);
  if (can_spare (arena, (roomy - unit->pages) << MA_PAGE_SHIFT)
      && ma_range_grow (arena, unit, roomy))
    return block;
  if (pages > unit->pages && !ma_range_grow (arena, unit, pages))
    return NULL;
  return from_start <= (size_t)(unit->end - start) ? block : start;
}

void *
ma_large_resize (struct ma_local *local, struct ma_unit *unit, void *p, size_t size,
                 size_t *size_before)
{
  unit = ma_range_head (unit);
  malloc_arena *arena = unit->local->arena;
  check_pointer (unit, p);
  size_t before = *size_before = unit->size;
  int has_room = size > before && may_have_room (unit->local);
  size_t room_before = (size_t)(unit->end - unit->block) - before;
  if ((has_room || (size > before && arena->is_plain && !unit->local->is_tagged))
      && room_before >= 16 && size - before <= room_before && grow_into_room (unit, size))
    return p;
  check_canaries (unit, p);
  if (size < arena->threshold || size > PTRDIFF_MAX - MA_UNIT)
    return NULL;
  char *start = ma_range_start (unit);
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
  /* As in leave. */
  int is_checked = has_checked_room (unit);
  char *old_end = unit->end, *seen_end = tail_end_of (unit, unit->block + before);
  int is_less = 0;
  size_t pages = 0;
  char *block;
  if (has_room)
    {
      block = make_room (local, unit, size);
      if (block == NULL)
        return NULL;
    }
  else
    {
      pages = (room + (arena->is_plain ? (size_t)((char *)p - start) : 0) + MA_PAGE - 1)
              >> MA_PAGE_SHIFT;
      pages = ma_range_pages (arena, pages);
      /* In an isolated arena a stale pointer has to fault: only sizes of as many pages stay. */
      if (arena->is_isolated && pages != unit->pages)
        return NULL;
      if (pages > unit->pages
          && (moves_better (local, size, pages) || !ma_range_grow (arena, unit, pages)))
        return NULL;
      /* A little less is no reason to go to the kernel. */
      is_less = pages < unit->pages / 2;
      if (is_less
          && (unit->state & MA_UNIT_SECRET
              || (local != NULL && !arena->is_plain && size <= MOVED_BYTES)))
        return NULL;
      char *end = is_less ? start + (pages << MA_PAGE_SHIFT) : unit->end;
      block = arena->is_plain ? p : (char *)((uintptr_t)(end - room) & ~(uintptr_t)15);
    }
  if (is_checked)
    {
      if (unlikely (!ma_is_all_zero (seen_end, (size_t)(old_end - seen_end))))
        room_written (unit);
      old_end = seen_end;
    }
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
        wipe (unit, lead, block);
      if (block + kept < old_end)
        wipe (unit, block + kept, old_end);
    }
  if (is_less)
    ma_range_shrink (arena, unit, pages);
  resized (unit, size);
  unit->tail_most = has_room ? TAIL : (unsigned)MA_PAGE;
  place (unit, block, size);
  return give_tag (unit);
}
