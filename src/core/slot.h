/* slot.h - the bytes of a slot: all zero while it is free; a block and its canary while it is not.
 *
 * This is what the fast paths spend their time on, in vectors of 32 bytes. Slots are in groups: those of up to 288
 * bytes have a fixed number of vectors, from the start and from the end, which lie on each other where the slot has not
 * so many; those of up to 2,048 are looped over. Longer ones are looped over out of line, and so are all where the CPU
 * is an x86-64 without such vectors; on others the compiler makes two of each. A CPU with AVX-512 has those of up to 288
 * in registers of their own.
 *
 * Where sizes are mixed, the branch on the group and the end of the loop are mispredicted, which takes as long as
 * 500 bytes of stores. There each slot of 64 to 512 bytes gets what the longest one needs, the last ones of its
 * vectors on each other.
 *
 * A load waits for the cache when the bytes it wants were just written by two stores. So slots are multiples of 32, or
 * the vectors of both passes lie so that the bytes of each load are of one store; and the canary, before which its owner
 * has just written, is read in words.
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
  return (unsigned)(ma_unit_offset (p) * unit->inverse >> 32);
}

/* Whether P is the first byte of a slot; PRODUCT: its offset times the inverse. */
static inline int
is_start (const struct ma_unit *unit, uint64_t product, const char *p)
{
  /* What is left below the point is less than one step for those; in a slab of larger pages the error
   * of the inverse adds up to more than that. */
  return MA_PAGE_MOST == 4096 ? (uint32_t)product < (uint32_t)unit->inverse
                              : ma_unit_offset (p) == (product >> 32) * unit->slot;
}

static inline uint64_t
bit_of (size_t slot)
{
  return (uint64_t)1 << (slot & 63);
}

/* Of a word that has one. */
static inline size_t
first_bit (uint64_t word)
{
#if defined(__x86_64__)
  /* tzcnt, where the CPU knows it. The compiler takes three instructions. */
  size_t bit;
  __asm__ ("rep bsfq %1, %0" : "=r"(bit) : "r"(word) : "cc");
  return bit;
#else
  return (unsigned)__builtin_ctzl (word);
#endif
}

/* Takes the bit of the slot, if the word has it; whether it had. */
static inline int
take_bit (uint64_t *word, size_t slot)
{
  int had;
#if defined(__x86_64__)
  __asm__ ("btrq %2, %0" : "+r"(*word), "=@ccc"(had) : "r"(slot));
#else
  had = (*word & bit_of (slot)) != 0;
  *word &= ~bit_of (slot);
#endif
  return had;
}

static inline uint64_t
with_bit (uint64_t word, size_t slot)
{
#if defined(__x86_64__)
  /* The compiler takes four instructions. */
  __asm__ ("btsq %1, %0" : "+r"(word) : "r"(slot) : "cc");
  return word;
#else
  return word | bit_of (slot);
#endif
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
  return (__atomic_load_n (&unit->away, __ATOMIC_RELAXED)
          & page_bits ((unsigned)(offset >> MA_PAGE_SHIFT),
                       (unsigned)((offset + unit->slot - 1) >> MA_PAGE_SHIFT) + 1))
         != 0;
}

static inline int
is_object (const struct ma_unit *unit)
{
  return unit->class >= MA_CLASSES;
}

/* How a slab's slots are looked at, written and wiped. */
enum ma_group
{
  MA_NO_SLAB, /* of a unit that is none */
  MA_UP_TO_48,
  MA_UP_TO_144,
  MA_UP_TO_288,
  MA_UP_TO_2048,
  MA_MIXED,    /* 64 to 512 bytes, in a CPU with wider vectors: sizes come in turns */
  MA_UPPER_48, /* the first three in the upper registers of a CPU that has them */
  MA_UPPER_144,
  MA_UPPER_288,
  MA_UNWIPED, /* no canary, nothing is looked at: any size of a plain arena */
  MA_LONG     /* no shape, or no vectors */
};

