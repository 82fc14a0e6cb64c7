/* slot.h - the bytes of a slot: all zero while it is free; a block and its canary while it is not.
 *
 * This is what the fast paths spend their time on. Sizes differ from call to call, so that loops
 * over a slot would end in a mispredicted branch each. Instead, slots are in six groups, one per
 * doubling, and within a group the work has one shape: as many 32-byte vectors from the front as
 * from the back, which meet or overlap in the middle, and a fixed number of canary vectors at the
 * end, under a mask. Where the CPU has no such vectors the compiler makes two of each.
 *
 * A load waits for the cache when the bytes it wants were just written by two stores. So what is
 * read back soon after it was written is read in pieces that lie within one store: zeros by 16, the
 * canary of small blocks by 8.
 */
#ifndef MA_SLOT_H
#define MA_SLOT_H

#include <stddef.h>
#include <stdint.h>

#include "region.h"
#include "wipe.h"

/* Vectors from each end, and vectors that hold the canary of any block of the class's own sizes:
 * the least canary and what one step between classes adds. */
enum
{
  MA_GROUPS = 6
};
#define MA_SLOT_GROUP(group, work)                                                                 \
  switch (group)                                                                                   \
    {                                                                                              \
    case 0: work (1, 1); /* up to 64 */                                                            \
    case 1: work (2, 1); /* 128 */                                                                 \
    case 2: work (4, 1); /* 256 */                                                                 \
    case 3: work (8, 2); /* 512 */                                                                 \
    case 4: work (16, 3); /* 1024 */                                                               \
    default: work (32, 5); /* 2048 */                                                              \
    }

static inline unsigned
ma_slot_group (size_t slot)
{
  return slot <= 64 ? 0 : 58 - (unsigned)__builtin_clzl (slot - 1);
}

/* Slots are at multiples of 16. */
typedef long long ma_v32 __attribute__ ((vector_size (32), aligned (16), may_alias));

/* Compiled twice where that pays; which one is used is settled when the library is loaded. */
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)          \
    && defined(__GNUC__) && !defined(__clang__)
#define MA_CLONED __attribute__ ((target_clones ("avx2", "default")))
#else
#define MA_CLONED
#endif

/* Bytes that are 0 before and 255 from the middle on: a mask for any boundary is a load. */
extern MA_HIDDEN const unsigned char ma_slot_masks[384];

/* The mask of the bytes at or after BOUNDARY of the 32 at offset AT. */
MA_INLINE void
slot_mask (ma_v32 *mask, size_t boundary, size_t at)
{
  memcpy (mask, ma_slot_masks + 192 + at - boundary, sizeof *mask);
}

MA_INLINE int
slot_is_zero_shape (const char *p, size_t slot, int half)
{
  const ma_v16 *front = (const ma_v16 *)p;
  const ma_v16 *back = (const ma_v16 *)(p + slot) - 2 * half;
  ma_v16 seen = { 0, 0 };
#pragma GCC unroll 16
  for (int i = 0; i < 2 * half; i++)
    seen |= front[i] | back[i];
  return (seen[0] | seen[1]) == 0;
}

MA_INLINE void
slot_wipe_shape (char *p, size_t slot, int half)
{
  ma_v32 *front = (ma_v32 *)p;
  ma_v32 *back = (ma_v32 *)(p + slot) - half;
#pragma GCC unroll 16
  for (int i = 0; i < half; i++)
    {
      front[i] = (ma_v32){ 0, 0, 0, 0 };
      back[i] = (ma_v32){ 0, 0, 0, 0 };
      /* No dead store, and no call of memset either. */
      __asm__ volatile ("" : : "r"(p) : "memory");
    }
}

/* Written over a zero slot: the bytes of the block stay zero. */
MA_INLINE void
slot_canary_shape (char *p, size_t size, size_t slot, int tail)
{
  long long word = (long long)ma_sealed.canary;
  ma_v32 canary = { word, word, word, word };
#pragma GCC unroll 16
  for (int i = tail; i > 0; i--)
    {
      ma_v32 mask;
      slot_mask (&mask, size, slot - 32 * (size_t)i);
      *(ma_v32 *)(p + slot - 32 * i) = canary & mask;
    }
}

