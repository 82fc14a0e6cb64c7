/* dense.h - small blocks: slots in slabs.
 *
 * A slab is a unit of one size class, 15 pages of slots and a guard page. The free slots are a bit
 * map beside it; a free slot of a secure arena is all zero, and stays so until it is given out. Pages
 * are opened and locked from the front, as they come into use, and go back to the kernel when no
 * live slot touches them, but for a bounded number that stay warm.
 */
#ifndef MA_DENSE_H
#define MA_DENSE_H

#include "heap.h"

extern MA_HIDDEN struct ma_unit ma_no_slab; /* no free slot, ever */

/* What is dense in a local arena that is all zero but for its arena. */
void ma_dense_begin (struct ma_local *local);

/* A block of SIZE <= MA_DENSE_MOST bytes, all zero in a secure arena; NULL with ENOMEM. By the
 * owner. */
void *ma_dense_alloc (struct ma_local *local, size_t size);
/* The same in a plain arena, where it ends without a canary and nothing is written. */
void *ma_dense_plain (struct ma_local *local, size_t size);
/* The block that one of the calls here made, tagged. */
void *ma_dense_tag (void *p, size_t size);
/* The same at a multiple of ALIGN, a power of two. NULL and errno untouched where no slot can be so
 * aligned: a large block can. */
void *ma_dense_aligned (struct ma_local *local, size_t size, size_t align);

/* For a fast path that takes and gives back slots by itself. Makes the class's current slab one that has
 * a free slot in the word of its hint; NULL with ENOMEM. */
struct ma_unit *ma_dense_refill (struct ma_local *local, unsigned class);
/* Lists a slab that was full, looks for memory to give back. */
void ma_dense_tidy (struct ma_local *local, struct ma_unit *unit);

/* Checks that P is a live block of UNIT and intact, or aborts; returns its size. */
size_t ma_dense_check (struct ma_unit *unit, const void *p);
/* From any thread: checked, wiped, given back. */
void ma_dense_free (struct ma_unit *unit, void *p);
/* Another size in the same slot; 0 where the slot does not fit it, or is not this thread's. */
int ma_dense_resize (struct ma_unit *unit, void *p, size_t size);

/* Takes in what other threads freed. By whoever may act as owner, with the lock held. */
void ma_dense_collect (struct ma_local *local);
/* Gives all pages without a live slot back, also the warm ones. As collect. */
void ma_dense_trim (struct ma_local *local);

/* Around a fork, in the parent: copies of secret memory that the child is to have, and gone again. Lock
 * held. */
void ma_dense_before_fork (struct ma_local *local);
void ma_dense_forked (struct ma_local *local);
/* In a forked child: guards, locks, queues and counts as they must be for the one thread there. Lock
 * held. */
void ma_dense_after_fork (struct ma_local *local);
/* Live blocks and *BYTES of them, what other threads freed not counted. Lock held; exact while the
 * owner is quiet. */
size_t ma_dense_live (struct ma_local *local, size_t *bytes);
/* Adds to the classes' counts. O(blocks). As live. */
void ma_dense_classes (struct ma_local *local, struct malloc_arena_class classes[MA_CLASSES]);
/* All heaps back to the region; nothing may live. Lock held. */
void ma_dense_end (struct ma_local *local);

#endif
