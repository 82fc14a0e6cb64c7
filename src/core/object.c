/* object.c - small blocks for a language runtime that makes and drops its objects by the million.
 *
 * What the Python extension has CPython call, in place of an allocator that needs three nanoseconds: the
 * functions for objects, and the hooks on malloc and free that go to them or past them.
 * An object is a slot of the dense heap, in a slab with no other blocks: of what is known of a block
 * it has the free bit alone, no size and no canary. Any other part of the library may free it, resize
 * it and look at it. Its bytes are wiped when it is freed, as every block's.
 */
#include <errno.h>
#include <string.h>

#include "block.h"
#include "slot.h"

void
ma_object_begin (malloc_arena *arena)
{
  enum
  {
    MOST = 1 << 20 /* the frames of a recursion that is 1,000 deep have 600 KiB */
  };
  size_t share = arena->limit / 16;
  atomic_store_explicit (&arena->reserve, (share < MOST ? share : MOST) & ~(MA_PAGE - 1),
                         memory_order_relaxed);
}

static MA_COLD void *
refused (malloc_arena *arena, size_t size)
{
  ma_refused.arena = arena;
  ma_refused.size = size;
  return NULL;
}

malloc_arena *
ma_object_refused (size_t *size)
{
  *size = ma_refused.size;
  return ma_refused.arena != NULL ? ma_refused.arena : ma_refused.met;
}

void
ma_object_forget_refused (void)
{
  ma_refused = (struct ma_refusal){ NULL, 0, NULL };
}

/* ---- alloc ---- */

static __attribute__ ((noinline)) void *
alloc_block (struct ma_local *local, size_t size)
{
  void *p = ma_alloc (local, size);
  return likely (p != NULL) ? p : refused (local->arena, size);
}

/* Puts the size's spot on the first word with a free slot in its slab, or in the next slab if this one has
 * none; 0 if none can be had. The first, so that what lives stays together, and not the one that was
 * freed in last: two that take turns would have this looked for at each of them. */
static int
find_spot (struct ma_local *local, size_t size)
{
  unsigned class = ma_class_of_object (size);
  struct ma_unit *unit = local->current[class];
  uint32_t rooms = unit->rooms;
  while (rooms != 0 && unit->free[__builtin_ctz (rooms)] == 0)
    rooms &= rooms - 1;
  unsigned at;
  if (rooms != 0)
    at = (unsigned)__builtin_ctz (rooms);
  else
    {
      unit = ma_slab_refill (local, class);
      if (unit == NULL)
        return 0;
      at = unit->hint;
      rooms = UINT32_MAX;
    }
  unit->rooms = rooms;
  struct ma_spot *spot = &local->spots[(size + 15) / 16];
  spot->word = &unit->free[at];
  spot->start = ma_unit_base (unit) + (size_t)at * 64 * unit->slot;
  spot->slot = unit->slot;
  return 1;
}

static __attribute__ ((noinline)) void *
alloc_elsewhere (struct ma_local *local, size_t size)
{
  return find_spot (local, size) ? ma_object_alloc (local, size) : refused (local->arena, size);
}

MA_INLINE void *
alloc (struct ma_local *local, size_t size)
{
  if (unlikely (size >= local->object_threshold))
    return alloc_block (local, size);
  const struct ma_spot *spot = &local->spots[(size + 15) / 16];
  uint64_t free = *spot->word;
  if (unlikely (free == 0))
    return alloc_elsewhere (local, size);
  size_t bytes = spot->slot;
  __atomic_store_n (spot->word, free & (free - 1), __ATOMIC_RELAXED);
  ma_add_live (local, bytes);
  return spot->start + (unsigned)__builtin_ctzl (free) * bytes;
}

MA_CLONED void *
ma_object_alloc (struct ma_local *local, size_t size)
{
  return alloc (local, size);
}

void *
ma_object_zalloc (struct ma_local *local, size_t count, size_t size)
{
  size_t bytes;
  if (unlikely (__builtin_mul_overflow (count, size, &bytes)))
    return NULL;
  if (likely (bytes < local->object_threshold))
    return ma_object_alloc (local, bytes);
  void *p = ma_zalloc (local, bytes);
  return likely (p != NULL) ? p : refused (local->arena, bytes);
}

