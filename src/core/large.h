/* large.h - blocks with pages of their own.
 *
 * A large block lies at the end of a range: writing past it faults at once (up to 15 bytes of rounding
 * are canary). Before it come canary bytes where there is room, and an inaccessible page. A freed
 * block is wiped, and its range given back. Only a block that realloc made longer begins where its range does and may
 * end before its guard: canary, then zeros. Writing past that one is seen by the next realloc or free, or, past the
 * canary and in pages that no block had before, wiped by it. When it shrinks it ends at the guard again.
 */
#ifndef MA_LARGE_H
#define MA_LARGE_H

#include "range.h"

/* All zero in a secure arena and where *IS_ZERO says so; NULL with ENOMEM. ALIGN a power of two. */
void *ma_large_alloc (struct ma_local *local, size_t size, size_t align, int *is_zero);
/* The same for a block that has grown from BEFORE, and may again: in a range with room for it, if there is one to be
 * had, so that the next steps are taken where it is. */
void *ma_large_grown (struct ma_local *local, size_t size, size_t before);
/* As ma_dense_check. UNIT may be any unit of the run. */
size_t ma_large_check (struct ma_unit *unit, const void *p);
/* Frees P, of which the first KEPT bytes are copied to TO, if that is not NULL, before they are wiped: the
 * end of a realloc, so that ma_large_resize has looked at its canaries. LOCAL: the calling thread's
 * part of the block's arena, or NULL; its cache takes the range. */
void ma_large_free (struct ma_local *local, struct ma_unit *unit, void *p, void *to, size_t kept);
/* Another size in place: the range grows into the units behind it where these are free and the calling thread, of
 * which LOCAL is the part of the arena or NULL, has no better one ready; and what it does not need, where that is
 * half and more, goes back to the kernel at once, but where LOCAL may have one ready for the 256 KiB or less that
 * it is now (then NULL). A block that grows stays where it is, if there is room behind it
 * or the range gets pages, or moves to the range's start; one that shrinks, or is secret or tagged, moves so that it
 * ends at the guard, and what it leaves is wiped. In a plain arena it stays where it is, and may end up to a page
 * before the guard, or what its size was rounded up by. NULL where there is no place, and in an isolated arena. Checks
 * as ma_dense_check does, but in a step within the room only the canary that ends there and 16 bytes after it, and in
 * samples what the block gets; *BEFORE: the size so far. */
void *ma_large_resize (struct ma_local *local, struct ma_unit *unit, void *p, size_t size,
                       size_t *before);

#endif
