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
/* clang-format on */

/* SIZE <= MA_DENSE_MOST. Arithmetic, as a table of 129 bytes would be two more cache lines. */
static inline unsigned
ma_class_of (size_t size)
{
  size_t slot = size + MA_CANARY;
  if (slot <= 256)
    return slot <= 32 ? 0 : (unsigned)((slot + 15) / 16 - 2);
  /* The eighth of the doubling that SLOT - 1 is in: its top bit gives the doubling, the next three
   * bits the eighth. */
  unsigned top = 63 - (unsigned)__builtin_clzl (slot - 1);
  return 15 + (top - 8) * 8 + (unsigned)((slot - 1) >> (top - 3) & 7);
}

#endif
