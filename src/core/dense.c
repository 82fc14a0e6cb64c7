#include "dense.h"

#include <errno.h>
#include <string.h>

#include "fatal.h"
#include "slot.h"
#include "tag.h"

const unsigned char ma_slot_masks[384] = { [192 ... 383] = 255 };

/* ---- the slot of an address ---- */

/* The pointer that the block of a slot is known by. */
static inline const char *
pointer_of (const struct ma_unit *unit, unsigned slot)
{
  const char *p = unit->base + (size_t)slot * unit->slot;
#if MA_HAS_TAGS
  if (unit->is_tagged)
    p = ma_tagged (p, ma_region_tags (unit)[slot]);
#endif
  return p;
}

/* ---- the check ---- */

MA_COLD static _Noreturn void
crime (const struct ma_unit *unit, const void *p, unsigned slot)
{
  const char *name = unit->local->arena->name;
  if (slot >= unit->avail)
    ma_fatal_block ("invalid free", p, name);
  int is_live = is_object (unit) ? ma_slab_has_object (unit, slot) : unit->sizes[slot] != 0;
  if (ma_tagged (p, 0) != unit->base + (size_t)slot * unit->slot)
    ma_fatal_block (is_live ? "interior pointer" : "invalid free", p, name);
  if (!is_live)
    ma_fatal_block ("double free", p, name);
  if (p != pointer_of (unit, slot))
    ma_fatal_block (unit->is_tagged ? "stale pointer" : "invalid free", p, name);
  if (!is_object (unit) && unit->sizes[slot] - 1 > unit->slot - unit->rest)
    ma_fatal_block ("metadata corrupt", p, name);
  ma_fatal_block ("canary overwritten", p, name);
}

/* In a child that MADV_WIPEONFORK gave zeros the canaries are zero too, and nobody did wrong. */
MA_COLD static int
wiped_by_fork (const struct ma_unit *unit, const char *p, size_t size)
{
  if (!(unit->state & (MA_UNIT_FORK_WIPE | MA_UNIT_SECRET)) || *ma_sealed.unforked
      || is_away (unit, slot_of (unit, p)))
    return 0;
  for (const char *at = p + size; at < p + unit->slot; at++)
    if (*at != 0)
      return 0;
  return 1;
}

/* The whole chain from an address to a live slot, asserted; the block's size, which of an object nobody
 * remembers. */
static size_t
live_size (const struct ma_unit *unit, const char *p, unsigned slot)
{
  if (is_object (unit))
    {
      if (p != unit->base + (size_t)slot * unit->slot || !ma_slab_has_object (unit, slot))
        crime (unit, p, slot);
      return unit->slot;
    }
  unsigned size = UINT16_MAX;
  if (slot < __atomic_load_n (&unit->avail, __ATOMIC_RELAXED))
    size = __atomic_load_n (&unit->sizes[slot], __ATOMIC_RELAXED) - 1u;
  if (size > (unsigned)(unit->slot - unit->rest) || p != pointer_of (unit, slot))
    crime (unit, p, slot);
  return size;
}

/* The same, and its bytes as well. */
static size_t
checked (const struct ma_unit *unit, const char *p, unsigned slot)
{
  size_t size = live_size (unit, p, slot);
  if (is_object (unit))
    return size;
  if (MA_HAS_TAGS && unit->is_tagged)
    ma_tag_unchecked ();
  if (unit->rest != 0 && unlikely (!slot_intact_long (p, size, unit->slot))
      && !wiped_by_fork (unit, p, size))
    crime (unit, p, slot);
  if (MA_HAS_TAGS && unit->is_tagged)
    ma_tag_checked ();
  return size;
}

/* The same for a block that is resized in its slot. Where it grows: of the canary, what will be none any more,
 * and a bit of the rest, which is looked at when the block is freed. */
static size_t
near_checked (const struct ma_unit *unit, const char *p, unsigned slot, size_t size)
{
  if (unit->rest == 0 || is_object (unit) || (MA_HAS_TAGS && unit->is_tagged))
    return checked (unit, p, slot);
  size_t before = live_size (unit, p, slot);
  if (size <= before) /* what it leaves becomes canary, over all that was there */
    return checked (unit, p, slot);
  size_t end = (size + 31) & ~(size_t)15;
  if (unlikely (!slot_intact_long (p, before, end < unit->slot ? end : unit->slot))
      && !wiped_by_fork (unit, p, before))
    crime (unit, p, slot);
  return before;
}

size_t
ma_dense_check (struct ma_unit *unit, const void *p)
{
  return checked (unit, p, slot_of (unit, p));
}

