#include "slab.h"

#include <errno.h>
#include <string.h>

#include "fatal.h"
#include "pages.h"
#include "range.h"
#include "slot.h"

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

/* ---- slabs ---- */

static void give_all (struct ma_local *local, const struct ma_unit *kept);

/* Opens the next pages of the slab, and with them a slot, if it has one more: as many as are open, so that small users
 * hold little and large ones ask seldom; all after another slab of the class that is full (not IS_FIRST); or the least
 * where a limit allows no more. 0 or an errno. */
static int
extend (struct ma_local *local, struct ma_unit *unit, int is_first)
{
  malloc_arena *arena = local->arena;
  unsigned from = unit->opened;
  char *p = ma_unit_base (unit) + ((size_t)from << MA_PAGE_SHIFT);
  unsigned least = 1;
  while (((size_t)(from + least) << MA_PAGE_SHIFT) / unit->slot == unit->avail)
    least++;
  unsigned most = ma_pages_most (unit) - from;
  if (least > most)
    least = most;
  unsigned n = !is_first ? most : least > from ? least : from;
  if (n > most)
    n = most;
  if (ma_heap_charge (arena, (size_t)n << MA_PAGE_SHIFT, 1)
      && ma_heap_charge (arena, (size_t)(n = least) << MA_PAGE_SHIFT, 1))
    return ENOMEM;
  int locked;
  int refused = ma_heap_lock (arena, p, (size_t)n << MA_PAGE_SHIFT, unit->state, &locked);
  /* The limit may be spent on what nobody uses. */
  if (refused && ma_heap_may_reclaim (local))
    {
      ma_range_flush (local);
      give_all (local, unit);
      ma_others_reclaim (arena);
      refused = ma_heap_lock (arena, p, (size_t)n << MA_PAGE_SHIFT, unit->state, &locked);
      ma_heap_reclaimed (local, refused);
    }
  if (refused && n > least
      && ma_heap_lock (arena, p, (size_t)least << MA_PAGE_SHIFT, unit->state, &locked) == 0)
    {
      ma_heap_refund (arena, (size_t)(n - least) << MA_PAGE_SHIFT);
      n = least;
      refused = 0;
    }
  if (refused && (refused = ma_heap_unlockable (arena, refused)))
    {
      ma_heap_refund (arena, (size_t)n << MA_PAGE_SHIFT);
      return refused;
    }
  unsigned to = from + n;
  /* The guard page joins the last pages' lock: one mapping per run of slabs, not two per slab. It
   * is never present and counts for nothing else. */
  if (locked && to == MA_SLAB_PAGES && !arena->is_secretmem)
    os_lock (ma_unit_base (unit) + ((size_t)to << MA_PAGE_SHIFT), MA_PAGE);
  if (!ma_pages_are_vast (unit))
    os_populate (p, (size_t)n << MA_PAGE_SHIFT);
  unit->locked |= locked ? page_bits (from, to) : 0;
  unit->opened = (uint8_t)to;
  local->present += n;
  unsigned avail = ma_slots_in (to, unit->slot);
  /* The first of them may begin on a page that is away, where the limit does not let it come back: its recall
   * frees the slot. */
  ma_pages_set_free (unit, unit->avail + (unsigned)is_away (unit, unit->avail), avail, 1);
  unit->hint = (uint8_t)(unit->avail / 64);
  /* Atomic, as another thread may be freeing a block of the slab. */
  __atomic_store_n (&unit->avail, (uint16_t)avail, __ATOMIC_RELAXED);
  return 0;
}

int
ma_slab_has_object (const struct ma_unit *unit, unsigned slot)
{
  if (slot >= __atomic_load_n (&unit->avail, __ATOMIC_RELAXED) || is_away (unit, slot))
    return 0;
  uint64_t freed = __atomic_load_n (&unit->free[slot / 64], __ATOMIC_RELAXED)
                   | atomic_load_explicit (&unit->remote[slot / 64], memory_order_acquire);
  return !(freed & bit_of (slot));
}

