/* sizeclass.h - which slot a request goes into.
 *
 * A slot is the block, at least 8 bytes of canary, and what rounding adds: multiples of 16 up to
 * 256, then 8 sizes per doubling up to 2048. Powers of two are among them: aligned blocks need them.
 */
#ifndef MA_SIZECLASS_H
#define MA_SIZECLASS_H

#include <stddef.h>
#include <stdint.h>

enum
{
  MA_CLASSES = 39,
  MA_SLOT_LEAST = 32,
  MA_SLOT_MOST = 2048,
  MA_CANARY = 8,       /* least bytes after a block */
  MA_DENSE_MOST = 2040 /* largest block in a slot */
};

/* clang-format off */
static const uint16_t ma_class_slot[MA_CLASSES] = {
  32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256,
  288, 320, 352, 384, 416, 448, 480, 512,
  576, 640, 704, 768, 832, 896, 960, 1024,
  1152, 1280, 1408, 1536, 1664, 1792, 1920, 2048,
};

/* By sixteenths of the slot that is needed. */
static const uint8_t ma_class_table[MA_SLOT_MOST / 16 + 1] = {
  [0 ... 2] = 0, [3] = 1, [4] = 2, [5] = 3, [6] = 4, [7] = 5, [8] = 6, [9] = 7, [10] = 8,
  [11] = 9, [12] = 10, [13] = 11, [14] = 12, [15] = 13, [16] = 14, [17 ... 18] = 15,
  [19 ... 20] = 16, [21 ... 22] = 17, [23 ... 24] = 18, [25 ... 26] = 19, [27 ... 28] = 20,
  [29 ... 30] = 21, [31 ... 32] = 22, [33 ... 36] = 23, [37 ... 40] = 24, [41 ... 44] = 25,
  [45 ... 48] = 26, [49 ... 52] = 27, [53 ... 56] = 28, [57 ... 60] = 29, [61 ... 64] = 30,
  [65 ... 72] = 31, [73 ... 80] = 32, [81 ... 88] = 33, [89 ... 96] = 34, [97 ... 104] = 35,
  [105 ... 112] = 36, [113 ... 120] = 37, [121 ... 128] = 38,
};
/* clang-format on */

/* SIZE <= MA_DENSE_MOST. A table: a branch on the size would be mispredicted. */
static inline unsigned
ma_class_of (size_t size)
{
  return ma_class_table[(size + MA_CANARY + 15) / 16];
}

#endif
