/* api.c - what a caller sees: arguments checked, defaults filled in. */
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "arena.h"
#include "dense.h"
#include "options.h"
#include "range.h"
#include "receipt.h"
#include "walk.h"
#include "wipe.h"

enum
{
  ALL_KINDS = HEAP_SECURE | HEAP_TAGGED | HEAP_ISOLATED | HEAP_SECRETMEM
};

/* 0, EINVAL for flags that mean nothing together, ENOTSUP for what is not to be had here. */
static int
check_kind (unsigned kind)
{
  if (kind & ~(unsigned)ALL_KINDS)
    return EINVAL;
  if ((kind & (HEAP_ISOLATED | HEAP_SECRETMEM)) && !(kind & HEAP_SECURE))
    return EINVAL;
  /* What can be mapped secret cannot be mapped tagged. */
  if (kind & HEAP_TAGGED && kind & HEAP_SECRETMEM)
    return EINVAL;
  return kind & HEAP_TAGGED ? ma_arena_check_tags () : 0;
}

static const char *
kind_name (unsigned kind)
{
  int is_tagged = (kind & HEAP_TAGGED) != 0;
  return kind & HEAP_SECRETMEM  ? "secretmem"
         : kind & HEAP_ISOLATED ? is_tagged ? "tagged isolated" : "isolated"
         : kind & HEAP_SECURE   ? is_tagged ? "tagged secure" : "secure"
         : is_tagged            ? "tagged"
                                : "default";
}

/* Zeros replaced by the process's options and the kind's own defaults; 0 or EINVAL. */
static int
complete (struct malloc_arena_options *options)
{
  const struct ma_options *process = ma_options ();
  int refused = check_kind (options->kind);
  if (refused)
    return refused;
  if (options->lock > MALLOC_ARENA_LOCK_OFF || options->fork > MALLOC_ARENA_FORK_REFUSE)
    return EINVAL;
  if (options->lock == 0)
    options->lock = process->lock;
  if (options->fork == 0)
    options->fork = options->kind & HEAP_SECURE ? process->fork : MALLOC_ARENA_FORK_KEEP;
  if (options->limit != 0 && options->limit < MA_PAGE)
    return EINVAL;
  if (options->limit == 0)
    options->limit = process->limit;
  if (options->isolate_threshold == 0)
    options->isolate_threshold = process->isolate_threshold;
  if (options->isolate_threshold != 0
      && (options->isolate_threshold < 16 || options->isolate_threshold > MA_SLOT_MOST))
    return EINVAL;
  if (options->isolate_threshold == 0)
    options->isolate_threshold = (options->kind == HEAP_DEFAULT ? MA_DENSE_PLAIN
                                  : options->kind & HEAP_SECURE ? MA_DENSE_SECURE
                                                                : MA_DENSE_MOST)
                                 + 1;
  if (options->heap_size == 0)
    options->heap_size = process->heap_size;
  if (options->heap_size < ((size_t)64 << 10) || options->heap_size > ((size_t)64 << 20))
    return EINVAL;
  if (options->name == NULL || options->name[0] == '\0')
    options->name = kind_name (options->kind);
  return 0;
}

static malloc_arena *
fail (int error)
{
  errno = error;
  return NULL;
}

MA_EXPORT malloc_arena *
malloc_arena_get (unsigned kind)
{
  static _Atomic (malloc_arena *) arenas[ALL_KINDS + 1];
  if (kind > ALL_KINDS)
    return fail (EINVAL);
  malloc_arena *arena = atomic_load_explicit (&arenas[kind], memory_order_acquire);
  int unchecked = MA_HAS_TAGS && arena != NULL && kind & HEAP_TAGGED ? ma_arena_check_tags () : 0;
  if (unchecked)
    return fail (unchecked);
  if (likely (arena != NULL))
    return arena;
  struct malloc_arena_options options = { .size = sizeof options, .kind = kind };
  int refused = complete (&options);
  if (refused)
    return fail (refused);
  arena = ma_arena_new (&options, MA_FOR_PROCESS);
  if (arena == NULL)
    return NULL;
  /* No lock, which a fork could leave held: of two that come first, one takes its own back. */
  malloc_arena *first = NULL;
  if (!atomic_compare_exchange_strong (&arenas[kind], &first, arena))
    {
      ma_arena_delete (arena);
      arena = first;
    }
  return arena;
}

