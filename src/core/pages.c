#include "pages.h"

#include "slot.h"

/* The slots that touch the pages FROM to TO: [*FIRST, *END). */
static inline void
slots_of_pages (const struct ma_unit *unit, unsigned from, unsigned to, unsigned *first,
                unsigned *end)
{
  *first = (unsigned)(((size_t)from << MA_PAGE_SHIFT) / unit->slot);
  *end = (unsigned)((((size_t)to << MA_PAGE_SHIFT) + unit->slot - 1) / unit->slot);
  if (*end > unit->avail)
    *end = unit->avail;
}

void
ma_pages_set_free (struct ma_unit *unit, unsigned first, unsigned end, int is_free)
{
  for (unsigned at = first / 64; at * 64 < end; at++)
    {
      uint64_t bits = ma_word_bits (at, first, end);
      uint64_t now = is_free ? unit->free[at] | bits : unit->free[at] & ~bits;
      __atomic_store_n (&unit->free[at], now, __ATOMIC_RELAXED);
    }
}

/* Atomic, as another thread may be freeing an object of the slab. */
static void
set_away (struct ma_unit *unit, unsigned pages)
{
  __atomic_store_n (&unit->away, (uint16_t)pages, __ATOMIC_RELAXED);
}

/* Whether no live slot touches the page. One that also touches a page that is away is free, though
 * its bit is not set. */
static int
is_page_empty (const struct ma_unit *unit, unsigned page)
{
  unsigned first;
  unsigned end;
  slots_of_pages (unit, page, page + 1, &first, &end);
  if (page > 0 && (unit->away >> (page - 1) & 1)
      && first * (size_t)unit->slot < (size_t)page << MA_PAGE_SHIFT)
    first++;
  if (page + 1 < unit->opened && (unit->away >> (page + 1) & 1)
      && end * (size_t)unit->slot > (size_t)(page + 1) << MA_PAGE_SHIFT)
    end--;
  for (unsigned at = first / 64; at * 64 < end; at++)
    {
      uint64_t bits = ma_word_bits (at, first, end);
      if ((unit->free[at] & bits) != bits)
        return 0;
    }
  return 1;
}

uint16_t
ma_pages_empty (const struct ma_unit *unit)
{
  uint16_t empty = 0;
  for (unsigned page = 0; page < unit->opened; page++)
    if (!(unit->away >> page & 1) && is_page_empty (unit, page))
      empty |= (uint16_t)(1u << page);
  return empty;
}

/* Calls the kernel for each run of pages in BITS. */
#define FOR_RUNS(bits, from, to)                                                                   \
  for (unsigned from = 0, to = 0;                                                                  \
       (from = to + (unsigned)__builtin_ctz ((unsigned)(bits) >> to | 1u << 16)) < MA_UNIT_PAGES   \
       && (to = from + (unsigned)__builtin_ctz (~((unsigned)(bits) >> from)), 1);)

void
ma_pages_discard (struct ma_unit *unit, uint16_t pages)
{
  /* The kernel says yes, and keeps the pages as they are. */
  if (unit->state & MA_UNIT_SECRET)
    return;
  FOR_RUNS (pages, from, to)
  {
    char *p = ma_unit_base (unit) + ((size_t)from << MA_PAGE_SHIFT);
    if (os_discard (p, (size_t)(to - from) << MA_PAGE_SHIFT, unit->locked != 0))
      continue;
    unsigned first;
    unsigned end;
    slots_of_pages (unit, from, to, &first, &end);
    ma_pages_set_free (unit, first, end, 0);
    set_away (unit, unit->away | page_bits (from, to));
    unit->local->present -= to - from;
    /* Locked memory counts against the lock limit also where no page is present. */
    if (unit->local->is_plain)
      ma_heap_refund (unit->local->arena, (size_t)(to - from) << MA_PAGE_SHIFT);
  }
}

/* Locked pages count in the arena's mapped bytes also while they are away. */
static int
charge (const struct ma_unit *unit, uint16_t pages)
{
  return !unit->local->is_plain
         || ma_heap_charge (unit->local->arena, ma_page_count (pages) << MA_PAGE_SHIFT, 1) == 0;
}

/* As many as the slab has, of the first ones that lie together: few for small users, few calls for large ones.
 * Populated, as the zero check would map the shared zero page first and fault twice. */
int
ma_pages_recall (struct ma_unit *unit)
{
  unsigned first;
  unsigned end;
  unsigned page = (unsigned)__builtin_ctz (unit->away);
  unsigned run = (unsigned)__builtin_ctz (~((unsigned)unit->away >> page));
  unsigned present = unit->opened - ma_page_count (unit->away);
  unsigned n = run < present ? run : present > 0 ? present : 1;
  int are_vast = ma_pages_are_vast (unit);
  uint16_t pages = are_vast ? unit->away : page_bits (page, page + n);
  /* What is left of a limit may be less. */
  if (!charge (unit, pages) && (are_vast || !charge (unit, pages = page_bits (page, page + 1))))
    return 0;
  if (!are_vast)
    os_populate (ma_unit_base (unit) + ((size_t)page << MA_PAGE_SHIFT), ma_page_count (pages)
                                                                            << MA_PAGE_SHIFT);
  set_away (unit, unit->away & ~(unsigned)pages);
  unit->local->present += ma_page_count (pages);
  for (; pages >> page; page++)
    if (pages >> page & 1)
      {
        slots_of_pages (unit, page, page + 1, &first, &end);
        for (unsigned slot = first; slot < end; slot++)
          if (!is_away (unit, slot))
            ma_pages_set_free (unit, slot, slot + 1, 1);
      }
  return 1;
}

void
ma_pages_lock_again (struct ma_unit *unit)
{
  uint16_t locked = unit->locked;
  unit->locked = 0;
  FOR_RUNS (locked, from, to)
  {
    char *p = ma_unit_base (unit) + ((size_t)from << MA_PAGE_SHIFT);
    size_t bytes = (size_t)(to - from) << MA_PAGE_SHIFT;
    if (ma_heap_lock_again (unit->local->arena, p, bytes, unit->state))
      unit->locked |= page_bits (from, to);
  }
}

/* Where pages are large and slots are small not all have slots, as their number is bounded. */
unsigned
ma_pages_most (const struct ma_unit *unit)
{
  size_t most = ((size_t)MA_SLOTS * unit->slot + MA_PAGE - 1) >> MA_PAGE_SHIFT;
  return most < MA_SLAB_PAGES ? (unsigned)most : MA_SLAB_PAGES;
}