/* Spots are in the current slab: a former one may be closed. */
static void
set_current (struct ma_local *local, unsigned class, struct ma_unit *unit)
{
  local->current[class] = unit;
  if (unit != &ma_no_slab) /* which all threads share */
    unit->turn = local->turn;
  for (size_t i = 0; i <= MA_OBJECT_MOST / 16; i++)
    if (ma_class_of_object (16 * i) == class)
      local->spots[i].word = ma_no_slab.free;
}

static void
list (struct ma_local *local, struct ma_unit *unit)
{
  struct ma_unit **head = &local->partial[unit->class];
  __atomic_store_n (&unit->is_full, 0, __ATOMIC_RELAXED);
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
  if (local->is_plain && ma_heap_open (local->arena, ma_unit_base (first), n * MA_UNIT, &state))
    {
      if (ma_heap_close (ma_unit_base (first), n * MA_UNIT, state) == 0)
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
  char *last = ma_unit_base (&first[n - 1]) + ((size_t)MA_SLAB_PAGES << MA_PAGE_SHIFT);
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
  unit->group = MA_NO_SLAB;
  unit->next = local->idle;
  local->idle = unit;
}

/* Pages of a slab that count in the arena's mapped bytes. */
static size_t
charged_pages (const struct ma_unit *unit)
{
  return unit->opened - (unit->local->is_plain ? ma_page_count (unit->away) : 0);
}

/* An empty slab gives its memory back and becomes idle. In a plain arena it stays open, without pages, as the unit's
 * state tells; where the kernel cannot split a mapping any more, nobody knows how much of it does. */
static void
close_slab (struct ma_local *local, struct ma_unit *unit)
{
  malloc_arena *arena = local->arena;
  size_t charged = charged_pages (unit);
  local->present -= unit->opened - ma_page_count (unit->away);
  if (!local->is_plain && ma_heap_close (ma_unit_base (unit), MA_UNIT, unit->state) == 0)
    unit->state = 0;
  else
    {
      os_discard (ma_unit_base (unit), (size_t)unit->opened << MA_PAGE_SHIFT, unit->locked != 0);
      if (!local->is_plain)
        unit->state = ma_heap_unsure (unit->state);
    }
  ma_heap_unlocked (arena, ma_page_count (unit->locked) << MA_PAGE_SHIFT);
  ma_heap_refund (arena, charged << MA_PAGE_SHIFT);
  memset (unit->free, 0, sizeof unit->free);
  unit->locked = 0;
  unit->away = 0;
  unit->opened = 0;
  unit->avail = 0;
  unit->is_block = 1;
  /* It is another slab next, or none: the run must not say of it that it is mixed. */
  if (local->run == unit)
    local->run = NULL;
  put_idle (local, unit);
}

/* What of a unit is opened: a guard marker needs the page, but secret memory takes none, so that there
 * the last page stays as it was reserved. */
static size_t
slab_bytes (const malloc_arena *arena)
{
  return arena->is_secretmem ? (size_t)MA_SLAB_PAGES << MA_PAGE_SHIFT : MA_UNIT;
}

/* A slab of the class with its first pages open, or NULL and the errno. */
static struct ma_unit *
open_slab (struct ma_local *local, unsigned class, int is_first, int *refused)
{
  struct ma_unit *unit = take_unit (local);
  *refused = ENOMEM;
  if (unit == NULL)
    return NULL;
  malloc_arena *arena = local->arena;
  *refused = ma_heap_open (arena, ma_unit_base (unit), slab_bytes (arena), &unit->state);
  if (*refused)
    {
      put_idle (local, unit);
      return NULL;
    }
  if (!(unit->state & MA_UNIT_GUARDED) && !arena->is_secretmem)
    {
      int unguarded
          = os_guard (ma_unit_base (unit) + ((size_t)MA_SLAB_PAGES << MA_PAGE_SHIFT), MA_PAGE);
      if (unguarded)
        ma_heap_refused (arena, MALLOC_ARENA_GUARDED, unguarded);
      else
        unit->state |= MA_UNIT_GUARDED;
    }
  unit->class = (uint8_t)class;
  unit->slot = ma_class_slot[ma_class_of_slab (class)];
  unit->is_block = !is_object (unit);
  /* For any address of the unit, its guard page included. */
  size_t slots = ma_slots_in (MA_UNIT_PAGES, unit->slot) + 1;
  unit->sizes = ma_region_sizes (unit, slots < MA_SLOTS ? slots : MA_SLOTS);
  unit->group = (uint8_t)(local->is_plain ? MA_UNWIPED : ma_slot_group (unit->slot, 0));
  unit->middle = slot_middle (unit->slot);
  unit->rest = local->is_plain ? 0 : MA_CANARY;
  size_t least = local->is_plain ? 0 : slot_least (ma_class_of_slab (class));
  unit->least = (uint16_t)(1 + least);
  unit->span = (uint16_t)(unit->slot - unit->rest - least);
  unit->is_tagged = (uint8_t)local->is_tagged;
  if (local->is_tagged)
    unit->group = MA_LONG;
#ifdef MA_WIDE
  for (unsigned i = 0; i < 6; i++)
    unit->step[i] = slot_step (i + 1, unit->slot);
  int width = ma_vector_width ();
  if (unit->group < MA_MIXED)
    unit->group
        = (uint8_t)(width == 16                            ? MA_LONG
                    : unit->slot > 48 && unit->slot <= 512 ? MA_MIXED
                                                           : ma_slot_group (unit->slot, width));
#endif
  if (unit->group == MA_LONG || is_object (unit))
    {
      unit->least = UINT16_MAX;
      unit->span = 0;
    }
  unit->last = ma_unit_base (unit);
  unit->guess = 0;
  unit->inverse = (((uint64_t)1 << 32) + unit->slot - 1) / unit->slot;
  unit->opened = 0;
  unit->avail = 0;
  unit->away = 0;
  unit->locked = 0;
  memset (unit->free, 0, sizeof unit->free);
  unit->kind = MA_UNIT_DENSE;
  *refused = extend (local, unit, is_first);
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

static size_t
warm_between (size_t pages)
{
  return pages < WARM_PAGES_LEAST  ? WARM_PAGES_LEAST
         : pages > WARM_PAGES_MOST ? WARM_PAGES_MOST
                                   : pages;
}

/* Threads must not find what may be locked spent on what others do not use. */
static size_t
warm_pages (const struct ma_local *local)
{
  unsigned owners = atomic_load_explicit (&local->arena->owners, memory_order_relaxed);
  size_t most = WARM_PAGES_ALL / (owners | (owners == 0));
  return warm_between (most < local->warm_most ? most : local->warm_most);
}

size_t
ma_slab_opened (const struct ma_local *local)
{
  size_t opened = 0;
  struct ma_unit *heap = local->heaps;
  for (struct ma_unit *unit = NULL; (unit = next_used (&heap, unit));)
    opened += unit->opened;
  return opened;
}

size_t
ma_slab_kept_most (const struct ma_local *local)
{
  return warm_between (local->warm_most);
}

/* Gives back pages without a live slot, and slabs without one, until KEEP of IDLE such pages are left; returns how many
 * are. The slab KEPT stays as it is; current ones stay slabs, unless everything is to go. If OLD, only of slabs that
 * have not become current since pages were given back last. */
static size_t
give_pages (struct ma_local *local, size_t idle, size_t keep, const struct ma_unit *kept, int old)
{
  struct ma_unit *heap = local->heaps;
  for (struct ma_unit *unit = NULL; (unit = next_used (&heap, unit));)
    {
      int is_current = local->current[unit->class] == unit;
      if (unit == kept || (old && unit->turn == local->turn))
        continue;
      if (keep && idle <= keep)
        break;
      uint16_t empty = ma_pages_empty (unit);
      size_t present = local->present;
      if ((empty | unit->away) != page_bits (0, unit->opened) || (keep && is_current))
        ma_pages_discard (unit, empty);
      else
        {
          if (is_current)
            set_current (local, unit->class, &ma_no_slab);
          else if (!unit->is_full)
            unlist (local, unit);
          close_slab (local, unit);
        }
      size_t given = present - local->present;
      idle -= given;
      local->given_pages += given;
    }
  return idle;
}

/* All pages that nobody uses. */
static void
give_all (struct ma_local *local, const struct ma_unit *kept)
{
  give_pages (local, SIZE_MAX, 0, kept, 0);
}

/* The same until so many are left as may stay warm; if there are no more than twice as many, none: what is given
 * back now is not wanted in a moment. Nor is what another work has left, so that this goes first. */
static void
give_cold (struct ma_local *local)
{
  size_t keep = warm_pages (local);
  size_t idle = 0;
  struct ma_unit *heap = local->heaps;
  for (struct ma_unit *unit = NULL; (unit = next_used (&heap, unit));)
    idle += ma_page_count (ma_pages_empty (unit));
  if (idle <= 2 * keep)
    return;
  idle = give_pages (local, idle, keep, NULL, 1);
  give_pages (local, idle, keep, NULL, 0);
  local->turn++;
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
  struct ma_unit **link = &local->heaps;
  if (*link == NULL)
    return;
  struct ma_unit *fresh = local->fresh;
  struct ma_unit *fresh_end = fresh + local->fresh_left;
  local->idle = NULL;
  while (*link != NULL)
    {
      struct ma_unit *heap = *link;
      uint32_t n = heap->heap_units;
      if (is_heap_idle (local, heap)
          && ma_heap_close (ma_unit_base (heap), (size_t)n << MA_UNIT_SHIFT, heap->state) == 0)
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
ma_slab_trim (struct ma_local *local)
{
  ma_slab_collect (local);
  give_all (local, NULL);
  give_heaps (local);
}

void
ma_slab_begin (struct ma_local *local)
{
  const malloc_arena *arena = local->arena;
  size_t bytes = arena->is_secure ? os_lock_limit () / WARM_SHARE : 0;
  if (arena->limit != 0 && bytes > arena->limit / WARM_SHARE / 4)
    bytes = arena->limit / WARM_SHARE / 4;
  local->warm_most = bytes >> MA_PAGE_SHIFT;
  for (unsigned class = 0; class < MA_SLAB_CLASSES; class++)
    set_current (local, class, &ma_no_slab);
}

/* Memory is looked for when the live bytes have fallen to half of what they were when it was last
 * opened or given back: the work is in proportion to what was freed, and what stays is small when all
 * is. While there are no more pages than may stay warm, never. By whoever may act as owner, with the lock: what
 * live and peak are counted from changes. */
static void
set_floor (struct ma_local *local)
{
  size_t bytes = ma_live_bytes (local);
  size_t peak = ma_peak_bytes (local);
  local->floor = local->present > 2 * warm_pages (local) ? (bytes + 1) / 2 : 0;
  __atomic_store_n (&local->live, (ptrdiff_t)(bytes - local->floor), __ATOMIC_RELAXED);
  __atomic_store_n (&local->peak, (ptrdiff_t)(peak - local->floor), __ATOMIC_RELAXED);
}

static void
trim (struct ma_local *local)
{
  give_cold (local);
  if (local->is_plain)
    {
      /* Hardly anything is left of the work. After much of it, what would wait for its next use is
       * little against what it takes to begin anew. */
      size_t live = ma_live_bytes (local);
      if (live < WARM_PAGES_LEAST * MA_PAGE)
        {
          ma_range_flush (local);
          if (local->given_pages > 32 * WARM_PAGES_LEAST)
            give_all (local, NULL);
          if (live == 0)
            local->given_pages = 0;
        }
      give_heaps (local);
    }
  /* What is not locked goes when it can be again. */
  if (local->refusals != 0 && ma_heap_has_let_go (local))
    {
      ma_range_flush (local);
      give_all (local, NULL);
      local->refusals = 0;
    }
  set_floor (local);
}

/* ---- room for a class ---- */

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
      if (!unit->away || !ma_pages_recall (unit))
        return 0;
    }
}

/* The class's next slab with room: what was freed meanwhile, the listed ones, more pages, a new
 * slab. NULL and the errno where the kernel or a limit says no. */
static struct ma_unit *
next_slab (struct ma_local *local, unsigned class, int *refused)
{
  struct ma_unit *unit = local->current[class];
  int is_first = 1;
  *refused = 0;
  ma_slab_collect (local);
  for (;;)
    {
      if (find_word (unit))
        return unit;
      if (unit->opened != 0 && unit->opened < ma_pages_most (unit))
        {
          *refused = extend (local, unit, is_first);
          if (*refused == 0)
            continue; /* the last pages may be too few for a slot */
          if (local->partial[class] == NULL)
            return NULL;
        }
      struct ma_unit *other = local->partial[class];
      if (unit != &ma_no_slab) /* which all threads share */
        {
          __atomic_store_n (&unit->is_full, 1, __ATOMIC_RELAXED);
          is_first = 0;
        }
      if (other == NULL)
        break;
      unlist (local, other);
      unit = other;
      set_current (local, class, unit);
    }
  set_current (local, class, &ma_no_slab);
  unit = open_slab (local, class, is_first, refused);
  if (unit)
    {
      unit->is_full = 0;
      set_current (local, class, unit);
    }
  return unit;
}

MA_COLD struct ma_unit *
ma_slab_refill (struct ma_local *local, unsigned class)
{
  int saved = errno;
  int refused;
  pthread_mutex_lock (&local->lock);
  struct ma_unit *unit = next_slab (local, class, &refused);
  if (unit == NULL)
    {
      ma_local_reclaim (local);
      pthread_mutex_unlock (&local->lock);
      ma_left_reclaim (NULL);
      pthread_mutex_lock (&local->lock);
      /* Also if that gave nothing: another thread may have been first. */
      unit = next_slab (local, class, &refused);
    }
  if (local->floor < ma_live_bytes (local) / 2)
    set_floor (local);
  pthread_mutex_unlock (&local->lock);
  errno = unit != NULL ? saved : ENOMEM;
  return unit;
}

/* ---- what was freed ---- */

MA_COLD void
ma_slab_tidy (struct ma_local *local, struct ma_unit *unit, size_t slot)
{
  int saved = errno;
  pthread_mutex_lock (&local->lock);
  uint64_t *word = &unit->free[slot / 64];
  __atomic_store_n (word, with_bit (*word, slot), __ATOMIC_RELAXED);
  if (unit->is_full)
    list (local, unit);
  if (local->live < 0)
    {
      ma_slab_collect (local);
      trim (local);
    }
  pthread_mutex_unlock (&local->lock);
  errno = saved;
}

MA_COLD void
ma_slab_adopt (struct ma_local *local)
{
  int saved = errno;
  pthread_mutex_lock (&local->lock);
  if (atomic_load_explicit (&local->owner, memory_order_relaxed) == MA_NOBODY)
    {
      ma_slab_collect (local);
      if (local->live < 0)
        trim (local);
    }
  pthread_mutex_unlock (&local->lock);
  errno = saved;
}

void
ma_slab_collect (struct ma_local *local)
{
  size_t freed_bytes = ma_remote_bytes (local);
  atomic_fetch_sub_explicit (&local->remote, freed_bytes, memory_order_relaxed);
  ma_subtract_live (local, freed_bytes);
  struct ma_unit *unit = atomic_exchange_explicit (&local->queue, NULL, memory_order_acq_rel);
  while (unit != NULL)
    {
      struct ma_unit *next = unit->queue_next;
      /* First, so that a free that comes while the words are read queues the slab again; the fences
       * here and in ma_dense_free_remote order "my write, then the other's" on both sides. Release, as whoever
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
                            ma_unit_base (unit)
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

/* ---- accounts, fork, the end ---- */

/* The slots of a word that are not free, those of pages that are away among them; and those that
 * another thread freed. */
static uint64_t
used_slots (const struct ma_unit *unit, unsigned at, uint64_t *remote)
{
  *remote = atomic_load_explicit (&unit->remote[at], memory_order_acquire);
  return ~(__atomic_load_n (&unit->free[at], __ATOMIC_ACQUIRE) | *remote)
         & ma_word_bits (at, 0, unit->avail);
}

size_t
ma_slab_live (struct ma_local *local, size_t *bytes)
{
  size_t blocks = 0;
  *bytes = ma_live_bytes (local) - ma_remote_bytes (local);
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
ma_slab_classes (struct ma_local *local, struct malloc_arena_class classes[MA_CLASSES])
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
ma_slab_before_fork (struct ma_local *local)
{
  struct ma_unit *heap = local->heaps;
  for (struct ma_unit *unit = NULL; (unit = next_used (&heap, unit));)
    ma_heap_fork_copy (local->arena, unit, ma_unit_base (unit), slab_bytes (local->arena));
}

void
ma_slab_forked (struct ma_local *local)
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
          = (unit->free[at] | atomic_load (&unit->remote[at])) & ma_word_bits (at, 0, unit->avail);
      for (; free; free &= free - 1)
        ma_wipe_inline (ma_unit_base (unit)
                            + (at * 64 + (unsigned)__builtin_ctzl (free)) * (size_t)unit->slot,
                        unit->slot);
    }
}

static void
restore_secret (malloc_arena *arena, struct ma_unit *unit)
{
  if (ma_heap_fork_restore (arena, unit, ma_unit_base (unit), slab_bytes (arena)) == 0)
    {
      if (unit->state & MA_UNIT_SECRET)
        ma_count_locked (arena, (size_t)unit->opened << MA_PAGE_SHIFT);
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
  unit->state &= (uint8_t)~MA_UNIT_OPEN;
}

/* A slab of secret memory that could not be closed when it was empty is a hole here. */
static void
restore_idle (struct ma_local *local)
{
  for (struct ma_unit *unit = local->idle; unit; unit = unit->next)
    if (unit->state & MA_UNIT_SECRET)
      {
        ma_heap_fill_hole (ma_unit_base (unit), MA_UNIT);
        unit->state = 0;
      }
}

void
ma_slab_after_fork (struct ma_local *local)
{
  malloc_arena *arena = local->arena;
  /* A thread that is not here may have been between marking a slab as queued and queueing it. */
  atomic_store (&local->queue, NULL);
  /* Or in the middle of writing a spot. */
  for (unsigned class = MA_CLASSES; class < MA_SLAB_CLASSES; class++)
    set_current (local, class, local->current[class]);
  struct ma_unit *heap = local->heaps;
  for (; heap; heap = heap->heap_next)
    for (uint32_t i = 0; i < heap->heap_units; i++)
      if (heap[i].kind == MA_UNIT_IDLE)
        {
          atomic_store (&heap[i].queued, 0); /* one that was closed since may have been */
          if (heap[i].state & MA_UNIT_FORK_WIPE)
            heap[i].state &= (uint8_t)~MA_UNIT_GUARDED;
        }
  restore_idle (local);
  heap = local->heaps;
  for (struct ma_unit *unit = NULL; (unit = next_used (&heap, unit));)
    {
      if (unit->state & MA_UNIT_SECRET)
        restore_secret (arena, unit);
      else if (unit->state & MA_UNIT_FORK_WIPE && unit->state & MA_UNIT_GUARDED)
        os_guard (ma_unit_base (unit) + ((size_t)MA_SLAB_PAGES << MA_PAGE_SHIFT), MA_PAGE);
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
  ma_slab_forked (local);
}

void
ma_slab_lock_again (struct ma_local *local)
{
  struct ma_unit *heap = local->heaps;
  for (struct ma_unit *unit = NULL; (unit = next_used (&heap, unit));)
    if (!(unit->state & MA_UNIT_SECRET))
      ma_pages_lock_again (unit);
}

void
ma_slab_end (struct ma_local *local)
{
  ma_slab_trim (local);
  while (local->heaps)
    {
      struct ma_unit *heap = local->heaps;
      size_t n = heap->heap_units;
      local->heaps = heap->heap_next;
      /* A slab that could not be closed is not used again: its mapping is not as first reserved. */
      if (local->is_plain && ma_heap_close (ma_unit_base (heap), n * MA_UNIT, heap->state) == 0)
        for (size_t i = 0; i < n; i++)
          heap[i].state = 0;
      for (size_t i = 0; i < n; i++)
        if (heap[i].state == 0)
          ma_region_give (heap + i, 1);
        else
          ma_heap_lost (heap + i, 1, heap[i].state);
    }
}