/* WIDTH: of the CPU's vectors, in bytes. */
static inline unsigned
ma_slot_group (size_t slot, int width)
{
  if (width == 64 && slot <= 288)
    return slot <= 48 ? MA_UPPER_48 : slot <= 144 ? MA_UPPER_144 : MA_UPPER_288;
  return slot <= 48     ? MA_UP_TO_48
         : slot <= 144  ? MA_UP_TO_144
         : slot <= 288  ? MA_UP_TO_288
         : slot <= 2048 ? MA_UP_TO_2048
                        : MA_LONG;
}

/* Slots are at multiples of 16. */
typedef long long ma_v32 __attribute__ ((vector_size (32), aligned (16), may_alias));

/* Bytes that are 0 before the boundary and 255 after it: a mask for any boundary is a load. Of the short canaries,
 * which most blocks have, one of a single cache line. */
#define SLOT_BOUNDARY 224
/* clang-format off */
#define SLOT_MASKS { [SLOT_BOUNDARY ... 383] = 255 }
/* clang-format on */
extern MA_HIDDEN const unsigned char ma_slot_masks[384];

typedef long long ma_v32_anywhere __attribute__ ((vector_size (32), aligned (1), may_alias));

/* The mask of the bytes at or after BOUNDARY of the 32 at offset AT. */
#define SLOT_MASK(boundary, at)                                                                    \
  (*(const ma_v32_anywhere *)(ma_slot_masks + SLOT_BOUNDARY + (at) - (boundary)))

/* By pointer: a vector is no argument where the CPU may have none. */
MA_INLINE int
slot_is_none (const ma_v32 *seen)
{
#ifdef MA_WIDE
  int is_none;
  __asm__ ("vptest %1, %1" : "=@ccz"(is_none) : "x"(*seen));
  return is_none;
#else
  return ((*seen)[0] | (*seen)[1] | (*seen)[2] | (*seen)[3]) == 0;
#endif
}

/* What is SEEN begins with 16 bytes, and gets 16 more: beside other halves. */
MA_INLINE void
slot_see_half (ma_v32 *seen, const char *p)
{
  const ma_v16 *half = (const ma_v16 *)p;
#ifdef MA_WIDE
  /* The compiler takes four instructions. */
  __asm__ ("vmovdqu %1, %x0" : "=x"(*seen) : "m"(*half));
#else
  *seen = (ma_v32){ (*half)[0], (*half)[1], 0, 0 };
#endif
}

MA_INLINE void
slot_see_another_half (ma_v32 *seen, const char *p)
{
  const ma_v16 *half = (const ma_v16 *)p;
#ifdef MA_WIDE
  __asm__ ("vpor %1, %x0, %x0" : "+x"(*seen) : "m"(*half));
#else
  *seen |= (ma_v32){ (*half)[0], (*half)[1], 0, 0 };
#endif
}

#define AT(p, offset) (*(ma_v32 *)((p) + (offset)))
#define CONST_AT(p, offset) (*(const ma_v32 *)((p) + (offset)))

/* Where in a slot of 64 to 144 bytes the half vector lies that is between the first two and the last two, if there is
 * something between; in one of 160 to 288 the two of 64 bytes that lie before the last, or with it. */
static inline uint8_t
slot_middle (size_t slot)
{
  return (uint8_t)(slot > 144 ? (slot - 128) & ~(size_t)63 : slot > 128 ? 64 : 0);
}

/* What of the canary is in the last vector, or in the one that is BEFORE bytes before it, written over a zero slot: the
 * bytes of the block stay zero. */
MA_INLINE void
slot_canary_vector (char *p, size_t size, size_t slot, size_t before)
{
  long long word = (long long)ma_sealed.canary;
  ma_v32 canary = { word, word, word, word };
  size_t rest = slot - size;
  /* One subtraction. */
  __asm__ ("" : "+r"(rest));
  AT (p, slot - 32 - before)
      = canary & *(const ma_v32_anywhere *)(ma_slot_masks + SLOT_BOUNDARY - 32 - before + rest);
}

