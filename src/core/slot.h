/* slot.h - the bytes of a slot: all zero while it is free; a block and its canary while it is not.
 *
 * This is what the fast paths spend their time on. Sizes differ from call to call, so that a loop
 * over a slot ends in a mispredicted branch, which costs as much as 500 bytes of stores. Instead,
 * slots are in groups, and within a group the work has one shape: a fixed number of 32-byte vectors,
 * half of them from the start and half from the end, so that they overlap in the middle. Where the
 * CPU has no such vectors the compiler makes two of each. Slots beyond the groups are looped over, out
 * of line.
 *
 * A load waits for the cache when the bytes it wants were just written by two stores. So slots are
 * multiples of 32, or the vectors of both passes lie so that each load is one store; and the canary,
 * before which its owner has just written, is read in words.
 */
#ifndef MA_SLOT_H
#define MA_SLOT_H

#include <stddef.h>
#include <stdint.h>

#include "region.h"
#include "sizeclass.h"
#include "wipe.h"

static inline unsigned
slot_of (const struct ma_unit *unit, const void *p)
{
  uint64_t offset = ((uintptr_t)p & MA_UNTAGGED) - (uintptr_t)unit->base;
  return (unsigned)(offset * unit->inverse >> 32);
}

/* Whether P is the first byte of a slot; PRODUCT: its offset times the inverse. */
static inline int
is_start (const struct ma_unit *unit, uint64_t product, const char *p)
{
  /* What is left below the point is less than one step for those; in a slab of larger pages the error
   * of the inverse adds up to more than that. */
  return MA_PAGE_MOST == 4096 ? (uint32_t)product < unit->inverse
                              : p == unit->base + (product >> 32) * unit->slot;
}

static inline uint64_t
bit_of (size_t slot)
{
  return (uint64_t)1 << (slot & 63);
}

static inline uint16_t
page_bits (unsigned from, unsigned to)
{
  return (uint16_t)(((1u << to) - 1) & ~((1u << from) - 1));
}

/* Whether a page that the slot touches is given back: it is free then. */
static inline int
is_away (const struct ma_unit *unit, unsigned slot)
{
  size_t offset = (size_t)slot * unit->slot;
  return (unit->away
          & page_bits ((unsigned)(offset >> MA_PAGE_SHIFT),
                       (unsigned)((offset + unit->slot - 1) >> MA_PAGE_SHIFT) + 1))
         != 0;
}

static inline int
is_object (const struct ma_unit *unit)
{
  return unit->class >= MA_CLASSES;
}

/* In the order of their slots: comparisons mean "up to". */
enum ma_group
{
  MA_UP_TO_48, /* the sizes of most calls: two vectors, where the next group has five */
  MA_UP_TO_144,
  MA_UP_TO_320,
  MA_UP_TO_512,
  MA_UNWIPED, /* no canary, nothing is looked at: any size of a plain arena */
  MA_LONG     /* no shape */
};

static inline unsigned
ma_slot_group (size_t slot)
{
  return slot <= 48    ? MA_UP_TO_48
         : slot <= 144 ? MA_UP_TO_144
         : slot <= 320 ? MA_UP_TO_320
         : slot <= 512 ? MA_UP_TO_512
                       : MA_LONG;
}

/* Slots are at multiples of 16. */
typedef long long ma_v32 __attribute__ ((vector_size (32), aligned (16), may_alias));

/* Bytes that are 0 before and 255 from the middle on: a mask for any boundary is a load. */
extern MA_HIDDEN const unsigned char ma_slot_masks[384];

typedef long long ma_v32_anywhere __attribute__ ((vector_size (32), aligned (1), may_alias));

/* The mask of the bytes at or after BOUNDARY of the 32 at offset AT. */
#define SLOT_MASK(boundary, at)                                                                    \
  (*(const ma_v32_anywhere *)(ma_slot_masks + 192 + (at) - (boundary)))

/* WIDE: the caller is compiled for a CPU with these vectors. */
MA_INLINE int
slot_is_none (const ma_v32 *vector, int wide)
{
#ifdef MA_WIDE
  if (wide)
    {
      int is_none;
      __asm__ ("vptest %1, %1" : "=@ccz"(is_none) : "x"(*vector));
      return is_none;
    }
#endif
  (void)wide;
  ma_v32 seen = *vector;
  return (seen[0] | seen[1] | seen[2] | seen[3]) == 0;
}

#define AT(p, offset) (*(ma_v32 *)((p) + (offset)))
#define CONST_AT(p, offset) (*(const ma_v32 *)((p) + (offset)))

/* Where in a slot of up to 144 bytes the second to fourth vector lies: the last whole one, if there
 * are not so many. */
