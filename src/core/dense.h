/* dense.h - small blocks: a slot of a slab each.
 *
 * A block is given out and freed without a lock and without a call of the kernel, but when its slab
 * is full or empty. What a free asserts is known beside the slab: that a slot begins at the address,
 * that it has a live block, of which size; and behind the block is a canary. In a wiped arena a free slot
 * is all zero, and seen to be when it is given out again.
 */
#ifndef MA_DENSE_H
#define MA_DENSE_H

#include "slab.h"
#include "slot.h"

/* A block of SIZE <= MA_DENSE_MOST bytes, all zero in a secure arena; NULL with ENOMEM. By the
 * owner. */
void *ma_dense_alloc (struct ma_local *local, size_t size);
/* The same in a plain arena, where it ends without a canary and nothing is written. */
void *ma_dense_plain (struct ma_local *local, size_t size);
/* The block that one of the calls here made, tagged. */
void *ma_dense_tag (void *p, size_t size);
/* The same at a multiple of ALIGN, a power of two. NULL and errno untouched where no slot can be so
 * aligned: a large block can. */
void *ma_dense_aligned (struct ma_local *local, size_t size, size_t align);

/* Checks that P is a live block of UNIT and intact, or aborts; returns its size. */
size_t ma_dense_check (struct ma_unit *unit, const void *p);
/* Another size in the same slot; 0 where the slot does not fit it, or is not this thread's. Checks as
 * ma_dense_check does; *BEFORE: the size so far. */
int ma_dense_resize (struct ma_unit *unit, void *p, size_t size, size_t *before);

/* ---- the fast paths, inline for malloc and free: each jump on the way takes a cycle or two ---- */

/* What is rare is a call in the last place: with one in the middle, every call would save registers
 * for it. Arguments are in the order of the registers that they are in. */

/* A block of a class that has no slot at hand. */
void *ma_dense_refilled (struct ma_local *local, size_t size);
/* The block of a slot P that is taken for SIZE, where the slot has no shape, or was written: looked at, its canary
 * written. */
void *ma_dense_taken (size_t size, char *p, struct ma_local *local, const struct ma_unit *unit);
/* Objects, long slots, long canaries, tags, damage: all but the usual. */
void ma_dense_free_other (struct ma_unit *unit, char *p) MA_DIRECT;
#ifdef MA_WIDE
/* A block of a mixed slab, and the rest of its free, from the look at the canary on. */
void *ma_dense_mixed (size_t size, struct ma_unit *unit, struct ma_local *local) MA_DIRECT;
void ma_dense_free_mixed (char *p, size_t slot, size_t size, struct ma_unit *unit) MA_DIRECT;
#endif
/* The same in a plain arena, without canary and wipe. */
void ma_dense_free_plain (char *p, size_t slot, size_t size, struct ma_unit *unit);
/* The end of a free by another thread than the owner. */
void ma_dense_free_remote (struct ma_unit *unit, size_t slot, size_t size, const void *p);

/* From any slot's address to another's, without the way to the unit's. */
static inline char *
ma_dense_slot (const struct ma_unit *unit, size_t slot)
{
  return unit->last - ma_unit_offset (unit->last) + slot * unit->slot;
}

/* A SLOT of UNIT is taken, of whose word FREE is left. */
MA_INLINE void
ma_dense_note (struct ma_local *local, struct ma_unit *unit, size_t size, size_t slot,
               uint64_t free)
{
  __atomic_store_n (&unit->free[slot / 64], free, __ATOMIC_RELAXED);
  __atomic_store_n (&unit->sizes[slot], (uint16_t)(size + 1), __ATOMIC_RELAXED);
  ma_add_live (local, size);
}

/* Takes the first slot of the word AT of UNIT, which is FREE and has one: read by the caller, who had to look whether it
 * has. */
MA_INLINE char *
ma_dense_first (struct ma_local *local, struct ma_unit *unit, size_t size, size_t at, uint64_t free)
{
  size_t slot = at * 64 + first_bit (free);
  ma_dense_note (local, unit, size, slot, free & (free - 1));
  return ma_dense_slot (unit, slot);
}

/* A program that frees a block and allocates one gets the same slot time and again. So the one of the last time is looked
 * for first: its address is known, and who uses it need not wait until it has come back from the free, by way of the
 * free bits. 0: the word that the hint names has none either. */
MA_INLINE int
ma_dense_pop (struct ma_local *local, struct ma_unit *unit, size_t size, char **block)
{
  size_t slot = unit->guess;
  uint64_t free = unit->free[slot / 64];
  *block = unit->last;
  if (unlikely (!take_bit (&free, slot)))
    {
      size_t at = unit->hint;
      free = unit->free[at];
      if (unlikely (free == 0))
        return 0;
      slot = at * 64 + first_bit (free);
      free &= free - 1;
      unit->guess = (uint16_t)slot;
      unit->last = *block = ma_dense_slot (unit, slot);
    }
  ma_dense_note (local, unit, size, slot, free);
  return 1;
}

/* A slot that is wiped, back to its owner. GROUP, a constant, tells ends apart that would be made one, with a jump to
 * it. */
