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
#include "wipe.h"

/* A block of SIZE <= MA_DENSE_MOST bytes, all zero in a secure arena; NULL with ENOMEM. By the
 * owner. */
void *ma_dense_alloc (struct ma_local *local, size_t size) MA_DIRECT;
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
void ma_dense_free (struct ma_unit *unit, void *p) MA_DIRECT;
/* Another size in the same slot; 0 where the slot does not fit it, or is not this thread's. Checks as
 * ma_dense_check does; *BEFORE: the size so far. */
int ma_dense_resize (struct ma_unit *unit, void *p, size_t size, size_t *before);

#endif