MA_EXPORT malloc_arena *
malloc_arena_new (const struct malloc_arena_options *given)
{
  struct malloc_arena_options options = { .size = 0 };
  /* A caller built against an older header gives fewer options, against a newer one maybe some
   * that would be ignored here. */
  if (given == NULL || given->size < offsetof (struct malloc_arena_options, lock)
      || given->size > sizeof options)
    return fail (EINVAL);
  memcpy (&options, given, given->size);
  int refused = complete (&options);
  return refused ? fail (refused) : ma_arena_new (&options, MA_OWN);
}

MA_EXPORT int
malloc_arena_delete (malloc_arena *arena)
{
  if (arena == NULL || arena->magic != MA_MAGIC || arena->use != MA_OWN)
    {
      errno = EINVAL;
      return -1;
    }
  return ma_arena_delete (arena);
}

MA_EXPORT int
malloc_arena_trim (malloc_arena *arena)
{
  if (arena == NULL || arena->magic != MA_MAGIC)
    {
      errno = EINVAL;
      return -1;
    }
  int saved = errno;
  int any = ma_arena_trim (arena);
  errno = saved;
  return any;
}

MA_EXPORT void
malloc_arena_enter (malloc_arena *arena)
{
  ma_arena_enter (arena);
}

MA_EXPORT void
malloc_arena_leave (malloc_arena *arena)
{
  ma_arena_leave (arena);
}

MA_EXPORT void
malloc_arena_scrub (size_t bytes)
{
  ma_scrub_stack (ma_scrub_room (__builtin_frame_address (0), bytes));
}

MA_EXPORT malloc_arena *
malloc_arena_of (const void *p)
{
  if (!ma_is_ours (p))
    return NULL;
  struct ma_unit *unit = ma_unit_of (p);
  if (unit->kind == MA_UNIT_FREE || unit->kind == MA_UNIT_IDLE)
    return NULL;
  if (unit->kind == MA_UNIT_DENSE)
    return unit->local->arena;
  unit = ma_range_head (unit);
  return atomic_load_explicit (&unit->large, memory_order_relaxed) == MA_LARGE_LIVE
             ? unit->local->arena
             : NULL;
}

MA_EXPORT const char *
malloc_arena_name (const malloc_arena *arena)
{
  ma_arena_check (arena);
  return arena->name;
}

MA_EXPORT int
malloc_arena_receipt (malloc_arena *arena, struct malloc_arena_receipt *receipt)
{
  if (arena == NULL || arena->magic != MA_MAGIC || receipt == NULL
      || receipt->size < sizeof *receipt)
    {
      errno = EINVAL;
      return -1;
    }
  ma_receipt (arena, receipt);
  return 0;
}

MA_EXPORT int
malloc_arena_stats (malloc_arena *arena, struct malloc_arena_stats *stats)
{
  /* Callers built against an older header know fewer counters. */
  if (arena == NULL || arena->magic != MA_MAGIC || stats == NULL
      || stats->size < offsetof (struct malloc_arena_stats, classes))
    {
      errno = EINVAL;
      return -1;
    }
  ma_stats (arena, stats);
  return 0;
}

MA_EXPORT ptrdiff_t
malloc_arena_walk (malloc_arena *arena, struct malloc_arena_extent *extents, size_t extent_size,
                   size_t count)
{
  if ((arena != NULL && arena->magic != MA_MAGIC) || (extents == NULL && count != 0)
      || extent_size != sizeof *extents)
    {
      errno = EINVAL;
      return -1;
    }
  return ma_walk (arena, extents, extent_size, count);
}

malloc_arena *
ma_default_arena (void)
{
  static _Atomic (malloc_arena *) made;
  unsigned active = ma_options ()->active;
  malloc_arena *arena = atomic_load_explicit (&made, memory_order_acquire);
  if (active == MA_ACTIVE_NONE || arena != NULL)
    return arena;
  /* A child that goes on after fork needs everything that it has in memory. */
  struct malloc_arena_options options = {
    .size = sizeof options,
    .kind = active == MA_ACTIVE_SECURE ? HEAP_SECURE : HEAP_DEFAULT,
    .fork = MALLOC_ARENA_FORK_KEEP,
  };
  arena = complete (&options) == 0 ? ma_arena_new (&options, MA_FOR_ALL) : NULL;
  malloc_arena *first = NULL;
  if (arena != NULL && !atomic_compare_exchange_strong (&made, &first, arena))
    {
      ma_arena_delete (arena);
      arena = first;
    }
  return arena;
}
