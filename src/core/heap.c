#include "heap.h"

#include <errno.h>

#include "fatal.h"
#include "options.h"

enum
{
  WARM_BYTES_MOST = 8 << 20, /* also where nothing bounds it */
  WARM_BYTES_PLAIN = 2 << 20
};

static size_t
less (size_t a, size_t b)
{
  return a < b ? a : b;
}

void
ma_heap_bounds (malloc_arena *arena)
{
  size_t limit = arena->limit != 0 ? arena->limit : SIZE_MAX;
  size_t lockable = arena->is_secure && arena->lock_policy != MALLOC_ARENA_LOCK_OFF
                        ? os_lock_limit ()
                        : SIZE_MAX;
  arena->spare_most = arena->is_plain || arena->is_isolated || arena->is_secretmem
                          ? 0
                          : less (limit, lockable) / 4;
  size_t warm = arena->is_plain ? WARM_BYTES_PLAIN : WARM_BYTES_MOST;
  arena->warm_most = arena->is_secretmem ? MA_WARM_LEAST : less (limit / 8 * 3, warm);
  arena->warm_lockable = lockable / 8 * 3;
  arena->warm_shared = limit / 8 * 3;
}

__thread struct ma_refusal ma_refused __attribute__ ((tls_model ("initial-exec")));

int
ma_heap_charge (malloc_arena *arena, size_t bytes, int is_slab)
{
  size_t limit = arena->limit != 0 ? arena->limit : SIZE_MAX;
  /* Nothing is kept back of who has no scope to leave. */
  if (ma_active != NULL && ma_active->arena == arena && !(is_slab && ma_refused.arena == arena))
    limit -= atomic_load_explicit (&arena->reserve, memory_order_relaxed);
  size_t now = atomic_load_explicit (&arena->mapped, memory_order_relaxed);
  /* Never more for a moment either: what does not fit must not be in the way of what does. */
  do
    if (unlikely (bytes > limit || now > limit - bytes))
      {
        ma_refused.met = arena;
        return ENOMEM;
      }
  while (!atomic_compare_exchange_weak_explicit (&arena->mapped, &now, now + bytes,
                                                 memory_order_relaxed, memory_order_relaxed));
  return 0;
}

void
ma_heap_refund (malloc_arena *arena, size_t bytes)
{
  atomic_fetch_sub_explicit (&arena->mapped, bytes, memory_order_relaxed);
}

void
ma_heap_refused (malloc_arena *arena, unsigned property, int error)
{
  atomic_store_explicit (&arena->refused[__builtin_ctz (property)], error, memory_order_relaxed);
}

/* What a child finds, said again only where it differs from what the kernel holds of the unit. */
static void
set_fork (malloc_arena *arena, void *p, size_t size, uint8_t *state)
{
  unsigned now = *state & (MA_UNIT_FORK_WIPE | MA_UNIT_FORK_ABSENT);
  unsigned want = arena->fork_policy == MALLOC_ARENA_FORK_WIPE     ? MA_UNIT_FORK_WIPE
                  : arena->fork_policy == MALLOC_ARENA_FORK_REFUSE ? MA_UNIT_FORK_ABSENT
                                                                   : 0;
  int is_unsure = *state & MA_UNIT_UNSURE;
  if (now == want && !is_unsure)
    return;
  int refused = now != 0 || is_unsure ? os_fork_copied (p, size) : 0;
  if (refused == 0 && want == MA_UNIT_FORK_WIPE)
    refused = os_fork_wiped (p, size);
  else if (refused == 0 && want == MA_UNIT_FORK_ABSENT)
    refused = os_fork_absent (p, size);
  if (refused)
    {
      ma_heap_refused (arena, MALLOC_ARENA_FORK_WIPED, refused);
      return;
    }
  *state = (uint8_t)((*state & ~(MA_UNIT_FORK_WIPE | MA_UNIT_FORK_ABSENT)) | want);
}

static void
set_dump (malloc_arena *arena, void *p, size_t size, uint8_t *state)
{
  unsigned want = arena->is_secure ? 0 : MA_UNIT_DUMPED;
  if (arena->is_secure && ma_sealed.dump_refused)
    ma_heap_refused (arena, MALLOC_ARENA_UNDUMPED, ma_sealed.dump_refused);
  /* What was closed before may not be left out, as the state says of it. */
  if ((*state & MA_UNIT_DUMPED) == want && !(*state & MA_UNIT_UNSURE)
      && !(arena->is_secure && os_release_refused ()))
    return;
  int refused = want ? os_include_in_dump (p, size) : os_exclude_from_dump (p, size);
  if (refused)
    ma_heap_refused (arena, MALLOC_ARENA_UNDUMPED, refused);
  unsigned is = refused ? MA_UNIT_DUMPED ^ want : want;
  *state = (uint8_t)((*state & ~(unsigned)MA_UNIT_DUMPED) | is);
}