/* ---- free ---- */

MA_INLINE uint64_t
product_of (const struct ma_unit *unit, const void *p)
{
  return ma_unit_offset (p) * unit->inverse;
}

/* Whether P is an object that lives, and this thread's; then *FREE is its word. In this order: a unit that
 * never was a slab has no local arena, and what its owner writes nobody else reads. */
MA_INLINE int
is_mine (const struct ma_unit *unit, const char *p, uint64_t product, uint64_t *free)
{
  unsigned slot = (unsigned)(product >> 32);
  if (unlikely (!is_start (unit, product, p))
      || unlikely (slot >= __atomic_load_n (&unit->avail, __ATOMIC_RELAXED))
      || unlikely (atomic_load_explicit (&unit->local->owner, memory_order_relaxed) != ma_self))
    return 0;
  *free = unit->free[slot / 64];
  return likely (!(*free >> (slot & 63) & 1));
}

/* Gives a slot that is wiped back to its word, which is FREE. Of a slab that was full the caller knows. */
MA_INLINE void
push (struct ma_unit *unit, unsigned slot, size_t bytes, uint64_t free, int is_full)
{
  struct ma_local *local = unit->local;
  unsigned at = slot / 64;
  if (free == 0)
    unit->rooms |= 1u << at;
  if (unlikely (ma_subtract_live (local, bytes)) || is_full)
    {
      ma_slab_tidy (local, unit, slot);
      return;
    }
  /* Last: an arena without a block may be deleted. */
  __atomic_store_n (&unit->free[at], free | bit_of (slot), __ATOMIC_RELEASE);
}

/* Slots of more than 128 bytes. */
static __attribute__ ((noinline)) MA_CLONED void
free_larger (struct ma_unit *unit, char *p, unsigned slot, size_t bytes, uint64_t free)
{
  if (bytes <= 192)
    slot_wipe_strokes (p, bytes, 3);
  else if (bytes <= 256)
    slot_wipe_strokes (p, bytes, 4);
  else if (bytes <= 384)
    slot_wipe_strokes (p, bytes, 6);
  else
    slot_wipe_strokes (p, bytes, 8);
  push (unit, slot, bytes, free, 0);
}

/* Whatever is special. While others have freed objects of the slab, FREE does not know all that are free;
 * nor does it of those on pages that are given back. */
static __attribute__ ((noinline)) void
free_special (struct ma_unit *unit, char *p)
{
  uint64_t product = product_of (unit, p);
  unsigned slot = (unsigned)(product >> 32);
  uint64_t free;
  if (unit->kind != MA_UNIT_DENSE || unit->is_block
      || atomic_load_explicit (&unit->queued, memory_order_relaxed)
      || !is_mine (unit, p, product, &free) || is_away (unit, slot))
    {
      ma_release (p);
      return;
    }
  ma_wipe_inline (p, unit->slot);
  push (unit, slot, unit->slot, free, unit->is_full);
}

MA_INLINE void
release (void *p)
{
  struct ma_unit *unit = ma_unit_of (p);
  uint64_t product = product_of (unit, p);
  unsigned slot = (unsigned)(product >> 32);
  uint64_t free;
  if (unlikely (__atomic_load_n (&unit->is_special, __ATOMIC_RELAXED) != 0)
      || !is_mine (unit, p, product, &free))
    {
      free_special (unit, p);
      return;
    }
  size_t bytes = unit->slot;
  if (likely (bytes <= 64))
    slot_wipe_64 (p, bytes);
  else if (likely (bytes <= 128))
    slot_wipe_strokes (p, bytes, 2);
  else
    {
      free_larger (unit, p, slot, bytes, free);
      return;
    }
  push (unit, slot, bytes, free, 0);
}

MA_CLONED void
ma_object_free (void *p)
{
  release (p);
}

/* ---- realloc ---- */

/* To another slot. Nobody knows how much of its own an object had, so all of that goes along. After the allocation, which
 * may have taken from the same word of free bits, the old slot is looked up again. */
