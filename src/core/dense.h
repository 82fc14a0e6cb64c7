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
/* From any thread: checked, wiped, given back. */
void ma_dense_free (struct ma_unit *unit, void *p);
/* Another size in the same slot; 0 where the slot does not fit it, or is not this thread's. Checks as
 * ma_dense_check does; *BEFORE: the size so far. */
int ma_dense_resize (struct ma_unit *unit, void *p, size_t size, size_t *before);

/* ---- the fast paths, inline for malloc and free: each jump on the way takes a cycle or two ---- */

/* What is rare is a call in the last place: with one in the middle, every call would save registers
 * for it. Arguments are in the order of the registers that they are in. */

/* A block of a class that has no slot at hand. */
void *ma_dense_refilled (struct ma_local *local, size_t size, unsigned class);
/* The block of a slot P that is taken for SIZE, where the slot has not its own shape, or was written: looked at, its
 * canary written. */
void *ma_dense_taken (size_t size, char *p, struct ma_local *local, struct ma_unit *unit) MA_DIRECT;
/* Objects, long slots, long canaries, tags, damage: all but the usual. */
void ma_dense_free_other (struct ma_unit *unit, char *p) MA_DIRECT;
#ifdef MA_WIDE
/* The rest of a free, from the look at the canary on, in a slot of a mixed slab. */
void ma_dense_free_mixed (char *p, size_t slot, size_t size, struct ma_unit *unit) MA_DIRECT;
#endif
/* The same in a plain arena, without canary and wipe. */
void ma_dense_free_plain (char *p, size_t slot, size_t size, struct ma_unit *unit);
/* The end of a free by another thread than the owner. */
void ma_dense_free_remote (struct ma_unit *unit, size_t slot, size_t size, const void *p);

/* Takes the first slot of the word AT of UNIT, which is FREE and has one: read by the caller, who had to
 * look whether it has.
 *
 * A program that frees a block and allocates one gets the same slot time and again. That is predicted, as a
 * branch: the address is that of the last time, and who uses it need not wait until the bit has come back
 * from the free, by way of its address. */
MA_INLINE size_t
ma_dense_pop (struct ma_local *local, struct ma_unit *unit, size_t size, size_t at, uint64_t free)
{
  size_t slot = at * 64 + (unsigned)__builtin_ctzl (free);
  size_t guess = unit->guess;
  size_t last = guess;
  /* The compiler must not know that they are the same: it would go on with what has to be waited for. */
  __asm__ ("" : "+r"(last));
  if (unlikely (last != slot))
    {
      unit->guess = (uint16_t)slot;
      guess = slot;
    }
  __atomic_store_n (&unit->free[at], free & (free - 1), __ATOMIC_RELAXED);
  __atomic_store_n (&unit->sizes[guess], (uint16_t)(size + 1), __ATOMIC_RELAXED);
  ma_add_live (local, size);
  return guess;
}

/* A slot that is wiped, back to its owner. */
MA_INLINE void
ma_dense_push (struct ma_unit *unit, size_t slot, size_t size, const void *p)
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
}

/* As ma_dense_alloc, for callers that are MA_VECTORS. */
MA_INLINE void *
ma_dense_alloc_here (struct ma_local *local, size_t size)
{
  unsigned class = ma_class_of (size);
  struct ma_unit *unit = local->current[class];
  size_t at = unit->hint;
  uint64_t free = unit->free[at];
  if (unlikely (free == 0))
    return ma_dense_refilled (local, size, class);
  char *p = ma_unit_base (unit) + ma_dense_pop (local, unit, size, at, free) * unit->slot;
  if (unlikely (unit->group > MA_UP_TO_2048) || unlikely (!slot_take (unit, p, size)))
    return ma_dense_taken (size, p, local, unit);
  return p;
}

/* As ma_dense_free, for callers that are MA_VECTORS. */
MA_INLINE void
ma_dense_free_here (struct ma_unit *unit, char *p)
{
  uint64_t product = ma_unit_offset (p) * unit->inverse;
  size_t slot = product >> 32;
  /* Larger pages have more than the slots that are used. */
  if (MA_PAGE_MOST != 4096 && unlikely (slot >= __atomic_load_n (&unit->avail, __ATOMIC_RELAXED)))
    {
      ma_dense_free_other (unit, p);
      return;
    }
  unsigned size = __atomic_load_n (&unit->sizes[slot], __ATOMIC_RELAXED) - 1u;
  /* One compare for what has no live block, and for sizes that take the other way. */
  if (unlikely (!is_start (unit, product, p) | (size - unit->least > unit->span)))
    {
      ma_dense_free_other (unit, p);
      return;
    }
  /* The product is needed no more: a register that would have to be saved. */
  __asm__ ("" : "+r"(slot));
  unsigned group = __atomic_load_n (&unit->group, __ATOMIC_RELAXED);
  if (likely (group <= MA_UP_TO_2048))
    {
      if (likely (slot_give (unit, p, size, group)))
        ma_dense_push (unit, slot, size, p);
      else
        ma_dense_free_other (unit, p);
    }
#ifdef MA_WIDE
  else if (group == MA_MIXED)
    ma_dense_free_mixed (p, slot, size, unit);
#endif
  else
    ma_dense_free_plain (p, slot, size, unit);
}

#endif
