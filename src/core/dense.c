#include "dense.h"

#include <errno.h>
#include <string.h>

#include "fatal.h"
#include "large.h"
#include "slot.h"
#include "tag.h"

struct ma_unit ma_no_slab;

/* Pages that nobody uses and that stay present in a local arena; ALL: in all of an arena's, while each
 * has more than the least. */
#define WARM_PAGES_LEAST (((size_t)128 << 10) >> MA_PAGE_SHIFT)
#define WARM_PAGES_MOST (((size_t)1 << 20) >> MA_PAGE_SHIFT)
#define WARM_PAGES_ALL (((size_t)2 << 20) >> MA_PAGE_SHIFT)

enum
{
  WARM_SHARE = 8 /* part of what may be locked; a quarter of that of the arena's limit */
};

/* clang-format off */
#define X16(byte) byte, byte, byte, byte, byte, byte, byte, byte, byte, byte, byte, byte, byte, byte, byte, byte
#define X192(byte) X16 (byte), X16 (byte), X16 (byte), X16 (byte), X16 (byte), X16 (byte), X16 (byte), X16 (byte), X16 (byte), X16 (byte), X16 (byte), X16 (byte)
const unsigned char ma_slot_masks[384] = { X192 (0), X192 (255) };
#undef X192
#undef X16
/* clang-format on */

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

/* ---- pages ---- */

static inline size_t
page_count (uint16_t bits)
{
  return (size_t)__builtin_popcount (bits);
}

/* The slots that touch the pages FROM to TO: [*FIRST, *END). */
static inline void
slots_of_pages (const struct ma_unit *unit, unsigned from, unsigned to, unsigned *first,
                unsigned *end)
{
  *first = (unsigned)(((size_t)from << MA_PAGE_SHIFT) / unit->slot);
  *end = (unsigned)((((size_t)to << MA_PAGE_SHIFT) + unit->slot - 1) / unit->slot);
  if (*end > unit->avail)
    *end = unit->avail;
}

static inline uint64_t
word_bits (unsigned at, unsigned first, unsigned end)
{
  unsigned low = first > at * 64 ? first - at * 64 : 0;
  unsigned high = end < at * 64 + 64 ? end - at * 64 : 64;
  return (high == 64 ? UINT64_MAX : ((uint64_t)1 << high) - 1) & ~(((uint64_t)1 << low) - 1);
}

static void
set_free (struct ma_unit *unit, unsigned first, unsigned end, int is_free)
{
  for (unsigned at = first / 64; at * 64 < end; at++)
    {
      uint64_t bits = word_bits (at, first, end);
      uint64_t now = is_free ? unit->free[at] | bits : unit->free[at] & ~bits;
      __atomic_store_n (&unit->free[at], now, __ATOMIC_RELAXED);
    }
}

/* Whether no live slot touches the page. One that also touches a page that is away is free, though
 * its bit is not set. */
static int
is_page_empty (const struct ma_unit *unit, unsigned page)
{
  unsigned first;
  unsigned end;
  slots_of_pages (unit, page, page + 1, &first, &end);
  if (page > 0 && (unit->away >> (page - 1) & 1)
      && first * (size_t)unit->slot < (size_t)page << MA_PAGE_SHIFT)
    first++;
  if (page + 1 < unit->opened && (unit->away >> (page + 1) & 1)
      && end * (size_t)unit->slot > (size_t)(page + 1) << MA_PAGE_SHIFT)
    end--;
  for (unsigned at = first / 64; at * 64 < end; at++)
    {
      uint64_t bits = word_bits (at, first, end);
      if ((unit->free[at] & bits) != bits)
        return 0;
    }
  return 1;
}

/* Present pages without a live slot. */
static uint16_t
empty_pages (const struct ma_unit *unit)
{
  uint16_t empty = 0;
  for (unsigned page = 0; page < unit->opened; page++)
    if (!(unit->away >> page & 1) && is_page_empty (unit, page))
      empty |= (uint16_t)(1u << page);
  return empty;
}

/* Calls the kernel for each run of pages in BITS. */
#define FOR_RUNS(bits, from, to)                                                                   \
  for (unsigned from = 0, to = 0;                                                                  \
       (from = to + (unsigned)__builtin_ctz ((unsigned)(bits) >> to | 1u << 16)) < MA_UNIT_PAGES   \
       && (to = from + (unsigned)__builtin_ctz (~((unsigned)(bits) >> from)), 1);)

/* Gives those pages back. Their slots are not to be had until they are recalled. */
static void
discard (struct ma_unit *unit, uint16_t pages)
{
  /* The kernel says yes, and keeps the pages as they are. */
  if (unit->state & MA_UNIT_SECRET)
    return;
  FOR_RUNS (pages, from, to)
  {
    char *p = unit->base + ((size_t)from << MA_PAGE_SHIFT);
    if (os_discard (p, (size_t)(to - from) << MA_PAGE_SHIFT, unit->locked != 0))
      continue;
    unsigned first;
    unsigned end;
    slots_of_pages (unit, from, to, &first, &end);
    set_free (unit, first, end, 0);
    unit->away |= page_bits (from, to);
    unit->local->present -= to - from;
    /* Locked memory counts against the lock limit also where no page is present. */
    if (unit->local->is_plain)
      ma_heap_refund (unit->local->arena, (size_t)(to - from) << MA_PAGE_SHIFT);
  }
}

/* Slots of many pages, which only plain arenas have: what of them is used becomes present by its use. */
static int
is_vast (const struct ma_unit *unit)
{
  return unit->slot > MA_SLOT_MOST;
}