static MA_CLONED void *
move (struct ma_unit *unit, void *p, size_t size)
{
  void *q = alloc (unit->local, size);
  if (unlikely (q == NULL))
    return NULL;
  memcpy (q, p, size < unit->slot ? size : unit->slot);
  release (p);
  return q;
}

/* Whether P is a live object that this thread alone changes: not where others have freed in the slab and that is not
 * taken in, nor on a page that was given back. */
static int
is_own_object (const struct ma_unit *unit, const char *p)
{
  uint64_t product = product_of (unit, p);
  uint64_t free;
  return unit->kind == MA_UNIT_DENSE && !unit->is_block
         && !atomic_load_explicit (&unit->queued, memory_order_relaxed)
         && is_mine (unit, p, product, &free) && !is_away (unit, (unsigned)(product >> 32));
}

void *
ma_object_resize (void *p, size_t size)
{
  struct ma_unit *unit = ma_unit_of (p);
  if (likely (size <= MA_OBJECT_MOST) && likely (is_own_object (unit, p)))
    {
      /* Much smaller ones move, so that slots do not stay large for ever. */
      size_t slot = unit->slot;
      if (size > slot || size < slot / 4)
        return move (unit, p, size);
      if (size < slot)
        ma_wipe_inline ((char *)p + size, slot - size);
      return p;
    }
  malloc_arena *arena = unit->local->arena;
  void *q;
  size_t before;
  if (unit->kind != MA_UNIT_DENSE || size > MA_OBJECT_MOST)
    q = ma_resize (p, size);
  else if (ma_dense_resize (unit, p, size, &before))
    return p;
  else
    {
      struct ma_local *local = ma_local_of (arena);
      q = local != NULL ? ma_object_alloc (local, size) : NULL;
      if (q != NULL)
        {
          memcpy (q, p, size < before ? size : before);
          ma_object_free (p);
        }
    }
  return likely (q != NULL) ? q : refused (arena, size);
}

/* ---- the hooks of a language runtime ---- */

/* A page of its own, sealed once it is filled in. */
static union
{
  struct ma_hooked originals[MA_HOOKS];
  char page[MA_PAGE_MOST];
} hooked __attribute__ ((aligned (MA_PAGE_MOST)));

int
ma_hook (const struct ma_hooked originals[MA_HOOKS])
{
  static _Atomic int is_hooked;
  if (atomic_exchange (&is_hooked, 1))
    return 0;
  memcpy (hooked.originals, originals, sizeof hooked.originals);
  os_seal (&hooked, sizeof hooked, 1);
  return 1;
}

/* The way past an arena that is not there is in the first 32 bytes, which the CPU fetches at once. */
#define ALIGNED __attribute__ ((aligned (64)))
#define HOOK(i)                                                                                    \
  MA_CLONED ALIGNED void *ma_hook_malloc_##i (void *context, size_t size)                          \
  {                                                                                                \
    struct ma_local *local = ma_active;                                                            \
    return likely (local == NULL) ? hooked.originals[i].malloc (context, size)                     \
                                  : alloc (local, size);                                           \
  }                                                                                                \
  ALIGNED void *ma_hook_calloc_##i (void *context, size_t count, size_t size)                      \
  {                                                                                                \
    struct ma_local *local = ma_active;                                                            \
    return likely (local == NULL) ? hooked.originals[i].calloc (context, count, size)              \
                                  : ma_object_zalloc (local, count, size);                         \
  }                                                                                                \
  ALIGNED void *ma_hook_realloc_##i (void *context, void *p, size_t size)                          \
  {                                                                                                \
    if (unlikely (ma_is_ours (p)))                                                                 \
      return ma_object_resize (p, size | (size == 0)); /* C's realloc would free */                \
    return likely (ma_active == NULL) ? hooked.originals[i].realloc (context, p, size)             \
                                      : hooked.originals[i].move_in (context, p, size);            \
  }                                                                                                \
  MA_CLONED ALIGNED void ma_hook_free_##i (void *context, void *p)                                 \
  {                                                                                                \
    if (likely (!ma_is_ours (p)))                                                                  \
      hooked.originals[i].free (context, p);                                                       \
    else                                                                                           \
      release (p);                                                                                 \
  }
HOOK (0)
HOOK (1)
HOOK (2)