MA_INLINE void
ma_dense_push (struct ma_unit *unit, size_t slot, size_t size, const void *p, enum ma_group group)
{
  struct ma_local *local = unit->local;
  __atomic_store_n (&unit->sizes[slot], 0, __ATOMIC_RELAXED);
  if (unlikely (atomic_load_explicit (&local->owner, memory_order_relaxed) != ma_self))
    {
      ma_dense_free_remote (unit, slot, size, p);
      return;
    }
  size_t at = slot / 64;
  unit->hint = (uint8_t)at;
  if (unlikely (ma_subtract_live (local, size)) || unlikely (unit->is_full))
    {
      ma_slab_tidy (local, unit, slot);
      return;
    }
  /* Last: an arena without a block may be deleted. */
  __atomic_store_n (&unit->free[at], with_bit (unit->free[at], slot), __ATOMIC_RELEASE);
  __asm__ volatile ("# group %c0" : : "i"(group));
}

/* As ma_dense_alloc, for callers that are MA_VECTORS. */
MA_INLINE void *
ma_dense_alloc_here (struct ma_local *local, size_t size)
{
  struct ma_unit *unit = local->current[ma_class_of (size)];
  unsigned group = unit->group;
#ifdef MA_WIDE
  if (unlikely (group == MA_MIXED))
    return ma_dense_mixed (size, unit, local);
#endif
  char *p;
  if (unlikely (!ma_dense_pop (local, unit, size, &p)))
    return ma_dense_refilled (local, size);
  int is_ready = 0;
  if (MA_IS_WIDE && likely (group == MA_UPPER_144))
    is_ready = slot_take (MA_UPPER_144, unit, p, size);
  else if (MA_IS_WIDE && group == MA_UPPER_288)
    is_ready = slot_take (MA_UPPER_288, unit, p, size);
  else if (MA_IS_WIDE && group == MA_UPPER_48)
    is_ready = slot_take (MA_UPPER_48, unit, p, size);
  else if (group < MA_MIXED)
    {
      if (likely (group == MA_UP_TO_144))
        is_ready = slot_take (MA_UP_TO_144, unit, p, size);
      else if (group == MA_UP_TO_48)
        is_ready = slot_take (MA_UP_TO_48, unit, p, size);
      else if (group == MA_UP_TO_288)
        is_ready = slot_take (MA_UP_TO_288, unit, p, size);
      else
        is_ready = slot_take (MA_UP_TO_2048, unit, p, size);
    }
  return likely (is_ready) ? p : ma_dense_taken (size, p, local, unit);
}

/* The free of a block in a slab of GROUP, a constant: each group has its own from end to end, without a jump. */
MA_INLINE void
ma_dense_free_in (enum ma_group group, struct ma_unit *unit, char *p)
{
  SLOT_APART ();
  uint64_t product = ma_unit_offset (p) * unit->inverse;
  size_t slot = product >> 32;
  /* Larger pages have more than the slots that are used. */
  if (MA_PAGE_MOST != 4096 && unlikely (slot >= __atomic_load_n (&unit->avail, __ATOMIC_RELAXED)))
    {
      ma_dense_free_other (unit, p);
      return;
    }
  uint16_t known = __atomic_load_n (&unit->sizes[slot], __ATOMIC_RELAXED);
  /* One compare for what has no live block, and for sizes that take the other way. */
  if (unlikely ((uint16_t)(known - unit->least) > unit->span)
      || unlikely (!is_start (unit, product, p)))
    {
      ma_dense_free_other (unit, p);
      return;
    }
  /* The product is needed no more. */
  __asm__ ("" : "+r"(slot));
  size_t size = known - 1u;
#ifdef MA_WIDE
  if (group == MA_MIXED)
    {
      ma_dense_free_mixed (p, slot, size, unit);
      return;
    }
#endif
  if (group == MA_UNWIPED)
    {
      ma_dense_free_plain (p, slot, size, unit);
      return;
    }
  if (likely (slot_give (group, unit, p, size)))
    ma_dense_push (unit, slot, size, p, group);
  else
    ma_dense_free_other (unit, p);
}

/* From any thread: checks the block P, wipes it and gives it back. 0: not done, UNIT is of no group that is fast. For
 * callers that are MA_VECTORS. */
MA_INLINE int
ma_dense_free_here (struct ma_unit *unit, char *p)
{
  unsigned group = __atomic_load_n (&unit->group, __ATOMIC_RELAXED);
  /* The one with most to do first: who comes second has a jump more. For malloc it is the one that is asked for most. */
  if (MA_IS_WIDE && likely (group == MA_UPPER_288))
    ma_dense_free_in (MA_UPPER_288, unit, p);
  else if (MA_IS_WIDE && group == MA_UPPER_144)
    ma_dense_free_in (MA_UPPER_144, unit, p);
  else if (MA_IS_WIDE && group == MA_UPPER_48)
    ma_dense_free_in (MA_UPPER_48, unit, p);
  else if (group < MA_MIXED)
    {
      if (likely (group == MA_UP_TO_144))
        ma_dense_free_in (MA_UP_TO_144, unit, p);
      else if (group == MA_UP_TO_48)
        ma_dense_free_in (MA_UP_TO_48, unit, p);
      else if (group == MA_UP_TO_288)
        ma_dense_free_in (MA_UP_TO_288, unit, p);
      else if (likely (group == MA_UP_TO_2048))
        ma_dense_free_in (MA_UP_TO_2048, unit, p);
      else
        return 0;
    }
  else if (MA_IS_WIDE && group == MA_MIXED)
    ma_dense_free_in (MA_MIXED, unit, p);
  else if (group == MA_UNWIPED)
    ma_dense_free_in (MA_UNWIPED, unit, p);
  else
    return 0;
  return 1;
}

#endif