static const char *
errno_name (int error)
{
  return error == EPERM    ? "EPERM"
         : error == ENOMEM ? "ENOMEM"
         : error == EAGAIN ? "EAGAIN"
         : error == ENOSYS ? "ENOSYS"
         : error == EINVAL ? "EINVAL"
         : error == EMFILE ? "EMFILE"
         : error == ENFILE ? "ENFILE"
                           : "refused";
}

static void
warn_unsecret (malloc_arena *arena, int error)
{
  static _Atomic int said;
  if (atomic_exchange (&said, 1))
    return;
  ma_warn ("memfd_secret refused: arena \"", arena->name,
           "\" goes on with ordinary locked memory (", errno_name (error), ")", NULL);
}

static void
warn_unkept (malloc_arena *arena, int error)
{
  static _Atomic int said;
  if (atomic_exchange (&said, 1))
    return;
  ma_warn ("memfd_secret refused: a forked child has no copy of blocks of arena \"", arena->name,
           "\", and faults where it touches one (", errno_name (error), ")", NULL);
}

static void
warn_unlocked (malloc_arena *arena, int error)
{
  static _Atomic int said;
  if (atomic_exchange (&said, 1))
    return;
  char limit[24];
  size_t bytes = os_lock_limit ();
  int is_required = arena->lock_policy == MALLOC_ARENA_LOCK_REQUIRE;
  /* The kernel itself says EPERM only of a limit of 0. */
  int is_denied = error == ENOSYS || (error == EPERM && bytes != 0);
  ma_warn (
      "lock refused: arena \"", arena->name,
      is_required ? "\" gets no more memory (" : "\" goes on with memory that can be swapped (",
      errno_name (error), "; the memlock limit is ",
      bytes == SIZE_MAX ? "unlimited" : ma_decimal (limit, bytes),
      bytes == SIZE_MAX ? "" : " bytes",
      is_denied
          ? "): not the limit but a filter on system calls (seccomp) denies mlock2: allow it with"
            " SystemCallFilter=@memlock or docker --security-opt seccomp=, or set "
          : "): raise it with ulimit -l, LimitMEMLOCK= or docker --ulimit memlock, or set ",
      is_required ? "lock=prefer to go on unlocked" : "lock=require to fail instead", NULL);
}

static int
open_ordinary (malloc_arena *arena, void *p, size_t size, uint8_t *state)
{
  if (!(*state & MA_UNIT_OPEN))
    {
      int refused = arena->is_tagged ? os_open_tagged (p, size) : os_open (p, size);
      /* Of other errors tags are not the cause, and what has them keeps them. */
      if (refused == EINVAL && arena->is_tagged)
        ma_heap_refused (arena, MALLOC_ARENA_TAGGED, ENOTSUP);
      if (refused)
        return refused;
      *state |= MA_UNIT_OPEN;
    }
  set_dump (arena, p, size, state);
  set_fork (arena, p, size, state);
  *state &= (uint8_t)~MA_UNIT_UNSURE;
  return 0;
}

int
ma_heap_open (malloc_arena *arena, void *p, size_t size, uint8_t *state)
{
  if (arena->is_secretmem && !(*state & MA_UNIT_OPEN))
    {
      int refused = os_open_secret (p, size);
      if (refused != 0 && ma_others_reclaim (arena))
        refused = os_open_secret (p, size);
      if (refused == 0)
        {
          *state |= MA_UNIT_OPEN | MA_UNIT_SECRET | MA_UNIT_FORK_ABSENT;
          return 0;
        }
      /* The next rung is locked memory of the usual kind. */
      ma_heap_refused (arena, MALLOC_ARENA_SECRETMEM, refused);
      if (arena->lock_policy == MALLOC_ARENA_LOCK_REQUIRE)
        return EPERM;
      /* The arena is not to be then (ENOTSUP). */
      if (refused == ENOSYS && !arena->is_made)
        return refused;
      warn_unsecret (arena, refused);
    }
  return open_ordinary (arena, p, size, state);
}

int
ma_heap_close (void *p, size_t size, uint8_t state)
{
  if (state == 0)
    return 0;
  int refused = os_release (p, size);
  return refused == 0 || state & MA_UNIT_SECRET ? refused : os_restore (p, size);
}

uint8_t
ma_heap_unsure (uint8_t state)
{
  /* Secret memory is given back as a whole, or not at all. What may be absent from a child has its hole filled there, which
   * does no harm where there is none. */
  return state & MA_UNIT_SECRET ? state : (uint8_t)((state & MA_UNIT_FORK_ABSENT) | MA_UNIT_UNSURE);
}