typedef uint64_t ma_word __attribute__ ((aligned (1), may_alias));

/* What a word at offset AT holds of the canary, which is in step with the slot's words. */
static inline uint64_t
slot_canary_word (size_t at)
{
  return *(const ma_word *)((const char *)&ma_sealed.canary + (at & 7));
}

/* An object's slot, up to 512 bytes, is wiped by this many vectors from each end, which is 64 bytes for
 * each of them. */
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

/* The same up to 64 bytes, in vectors that need no vzeroupper. */
MA_INLINE void
slot_wipe_64 (char *p, size_t slot)
{
  ma_v16 *first = (ma_v16 *)p, *end = (ma_v16 *)(p + slot);
  first[0] = first[1] = end[-2] = end[-1] = (ma_v16){ 0, 0 };
  __asm__ volatile ("" : : "m"(*(char (*)[64])p));
}

/* Any block in any slot: there are at least 8 bytes after it. */
MA_INLINE void
slot_canary_long (char *p, size_t size, size_t slot)
{
  *(ma_word *)(p + size) = slot_canary_word (size);
  for (size_t at = (size + 7) & ~(size_t)7; at < slot; at += 8)
    *(ma_word *)(p + at) = ma_sealed.canary;
}

MA_INLINE int
slot_intact_long (const char *p, size_t size, size_t slot)
{
  uint64_t damage = *(const ma_word *)(p + size) ^ slot_canary_word (size);
  uint64_t c = ma_sealed.canary;
  size_t at = (size + 7) & ~(size_t)7;
  for (; at + 32 <= slot; at += 32)
    {
      const ma_word *words = (const ma_word *)(p + at);
      damage |= (words[0] ^ c) | (words[1] ^ c) | (words[2] ^ c) | (words[3] ^ c);
    }
  for (; at < slot; at += 8)
    damage |= *(const ma_word *)(p + at) ^ c;
  return damage == 0;
}

/* The smallest size of the class, and of the least slots 9, that the shapes see the whole canary of. Smaller blocks,
 * aligned or resized in place, have a longer one. */
static inline uint16_t
slot_least (unsigned class)
{
  return (uint16_t)((class != 0 ? ma_class_slot[class - 1] : MA_SLOT_LEAST - 16) - MA_CANARY + 1);
}

/* Each gives a free slot to a block of a size of its class: 0 if it was written since it was wiped, and then the canary
 * is not. Slots of 32 and 48 bytes. */
MA_INLINE int
slot_take_48 (const struct ma_unit *unit, char *p, size_t size)
{
  size_t slot = unit->slot;
  ma_v32 seen;
  slot_see_half (&seen, p + slot - 16);
  seen |= CONST_AT (p, 0);
  if (unlikely (!slot_is_none (&seen)))
    return 0;
  slot_canary_vector (p, size, slot, 0);
  return 1;
}

/* Of 64 to 144: the two last vectors are what was stored last, and each 16 bytes of what is before them are of one
 * store. */
MA_INLINE int
slot_take_144 (const struct ma_unit *unit, char *p, size_t size)
{
  size_t slot = unit->slot;
  ma_v32 seen;
  slot_see_half (&seen, p);
  slot_see_another_half (&seen, p + 16);
  slot_see_another_half (&seen, p + 32);
  slot_see_another_half (&seen, p + 48);
  slot_see_another_half (&seen, p + unit->middle);
  seen |= CONST_AT (p, slot - 64);
  seen |= CONST_AT (p, slot - 32);
  if (unlikely (!slot_is_none (&seen)))
    return 0;
  slot_canary_vector (p, size, slot, 0);
  return 1;
}

