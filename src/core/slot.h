/* slot.h - the bytes of a slot: all zero while it is free; a block and its canary while it is not.
 *
 * This is what the fast paths spend their time on. Sizes differ from call to call, so that a loop
 * over a slot ends in a mispredicted branch, which costs as much as 500 bytes of stores. Instead,
 * slots are in groups, and within a group the work has one shape: a fixed number of 32-byte
 * vectors, of which those that would lie beyond the end are done at the end once more. Where the CPU
 * has no such vectors the compiler makes two of each.
 *
 * A load waits for the cache when the bytes it wants were just written by two stores. So the canary
 * of a small block, whose owner has just written the bytes before it, is read in words.
 */
#ifndef MA_SLOT_H
#define MA_SLOT_H

#include <stddef.h>
#include <stdint.h>

#include "region.h"
#include "wipe.h"

/* The vectors of a slot; the aligned words that hold the canary of any block of the class's own
 * sizes, which is the least canary and what one step between classes adds. In large slots neither is
 * worth a shape: 0. In the largest a step is more than a few vectors: -1, a loop. */
enum
{
  MA_GROUPS = 4,
  MA_TAIL = 5 /* vectors that hold the canary in the third group */
};
#define MA_SLOT_GROUP(group, work)                                                                 \
  switch (group)                                                                                   \
    {                                                                                              \
    case 0: work (4, 3);  /* up to 128 */                                                          \
    case 1: work (16, 5); /* 512 */                                                                \
    case 2: work (0, 0);  /* 2048 */                                                               \
    default: work (0, -1);                                                                         \
    }

static inline unsigned
ma_slot_group (size_t slot)
{
  return slot <= 128 ? 0 : slot <= 512 ? 1 : slot <= 2048 ? 2 : 3;
}

/* Slots are at multiples of 16. */
typedef long long ma_v32 __attribute__ ((vector_size (32), aligned (16), may_alias));

/* Compiled twice where that pays; which one is used is settled when the library is loaded. */
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)         \
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

MA_INLINE size_t
slot_least (size_t a, size_t b)
{
  return a < b ? a : b;
}

MA_INLINE int
slot_is_zero_shape (const char *p, size_t slot, int vectors)
{
  ma_v32 seen = { 0, 0, 0, 0 };
  if (vectors == 0)
    return ma_is_zero (p, slot);
#pragma GCC unroll 16
  for (int i = 0; i < vectors; i++)
    seen |= *(const ma_v32 *)(p + slot_least (32 * (size_t)i, slot - 32));
  return (seen[0] | seen[1] | seen[2] | seen[3]) == 0;
}

MA_INLINE void
slot_wipe_shape (char *p, size_t slot, int vectors)
{
  if (vectors == 0)
    ma_wipe_inline (p, slot);
  else
#pragma GCC unroll 16
    for (int i = 0; i < vectors; i++)
      {
        *(ma_v32 *)(p + slot_least (32 * (size_t)i, slot - 32)) = (ma_v32){ 0, 0, 0, 0 };
        /* No dead store, and no call of memset either. */
        __asm__ volatile ("" : : "r"(p) : "memory");
      }
}

static inline unsigned char
slot_canary_byte (size_t at)
{
  return (unsigned char)(ma_sealed.canary >> (at & 7) * 8);
}

typedef uint64_t ma_word __attribute__ ((aligned (1), may_alias));

/* An aligned block, or one that was resized in place, may have more after it than the shape of its
 * slot covers; those of the last group mostly have. */
MA_COLD __attribute__ ((unused)) static void
slot_canary_roomy (char *p, size_t size, size_t slot)
{
  size_t at = size;
  for (; at & 7 && at < slot; at++)
    ((unsigned char *)p)[at] = slot_canary_byte (at);
  for (; at < slot; at += 8)
    *(ma_word *)(p + at) = ma_sealed.canary;
}