int
ma_heap_lock (malloc_arena *arena, void *p, size_t size, uint8_t state, int *locked)
{
  *locked = 0;
  if (state & MA_UNIT_SECRET)
    {
      *locked = 1;
      ma_count_locked (arena, size);
      return 0;
    }
  if (!arena->is_secure || arena->lock_policy == MALLOC_ARENA_LOCK_OFF)
    return 0;
  int refused = os_lock (p, size);
  if (refused == 0)
    {
      *locked = 1;
      ma_count_locked (arena, size);
      return 0;
    }
  return refused;
}

_Atomic size_t ma_locked_by_all;

int
ma_heap_has_let_go (const struct ma_local *local)
{
  size_t now = atomic_load_explicit (&ma_locked_by_all, memory_order_relaxed);
  return now + MA_WARM_LEAST < local->locked_then;
}

int
ma_heap_may_reclaim (struct ma_local *local)
{
  enum
  {
    OFTEN = 256
  };
  return local->refusals == 0 || ma_requires_lock (local->arena) || ma_heap_has_let_go (local)
         || ++local->refusals % OFTEN == 0;
}

void
ma_heap_reclaimed (struct ma_local *local, int was_refused)
{
  local->refusals = was_refused != 0;
  local->locked_then = atomic_load_explicit (&ma_locked_by_all, memory_order_relaxed);
}

int
ma_heap_unlockable (malloc_arena *arena, int refused)
{
  ma_heap_refused (arena, MALLOC_ARENA_LOCKED, refused);
  int is_required = arena->lock_policy == MALLOC_ARENA_LOCK_REQUIRE;
  /* Who asked for the arena is told by errno; a program that knows nothing of arenas is not. */
  if (!is_required || arena->use == MA_FOR_ALL)
    warn_unlocked (arena, refused);
  return is_required ? EPERM : 0;
}

int
ma_heap_lock_again (malloc_arena *arena, void *p, size_t size, uint8_t state)
{
  int locked;
  int refused = ma_heap_lock (arena, p, size, state, &locked);
  if (refused)
    {
      ma_heap_refused (arena, MALLOC_ARENA_LOCKED, refused);
      warn_unlocked (arena, refused);
    }
  return locked;
}

void
ma_heap_unlocked (malloc_arena *arena, size_t size)
{
  ma_count_locked (arena, -size);
}

void
ma_heap_fork_copy (malloc_arena *arena, struct ma_unit *unit, const void *p, size_t size)
{
  unsigned want = MA_UNIT_SECRET | MA_UNIT_OPEN;
  if ((unit->state & want) != want || arena->fork_policy != MALLOC_ARENA_FORK_KEEP)
    return;
  int copy = os_secret_copy (p, size);
  unit->fork_copy = copy >= 0 ? copy + 1 : copy;
}

static struct ma_unit *lost; /* guarded by the region's lock */

void
ma_heap_lost (struct ma_unit *unit, size_t n, uint8_t state)
{
  if (!(state & MA_UNIT_FORK_ABSENT))
    return;
  ma_region_lock ();
  unit->units = (uint32_t)n;
  unit->next = lost;
  lost = unit;
  ma_region_unlock ();
}

void
ma_heap_fill_hole (void *p, size_t size)
{
  if (os_fill_hole (p, size))
    ma_fatal ("out of memory: a forked child cannot reserve the place of its parent's arenas",
              NULL);
}

void
ma_heap_fill_lost (void)
{
  for (struct ma_unit *unit = lost; unit; unit = unit->next)
    ma_heap_fill_hole (ma_unit_base (unit), (size_t)unit->units << MA_UNIT_SHIFT);
}

int
ma_heap_fork_restore (malloc_arena *arena, struct ma_unit *unit, void *p, size_t size)
{
  /* The hole first, or the new mapping is made in it, and has then nowhere to go. */
  ma_heap_fill_hole (p, size);
  if (!(unit->state & MA_UNIT_OPEN)) /* nor was there anything in the parent, itself a child */
    return ENOMEM;
  int refused = unit->fork_copy > 0   ? os_open_secret_copy (p, size, unit->fork_copy - 1)
                : unit->fork_copy < 0 ? -unit->fork_copy
                                      : os_open_secret (p, size);
  if (refused == 0)
    return 0;
  ma_heap_refused (arena, MALLOC_ARENA_SECRETMEM, refused);
  if (unit->fork_copy != 0)
    {
      ma_heap_refused (arena, MALLOC_ARENA_FORK_KEPT, refused);
      warn_unkept (arena, refused);
      return refused;
    }
  /* The next rung, as above: nothing is in it that was secret. */
  warn_unsecret (arena, refused);
  uint8_t state = 0;
  refused = open_ordinary (arena, p, size, &state);
  if (refused)
    ma_heap_refused (arena, MALLOC_ARENA_FORK_WIPED, refused);
  else
    unit->state = state;
  return refused;
}

void
ma_heap_fork_done (struct ma_unit *unit)
{
  if (unit->fork_copy > 0)
    os_close_copy (unit->fork_copy - 1);
  unit->fork_copy = 0;
}