/* Has the first page that is away present again, and its slots to be had: populated, as the zero check
 * would map the shared zero page first and fault twice. Vast slots need all. 0 where the arena's limit
 * does not allow it. */
static int
recall (struct ma_unit *unit)
{
  unsigned page = (unsigned)__builtin_ctz (unit->away);
  unsigned first;
  unsigned end;
  uint16_t pages = is_vast (unit) ? unit->away : (uint16_t)(1u << page);
  if (unit->local->is_plain
      && ma_heap_charge (unit->local->arena, page_count (pages) << MA_PAGE_SHIFT))
    return 0;
  if (!is_vast (unit))
    os_populate (unit->base + ((size_t)page << MA_PAGE_SHIFT), MA_PAGE);
  unit->away &= (uint16_t)~pages;
  unit->local->present += page_count (pages);
  for (; pages >> page; page++)
    if (pages >> page & 1)
      {
        slots_of_pages (unit, page, page + 1, &first, &end);
        for (unsigned slot = first; slot < end; slot++)
          if (!is_away (unit, slot))
            set_free (unit, slot, slot + 1, 1);
      }
  return 1;
}

/* Pages of a slab that have slots: where pages are large and slots are small not all have, as their
 * number is bounded. */
static unsigned
slab_pages (const struct ma_unit *unit)
{
  size_t most = ((size_t)MA_SLOTS * unit->slot + MA_PAGE - 1) >> MA_PAGE_SHIFT;
  return most < MA_SLAB_PAGES ? (unsigned)most : MA_SLAB_PAGES;
}

static void give_empty (struct ma_local *local, size_t keep, const struct ma_unit *kept);

static unsigned
slots_in (unsigned pages, size_t slot)
{
  size_t slots = ((size_t)pages << MA_PAGE_SHIFT) / slot;
  return slots > MA_SLOTS ? MA_SLOTS : (unsigned)slots;
}

/* Opens the next pages of the slab, and with them a slot at least: as many as there are, so that small
 * users hold little and large ones ask seldom. 0 or an errno. */
static int
extend (struct ma_local *local, struct ma_unit *unit)
{
  malloc_arena *arena = local->arena;
  unsigned from = unit->opened;
  unsigned to = from == 0 ? 1 : 2 * from;
  while (((size_t)to << MA_PAGE_SHIFT) / unit->slot == unit->avail)
    to *= 2;
  if (to > slab_pages (unit))
    to = slab_pages (unit);
  char *p = unit->base + ((size_t)from << MA_PAGE_SHIFT);
  size_t size = (size_t)(to - from) << MA_PAGE_SHIFT;
  if (ma_heap_charge (arena, size))
    return ENOMEM;
  int locked;
  int refused = ma_heap_lock (arena, p, size, unit->state, &locked);
  /* The limit may be spent on what nobody uses. */
  if (refused)
    {
      ma_large_flush (local);
      give_empty (local, 0, unit);
      refused = ma_heap_lock (arena, p, size, unit->state, &locked);
    }
  if (refused && (refused = ma_heap_unlockable (arena, refused)))
    {
      ma_heap_refund (arena, size);
      return refused;
    }
  /* The guard page joins the last pages' lock: one mapping per run of slabs, not two per slab. It
   * is never present and counts for nothing else. */
  if (locked && to == MA_SLAB_PAGES && !arena->is_secretmem)
    os_lock (unit->base + ((size_t)to << MA_PAGE_SHIFT), MA_PAGE);
  if (!is_vast (unit))
    os_populate (p, size);
  unit->locked |= locked ? page_bits (from, to) : 0;
  unit->opened = (uint8_t)to;
  local->present += to - from;
  unsigned avail = slots_in (to, unit->slot);
  set_free (unit, unit->avail, avail, 1);
  unit->hint = (uint8_t)(unit->avail / 64);
  /* Atomic, as another thread may be freeing a block of the slab. */
  __atomic_store_n (&unit->avail, (uint16_t)avail, __ATOMIC_RELAXED);
  return 0;
}

/* ---- the check ---- */

static int
is_object_live (const struct ma_unit *unit, unsigned slot)
{
  uint64_t freed = unit->free[slot / 64]
                   | atomic_load_explicit (&unit->remote[slot / 64], memory_order_acquire);
  return slot < unit->avail && !(freed & bit_of (slot)) && !is_away (unit, slot);
}

MA_COLD static _Noreturn void
crime (const struct ma_unit *unit, const void *p, unsigned slot)
{
  const char *name = unit->local->arena->name;
  if (slot >= unit->avail)
    ma_fatal_block ("invalid free", p, name);
  int is_live = is_object (unit) ? is_object_live (unit, slot) : unit->sizes[slot] != 0;
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
      if (slot >= unit->avail || p != unit->base + (size_t)slot * unit->slot
          || !is_object_live (unit, slot))
        crime (unit, p, slot);
      return unit->slot;
    }
  unsigned size = UINT16_MAX;
  if (slot < __atomic_load_n (&unit->avail, __ATOMIC_RELAXED))
    size = __atomic_load_n (&unit->sizes[slot], __ATOMIC_RELAXED) - 1u;
  if (p != pointer_of (unit, slot) || size > (unsigned)(unit->slot - unit->rest))
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
  if (unit->rest != 0 && unlikely (!slot_intact_any (p, size, unit->slot))
      && !wiped_by_fork (unit, p, size))
    crime (unit, p, slot);
  if (MA_HAS_TAGS && unit->is_tagged)
    ma_tag_checked ();
  return size;
}