/* Of 160 to 288: the first four vectors and the last five, some of them twice. */
MA_INLINE int
slot_take_288 (const struct ma_unit *unit, char *p, size_t size)
{
  size_t slot = unit->slot;
  const char *end = p + slot - 160;
  ma_v32 seen = (CONST_AT (p, 0) | CONST_AT (p, 32)) | (CONST_AT (p, 64) | CONST_AT (p, 96));
  seen |= (CONST_AT (end, 0) | CONST_AT (end, 32)) | (CONST_AT (end, 64) | CONST_AT (end, 96))
          | CONST_AT (end, 128);
  if (unlikely (!slot_is_none (&seen)))
    return 0;
  slot_canary_vector (p, size, slot, 0);
  if (unlikely (size < slot - 32))
    slot_canary_vector (p, size, slot, 32);
  return 1;
}

/* Of 320 to 2,048: the last five vectors, and four at a time of what is before. */
MA_INLINE int
slot_take_2048 (const struct ma_unit *unit, char *p, size_t size)
{
  size_t slot = unit->slot;
  const char *end = p + slot - 160;
  const char *at = p;
  ma_v32 seen = (CONST_AT (end, 0) | CONST_AT (end, 32)) | (CONST_AT (end, 64) | CONST_AT (end, 96))
                | CONST_AT (end, 128);
  do
    {
      seen |= (CONST_AT (at, 0) | CONST_AT (at, 32)) | (CONST_AT (at, 64) | CONST_AT (at, 96));
      at += 128;
    }
  while (at < end);
  if (unlikely (!slot_is_none (&seen)))
    return 0;
  slot_canary_vector (p, size, slot, 0);
  for (size_t before = 32; unlikely (slot - 32 - before + 32 > size); before += 32)
    slot_canary_vector (p, size, slot, before);
  return 1;
}

/* What two ways have in common would be read before the branch, into registers that would have to be saved. */
#define SLOT_APART() __asm__ volatile ("" : : : "memory")

/* Whether the words of the canary are intact at P + SIZE and at the end of the slot, where the last of them is at LAST. */
MA_INLINE int
slot_ends_intact (const char *p, size_t size, const char *last)
{
  return likely (*(const ma_word *)(p + size) == slot_canary_word (size))
         && likely (*(const ma_word *)last == ma_sealed.canary);
}

/* The same of a slot of up to 144, where the canary has up to 23 bytes: of the last 16 what is after the first 8. */
MA_INLINE int
slot_intact_144 (const char *p, size_t size, size_t slot)
{
  const char *last = p + slot - 8;
  if (unlikely (!slot_ends_intact (p, size, last)))
    return 0;
  const char *first = (const char *)(((uintptr_t)(p + size) + 7) & ~(uintptr_t)7);
  const char *word = last - 8 > first ? last - 8 : first;
  return likely (*(const ma_word *)word == ma_sealed.canary);
}

/* Each wipes a slot if no byte after the block was written. */
MA_INLINE int
slot_give_48 (const struct ma_unit *unit, char *p, size_t size)
{
  size_t slot = unit->slot;
  if (unlikely (!slot_intact_144 (p, size, slot)))
    return 0;
  ma_v32 zero = { 0, 0, 0, 0 };
  /* Last first: what the other writes again is read from that. */
  AT (p, slot - 32) = zero;
  AT (p, 0) = zero;
  __asm__ volatile ("" : : "r"(p) : "memory");
  return 1;
}

MA_INLINE int
slot_give_144 (const struct ma_unit *unit, char *p, size_t size)
{
  size_t slot = unit->slot;
  if (unlikely (!slot_intact_144 (p, size, slot)))
    return 0;
  ma_v32 zero = { 0, 0, 0, 0 };
  *(ma_v16 *)(p + unit->middle) = (ma_v16){ 0, 0 };
  AT (p, 0) = AT (p, 32) = zero;
  AT (p, slot - 64) = zero;
  AT (p, slot - 32) = zero;
  __asm__ volatile ("" : : "r"(p) : "memory");
  return 1;
}

/* Whether the last vector of the slot is canary. */
MA_INLINE int
slot_last_intact (const char *p, size_t slot)
{
  long long word = (long long)ma_sealed.canary;
  ma_v32 damage = CONST_AT (p, slot - 32) ^ (ma_v32) { word, word, word, word };
  return slot_is_none (&damage);
}

