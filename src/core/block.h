/* block.h - one block, wherever it lies: what runtime.h does not have of it. */
#ifndef MA_BLOCK_H
#define MA_BLOCK_H

#include "arena.h"
#include "dense.h"

/* The free of a block that ma_dense_free_here does not free, or of none. */
void ma_release_other (struct ma_unit *unit, void *p);
/* As ma_alloc, at a multiple of ALIGN, a power of two. */
void *ma_aligned (struct ma_local *local, size_t size, size_t align);

#endif