size_t
ma_dense_check (struct ma_unit *unit, const void *p)
{
  return checked (unit, p, slot_of (unit, p));
}

/* ---- slabs ---- */

static void
list (struct ma_local *local, struct ma_unit *unit)
{
  struct ma_unit **head = &local->partial[unit->class];
  unit->is_full = 0;
  unit->previous = NULL;
  unit->next = *head;
  if (*head)
    (*head)->previous = unit;
  *head = unit;
}

static void
unlist (struct ma_local *local, struct ma_unit *unit)
{
  if (unit->previous)
    unit->previous->next = unit->next;
  else
    local->partial[unit->class] = unit->next;
  if (unit->next)
    unit->next->previous = unit->previous;
}

/* N units more for the local arena. In a plain one they are all opened now, in one call; elsewhere
 * what no slab uses stays inaccessible. */
static int
take_heap (struct ma_local *local, size_t n)
{
  struct ma_unit *first = ma_region_take (n, 0);
  if (first == NULL)
    return 0;
  uint8_t state = 0;
  if (local->is_plain && ma_heap_open (local->arena, first->base, n * MA_UNIT, &state))
    {
      if (ma_heap_close (first->base, n * MA_UNIT, state) == 0)
        ma_region_give (first, n);
      else
        ma_heap_lost (first, n, state);
      return 0;
    }
  first->heap_units = (uint32_t)n;
  first->heap_next = local->heaps;
  local->heaps = first;
  local->fresh = first;
  local->fresh_left = (uint32_t)n;
  for (size_t i = 0; i < n; i++)
    {
      first[i].kind = MA_UNIT_IDLE;
      first[i].local = local;
      first[i].state = state;
      first[i].had_remote = 0;
      first[i].is_block = 1;
    }
  /* Whatever comes to lie behind the heap has an inaccessible page before it. */
  char *last = first[n - 1].base + ((size_t)MA_SLAB_PAGES << MA_PAGE_SHIFT);
  if (local->is_plain && os_guard (last, MA_PAGE) == 0)
    first[n - 1].state |= MA_UNIT_GUARDED;
  return 1;
}

static struct ma_unit *
take_unit (struct ma_local *local)
{
  struct ma_unit *unit = local->idle;
  if (unit)
    {
      local->idle = unit->next;
      return unit;
    }
  if (local->fresh_left == 0 && !take_heap (local, local->arena->heap_units)
      && !take_heap (local, 1))
    return NULL;
  local->fresh_left--;
  return local->fresh++;
}

static void
put_idle (struct ma_local *local, struct ma_unit *unit)
{
  unit->kind = MA_UNIT_IDLE;
  unit->next = local->idle;
  local->idle = unit;
}

/* Pages of a slab that count in the arena's mapped bytes. */
static size_t
charged_pages (const struct ma_unit *unit)
{
  return unit->opened - (unit->local->is_plain ? page_count (unit->away) : 0);
}

/* An empty slab gives its memory back and becomes idle. In a plain arena, and where the kernel cannot
 * split a mapping any more, it stays open, without pages, and the unit's state remembers it. */
static void
close_slab (struct ma_local *local, struct ma_unit *unit)
{
  malloc_arena *arena = local->arena;
  size_t charged = charged_pages (unit);
  local->present -= unit->opened - page_count (unit->away);
  if (!local->is_plain && ma_heap_close (unit->base, MA_UNIT, unit->state) == 0)
    unit->state = 0;
  else
    os_discard (unit->base, (size_t)unit->opened << MA_PAGE_SHIFT, unit->locked != 0);
  ma_heap_unlocked (arena, page_count (unit->locked) << MA_PAGE_SHIFT);
  ma_heap_refund (arena, charged << MA_PAGE_SHIFT);
  memset (unit->free, 0, sizeof unit->free);
  unit->locked = 0;
  unit->away = 0;
  unit->opened = 0;
  unit->avail = 0;
  unit->is_block = 1;
  put_idle (local, unit);
}

/* What of a unit is opened: a guard marker needs the page, but secret memory takes none, so that there
 * the last page stays as it was reserved. */
static size_t
slab_bytes (const malloc_arena *arena)
{
  return arena->is_secretmem ? (size_t)MA_SLAB_PAGES << MA_PAGE_SHIFT : MA_UNIT;
}