static inline uint8_t
slot_stroke (unsigned i, size_t slot)
{
  size_t last = (slot & ~(size_t)31) - 32;
  return (uint8_t)(32 * i < last ? 32 * i : last);
}

/* Slots of 32 and 48 bytes. */
MA_INLINE int
slot_is_zero_48 (const char *p, size_t slot, int wide)
{
  const ma_v16 *rest = (const ma_v16 *)(p + slot - 16);
  ma_v32 seen = { (*rest)[0], (*rest)[1], 0, 0 };
  seen |= CONST_AT (p, 0);
  return slot_is_none (&seen, wide);
}

MA_INLINE void
slot_wipe_48 (char *p, size_t slot)
{
  AT (p, slot - 32) = (ma_v32){ 0, 0, 0, 0 };
  AT (p, 0) = (ma_v32){ 0, 0, 0, 0 };
  __asm__ volatile ("" : : "r"(p) : "memory");
}

/* Slots up to 144 are whole vectors and, every second of them, 16 bytes more. */
MA_INLINE int
slot_is_zero_144 (const char *p, size_t slot, const uint8_t *stroke, int wide)
{
  ma_v32 seen = CONST_AT (p, 0) | CONST_AT (p, stroke[0]) | CONST_AT (p, stroke[1])
                | CONST_AT (p, stroke[2]);
  const ma_v16 *rest = (const ma_v16 *)(p + slot - 16);
  ma_v32 rest_twice = { (*rest)[0], (*rest)[1], 0, 0 };
  seen |= rest_twice;
  return slot_is_none (&seen, wide);
}

MA_INLINE void
slot_wipe_144 (char *p, size_t slot, const uint8_t *stroke)
{
  /* Last first: what the others write again is read from them. */
  AT (p, slot - 32) = (ma_v32){ 0, 0, 0, 0 };
  AT (p, 0) = (ma_v32){ 0, 0, 0, 0 };
  AT (p, stroke[0]) = (ma_v32){ 0, 0, 0, 0 };
  AT (p, stroke[1]) = (ma_v32){ 0, 0, 0, 0 };
  AT (p, stroke[2]) = (ma_v32){ 0, 0, 0, 0 };
  __asm__ volatile ("" : : "r"(p) : "memory");
}

MA_INLINE int
slot_is_zero_shape (const char *p, size_t slot, int half, int wide)
{
  ma_v32 seen = { 0, 0, 0, 0 };
#pragma GCC unroll 8
  for (int i = 0; i < half; i++)
    seen |= CONST_AT (p, 32 * (size_t)i) | CONST_AT (p, slot - 32 * (size_t)(i + 1));
  return slot_is_none (&seen, wide);
}

MA_INLINE void
slot_wipe_shape (char *p, size_t slot, int half)
{
#pragma GCC unroll 8
  for (int i = 0; i < half; i++)
    {
      AT (p, 32 * (size_t)i) = (ma_v32){ 0, 0, 0, 0 };
      AT (p, slot - 32 * (size_t)(i + 1)) = (ma_v32){ 0, 0, 0, 0 };
      /* No dead store, and no call of memset either. */
      __asm__ volatile ("" : : "r"(p) : "memory");
    }
}

/* Written over a zero slot: the bytes of the block stay zero. VECTORS hold the longest canary of a
 * block of the class's own sizes. */
MA_INLINE void
slot_canary_shape (char *p, size_t size, size_t slot, int vectors)
{
  long long word = (long long)ma_sealed.canary;
  ma_v32 canary = { word, word, word, word };
#pragma GCC unroll 2
  for (int i = vectors; i > 0; i--)
    AT (p, slot - 32 * (size_t)i) = canary & SLOT_MASK (size, slot - 32 * (size_t)i);
}

typedef uint64_t ma_word __attribute__ ((aligned (1), may_alias));

/* Whether the canary is what was written: its first 8 bytes, and of the slot's last words those WORDS
 * that the longest one has beyond these. */
MA_INLINE int
slot_intact_shape (const char *p, size_t size, size_t slot, int words)
{
  uint64_t c = ma_sealed.canary;
  unsigned turn = (unsigned)(size & 7) * 8;
  uint64_t damage = *(const ma_word *)(p + size) ^ (c >> turn | c << (-turn & 63));
  size_t first = (size + 7) & ~(size_t)7;
#pragma GCC unroll 4
  for (int i = words; i > 1; i--)
    {
      size_t at = slot - 8 * (size_t)i;
      damage |= *(const ma_word *)(p + (at > first ? at : first)) ^ c;
      /* One after the other: with all of them at once the caller would save registers. */
      __asm__ ("" : "+r"(damage));
    }
  damage |= *(const ma_word *)(p + slot - 8) ^ c;
  return damage == 0;
}