/* ---- alloc ---- */

/* Takes the first slot of the word AT of UNIT, which is FREE and has one: read by the caller, who had to
 * look whether it has. */
MA_INLINE size_t
pop (struct ma_local *local, struct ma_unit *unit, size_t size, size_t at, uint64_t free)
{
  size_t slot = at * 64 + (size_t)__builtin_ctzl (free);
  __atomic_store_n (&unit->free[at], free & (free - 1), __ATOMIC_RELAXED);
  __atomic_store_n (&unit->sizes[slot], (uint16_t)(size + 1), __ATOMIC_RELAXED);
  ma_add_live (local, size);
  return slot;
}

/* Takes a slot of the word that the hint names, which has one. */
MA_INLINE char *
pop_hint (struct ma_local *local, struct ma_unit *unit, size_t size)
{
  size_t at = unit->hint;
  return unit->base + pop (local, unit, size, at, unit->free[at]) * unit->slot;
}

static __attribute__ ((noinline)) MA_CLONED void *
take_any (struct ma_local *local, char *p, size_t size, size_t slot)
{
  if (local->is_verified && !ma_is_zero (p, slot))
    ma_fatal_block ("use after wipe", p, local->arena->name);
  slot_canary_long (p, size, slot);
  return p;
}

MA_COLD static void *
alloc_slow (struct ma_local *local, unsigned class, size_t size)
{
  struct ma_unit *unit = ma_slab_refill (local, class);
  if (unit == NULL)
    return NULL;
  return take_any (local, pop_hint (local, unit, size), size, unit->slot);
}

MA_HOT void *
ma_dense_plain (struct ma_local *local, size_t size)
{
  unsigned class = ma_class_table[(size + 15) / 16];
  struct ma_unit *unit = local->current[class];
  if (unlikely (unit->free[unit->hint] == 0) && (unit = ma_slab_refill (local, class)) == NULL)
    return NULL;
  return pop_hint (local, unit, size);
}

typedef void *ma_take (struct ma_local *, char *, size_t, const struct ma_unit *);

/* Whether the turn of UNIT, which is mixed, comes twice in a row: it has its own shape then, until another
 * one's turn comes. Its branches are predicted there, and vectors that lie on each other would wait for what
 * was just wiped. Who frees may see either: both are right for its slots. */
static inline int
is_run (struct ma_local *local, struct ma_unit *unit)
{
  struct ma_unit *before = local->run;
  if (before == unit)
    {
      __atomic_store_n (&unit->group, (uint8_t)ma_slot_group (unit->slot), __ATOMIC_RELAXED);
      return 1;
    }
  if (before)
    __atomic_store_n (&before->group, MA_MIXED, __ATOMIC_RELAXED);
  local->run = unit;
  return 0;
}

/* What is rare is a call in the last place: with one in the middle, every call would save registers
 * for it. MIXED: takes a slot of a mixed slab; NULL: this CPU has no such way. */
MA_INLINE void *
alloc (struct ma_local *local, size_t size, int width, ma_take *mixed)
{
  unsigned class = ma_class_of (size);
  struct ma_unit *unit = local->current[class];
  size_t at = unit->hint;
  uint64_t free = unit->free[at];
  if (unlikely (free == 0))
    return alloc_slow (local, class, size);
  char *p = unit->base + pop (local, unit, size, at, free) * unit->slot;
  if (mixed && unit->group == MA_MIXED && !is_run (local, unit))
    return mixed (local, p, size, unit);
  if (unlikely (unit->group == MA_LONG) || unlikely (!slot_take (unit, p, size, width)))
    return take_any (local, p, size, unit->slot);
  return p;
}

void *
ma_dense_aligned (struct ma_local *local, size_t size, size_t align)
{
  /* Slots of a plain arena have no canary, and the largest has no room for one. */
  unsigned class = local->is_plain ? ma_class_table[(size + 15) / 16] : ma_class_of (size);
  while (class < MA_CLASSES && ma_class_slot[class] % align != 0)
    class++;
  if (class == MA_CLASSES)
    return NULL;
  struct ma_unit *unit = local->current[class];
  if (unit->free[unit->hint] == 0 && (unit = ma_slab_refill (local, class)) == NULL)
    return NULL;
  char *p = pop_hint (local, unit, size);
  return local->is_plain ? p : take_any (local, p, size, unit->slot);
}