/* A slab of the class with its first page open, or NULL and the errno. */
static struct ma_unit *
open_slab (struct ma_local *local, unsigned class, int *refused)
{
  struct ma_unit *unit = take_unit (local);
  *refused = ENOMEM;
  if (unit == NULL)
    return NULL;
  malloc_arena *arena = local->arena;
  *refused = ma_heap_open (arena, unit->base, slab_bytes (arena), &unit->state);
  if (*refused)
    {
      put_idle (local, unit);
      return NULL;
    }
  if (!(unit->state & MA_UNIT_GUARDED) && !arena->is_secretmem)
    {
      int unguarded = os_guard (unit->base + ((size_t)MA_SLAB_PAGES << MA_PAGE_SHIFT), MA_PAGE);
      if (unguarded)
        ma_heap_refused (arena, MALLOC_ARENA_GUARDED, unguarded);
      else
        unit->state |= MA_UNIT_GUARDED;
    }
  unit->class = (uint8_t)class;
  unit->slot = ma_class_slot[ma_class_of_slab (class)];
  unit->is_block = !is_object (unit);
  unit->is_wide = unit->slot > 128;
  /* For any address of the unit, its guard page included. */
  size_t slots = slots_in (MA_UNIT_PAGES, unit->slot) + 1;
  unit->sizes = ma_region_sizes (unit, slots < MA_SLOTS ? slots : MA_SLOTS);
  unit->group = (uint8_t)(local->is_plain ? MA_UNWIPED : ma_slot_group (unit->slot));
  for (unsigned i = 0; i < 3; i++)
    unit->stroke[i] = slot_stroke (i + 1, unit->slot);
  unit->rest = local->is_plain ? 0 : MA_CANARY;
  size_t covered = local->is_plain ? unit->slot : slot_covered (unit->group);
  unit->least = (uint16_t)(covered < unit->slot ? unit->slot - covered : 0);
  unit->span = (uint16_t)(unit->slot - unit->rest - unit->least);
  unit->is_tagged = (uint8_t)local->is_tagged;
  if (local->is_tagged)
    unit->group = MA_LONG;
  if (unit->group == MA_LONG || is_object (unit))
    {
      unit->least = UINT16_MAX;
      unit->span = 0;
    }
  unit->inverse = (uint32_t)((((uint64_t)1 << 32) + unit->slot - 1) / unit->slot);
  unit->opened = 0;
  unit->avail = 0;
  unit->away = 0;
  unit->locked = 0;
  memset (unit->free, 0, sizeof unit->free);
  unit->kind = MA_UNIT_DENSE;
  *refused = extend (local, unit);
  if (*refused)
    {
      close_slab (local, unit);
      return NULL;
    }
  return unit;
}

/* Walks the slabs of a local arena: *HEAP is where UNIT, the last one, lies. */
static struct ma_unit *
next_used (struct ma_unit **heap, struct ma_unit *unit)
{
  while (*heap != NULL)
    {
      for (unit = unit ? unit + 1 : *heap; unit < *heap + (*heap)->heap_units; unit++)
        if (unit->kind == MA_UNIT_DENSE)
          return unit;
      *heap = (*heap)->heap_next;
      unit = NULL;
    }
  return NULL;
}

/* Gives back pages without a live slot, and slabs without one, until KEEP such pages are left; if
 * there are no more than twice as many, none: what is given back now is not wanted in a moment. The slab KEPT stays as it is; current ones stay slabs, unless everything is to go. */
static void
give_empty (struct ma_local *local, size_t keep, const struct ma_unit *kept)
{
  size_t idle = 0;
  struct ma_unit *heap = local->heaps;
  for (struct ma_unit *unit = NULL; keep && (unit = next_used (&heap, unit));)
    idle += page_count (empty_pages (unit));
  if (keep && idle <= 2 * keep)
    return;
  heap = local->heaps;
  for (struct ma_unit *unit = NULL; (unit = next_used (&heap, unit));)
    {
      int is_current = local->current[unit->class] == unit;
      if (unit == kept)
        continue;
      if (keep && idle <= keep)
        return;
      uint16_t empty = empty_pages (unit);
      idle -= page_count (empty);
      local->given_pages += page_count (empty);
      if ((empty | unit->away) != page_bits (0, unit->opened) || (keep && is_current))
        {
          discard (unit, empty);
          continue;
        }
      if (is_current)
        local->current[unit->class] = &ma_no_slab;
      else if (!unit->is_full)
        unlist (local, unit);
      close_slab (local, unit);
    }
}

/* Whether nothing is in the heap and nobody will link its units any more: another thread that frees a
 * block queues the slab after the owner may have taken the block in. */
static int
is_heap_idle (const struct ma_local *local, const struct ma_unit *heap)
{
  for (uint32_t i = 0; i < heap->heap_units; i++)
    if (heap[i].kind != MA_UNIT_IDLE || heap[i].had_remote
        || (heap[i].state != 0 && !local->is_plain))
      return 0;
  return 1;
}

/* Heaps without a slab go back to the region, for whoever needs address space next. */
static void
give_heaps (struct ma_local *local)
{
  struct ma_unit *fresh = local->fresh;
  struct ma_unit *fresh_end = fresh + local->fresh_left;
  struct ma_unit **link = &local->heaps;
  local->idle = NULL;
  while (*link != NULL)
    {
      struct ma_unit *heap = *link;
      uint32_t n = heap->heap_units;
      if (is_heap_idle (local, heap)
          && ma_heap_close (heap->base, (size_t)n << MA_UNIT_SHIFT, heap->state) == 0)
        {
          *link = heap->heap_next;
          if (fresh >= heap && fresh < heap + n)
            local->fresh_left = 0;
          for (uint32_t i = 0; i < n; i++)
            heap[i].state = 0;
          ma_region_give (heap, n);
          if (local->is_plain)
            ma_region_forget (heap, n);
          continue;
        }
      for (struct ma_unit *unit = heap; unit < heap + n; unit++)
        if (unit->kind == MA_UNIT_IDLE && (unit < fresh || unit >= fresh_end))
          put_idle (local, unit);
      link = &heap->heap_next;
    }
}

void
ma_dense_trim (struct ma_local *local)
{
  ma_dense_collect (local);
  give_empty (local, 0, NULL);
  give_heaps (local);
}

void
ma_dense_begin (struct ma_local *local)
{
  const malloc_arena *arena = local->arena;
  size_t bytes = arena->is_secure ? os_lock_limit () / WARM_SHARE : 0;
  if (arena->limit != 0 && bytes > arena->limit / WARM_SHARE / 4)
    bytes = arena->limit / WARM_SHARE / 4;
  local->warm_most = bytes >> MA_PAGE_SHIFT;
  for (unsigned class = 0; class < MA_SLAB_CLASSES; class++)
    local->current[class] = &ma_no_slab;
}