typedef uint64_t ma_word __attribute__ ((aligned (1), may_alias));

MA_INLINE int
slot_intact_shape (const char *p, size_t size, size_t slot, int tail)
{
  long long word = (long long)ma_sealed.canary;
  if (tail == 1)
    {
      /* The word after the block, whatever its alignment, and up to three aligned ones: together
       * they are all of the 8 to 32 bytes. */
      unsigned turn = (unsigned)(size & 7) * 8;
      uint64_t c = ma_sealed.canary;
      uint64_t first = c >> turn | c << (-turn & 63);
      size_t second = (size + 8) & ~(size_t)7;
      size_t last = slot - 8;
      second = second < last ? second : last;
      size_t third = slot - 16 > second ? slot - 16 : second;
      return ((*(const ma_word *)(p + size) ^ first)
              | ((*(const ma_word *)(p + second) ^ c) | (*(const ma_word *)(p + third) ^ c))
              | (*(const ma_word *)(p + last) ^ c))
             == 0;
    }
  ma_v32 canary = { word, word, word, word };
  ma_v32 damage = { 0, 0, 0, 0 };
#pragma GCC unroll 16
  for (int i = tail; i > 0; i--)
    {
      ma_v32 mask;
      slot_mask (&mask, size, slot - 32 * (size_t)i);
      damage |= (*(const ma_v32 *)(p + slot - 32 * i) ^ canary) & mask;
    }
  return (damage[0] | damage[1] | damage[2] | damage[3]) == 0;
}

/* An aligned block, or one that was resized in place, may have more after it than the shape covers;
 * it is filled, and looked at, byte by byte. */
static inline size_t
slot_covered (unsigned group)
{
  static const uint8_t tails[MA_GROUPS] = { 1, 1, 1, 2, 3, 5 };
  return 32u * tails[group];
}

static inline unsigned char
slot_canary_byte (size_t at)
{
  return (unsigned char)(ma_sealed.canary >> (at & 7) * 8);
}

MA_COLD __attribute__ ((unused)) static void
slot_canary_roomy (char *p, size_t size, size_t slot)
{
  for (size_t at = size; at < slot; at++)
    ((unsigned char *)p)[at] = slot_canary_byte (at);
}

MA_COLD __attribute__ ((unused)) static int
slot_intact_roomy (const char *p, size_t size, size_t slot)
{
  unsigned damage = 0;
  for (size_t at = size; at < slot; at++)
    damage |= ((const unsigned char *)p)[at] ^ slot_canary_byte (at);
  return damage == 0;
}

/* Gives a free slot to a block of a size of its class: 0 if it was written since it was wiped, which
 * is not looked at unless IS_VERIFIED. */
MA_INLINE int
slot_take (char *p, size_t size, size_t slot, unsigned group, int is_verified)
{
#define TAKE(half, tail)                                                                           \
  {                                                                                                \
    int is_zero = !is_verified || slot_is_zero_shape (p, slot, half);                              \
    slot_canary_shape (p, size, slot, tail);                                                       \
    return is_zero;                                                                                \
  }
  MA_SLOT_GROUP (group, TAKE)
#undef TAKE
}

/* Whether no byte after the block was written. */
static inline int
slot_is_intact (const char *p, size_t size, size_t slot, unsigned group)
{
  if (unlikely (slot - size > slot_covered (group)))
    return slot_intact_roomy (p, size, slot);
#define INTACT(half, tail) return slot_intact_shape (p, size, slot, tail);
  MA_SLOT_GROUP (group, INTACT)
#undef INTACT
}

/* The same for a block that is not roomy, and if so the slot is wiped, in one go through the
 * groups. */
MA_INLINE int
slot_give (char *p, size_t size, size_t slot, unsigned group)
{
#define GIVE(half, tail)                                                                           \
  {                                                                                                \
    if (unlikely (!slot_intact_shape (p, size, slot, tail)))                                       \
      return 0;                                                                                    \
    slot_wipe_shape (p, slot, half);                                                               \
    return 1;                                                                                      \
  }
  MA_SLOT_GROUP (group, GIVE)
#undef GIVE
}

#endif
