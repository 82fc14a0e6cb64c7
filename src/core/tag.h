/* tag.h - memory tags (Arm MTE): of a pointer, in its bits 56 to 59, and of each 16 bytes of memory,
 * beside it. An access with another tag than the memory's faults.
 *
 * Invariant: a live block of a tagged arena has a tag that is not 0, on the 16 byte granules that hold
 * it and no others. All else, free slots, what follows a block in its slot, the bytes before a large
 * block, has tag 0: that of fresh pages and of the allocator's own pointers. So a pointer to a block
 * reaches nothing but the block, as long as that lives, and then nothing at all until its place is
 * used again, by a block of another tag. Neighbouring slots have tags of different parity, so that
 * two threads need not agree on them.
 *
 * Where there are no tags all of this is nothing, and costs nothing.
 */
#ifndef MA_TAG_H
#define MA_TAG_H

#include <stddef.h>
#include <stdint.h>

#include "runtime.h"

#if MA_HAS_TAGS

enum
{
  MA_TAG_GRANULE = 16,
  MA_TAG_EVEN = 0x5555, /* masks of tags */
  MA_TAG_ODD = 0xaaaa,
  MA_TAG_NONE = 0x0001
};

/* P with TAG for its top byte. */
static inline void *
ma_tagged (const void *p, unsigned tag)
{
  return (void *)(((uintptr_t)p & MA_UNTAGGED) | (uintptr_t)tag << 56);
}

/* A random tag that is not in the mask EXCLUDED, which leaves some. */
unsigned ma_tag_choose (unsigned excluded);
/* Gives the granules of [P, P + SIZE) the tag of P; P at a granule. */
void ma_tag_memory (void *p, size_t size);
/* Between the two calls this thread's accesses are not checked: the rest of a live block's last
 * granule and what follows it have different tags. */
void ma_tag_unchecked (void);
void ma_tag_checked (void);

#else

static inline void *
ma_tagged (const void *p, unsigned tag)
{
  (void)tag;
  return (void *)(uintptr_t)p;
}

static inline void
ma_tag_memory (void *p, size_t size)
{
  (void)p;
  (void)size;
}

static inline void
ma_tag_unchecked (void)
{
}

static inline void
ma_tag_checked (void)
{
}

#endif

#endif