/* Threads must not find what may be locked spent on what others do not use. */
static size_t
warm_pages (const struct ma_local *local)
{
  unsigned locals = atomic_load_explicit (&local->arena->local_count, memory_order_relaxed);
  size_t most = WARM_PAGES_ALL / (locals | (locals == 0));
  if (most > local->warm_most)
    most = local->warm_most;
  return most < WARM_PAGES_LEAST  ? WARM_PAGES_LEAST
         : most > WARM_PAGES_MOST ? WARM_PAGES_MOST
                                  : most;
}

/* Memory is looked for when the live bytes have fallen to half of what they were when it was last
 * opened or given back: the work is in proportion to what was freed, and what stays is small when all
 * is. While there are no more pages than may stay warm, never. */
static size_t
low_water (const struct ma_local *local)
{
  return local->present > 2 * warm_pages (local) ? (local->live_bytes + 1) / 2 : 0;
}

static void
trim (struct ma_local *local)
{
  give_empty (local, warm_pages (local), NULL);
  if (local->is_plain)
    {
      /* Hardly anything is left of the work. After much of it, what would wait for its next use is
       * little against what it takes to begin anew. */
      if (local->live_bytes < WARM_PAGES_LEAST * MA_PAGE)
        {
          ma_large_flush (local);
          if (local->given_pages > 32 * WARM_PAGES_LEAST)
            give_empty (local, 0, NULL);
          if (local->live_bytes == 0)
            local->given_pages = 0;
        }
      give_heaps (local);
    }
  local->low_water = low_water (local);
}

/* ---- alloc ---- */

/* The counters are the owner's; others read them for statistics. */
MA_INLINE void
set_live (struct ma_local *local, size_t live)
{
  __atomic_store_n (&local->live_bytes, live, __ATOMIC_RELAXED);
  if (unlikely (live > local->peak_bytes))
    __atomic_store_n (&local->peak_bytes, live, __ATOMIC_RELAXED);
}

/* The first free slot of the word that UNIT's hint names, which has one. */
MA_INLINE unsigned
pop (struct ma_local *local, struct ma_unit *unit, size_t size)
{
  unsigned at = unit->hint;
  uint64_t free = unit->free[at];
  unsigned slot = at * 64 + (unsigned)__builtin_ctzl (free);
  __atomic_store_n (&unit->free[at], free & (free - 1), __ATOMIC_RELAXED);
  __atomic_store_n (&unit->sizes[slot], (uint16_t)(size + 1), __ATOMIC_RELAXED);
  set_live (local, local->live_bytes + size);
  return slot;
}

/* Puts the hint on a word with a free slot; 0 if there is none. */
static int
find_word (struct ma_unit *unit)
{
  for (;;)
    {
      for (unsigned at = 0; at * 64 < unit->avail; at++)
        if (unit->free[at])
          {
            unit->hint = (uint8_t)at;
            return 1;
          }
      if (!unit->away || !recall (unit))
        return 0;
    }
}

/* The class's next slab with room: what was freed meanwhile, the listed ones, more pages, a new
 * slab. NULL and the errno where the kernel or a limit says no. */
static struct ma_unit *
next_slab (struct ma_local *local, unsigned class, int *refused)
{
  struct ma_unit *unit = local->current[class];
  *refused = 0;
  ma_dense_collect (local);
  for (;;)
    {
      if (find_word (unit))
        return unit;
      if (unit->opened != 0 && unit->opened < slab_pages (unit))
        {
          *refused = extend (local, unit);
          return *refused ? NULL : unit;
        }
      struct ma_unit *other = local->partial[class];
      if (unit != &ma_no_slab) /* which all threads share */
        unit->is_full = 1;
      if (other == NULL)
        break;
      unlist (local, other);
      local->current[class] = unit = other;
    }
  local->current[class] = &ma_no_slab;
  unit = open_slab (local, class, refused);
  if (unit)
    {
      unit->is_full = 0;
      local->current[class] = unit;
    }
  return unit;
}

MA_COLD struct ma_unit *
ma_dense_refill (struct ma_local *local, unsigned class)
{
  int saved = errno;
  int refused;
  pthread_mutex_lock (&local->lock);
  struct ma_unit *unit = next_slab (local, class, &refused);
  if (unit == NULL && ma_local_reclaim (local))
    unit = next_slab (local, class, &refused);
  if (local->low_water < local->live_bytes / 2)
    local->low_water = low_water (local);
  pthread_mutex_unlock (&local->lock);
  errno = unit != NULL ? saved : ENOMEM;
  return unit;
}

static __attribute__ ((noinline)) void *
take_any (struct ma_local *local, char *p, size_t size, size_t slot)
{
  if (local->is_verified && !ma_is_zero (p, slot))
    ma_fatal_block ("use after wipe", p, local->arena->name);
  slot_canary_any (p, size, slot);
  return p;
}

MA_COLD static void *
alloc_slow (struct ma_local *local, unsigned class, size_t size)
{
  struct ma_unit *unit = ma_dense_refill (local, class);
  if (unit == NULL)
    return NULL;
  return take_any (local, unit->base + pop (local, unit, size) * (size_t)unit->slot, size,
                   unit->slot);
}