/* Of 160 to 288, where the canary has up to 39 bytes. If it has 32, the owner has not just written in the last vector,
 * and IS_LAST_INTACT looks at that. */
MA_INLINE int
slot_intact_288 (const char *p, size_t size, size_t slot,
                 int (*is_last_intact) (const char *, size_t))
{
  if (__builtin_expect_with_probability (size <= slot - 32, 1, 0.5))
    return likely (*(const ma_word *)(p + size) == slot_canary_word (size))
           && is_last_intact (p, slot);
  SLOT_APART ();
  const char *last = p + slot - 8;
  if (unlikely (!slot_ends_intact (p, size, last)))
    return 0;
  return unlikely (last - 8 <= p + size)
         || (likely (*(const ma_word *)(last - 8) == ma_sealed.canary)
             && (likely (last - 16 <= p + size)
                 || *(const ma_word *)(last - 16) == ma_sealed.canary));
}

MA_INLINE int
slot_give_288 (const struct ma_unit *unit, char *p, size_t size)
{
  size_t slot = unit->slot;
  if (unlikely (!slot_intact_288 (p, size, slot, slot_last_intact)))
    return 0;
  ma_v32 zero = { 0, 0, 0, 0 };
  char *end = p + slot - 160;
  AT (end, 0) = AT (end, 32) = AT (end, 64) = AT (end, 96) = AT (end, 128) = zero;
  AT (p, 0) = AT (p, 32) = AT (p, 64) = AT (p, 96) = zero;
  __asm__ volatile ("" : : "r"(p) : "memory");
  return 1;
}

MA_INLINE int
slot_give_2048 (const struct ma_unit *unit, char *p, size_t size)
{
  const char *last = p + unit->slot - 8;
  if (unlikely (!slot_ends_intact (p, size, last)))
    return 0;
  for (const char *word = last - 8; likely (word > p + size); word -= 8)
    if (unlikely (*(const ma_word *)word != ma_sealed.canary))
      return 0;
  ma_v32 zero = { 0, 0, 0, 0 };
  /* As slot_take_2048 looks at it. */
  char *end = p + unit->slot - 160;
  char *at = p;
  AT (end, 0) = AT (end, 32) = AT (end, 64) = AT (end, 96) = AT (end, 128) = zero;
  do
    {
      AT (at, 0) = AT (at, 32) = AT (at, 64) = AT (at, 96) = zero;
      at += 128;
      /* No call of memset. */
      __asm__ volatile ("" : "+r"(at) : : "memory");
    }
  while (at < end);
  return 1;
}

#ifdef MA_WIDE
/* ---- the same in the registers from 16 on ---- */

/* They need no vzeroupper before a return, which takes as long as the stores do. These are for callers in which the
 * compiler does not know of such registers, so that it has nothing in them. What is looked at and written are the same
 * bytes, two neighbours in one vector where both passes can. */

MA_INLINE void
slot_upper_canary (char *p, size_t size, size_t slot)
{
  size_t rest = slot - size;
  __asm__ ("" : "+r"(rest));
  __asm__ volatile ("vpbroadcastq %1, %%ymm16\n\t"
                    "vpandq %2, %%ymm16, %%ymm16\n\t"
                    "vmovdqu64 %%ymm16, %0"
                    : "=m"(AT (p, slot - 32))
                    : "m"(ma_sealed.canary),
                      "m"(*(const ma_v32_anywhere *)(ma_slot_masks + SLOT_BOUNDARY - 32 + rest)));
}

MA_INLINE int
slot_take_upper_48 (const struct ma_unit *unit, char *p, size_t size)
{
  size_t slot = unit->slot;
  int is_none;
  __asm__ ("vmovdqu64 -16(%1,%2), %%xmm16\n\t"
           "vporq (%1), %%ymm16, %%ymm16\n\t"
           "vptestmq %%ymm16, %%ymm16, %%k1\n\t"
           "kortestb %%k1, %%k1"
           : "=@ccz"(is_none)
           : "r"(p), "r"(slot), "m"(*(char (*)[48])p));
  if (unlikely (!is_none))
    return 0;
  slot_upper_canary (p, size, slot);
  return 1;
}

