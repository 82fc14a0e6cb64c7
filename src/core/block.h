/* block.h - one block, wherever it lies: the fast paths of runtime.h's functions, inline for the
 * callers that run them most. */
#ifndef MA_BLOCK_H
#define MA_BLOCK_H

#include "arena.h"
#include "dense.h"

static inline void *
ma_block_alloc (struct ma_local *local, size_t size)
{
  return likely (size < local->threshold) ? ma_dense_alloc (local, size) : ma_alloc (local, size);
}

static inline void
ma_block_free (void *p)
{
  struct ma_unit *unit = ma_unit_of (p);
  if (likely (unit->kind == MA_UNIT_DENSE))
    ma_dense_free (unit, p);
  else
    ma_release (p);
}

/* As ma_alloc, at a multiple of ALIGN, a power of two. */
void *ma_aligned (struct ma_local *local, size_t size, size_t align);

#endif