MA_HOT void *
ma_dense_plain (struct ma_local *local, size_t size)
{
  unsigned class = ma_class_table[(size + 15) / 16];
  struct ma_unit *unit = local->current[class];
  if (unlikely (unit->free[unit->hint] == 0) && (unit = ma_dense_refill (local, class)) == NULL)
    return NULL;
  return unit->base + pop (local, unit, size) * (size_t)unit->slot;
}

/* What is rare is a call in the last place: with one in the middle, every call would save registers
 * for it. */
MA_INLINE void *
alloc (struct ma_local *local, size_t size, int wide)
{
  unsigned class = ma_class_of (size);
  struct ma_unit *unit = local->current[class];
  if (unlikely (unit->free[unit->hint] == 0))
    return alloc_slow (local, class, size);
  char *p = unit->base + pop (local, unit, size) * (size_t)unit->slot;
  if (unlikely (unit->group == MA_LONG) || unlikely (!slot_take (unit, p, size, wide)))
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
  if (unit->free[unit->hint] == 0 && (unit = ma_dense_refill (local, class)) == NULL)
    return NULL;
  char *p = unit->base + pop (local, unit, size) * (size_t)unit->slot;
  if (local->is_verified && !ma_is_zero (p, unit->slot))
    ma_fatal_block ("use after wipe", p, local->arena->name);
  if (unit->rest != 0)
    slot_canary_any (p, size, unit->slot);
  return p;
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

MA_COLD void
ma_dense_tidy (struct ma_local *local, struct ma_unit *unit)
{
  int saved = errno;
  pthread_mutex_lock (&local->lock);
  if (unit->is_full)
    list (local, unit);
  if (local->live_bytes < local->low_water)
    {
      ma_dense_collect (local);
      trim (local);
    }
  pthread_mutex_unlock (&local->lock);
  errno = saved;
}

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
  if (likely (atomic_load_explicit (&local->owner, memory_order_acquire) != MA_NOBODY))
    return;
  int saved = errno;
  pthread_mutex_lock (&local->lock);
  if (atomic_load_explicit (&local->owner, memory_order_relaxed) == MA_NOBODY)
    {
      ma_dense_collect (local);
      if (local->live_bytes < local->low_water)
        trim (local);
    }
  pthread_mutex_unlock (&local->lock);
  errno = saved;
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
  size_t live = local->live_bytes - size;
  __atomic_store_n (&local->live_bytes, live, __ATOMIC_RELAXED);
  __atomic_store_n (&unit->free[at], unit->free[at] | bit_of (slot), __ATOMIC_RELAXED);
  unit->hint = (uint8_t)at;
  if (unlikely (unit->is_full | (live < local->low_water)))
    ma_dense_tidy (local, unit);
}

/* From the first step on, who still has the pointer faults. */
static void
free_tagged (struct ma_unit *unit, char *p, unsigned slot)
{
  size_t size = live_size (unit, p, slot);
  char *bare = ma_tagged (p, 0);
  ma_tag_memory (bare, size);
  if (unlikely (!slot_intact_any (bare, size, unit->slot)) && !wiped_by_fork (unit, bare, size))
    crime (unit, p, slot);
  ma_wipe_inline (bare, unit->slot);
  push (unit, slot, size, p);
}

/* Objects, long slots, long canaries, tags, damage: all but the usual. */
static __attribute__ ((noinline)) void
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

MA_INLINE void
free_larger (struct ma_unit *unit, char *p, size_t slot, size_t size)
{
  if (likely (slot_give (unit, p, size)))
    push (unit, slot, size, p);
  else
    free_other (unit, p);
}

/* LARGER: free_larger, out of line: it takes more registers than there are for nothing. */
MA_INLINE void
free_slot (struct ma_unit *unit, char *p, void (*larger) (struct ma_unit *, char *, size_t, size_t))
{
  uint64_t product = (((uintptr_t)p & MA_UNTAGGED) - (uintptr_t)unit->base) * unit->inverse;
  size_t slot = product >> 32;
  /* Larger pages have more than the slots that are used. */
  if (MA_PAGE_MOST != 4096 && unlikely (slot >= unit->avail))
    {
      free_other (unit, p);
      return;
    }
  unsigned size = __atomic_load_n (&unit->sizes[slot], __ATOMIC_RELAXED) - 1u;
  /* One compare for what has no live block, and for sizes that take the other way. */
  if (unlikely (!is_start (unit, product, p) | (size - unit->least > unit->span)))
    free_other (unit, p);
  else if (unit->group != MA_UP_TO_144)
    larger (unit, p, slot, size);
  else if (likely (slot_give_small (unit, p, size)))
    push (unit, slot, size, p);
  else
    free_other (unit, p);
}