MA_INLINE int
slot_give_upper_48 (const struct ma_unit *unit, char *p, size_t size)
{
  size_t slot = unit->slot;
  if (unlikely (!slot_intact_144 (p, size, slot)))
    return 0;
  __asm__ volatile ("vpxorq %%xmm16, %%xmm16, %%xmm16\n\t"
                    "vmovdqu64 %%ymm16, -32(%1,%2)\n\t"
                    "vmovdqu64 %%ymm16, (%1)"
                    : "+m"(*(char (*)[48])p)
                    : "r"(p), "r"(slot));
  return 1;
}

MA_INLINE int
slot_take_upper_144 (const struct ma_unit *unit, char *p, size_t size)
{
  size_t slot = unit->slot;
  int is_none;
  __asm__ ("vmovdqu64 (%1), %%xmm16\n\t"
           "vporq 16(%1), %%xmm16, %%xmm16\n\t"
           "vporq 32(%1), %%xmm16, %%xmm16\n\t"
           "vporq 48(%1), %%xmm16, %%xmm16\n\t"
           "vporq (%1,%3), %%xmm16, %%xmm16\n\t"
           "vporq -64(%1,%2), %%zmm16, %%zmm16\n\t"
           "vptestmq %%zmm16, %%zmm16, %%k1\n\t"
           "kortestb %%k1, %%k1"
           : "=@ccz"(is_none)
           : "r"(p), "r"(slot), "r"((size_t)unit->middle), "m"(*(char (*)[144])p));
  if (unlikely (!is_none))
    return 0;
  slot_upper_canary (p, size, slot);
  return 1;
}

MA_INLINE int
slot_give_upper_144 (const struct ma_unit *unit, char *p, size_t size)
{
  size_t slot = unit->slot;
  if (unlikely (!slot_intact_144 (p, size, slot)))
    return 0;
  __asm__ volatile ("vpxorq %%xmm16, %%xmm16, %%xmm16\n\t"
                    "vmovdqu64 %%xmm16, (%1,%3)\n\t"
                    "vmovdqu64 %%ymm16, (%1)\n\t"
                    "vmovdqu64 %%ymm16, 32(%1)\n\t"
                    "vmovdqu64 %%zmm16, -64(%1,%2)"
                    : "+m"(*(char (*)[144])p)
                    : "r"(p), "r"(slot), "r"((size_t)unit->middle));
  return 1;
}

MA_INLINE int
slot_take_upper_288 (const struct ma_unit *unit, char *p, size_t size)
{
  size_t slot = unit->slot;
  int is_none;
  __asm__ ("vmovdqu64 -32(%1,%2), %%ymm16\n\t"
           "vmovdqu64 (%1,%3), %%zmm17\n\t"
           "vporq 64(%1,%3), %%zmm16, %%zmm16\n\t"
           "vporq (%1), %%zmm17, %%zmm17\n\t"
           "vporq 64(%1), %%zmm16, %%zmm16\n\t"
           "vporq %%zmm17, %%zmm16, %%zmm16\n\t"
           "vptestmq %%zmm16, %%zmm16, %%k1\n\t"
           "kortestb %%k1, %%k1"
           : "=@ccz"(is_none)
           : "r"(p), "r"(slot), "r"((size_t)unit->middle), "m"(*(char (*)[288])p));
  if (unlikely (!is_none))
    return 0;
  slot_upper_canary (p, size, slot);
  if (unlikely (size < slot - 32))
    slot_canary_vector (p, size, slot, 32);
  return 1;
}

