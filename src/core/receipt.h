/* receipt.h - what an arena was asked for, and what it holds: read from the accounts that the
 * kernel's answers wrote. */
#ifndef MA_RECEIPT_H
#define MA_RECEIPT_H

#include "arena.h"

void ma_receipt (malloc_arena *arena, struct malloc_arena_receipt *receipt);
void ma_stats (malloc_arena *arena, struct malloc_arena_stats *stats);

#endif
