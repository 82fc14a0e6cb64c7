/* sizeclass.h - which slot a request goes into.
 *
 * A slot is the block, at least 8 bytes of canary, and what rounding adds: multiples of 16 up to
 * 144, of 32 up to 512 (whole vectors of slot.h), then 8 sizes per doubling up to 2048. Powers of two
 * are among them: aligned blocks need them. Above, 4 per doubling: for arenas whose larger blocks need
 * not have pages, and so a mapping, of their own, of which a process can only have some 30,000. Above
 * MA_SLOT_MOST a third, a half and the whole of a slab: for plain arenas, where a mapping would have
 * nothing to protect.
 */
#ifndef MA_SIZECLASS_H
#define MA_SIZECLASS_H

#include <stddef.h>
#include <stdint.h>

enum
{
  MA_CLASSES = 51,
  MA_OBJECT_CLASSES = 20, /* the first, once more, for slabs of objects */
  MA_SLAB_CLASSES = MA_CLASSES + MA_OBJECT_CLASSES,
  MA_SLOT_LEAST = 32,
  MA_SLOT_MOST = 16384,
  MA_OBJECT_MOST = 512,                     /* largest object */
  MA_CANARY = 8,                            /* least bytes after a block */
  MA_DENSE_MOST = MA_SLOT_MOST - MA_CANARY, /* largest block in a slot */
  MA_DENSE_SECURE = 2048 - MA_CANARY, /* the same of a secure arena, unless it is told otherwise */
  MA_DENSE_PLAIN = 61440              /* and of a plain one */
};

/* clang-format off */
static const uint16_t ma_class_slot[MA_CLASSES] = {
  32, 48, 64, 80, 96, 112, 128, 144,
  160, 192, 224, 256, 288, 320, 352, 384, 416, 448, 480, 512,
  576, 640, 704, 768, 832, 896, 960, 1024,
  1152, 1280, 1408, 1536, 1664, 1792, 1920, 2048,
  2560, 3072, 3584, 4096, 5120, 6144, 7168, 8192, 10240, 12288, 14336, 16384,
  20480, 30720, 61440,
};

/* By sixteenths of the slot that is needed. */
static const uint8_t ma_class_table[MA_DENSE_PLAIN / 16 + 1] = {
  [0 ... 2] = 0, [3] = 1, [4] = 2, [5] = 3, [6] = 4, [7] = 5, [8] = 6, [9] = 7, [10] = 8,
  [11 ... 12] = 9, [13 ... 14] = 10, [15 ... 16] = 11, [17 ... 18] = 12, [19 ... 20] = 13,
  [21 ... 22] = 14, [23 ... 24] = 15, [25 ... 26] = 16, [27 ... 28] = 17, [29 ... 30] = 18,
  [31 ... 32] = 19, [33 ... 36] = 20, [37 ... 40] = 21, [41 ... 44] = 22, [45 ... 48] = 23,
  [49 ... 52] = 24, [53 ... 56] = 25, [57 ... 60] = 26, [61 ... 64] = 27, [65 ... 72] = 28,
  [73 ... 80] = 29, [81 ... 88] = 30, [89 ... 96] = 31, [97 ... 104] = 32, [105 ... 112] = 33,
  [113 ... 120] = 34, [121 ... 128] = 35, [129 ... 160] = 36, [161 ... 192] = 37,
  [193 ... 224] = 38, [225 ... 256] = 39, [257 ... 320] = 40, [321 ... 384] = 41,
  [385 ... 448] = 42, [449 ... 512] = 43, [513 ... 640] = 44, [641 ... 768] = 45,
  [769 ... 896] = 46, [897 ... 1024] = 47,
  [1025 ... 1280] = 48, [1281 ... 1920] = 49, [1921 ... 3840] = 50,
};
/* clang-format on */

/* SIZE <= MA_DENSE_MOST. A table: a branch on the size would be mispredicted. */
static inline unsigned
ma_class_of (size_t size)
{
  return ma_class_table[(size + MA_CANARY + 15) / 16];
}

/* The class of slabs for objects of SIZE <= MA_OBJECT_MOST, which have no canary. */
static inline unsigned
ma_class_of_object (size_t size)
{
  return MA_CLASSES + ma_class_table[(size + 15) / 16];
}

/* The class of slots with that size, whatever they are for. */
static inline unsigned
ma_class_of_slab (unsigned class)
{
  return class < MA_CLASSES ? class : class - MA_CLASSES;
}

#endif
