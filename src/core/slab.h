/* slab.h - runs of slots of one size: their pages, the heaps they are taken from, what others freed.
 *
 * A slab is a unit of one size class, 15 pages of slots and a guard page. The free slots are a bit
 * map beside it. Pages are opened and locked from the front, as they come into use, and go back to the
 * kernel when no live slot touches them, but for a bounded number that stay warm; their slots are not
 * free until they are recalled. A local arena finds a slab with room by its class.
 * Lock: the local arena's, for all but what says otherwise.
 * Invariant: a slot whose free bit is set is on pages that are present, and in a wiped arena all zero;
 * a slab that is neither current nor listed is full.
 */
#ifndef MA_SLAB_H
#define MA_SLAB_H

#include "heap.h"

extern MA_HIDDEN struct ma_unit ma_no_slab; /* no free slot, ever */

/* What there is of slabs in a local arena that is all zero but for its arena. */
void ma_slab_begin (struct ma_local *local);
/* All heaps back to the region; nothing may live. */
void ma_slab_end (struct ma_local *local);

/* Makes the class's current slab one that has a free slot in the word of its hint; NULL with ENOMEM. By
 * the owner; takes the lock, as the next two do. */
struct ma_unit *ma_slab_refill (struct ma_local *local, unsigned class);
/* By the owner, the end of a free: marks the slot, lists a slab that was full, looks for memory to give back. */
void ma_slab_tidy (struct ma_local *local, struct ma_unit *unit, size_t slot);
/* After a free in a local arena whose thread has ended. */
void ma_slab_adopt (struct ma_local *local);

/* Takes in what other threads freed. By whoever may act as owner. */
void ma_slab_collect (struct ma_local *local);
/* Pages of slabs, with those that are not present, which may be locked all the same; and how many of all local arenas
 * whose threads are gone may stay open though nobody uses them. As collect. */
size_t ma_slab_opened (const struct ma_local *local);
size_t ma_slab_kept_most (const struct ma_local *local);
/* Gives all pages without a live slot back, also the warm ones. As collect. */
void ma_slab_trim (struct ma_local *local);

/* Whether an object lives in the slot; of blocks their size tells. Without the lock. */
int ma_slab_has_object (const struct ma_unit *unit, unsigned slot);

/* Around a fork, in the parent: copies of secret memory that the child is to have, and gone again. */
void ma_slab_before_fork (struct ma_local *local);
void ma_slab_forked (struct ma_local *local);
/* In a forked child: guards, queues and counts as they must be for the one thread there, and secret memory; and
 * then the locks of the rest. */
void ma_slab_after_fork (struct ma_local *local);
void ma_slab_lock_again (struct ma_local *local);

/* Live blocks and *BYTES of them, what other threads freed not counted. Exact while the owner is
 * quiet. */
size_t ma_slab_live (struct ma_local *local, size_t *bytes);
/* Adds to the classes' counts. O(blocks). As live. */
void ma_slab_classes (struct ma_local *local, struct malloc_arena_class classes[MA_CLASSES]);

#endif
