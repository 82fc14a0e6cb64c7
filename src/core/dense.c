#include "dense.h"

#include <errno.h>
#include <string.h>

#include "fatal.h"
#include "tag.h"

const unsigned char ma_slot_masks[384] __attribute__ ((aligned (64))) = SLOT_MASKS;

/* ---- the slot of an address ---- */

/* The pointer that the block of a slot is known by. */
static inline const char *
pointer_of (const struct ma_unit *unit, unsigned slot)
{
  const char *p = ma_unit_base (unit) + (size_t)slot * unit->slot;
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
  if (ma_tagged (p, 0) != ma_unit_base (unit) + (size_t)slot * unit->slot)
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
      if (p != ma_unit_base (unit) + (size_t)slot * unit->slot || !ma_slab_has_object (unit, slot))
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

MA_CLONED void *
ma_dense_taken (size_t size, char *p, struct ma_local *local, const struct ma_unit *unit)
{
  if (local->is_verified && !ma_is_zero (p, unit->slot))
    ma_fatal_block ("use after wipe", p, local->arena->name);
  slot_canary_long (p, size, unit->slot);
  return p;
}

/* A slot for SIZE of a slab that the class gets now. */
static char *
pop_refilled (struct ma_local *local, unsigned class, size_t size)
{
  struct ma_unit *unit = ma_slab_refill (local, class);
  char *p;
  return unit != NULL && ma_dense_pop (local, unit, size, &p) ? p : NULL;
}

MA_COLD void *
ma_dense_refilled (struct ma_local *local, size_t size)
{
  unsigned class = ma_class_of (size);
  char *p = pop_refilled (local, class, size);
  return p != NULL ? ma_dense_taken (size, p, local, local->current[class]) : NULL;
}

MA_HOT void *
ma_dense_plain (struct ma_local *local, size_t size)
{
  unsigned class = ma_class_table[(size + 15) / 16];
  char *p;
  return likely (ma_dense_pop (local, local->current[class], size, &p))
             ? p
             : pop_refilled (local, class, size);
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
  char *p;
  if (!ma_dense_pop (local, local->current[class], size, &p)
      && (p = pop_refilled (local, class, size)) == NULL)
    return NULL;
  return local->is_plain ? p : ma_dense_taken (size, p, local, local->current[class]);
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

void
ma_dense_free_remote (struct ma_unit *unit, size_t slot, size_t size, const void *p)
{
  struct ma_local *local = unit->local;
  atomic_fetch_add_explicit (&local->remote, size + MA_GUEST, memory_order_relaxed);
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
  /* Nobody will take it in if the owner's thread has ended: this one does. The fence is for hand_over, which writes the
   * owner and then looks at the queue. */
  atomic_thread_fence (memory_order_seq_cst);
  if (unlikely (atomic_load_explicit (&local->owner, memory_order_acquire) == MA_NOBODY))
    ma_slab_adopt (local);
  atomic_fetch_sub_explicit (&local->remote, MA_GUEST, memory_order_release);
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
  ma_dense_push (unit, slot, size, p, MA_LONG);
}

MA_CLONED void
ma_dense_free_other (struct ma_unit *unit, char *p)
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
  ma_dense_push (unit, slot, size, p, MA_LONG);
}

void
ma_dense_free_plain (char *p, size_t slot, size_t size, struct ma_unit *unit)
{
  ma_dense_push (unit, slot, size, p, MA_UNWIPED);
}

/* ---- mixed slabs, in the ways of the CPU ---- */

#ifdef MA_WIDE
/* Whether the turn of UNIT, which is mixed, comes twice in a row: it has its own shape then, until another
 * one's turn comes. Its branches are predicted there, and vectors that lie on each other would wait for what
 * was just wiped. Who frees may see either: both are right for its slots. */
static inline int
is_run (struct ma_local *local, struct ma_unit *unit, int width)
{
  struct ma_unit *before = local->run;
  if (before == unit)
    {
      __atomic_store_n (&unit->group, (uint8_t)ma_slot_group (unit->slot, width), __ATOMIC_RELAXED);
      return 1;
    }
  if (before)
    __atomic_store_n (&before->group, MA_MIXED, __ATOMIC_RELAXED);
  local->run = unit;
  return 0;
}

#define MA_WAYS(width, target)                                                                     \
  target static void *mixed_##width (size_t size, struct ma_unit *unit, struct ma_local *local)    \
  {                                                                                                \
    size_t at = unit->hint;                                                                        \
    uint64_t free = unit->free[at];                                                                \
    if (unlikely (free == 0))                                                                      \
      return ma_dense_refilled (local, size);                                                      \
    char *p = ma_dense_first (local, unit, size, at, free);                                        \
    int is_ready = likely (!is_run (local, unit, width)) ? slot_take_mixed_##width (unit, p, size) \
                   : unit->slot <= 144                   ? slot_take_144 (unit, p, size)           \
                                                         : slot_take_2048 (unit, p, size);         \
    return likely (is_ready) ? p : ma_dense_taken (size, p, local, unit);                          \
  }                                                                                                \
  target static void free_mixed_##width (char *p, size_t slot, size_t size, struct ma_unit *unit)  \
  {                                                                                                \
    if (likely (slot_give_mixed_##width (unit, p, size)))                                          \
      ma_dense_push (unit, slot, size, p, MA_MIXED);                                               \
    else                                                                                           \
      ma_dense_free_other (unit, p);                                                               \
  }

MA_WAYS (32, MA_TARGET_32)
MA_WAYS (64, MA_TARGET_64)

/* A CPU without such vectors: no slab is mixed. */
#define mixed_none NULL
#define free_mixed_none NULL

#define MA_CHOICE(name)                                                                            \
  static __typeof__ (ma_dense_##name) *choose_##name (void)                                        \
  {                                                                                                \
    int vectors = ma_vector_width ();                                                              \
    return vectors == 64 ? name##_64 : vectors == 32 ? name##_32 : name##_none;                    \
  }                                                                                                \
  __typeof__ (ma_dense_##name) ma_dense_##name __attribute__ ((ifunc ("choose_" #name)));

MA_CHOICE (mixed)
MA_CHOICE (free_mixed)
#endif

MA_VECTORS MA_HOT void *
ma_dense_alloc (struct ma_local *local, size_t size)
{
  return ma_dense_alloc_here (local, size);
}

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