#if MA_HAS_TAGS
void *
ma_dense_tag (void *p, size_t size)
{
  struct ma_unit *unit = ma_unit_of (p);
  unsigned slot = slot_of (unit, p);
  uint8_t *tag = &ma_region_tags (unit)[slot];
  *tag = (uint8_t)ma_tag_choose (1u << *tag | MA_TAG_NONE | (slot & 1 ? MA_TAG_EVEN : MA_TAG_ODD));
  p = ma_tagged (p, *tag);
  ma_tag_memory (p, size);
  return p;
}
#endif

/* ---- free ---- */

static __attribute__ ((noinline)) void
free_remote (struct ma_unit *unit, size_t slot, size_t size, const void *p)
{
  struct ma_local *local = unit->local;
  atomic_fetch_add_explicit (&local->remote_bytes, size, memory_order_relaxed);
  uint64_t before
      = atomic_fetch_or_explicit (&unit->remote[slot / 64], bit_of (slot), memory_order_acq_rel);
  if (unlikely (before & bit_of (slot)))
    ma_fatal_block ("double free", p, local->arena->name);
  atomic_thread_fence (memory_order_seq_cst);
  if (!atomic_load_explicit (&unit->queued, memory_order_relaxed)
      && !atomic_exchange_explicit (&unit->queued, 1, memory_order_acq_rel))
    {
      struct ma_unit *head = atomic_load_explicit (&local->queue, memory_order_relaxed);
      do
        unit->queue_next = head;
      while (!atomic_compare_exchange_weak_explicit (&local->queue, &head, unit,
                                                     memory_order_acq_rel, memory_order_relaxed));
    }
  /* Nobody will take it in if the owner's thread has ended: this one does. */
  if (unlikely (atomic_load_explicit (&local->owner, memory_order_acquire) == MA_NOBODY))
    ma_slab_adopt (local);
}

/* A slot that is wiped, back to its owner. */
MA_INLINE void
push (struct ma_unit *unit, size_t slot, size_t size, const void *p)
{
  struct ma_local *local = unit->local;
  __atomic_store_n (&unit->sizes[slot], 0, __ATOMIC_RELAXED);
  if (unlikely (atomic_load_explicit (&local->owner, memory_order_relaxed) != ma_self))
    {
      free_remote (unit, slot, size, p);
      return;
    }
  size_t at = slot / 64;
  __atomic_store_n (&unit->free[at], unit->free[at] | bit_of (slot), __ATOMIC_RELAXED);
  unit->hint = (uint8_t)at;
  if (unlikely (ma_subtract_live (local, size)) || unlikely (unit->is_full))
    ma_slab_tidy (local, unit);
}

/* From the first step on, who still has the pointer faults. */
static void
free_tagged (struct ma_unit *unit, char *p, unsigned slot)
{
  size_t size = live_size (unit, p, slot);
  char *bare = ma_tagged (p, 0);
  ma_tag_memory (bare, size);
  if (unlikely (!slot_intact_long (bare, size, unit->slot)) && !wiped_by_fork (unit, bare, size))
    crime (unit, p, slot);
  ma_wipe_inline (bare, unit->slot);
  push (unit, slot, size, p);
}

/* Objects, long slots, long canaries, tags, damage: all but the usual. */
static __attribute__ ((noinline)) MA_CLONED void
free_other (struct ma_unit *unit, char *p)
{
  unsigned slot = slot_of (unit, p);
  if (MA_HAS_TAGS && unit->is_tagged)
    {
      free_tagged (unit, p, slot);
      return;
    }
  size_t size = checked (unit, p, slot);
  if (!unit->local->is_plain)
    ma_wipe_inline (p, unit->slot);
  push (unit, slot, size, p);
}

typedef void ma_give (struct ma_unit *, char *, size_t, size_t);

/* LARGER: for slots of more than 144 bytes. MIXED: of a mixed slab, or NULL, as for alloc. Out of line, as
 * they take more registers than there are for nothing. */
MA_INLINE void
free_slot (struct ma_unit *unit, char *p, ma_give *larger, ma_give *mixed)
{
  uint64_t product = (((uintptr_t)p & MA_UNTAGGED) - (uintptr_t)unit->base) * unit->inverse;
  size_t slot = product >> 32;
  /* Larger pages have more than the slots that are used. */
  if (MA_PAGE_MOST != 4096 && unlikely (slot >= __atomic_load_n (&unit->avail, __ATOMIC_RELAXED)))
    {
      free_other (unit, p);
      return;
    }
  unsigned size = __atomic_load_n (&unit->sizes[slot], __ATOMIC_RELAXED) - 1u;
  /* One compare for what has no live block, and for sizes that take the other way. */
  if (unlikely (!is_start (unit, product, p) | (size - unit->least > unit->span)))
    {
      free_other (unit, p);
      return;
    }
  /* The product is needed no more: a register that would have to be saved. */
  __asm__ ("" : "+r"(slot));
  unsigned group = __atomic_load_n (&unit->group, __ATOMIC_RELAXED);
  if (mixed && group == MA_MIXED)
    mixed (unit, p, slot, size);
  else if (group > MA_UP_TO_144)
    larger (unit, p, slot, size);
  else if (likely (slot_give_small (unit, p, size)))
    push (unit, slot, size, p);
  else
    free_other (unit, p);
}