/* An object's slot, up to 512 bytes, is wiped by this many vectors from each end: 1 up to 64, 2 up to
 * 128, 4, 8. */
MA_INLINE void
slot_wipe_strokes (char *p, size_t slot, int strokes)
{
#pragma GCC unroll 8
  for (int i = 0; i < strokes; i++)
    {
      AT (p, 32 * (size_t)i) = (ma_v32){ 0, 0, 0, 0 };
      AT (p, slot - 32 * (size_t)(strokes - i)) = (ma_v32){ 0, 0, 0, 0 };
    }
  /* No dead stores; what is known of the unit stays in registers. */
  __asm__ volatile ("" : : "m"(*(char (*)[512])p));
}

static inline unsigned char
slot_canary_byte (size_t at)
{
  return (unsigned char)(ma_sealed.canary >> (at & 7) * 8);
}

/* Any block in any slot. */
__attribute__ ((unused)) static void
slot_canary_any (char *p, size_t size, size_t slot)
{
  size_t at = size;
  for (; at & 7 && at < slot; at++)
    ((unsigned char *)p)[at] = slot_canary_byte (at);
  for (; at < slot; at += 8)
    *(ma_word *)(p + at) = ma_sealed.canary;
}

__attribute__ ((unused)) static int
slot_intact_any (const char *p, size_t size, size_t slot)
{
  uint64_t damage = 0;
  size_t at = size;
  for (; at & 7 && at < slot; at++)
    damage |= (unsigned)(((const unsigned char *)p)[at] ^ slot_canary_byte (at));
  uint64_t c = ma_sealed.canary;
  for (; at + 32 <= slot; at += 32)
    {
      const ma_word *words = (const ma_word *)(p + at);
      damage |= (words[0] ^ c) | (words[1] ^ c) | (words[2] ^ c) | (words[3] ^ c);
    }
  for (; at < slot; at += 8)
    damage |= *(const ma_word *)(p + at) ^ c;
  return damage == 0;
}

/* The longest canary that the shapes see: 8 bytes, and what one step between classes adds. An aligned
 * block, or one that was resized in place, may have a longer one. */
static inline size_t
slot_covered (unsigned group)
{
  return group <= MA_UP_TO_144 ? 23 : group < MA_UNWIPED ? 39 : 0;
}

/* Gives a free slot, not a long one, to a block of a size of its class: 0 if it was written since
 * it was wiped, and then the canary is not. */
MA_INLINE int
slot_take (const struct ma_unit *unit, char *p, size_t size, int wide)
{
  size_t slot = unit->slot;
  unsigned group = unit->group;
  if (group == MA_UP_TO_48)
    {
      if (unlikely (!slot_is_zero_48 (p, slot, wide)))
        return 0;
      slot_canary_shape (p, size, slot, 1);
    }
  else if (group == MA_UP_TO_144)
    {
      if (unlikely (!slot_is_zero_144 (p, slot, unit->stroke, wide)))
        return 0;
      slot_canary_shape (p, size, slot, 1);
    }
  else if (group == MA_UP_TO_320)
    {
      if (unlikely (!slot_is_zero_shape (p, slot, 5, wide)))
        return 0;
      slot_canary_shape (p, size, slot, 2);
    }
  else
    {
      if (unlikely (!slot_is_zero_shape (p, slot, 8, wide)))
        return 0;
      slot_canary_shape (p, size, slot, 2);
    }
  return 1;
}

/* Wipes a slot of the first two groups if no byte after the block was written; */
MA_INLINE int
slot_give_small (const struct ma_unit *unit, char *p, size_t size)
{
  if (unlikely (!slot_intact_shape (p, size, unit->slot, 2)))
    return 0;
  if (unit->group == MA_UP_TO_48)
    slot_wipe_48 (p, unit->slot);
  else
    slot_wipe_144 (p, unit->slot, unit->stroke);
  return 1;
}

/* and one of any of the others, but not a long one. */
MA_INLINE int
slot_give (const struct ma_unit *unit, char *p, size_t size)
{
  size_t slot = unit->slot;
  if (unit->group == MA_UNWIPED)
    return 1;
  if (unlikely (!slot_intact_shape (p, size, slot, 4)))
    return 0;
  if (unit->group == MA_UP_TO_320)
    slot_wipe_shape (p, slot, 5);
  else
    slot_wipe_shape (p, slot, 8);
  return 1;
}

#undef AT
#undef CONST_AT
#undef SLOT_MASK

#endif