MA_INLINE int
slot_last_intact_upper (const char *p, size_t slot)
{
  int is_intact;
  __asm__ ("vmovdqu64 -32(%1,%2), %%ymm16\n\t"
           "vpcmpneqq %3%{1to4%}, %%ymm16, %%k1\n\t"
           "kortestb %%k1, %%k1"
           : "=@ccz"(is_intact)
           : "r"(p), "r"(slot), "m"(ma_sealed.canary), "m"(*(const char (*)[288])p));
  return is_intact;
}

MA_INLINE int
slot_give_upper_288 (const struct ma_unit *unit, char *p, size_t size)
{
  size_t slot = unit->slot;
  if (unlikely (!slot_intact_288 (p, size, slot, slot_last_intact_upper)))
    return 0;
  __asm__ volatile ("vpxorq %%xmm16, %%xmm16, %%xmm16\n\t"
                    "vmovdqu64 %%ymm16, -32(%1,%2)\n\t"
                    "vmovdqu64 %%zmm16, (%1,%3)\n\t"
                    "vmovdqu64 %%zmm16, 64(%1,%3)\n\t"
                    "vmovdqu64 %%zmm16, (%1)\n\t"
                    "vmovdqu64 %%zmm16, 64(%1)"
                    : "+m"(*(char (*)[288])p)
                    : "r"(p), "r"(slot), "r"((size_t)unit->middle));
  return 1;
}

/* ---- slots of 64 to 512 bytes, whatever their shape ---- */

/* Where the second to seventh of eight times 64 bytes lie, in words; the eighth is at the end. */
static inline uint8_t
slot_step (unsigned i, size_t slot)
{
  return (uint8_t)((64 * i < slot - 64 ? 64 * i : slot - 64) / 8);
}

/* As slot_take and slot_give. The canary is looked at in vectors: where sizes are mixed nobody
 * has just written there. */
MA_INLINE int
slot_take_mixed_32 (const struct ma_unit *unit, char *p, size_t size)
{
  size_t last = unit->slot - 64;
  ma_v32 seen = CONST_AT (p, 0) | CONST_AT (p, 32) | CONST_AT (p, last) | CONST_AT (p, last + 32);
#pragma GCC unroll 6
  for (int i = 0; i < 6; i++)
    {
      const char *q = p + 8 * (size_t)unit->step[i];
      seen |= CONST_AT (q, 0) | CONST_AT (q, 32);
      /* One after the other: with all of them at once registers would be saved. */
      __asm__ ("" : "+x"(seen));
    }
  if (unlikely (!slot_is_none (&seen)))
    return 0;
  slot_canary_vector (p, size, unit->slot, 0);
  slot_canary_vector (p, size, unit->slot, 32);
  return 1;
}

MA_INLINE int
slot_give_mixed_32 (const struct ma_unit *unit, char *p, size_t size)
{
  size_t last = unit->slot - 64;
  long long word = (long long)ma_sealed.canary;
  ma_v32 canary = { word, word, word, word };
  ma_v32 damage = ((CONST_AT (p, last) ^ canary) & SLOT_MASK (size, last))
                  | ((CONST_AT (p, last + 32) ^ canary) & SLOT_MASK (size, last + 32));
  if (unlikely (!slot_is_none (&damage)))
    return 0;
  ma_v32 zero = { 0, 0, 0, 0 };
  AT (p, 0) = AT (p, 32) = zero;
#pragma GCC unroll 6
  for (int i = 0; i < 6; i++)
    {
      char *q = p + 8 * (size_t)unit->step[i];
      AT (q, 0) = AT (q, 32) = zero;
    }
  AT (p, last) = AT (p, last + 32) = zero;
  __asm__ volatile ("" : : "r"(p) : "memory");
  return 1;
}

typedef long long ma_v64 __attribute__ ((vector_size (64), aligned (16), may_alias));

MA_INLINE int
slot_is_none_64 (const ma_v64 *seen)
{
  int is_none;
  __asm__ ("vptestmq %1, %1, %%k1\n\t"
           "kortestb %%k1, %%k1"
           : "=@ccz"(is_none)
           : "v"(*seen)
           : "k1");
  return is_none;
}