#define MA_FAST_PATHS(name, is_wide, target)                                                       \
  target static void *alloc_##name (struct ma_local *local, size_t size)                           \
  {                                                                                                \
    return alloc (local, size, is_wide);                                                           \
  }                                                                                                \
  target static __attribute__ ((noinline)) void larger_##name (struct ma_unit *unit, char *p,      \
                                                               size_t slot, size_t size)           \
  {                                                                                                \
    free_larger (unit, p, slot, size);                                                             \
  }                                                                                                \
  target static void free_##name (struct ma_unit *unit, void *p)                                   \
  {                                                                                                \
    free_slot (unit, p, larger_##name);                                                            \
  }

MA_FAST_PATHS (base, 0, )

#ifdef MA_WIDE
MA_FAST_PATHS (wide, 1, __attribute__ ((target ("avx2,bmi,bmi2"))))

/* Called by the dynamic linker, when nothing of ours may be called yet. */
static int
is_wide (void)
{
  __builtin_cpu_init ();
  return __builtin_cpu_supports ("avx2") && __builtin_cpu_supports ("bmi2");
}

static void *(*choose_alloc (void)) (struct ma_local *, size_t)
{
  return is_wide () ? alloc_wide : alloc_base;
}

static void (*choose_free (void)) (struct ma_unit *, void *)
{
  return is_wide () ? free_wide : free_base;
}

void *ma_dense_alloc (struct ma_local *, size_t) __attribute__ ((ifunc ("choose_alloc")));
void ma_dense_free (struct ma_unit *, void *) __attribute__ ((ifunc ("choose_free")));
#else
void *
ma_dense_alloc (struct ma_local *local, size_t size)
{
  return alloc_base (local, size);
}

void
ma_dense_free (struct ma_unit *unit, void *p)
{
  free_base (unit, p);
}
#endif

void
ma_dense_collect (struct ma_local *local)
{
  size_t freed_bytes = atomic_exchange_explicit (&local->remote_bytes, 0, memory_order_relaxed);
  __atomic_store_n (&local->live_bytes, local->live_bytes - freed_bytes, __ATOMIC_RELAXED);
  struct ma_unit *unit = atomic_exchange_explicit (&local->queue, NULL, memory_order_acq_rel);
  while (unit != NULL)
    {
      struct ma_unit *next = unit->queue_next;
      /* First, so that a free that comes while the words are read queues the slab again; the fences
       * here and in free_remote order "my write, then the other's" on both sides. Release, as whoever
       * sees it writes queue_next, which must be read by then. */
      atomic_store_explicit (&unit->queued, 0, memory_order_release);
      atomic_thread_fence (memory_order_seq_cst);
      int freed_any = 0;
      unsigned words = unit->kind == MA_UNIT_DENSE ? (unit->avail + 63u) / 64 : 0;
      for (unsigned at = 0; at < words; at++)
        {
          if (atomic_load_explicit (&unit->remote[at], memory_order_relaxed) == 0)
            continue;
          uint64_t freed = atomic_exchange_explicit (&unit->remote[at], 0, memory_order_acq_rel);
          uint64_t twice = freed & unit->free[at];
          if (unlikely (twice))
            ma_fatal_block ("double free",
                            unit->base
                                + (at * 64 + (unsigned)__builtin_ctzl (twice)) * (size_t)unit->slot,
                            local->arena->name);
          __atomic_store_n (&unit->free[at], unit->free[at] | freed, __ATOMIC_RELAXED);
          freed_any = 1;
        }
      /* A queued slab may have been emptied by an earlier collection, and closed. */
      if (freed_any)
        unit->had_remote = 1;
      if (freed_any && unit->is_full)
        list (local, unit);
      unit = next;
    }
}

int
ma_dense_resize (struct ma_unit *unit, void *p, size_t size)
{
  struct ma_local *local = unit->local;
  unsigned slot = slot_of (unit, p);
  size_t before = checked (unit, p, slot);
  /* A much smaller block moves, so that slots do not stay large for ever. */
  if (size + unit->rest > unit->slot || size < unit->slot / 4u
      || atomic_load_explicit (&local->owner, memory_order_relaxed) != ma_self)
    return 0;
  /* What the block leaves, or the old canary, which must not be read as the longer block's data. */
  size_t kept = is_object (unit) || size < before ? size : before;
  char *bare = ma_tagged (p, 0);
  if (MA_HAS_TAGS && unit->is_tagged)
    ma_tag_memory (bare, before);
  if (!local->is_plain)
    ma_wipe_inline (bare + kept, unit->slot - kept);
  if (is_object (unit))
    return 1;
  set_live (local, local->live_bytes + size - before);
  __atomic_store_n (&unit->sizes[slot], (uint16_t)(size + 1), __ATOMIC_RELAXED);
  if (!local->is_plain)
    slot_canary_any (bare, size, unit->slot);
  if (MA_HAS_TAGS && unit->is_tagged)
    ma_tag_memory (p, size);
  return 1;
}

/* ---- accounts, fork, the end ---- */

/* The slots of a word that are not free, those of pages that are away among them; and those that
 * another thread freed. */
static uint64_t
used_slots (const struct ma_unit *unit, unsigned at, uint64_t *remote)
{
  *remote = atomic_load_explicit (&unit->remote[at], memory_order_acquire);
  return ~(__atomic_load_n (&unit->free[at], __ATOMIC_RELAXED) | *remote)
         & word_bits (at, 0, unit->avail);
}

size_t
ma_dense_live (struct ma_local *local, size_t *bytes)
{
  size_t blocks = 0;
  *bytes = __atomic_load_n (&local->live_bytes, __ATOMIC_RELAXED)
           - atomic_load_explicit (&local->remote_bytes, memory_order_relaxed);
  struct ma_unit *heap = local->heaps;
  for (struct ma_unit *unit = NULL; (unit = next_used (&heap, unit));)
    for (unsigned at = 0; at * 64 < unit->avail; at++)
      {
        uint64_t remote;
        uint64_t used = used_slots (unit, at, &remote);
        for (; unlikely (unit->away && used); used &= used - 1)
          blocks += !is_away (unit, at * 64 + (unsigned)__builtin_ctzl (used));
        blocks += (size_t)__builtin_popcountl (used);
      }
  return blocks;
}

void
ma_dense_classes (struct ma_local *local, struct malloc_arena_class classes[MA_CLASSES])
{
  struct ma_unit *heap = local->heaps;
  for (struct ma_unit *unit = NULL; (unit = next_used (&heap, unit));)
    {
      struct malloc_arena_class *class = &classes[ma_class_of_slab (unit->class)];
      class->mapped_bytes += charged_pages (unit) << MA_PAGE_SHIFT;
      for (unsigned at = 0; at * 64 < unit->avail; at++)
        {
          uint64_t remote;
          for (uint64_t used = used_slots (unit, at, &remote); used; used &= used - 1)
            {
              unsigned slot = at * 64 + (unsigned)__builtin_ctzl (used);
              unsigned stored = is_object (unit)
                                    ? (is_away (unit, slot) ? 0 : unit->slot + 1u)
                                    : __atomic_load_n (&unit->sizes[slot], __ATOMIC_RELAXED);
              /* On a page that is away, or just being freed. */
              if (stored == 0)
                continue;
              class->live_blocks++;
              class->live_bytes += stored - 1;
            }
        }
    }
}

void
ma_dense_before_fork (struct ma_local *local)
{
  struct ma_unit *heap = local->heaps;
  for (struct ma_unit *unit = NULL; (unit = next_used (&heap, unit));)
    ma_heap_fork_copy (local->arena, unit, unit->base, slab_bytes (local->arena));
}

void
ma_dense_forked (struct ma_local *local)
{
  struct ma_unit *heap = local->heaps;
  for (struct ma_unit *unit = NULL; (unit = next_used (&heap, unit));)
    ma_heap_fork_done (unit);
}

/* The copy was made before the fork, and other threads ran on until it: what they freed meanwhile is
 * not wiped in it. */
static void
wipe_free (struct ma_unit *unit)
{
  for (unsigned at = 0; at * 64 < unit->avail; at++)
    {
      uint64_t free
          = (unit->free[at] | atomic_load (&unit->remote[at])) & word_bits (at, 0, unit->avail);
      for (; free; free &= free - 1)
        ma_wipe_inline (unit->base
                            + (at * 64 + (unsigned)__builtin_ctzl (free)) * (size_t)unit->slot,
                        unit->slot);
    }
}

static void
restore_secret (malloc_arena *arena, struct ma_unit *unit)
{
  if (ma_heap_fork_restore (arena, unit, unit->base, slab_bytes (arena)) == 0)
    {
      atomic_fetch_add (&arena->locked, (size_t)unit->opened << MA_PAGE_SHIFT);
      if (unit->fork_copy > 0)
        wipe_free (unit);
      return;
    }
  /* What lived there faults on touch, and nothing new is put there, nor where others freed. */
  memset (unit->free, 0, sizeof unit->free);
  for (unsigned at = 0; at < MA_WORDS; at++)
    atomic_store (&unit->remote[at], 0);
  unit->opened = MA_SLAB_PAGES;
  unit->locked = 0;
}

/* A slab of secret memory that could not be closed when it was empty is a hole here. */
static void
restore_idle (struct ma_local *local)
{
  for (struct ma_unit *unit = local->idle; unit; unit = unit->next)
    if (unit->state & MA_UNIT_SECRET)
      {
        ma_heap_fill_hole (unit->base, MA_UNIT);
        unit->state = 0;
      }
}

void
ma_dense_after_fork (struct ma_local *local)
{
  malloc_arena *arena = local->arena;
  /* A thread that is not here may have been between marking a slab as queued and queueing it. */
  atomic_store (&local->queue, NULL);
  struct ma_unit *heap = local->heaps;
  for (; heap; heap = heap->heap_next)
    for (uint32_t i = 0; i < heap->heap_units; i++)
      if (heap[i].kind == MA_UNIT_IDLE && heap[i].state & MA_UNIT_FORK_WIPE)
        heap[i].state &= (uint8_t)~MA_UNIT_GUARDED;
  restore_idle (local);
  heap = local->heaps;
  for (struct ma_unit *unit = NULL; (unit = next_used (&heap, unit));)
    {
      if (unit->state & MA_UNIT_SECRET)
        restore_secret (arena, unit);
      else
        {
          if (unit->state & MA_UNIT_FORK_WIPE && unit->state & MA_UNIT_GUARDED)
            os_guard (unit->base + ((size_t)MA_SLAB_PAGES << MA_PAGE_SHIFT), MA_PAGE);
          if (unit->locked)
            unit->locked = ma_heap_lock_again (arena, unit->base,
                                               (size_t)unit->opened << MA_PAGE_SHIFT, unit->state)
                               ? page_bits (0, unit->opened)
                               : 0;
        }
      uint64_t remote = 0;
      for (unsigned at = 0; at < MA_WORDS; at++)
        remote |= atomic_load (&unit->remote[at]);
      atomic_store (&unit->queued, remote != 0);
      if (remote)
        {
          unit->queue_next = atomic_load (&local->queue);
          atomic_store (&local->queue, unit);
        }
    }
  ma_dense_forked (local);
}

void
ma_dense_end (struct ma_local *local)
{
  ma_dense_trim (local);
  while (local->heaps)
    {
      struct ma_unit *heap = local->heaps;
      size_t n = heap->heap_units;
      local->heaps = heap->heap_next;
      /* A slab that could not be closed is not used again: its mapping is not as first reserved. */
      if (local->is_plain && ma_heap_close (heap->base, n * MA_UNIT, heap->state) == 0)
        for (size_t i = 0; i < n; i++)
          heap[i].state = 0;
      for (size_t i = 0; i < n; i++)
        if (heap[i].state == 0)
          ma_region_give (heap + i, 1);
        else
          ma_heap_lost (heap + i, 1, heap[i].state);
    }
}
