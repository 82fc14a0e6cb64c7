/* pages.h - the pages of a slab: which slots touch them, which of them nobody uses, there and back.
 *
 * Invariant: a page that is away has no live slot, and no slot that touches it has its free bit set.
 * Lock: the local arena's; by whoever may act as owner.
 */
#ifndef MA_PAGES_H
#define MA_PAGES_H

#include "heap.h"

static inline size_t
ma_page_count (uint16_t bits)
{
  return (size_t)__builtin_popcount (bits);
}

/* Of the bit map's word AT, the slots FIRST to END. */
static inline uint64_t
ma_word_bits (unsigned at, unsigned first, unsigned end)
{
  unsigned low = first > at * 64 ? first - at * 64 : 0;
  unsigned high = end < at * 64 + 64 ? end - at * 64 : 64;
  return (high == 64 ? UINT64_MAX : ((uint64_t)1 << high) - 1) & ~(((uint64_t)1 << low) - 1);
}

static inline unsigned
ma_slots_in (unsigned pages, size_t slot)
{
  size_t slots = ((size_t)pages << MA_PAGE_SHIFT) / slot;
  return slots > MA_SLOTS ? MA_SLOTS : (unsigned)slots;
}

/* Slots of many pages, which only plain arenas have: what of them is used becomes present by its use. */
static inline int
ma_pages_are_vast (const struct ma_unit *unit)
{
  return unit->slot > MA_SLOT_MOST;
}

/* Sets the free bits of the slots FIRST to END, or clears them. */
void ma_pages_set_free (struct ma_unit *unit, unsigned first, unsigned end, int is_free);
/* Present pages without a live slot, a bit each. */
uint16_t ma_pages_empty (const struct ma_unit *unit);
/* Gives those pages back. Their slots are not to be had until they are recalled. */
void ma_pages_discard (struct ma_unit *unit, uint16_t pages);
/* Has some of the pages that are away present again, and their slots to be had; of vast slots all.
 * 0 where the arena's limit does not allow it. */
int ma_pages_recall (struct ma_unit *unit);
/* In a forked child: locks what was locked in the parent, no more. */
void ma_pages_lock_again (struct ma_unit *unit);
/* Pages of a slab that have slots. */
unsigned ma_pages_most (const struct ma_unit *unit);

#endif