MA_COLD __attribute__ ((unused)) static int
slot_intact_roomy (const char *p, size_t size, size_t slot)
{
  uint64_t damage = 0;
  size_t at = size;
  for (; at & 7 && at < slot; at++)
    damage |= (unsigned)(((const unsigned char *)p)[at] ^ slot_canary_byte (at));
  for (; at < slot; at += 8)
    damage |= *(const ma_word *)(p + at) ^ ma_sealed.canary;
  return damage == 0;
}

/* Bytes before the end of a slot that its shape covers. */
static inline size_t
slot_covered (unsigned group)
{
  static const uint16_t covered[MA_GROUPS] = { 32, 2 * 32, MA_TAIL * 32, UINT16_MAX };
  return covered[group];
}

/* Written over a zero slot: the bytes of the block stay zero. */
MA_INLINE void
slot_canary_shape (char *p, size_t size, size_t slot, int words)
{
  if (words < 0)
    {
      slot_canary_roomy (p, size, slot);
      return;
    }
  long long word = (long long)ma_sealed.canary;
  ma_v32 canary = { word, word, word, word };
  int tail = words == 3 ? 1 : words == 5 ? 2 : MA_TAIL;
#pragma GCC unroll 16
  for (int i = tail; i > 0; i--)
    {
      ma_v32 mask;
      slot_mask (&mask, size, slot - 32 * (size_t)i);
      *(ma_v32 *)(p + slot - 32 * i) = canary & mask;
    }
}

MA_INLINE int
slot_intact_shape (const char *p, size_t size, size_t slot, int words)
{
  if (words < 0)
    return slot_intact_roomy (p, size, slot);
  uint64_t c = ma_sealed.canary;
  if (words)
    {
      unsigned turn = (unsigned)(size & 7) * 8;
      uint64_t damage = *(const ma_word *)(p + size) ^ (c >> turn | c << (-turn & 63));
      size_t at = (size + 8) & ~(size_t)7;
#pragma GCC unroll 16
      for (int i = 0; i < words; i++)
        damage |= *(const ma_word *)(p + slot_least (at + 8 * (size_t)i, slot - 8)) ^ c;
      return damage == 0;
    }
  ma_v32 canary = { (long long)c, (long long)c, (long long)c, (long long)c };
  ma_v32 damage = { 0, 0, 0, 0 };
#pragma GCC unroll 16
  for (int i = MA_TAIL; i > 0; i--)
    {
      ma_v32 mask;
      slot_mask (&mask, size, slot - 32 * (size_t)i);
      damage |= (*(const ma_v32 *)(p + slot - 32 * i) ^ canary) & mask;
    }
  return (damage[0] | damage[1] | damage[2] | damage[3]) == 0;
}

/* Gives a free slot to a block of a size of its class: 0 if it was written since it was wiped, which
 * is not looked at unless IS_VERIFIED. */
MA_INLINE int
slot_take (char *p, size_t size, size_t slot, unsigned group, int is_verified)
{
#define TAKE(vectors, words)                                                                       \
  {                                                                                                \
    int is_zero = !is_verified || slot_is_zero_shape (p, slot, vectors);                           \
    slot_canary_shape (p, size, slot, words);                                                      \
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
#define INTACT(vectors, words) return slot_intact_shape (p, size, slot, words);
  MA_SLOT_GROUP (group, INTACT)
#undef INTACT
}

/* The same for a block that is not roomy, and if so the slot is wiped, in one go through the
 * groups. */
MA_INLINE int
slot_give (char *p, size_t size, size_t slot, unsigned group)
{
#define GIVE(vectors, words)                                                                       \
  {                                                                                                \
    if (unlikely (!slot_intact_shape (p, size, slot, words)))                                      \
      return 0;                                                                                    \
    slot_wipe_shape (p, slot, vectors);                                                            \
    return 1;                                                                                      \
  }
  MA_SLOT_GROUP (group, GIVE)
#undef GIVE
}

#endif
