/* block.h - one block, wherever it lies: what runtime.h does not have of it. */
#ifndef MA_BLOCK_H
#define MA_BLOCK_H

#include "arena.h"
#include "dense.h"

/* As ma_alloc, at a multiple of ALIGN, a power of two. */
void *ma_aligned (struct ma_local *local, size_t size, size_t align);

#endif
