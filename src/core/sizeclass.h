/* sizeclass.h - which slot a request goes into.
 *
 * A slot is the block, at least 8 bytes of canary, and what rounding adds: multiples of 16 up to
 * 128, of 32 up to 512 (whole vectors of slot.h), then 8 sizes per doubling up to 2048. Powers of two
 * are among them: aligned blocks need them. Above, 4 per doubling: for arenas whose larger blocks need
 * not have pages, and so a mapping, of their own, of which a process can only have some 30,000.
 */
#ifndef MA_SIZECLASS_H
#define MA_SIZECLASS_H

#include <stddef.h>
#include <stdint.h>

enum
{
  MA_CLASSES = 47,
  MA_SLOT_LEAST = 32,
  MA_SLOT_MOST = 16384,
  MA_CANARY = 8,                            /* least bytes after a block */
  MA_DENSE_MOST = MA_SLOT_MOST - MA_CANARY, /* largest block in a slot */
  MA_DENSE_SECURE = 2048 - MA_CANARY /* the same of a secure arena, unless it is told otherwise */
};

/* clang-format off */
static const uint16_t ma_class_slot[MA_CLASSES] = {
  32, 48, 64, 80, 96, 112, 128,
  160, 192, 224, 256, 288, 320, 352, 384, 416, 448, 480, 512,
  576, 640, 704, 768, 832, 896, 960, 1024,
  1152, 1280, 1408, 1536, 1664, 1792, 1920, 2048,
  2560, 3072, 3584, 4096, 5120, 6144, 7168, 8192, 10240, 12288, 14336, 16384,
};

/* By sixteenths of the slot that is needed. */
static const uint8_t ma_class_table[MA_SLOT_MOST / 16 + 1] = {
  [0 ... 2] = 0, [3] = 1, [4] = 2, [5] = 3, [6] = 4, [7] = 5, [8] = 6, [9 ... 10] = 7,
  [11 ... 12] = 8, [13 ... 14] = 9, [15 ... 16] = 10, [17 ... 18] = 11, [19 ... 20] = 12,
  [21 ... 22] = 13, [23 ... 24] = 14, [25 ... 26] = 15, [27 ... 28] = 16, [29 ... 30] = 17,
  [31 ... 32] = 18, [33 ... 36] = 19, [37 ... 40] = 20, [41 ... 44] = 21, [45 ... 48] = 22,
  [49 ... 52] = 23, [53 ... 56] = 24, [57 ... 60] = 25, [61 ... 64] = 26, [65 ... 72] = 27,
  [73 ... 80] = 28, [81 ... 88] = 29, [89 ... 96] = 30, [97 ... 104] = 31, [105 ... 112] = 32,
  [113 ... 120] = 33, [121 ... 128] = 34,
  [129 ... 160] = 35, [161 ... 192] = 36, [193 ... 224] = 37, [225 ... 256] = 38,
  [257 ... 320] = 39, [321 ... 384] = 40, [385 ... 448] = 41, [449 ... 512] = 42,
  [513 ... 640] = 43, [641 ... 768] = 44, [769 ... 896] = 45, [897 ... 1024] = 46,
};
/* clang-format on */

/* SIZE <= MA_DENSE_MOST. A table: a branch on the size would be mispredicted. */
static inline unsigned
ma_class_of (size_t size)
{
  return ma_class_table[(size + MA_CANARY + 15) / 16];
}

#endif