/* Which of the last 64 bytes are after the block. */
static inline uint64_t
slot_rest (size_t size, size_t slot)
{
  return UINT64_MAX << (size - (slot - 64));
}

MA_INLINE int
slot_take_mixed_64 (const struct ma_unit *unit, char *p, size_t size)
{
  ma_v64 *last = (ma_v64 *)(p + unit->slot - 64);
  ma_v64 seen = *(const ma_v64 *)p | *last;
#pragma GCC unroll 6
  for (int i = 0; i < 6; i++)
    {
      seen |= *(const ma_v64 *)(p + 8 * (size_t)unit->step[i]);
      __asm__ ("" : "+v"(seen));
    }
  if (unlikely (!slot_is_none_64 (&seen)))
    return 0;
  ma_v64 canary = (long long)ma_sealed.canary + (ma_v64){ 0, 0, 0, 0, 0, 0, 0, 0 };
  __asm__ ("kmovq %2, %%k1\n\t"
           "vmovdqu8 %1, %0%{%%k1%}"
           : "+m"(*last)
           : "v"(canary), "r"(slot_rest (size, unit->slot))
           : "k1");
  return 1;
}

MA_INLINE int
slot_give_mixed_64 (const struct ma_unit *unit, char *p, size_t size)
{
  ma_v64 *last = (ma_v64 *)(p + unit->slot - 64);
  ma_v64 canary = (long long)ma_sealed.canary + (ma_v64){ 0, 0, 0, 0, 0, 0, 0, 0 };
  int is_intact;
  __asm__ ("kmovq %3, %%k1\n\t"
           "vpcmpneqb %1, %2, %%k1%{%%k1%}\n\t"
           "kortestq %%k1, %%k1"
           : "=@ccz"(is_intact)
           : "m"(*last), "v"(canary), "r"(slot_rest (size, unit->slot))
           : "k1");
  if (unlikely (!is_intact))
    return 0;
  ma_v64 zero = { 0, 0, 0, 0, 0, 0, 0, 0 };
  *(ma_v64 *)p = zero;
#pragma GCC unroll 6
  for (int i = 0; i < 6; i++)
    *(ma_v64 *)(p + 8 * (size_t)unit->step[i]) = zero;
  *last = zero;
  __asm__ volatile ("" : : "r"(p) : "memory");
  return 1;
}
#endif

/* As above, of a slot in a slab of GROUP, which the compiler knows; not of MA_MIXED. */
MA_INLINE int
slot_take (enum ma_group group, const struct ma_unit *unit, char *p, size_t size)
{
  return group == MA_UP_TO_48    ? slot_take_48 (unit, p, size)
         : group == MA_UP_TO_144 ? slot_take_144 (unit, p, size)
         : group == MA_UP_TO_288 ? slot_take_288 (unit, p, size)
#ifdef MA_WIDE
         : group == MA_UPPER_48  ? slot_take_upper_48 (unit, p, size)
         : group == MA_UPPER_144 ? slot_take_upper_144 (unit, p, size)
         : group == MA_UPPER_288 ? slot_take_upper_288 (unit, p, size)
#endif
                                 : slot_take_2048 (unit, p, size);
}

MA_INLINE int
slot_give (enum ma_group group, const struct ma_unit *unit, char *p, size_t size)
{
  return group == MA_UP_TO_48    ? slot_give_48 (unit, p, size)
         : group == MA_UP_TO_144 ? slot_give_144 (unit, p, size)
         : group == MA_UP_TO_288 ? slot_give_288 (unit, p, size)
#ifdef MA_WIDE
         : group == MA_UPPER_48  ? slot_give_upper_48 (unit, p, size)
         : group == MA_UPPER_144 ? slot_give_upper_144 (unit, p, size)
         : group == MA_UPPER_288 ? slot_give_upper_288 (unit, p, size)
#endif
                                 : slot_give_2048 (unit, p, size);
}

#undef AT
#undef CONST_AT
#undef SLOT_MASK

#endif