#define MA_GIVE(name, slot_give, target)                                                           \
  target static __attribute__ ((noinline)) void name (struct ma_unit *unit, char *p, size_t slot,  \
                                                      size_t size)                                 \
  {                                                                                                \
    if (likely (slot_give (unit, p, size)))                                                        \
      push (unit, slot, size, p);                                                                  \
    else                                                                                           \
      free_other (unit, p);                                                                        \
  }

#define MA_FAST_PATHS(width, take_mixed, give_mixed, target)                                       \
  target static void *alloc_##width (struct ma_local *local, size_t size)                          \
  {                                                                                                \
    return alloc (local, size, width, take_mixed);                                                 \
  }                                                                                                \
  MA_GIVE (larger_##width, slot_give, target)                                                      \
  target static void free_##width (struct ma_unit *unit, void *p)                                  \
  {                                                                                                \
    free_slot (unit, p, larger_##width, give_mixed);                                               \
  }

MA_FAST_PATHS (16, NULL, NULL, )

#ifdef MA_WIDE
#define MA_MIXED_PATHS(width, target)                                                              \
  target static __attribute__ ((noinline)) void *take_mixed_##width (                              \
      struct ma_local *local, char *p, size_t size, const struct ma_unit *unit)                    \
  {                                                                                                \
    return likely (slot_take_mixed_##width (unit, p, size))                                        \
               ? p                                                                                 \
               : take_any (local, p, size, unit->slot);                                            \
  }                                                                                                \
  MA_GIVE (give_mixed_##width, slot_give_mixed_##width, target)                                    \
  MA_FAST_PATHS (width, take_mixed_##width, give_mixed_##width, target)

MA_MIXED_PATHS (32, MA_TARGET_32)
MA_MIXED_PATHS (64, MA_TARGET_64)

static void *(*choose_alloc (void)) (struct ma_local *, size_t)
{
  int vectors = ma_vector_width ();
  return vectors == 64 ? alloc_64 : vectors == 32 ? alloc_32 : alloc_16;
}

static void (*choose_free (void)) (struct ma_unit *, void *)
{
  int vectors = ma_vector_width ();
  return vectors == 64 ? free_64 : vectors == 32 ? free_32 : free_16;
}

void *ma_dense_alloc (struct ma_local *, size_t) __attribute__ ((ifunc ("choose_alloc")));
void ma_dense_free (struct ma_unit *, void *) __attribute__ ((ifunc ("choose_free")));
#else
void *
ma_dense_alloc (struct ma_local *local, size_t size)
{
  return alloc_16 (local, size);
}

void
ma_dense_free (struct ma_unit *unit, void *p)
{
  free_16 (unit, p);
}
#endif

int
ma_dense_resize (struct ma_unit *unit, void *p, size_t size, size_t *size_before)
{
  struct ma_local *local = unit->local;
  unsigned slot = slot_of (unit, p);
  int stays = size <= (size_t)(unit->slot - unit->rest)
              /* A much smaller block moves, so that slots do not stay large for ever. */
              && size >= unit->slot / 4u
              && atomic_load_explicit (&local->owner, memory_order_relaxed) == ma_self;
  size_t before = *size_before
      = stays ? near_checked (unit, p, slot, size) : checked (unit, p, slot);
  if (!stays)
    return 0;
  char *bare = ma_tagged (p, 0);
  if (is_object (unit))
    {
      ma_wipe_inline (bare + size, unit->slot - size);
      return 1;
    }
  if (MA_HAS_TAGS && unit->is_tagged)
    ma_tag_memory (bare, before);
  /* The old canary must not be read as the longer block's data; what a shorter one leaves becomes
   * canary. */
  if (!local->is_plain && size > before)
    ma_wipe_inline (bare + before, size - before);
  else if (!local->is_plain)
    slot_canary_long (bare, size, unit->slot);
  ma_subtract_live (local, before);
  ma_add_live (local, size);
  __atomic_store_n (&unit->sizes[slot], (uint16_t)(size + 1), __ATOMIC_RELAXED);
  if (MA_HAS_TAGS && unit->is_tagged)
    ma_tag_memory (p, size);
  return 1;
}
