#include "arena.h"

#include <errno.h>
#include <string.h>

#include "fatal.h"
#include "options.h"
#include "range.h"
#include "slab.h"
#include "wipe.h"

__thread struct ma_local *ma_active __attribute__ ((tls_model ("initial-exec")));
__thread struct ma_thread *ma_self __attribute__ ((tls_model ("initial-exec")));
struct ma_thread ma_nobody;

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
malloc_arena *ma_arena_table[MA_ARENAS];
static unsigned table_next; /* rover: a deleted arena's place is used again as late as possible */
static struct ma_thread *threads;
static struct ma_thread *unused_threads;
static unsigned late_threads;
static __thread unsigned is_ending;
static struct ma_local *unused_locals;
static pthread_key_t at_thread_exit;

/* ---- threads ---- */

static _Atomic size_t kept_by_all; /* pages, in local arenas of no thread */

/* A local arena outlives its thread: what it holds may live on, and the next thread that needs a
 * part of the same arena takes it over. So does some of what nobody uses: to open it takes longer than a short thread's
 * work. */
static void
hand_over (struct ma_local *local)
{
  ma_range_collect (local);
  pthread_mutex_lock (&local->lock);
  ma_slab_collect (local);
  size_t pages = ma_slab_opened (local) - (ma_live_bytes (local) >> MA_PAGE_SHIFT)
                 + (local->warm_bytes >> MA_PAGE_SHIFT);
  if (!local->arena->is_secretmem
      && atomic_load (&kept_by_all) + pages <= ma_slab_kept_most (local))
    {
      local->kept = pages;
      atomic_fetch_add (&kept_by_all, pages);
    }
  else
    ma_local_reclaim (local);
  atomic_fetch_sub_explicit (&local->arena->owners, 1, memory_order_relaxed);
  atomic_store_explicit (&local->owner, MA_NOBODY, memory_order_release);
  /* A free that found the owner still there has only queued its slab. */
  atomic_thread_fence (memory_order_seq_cst);
  ma_slab_collect (local);
  pthread_mutex_unlock (&local->lock);
}

static void before_fork (void);
static void after_fork (void);
static void in_child (void);
static void end_thread (void *data);

static pthread_once_t once = PTHREAD_ONCE_INIT;

static void
init_once (void)
{
  pthread_key_create (&at_thread_exit, end_thread);
  pthread_atfork (before_fork, after_fork, in_child);
}

/* With the table lock. */
static void
remove_thread (struct ma_thread *thread)
{
  for (unsigned i = 0; i < MA_ARENAS; i++)
    if (thread->locals[i])
      {
        hand_over (thread->locals[i]);
        thread->locals[i] = NULL;
      }
  if (thread->previous)
    thread->previous->next = thread->next;
  else
    threads = thread->next;
  if (thread->next)
    thread->next->previous = thread->previous;
  late_threads -= thread->late != 0;
  thread->depth = 0;
  thread->stack = NULL;
  thread->scrubs = 0;
  thread->next = unused_threads;
  unused_threads = thread;
}

static void
end_thread (void *data)
{
  /* The stack goes to the next thread, or lies in the C library's cache: neither is a place for what calls left there. */
  ma_scrub_all ();
  ma_active = NULL;
  ma_self = NULL;
  is_ending = 1;
  pthread_mutex_lock (&table_lock);
  remove_thread (data);
  pthread_mutex_unlock (&table_lock);
}

/* A thread that uses an arena again after end_thread gets another one, of which the C library may not tell any more:
 * there are four rounds. Those that are gone, with the table lock. */
static void
remove_late_threads (void)
{
  for (struct ma_thread *thread = threads; thread;)
    {
      struct ma_thread *next = thread->next;
      if (thread->late != 0 && os_is_gone (thread->late))
        remove_thread (thread);
      thread = next;
    }
}

static struct ma_thread *
this_thread (void)
{
  struct ma_thread *thread = ma_self;
  if (likely (thread != NULL))
    return thread;
  pthread_once (&once, init_once);
  pthread_mutex_lock (&table_lock);
  if (unlikely (late_threads != 0))
    remove_late_threads ();
  thread = unused_threads;
  if (thread)
    unused_threads = thread->next;
  else
    thread = ma_pool (sizeof *thread);
  if (thread)
    {
      thread->previous = NULL;
      thread->next = threads;
      if (threads)
        threads->previous = thread;
      threads = thread;
      thread->late = is_ending ? os_thread () : 0;
      late_threads += is_ending;
    }
  pthread_mutex_unlock (&table_lock);
  if (thread)
    {
      ma_self = thread;
      /* In a thread that is ending this runs the destructor once more. */
      pthread_setspecific (at_thread_exit, thread);
    }
  return thread;
}

/* ---- local arenas ---- */

/* With its lock. */
static void
take_kept (struct ma_local *local)
{
  atomic_fetch_sub (&kept_by_all, local->kept);
  local->kept = 0;
}

int
ma_local_reclaim (struct ma_local *local)
{
  malloc_arena *arena = local->arena;
  size_t before = atomic_load_explicit (&arena->mapped, memory_order_relaxed);
  ma_range_flush (local);
  ma_slab_trim (local);
  take_kept (local);
  return atomic_load_explicit (&arena->mapped, memory_order_relaxed) < before;
}

/* What nobody uses in parts whose threads are gone: all that was kept, and where nothing lives any more. */
static int
reclaim_left (malloc_arena *arena, int (*lock) (pthread_mutex_t *))
{
  int any = 0;
  for (struct ma_local *local = arena->locals; local; local = local->next)
    {
      if (atomic_load_explicit (&local->owner, memory_order_relaxed) != MA_NOBODY
          || lock (&local->lock) != 0)
        continue;
      int is_dead = local->present != 0 && ma_live_bytes (local) == ma_remote_bytes (local);
      if (local->kept != 0 || is_dead || atomic_load (&local->returned) != NULL)
        any |= ma_local_reclaim (local);
      pthread_mutex_unlock (&local->lock);
    }
  return any;
}

int
ma_left_reclaim (malloc_arena *arena)
{
  int any = 0;
  /* Under which no part finds a new thread, and no arena ends. */
  pthread_mutex_lock (&table_lock);
  for (unsigned i = 0; i < MA_ARENAS; i++)
    if (ma_arena_table[i] != NULL && (arena == NULL || ma_arena_table[i] == arena))
      any |= reclaim_left (ma_arena_table[i], pthread_mutex_lock);
  pthread_mutex_unlock (&table_lock);
  return any;
}

int
ma_others_reclaim (const malloc_arena *arena)
{
  /* The table's lock, so that no arena ends meanwhile, and no second thread is here: this one waits for the fork locks
   * of others while it may have its own arena's. Not waited for, as locks that come after it are held. */
  if (ma_self == NULL || pthread_mutex_trylock (&table_lock) != 0)
    return 0;
  int any = 0;
  for (unsigned i = 0; i < MA_ARENAS; i++)
    {
      struct ma_local *other = ma_self->locals[i];
      if (other == NULL || other->arena == arena || atomic_load (&other->arena->locked) == 0
          || pthread_mutex_trylock (&other->lock) != 0)
        continue;
      any |= ma_local_reclaim (other);
      pthread_mutex_unlock (&other->lock);
    }
  for (unsigned i = 0; i < MA_ARENAS; i++)
    if (ma_arena_table[i] != NULL && atomic_load (&ma_arena_table[i]->locked) != 0
        && !(ma_arena_table[i] == arena && arena->is_secretmem)) /* whose fork lock is held */
      any |= reclaim_left (ma_arena_table[i], pthread_mutex_trylock);
  pthread_mutex_unlock (&table_lock);
  return any;
}

static int
trim (struct ma_local *local)
{
  pthread_mutex_lock (&local->lock);
  struct ma_thread *owner = atomic_load_explicit (&local->owner, memory_order_acquire);
  int any = owner == ma_self || owner == MA_NOBODY ? ma_local_reclaim (local) : 0;
  pthread_mutex_unlock (&local->lock);
  return any;
}

int
ma_arena_trim (malloc_arena *arena)
{
  int any = 0;
  for (struct ma_local *local = __atomic_load_n (&arena->locals, __ATOMIC_ACQUIRE); local;
       local = local->next)
    any |= trim (local);
  return any;
}

int
ma_arena_trim_all (void)
{
  int any = 0;
  for (unsigned i = 0; ma_self && i < MA_ARENAS; i++)
    if (ma_self->locals[i])
      any |= trim (ma_self->locals[i]);
  return any;
}

static void
init_local (struct ma_local *local, malloc_arena *arena)
{
  memset (local, 0, sizeof *local);
  local->arena = arena;
  local->threshold = arena->is_plain || arena->is_tagged ? 0 : arena->threshold;
  local->plain = arena->is_plain ? arena->threshold : 0;
  local->is_plain = arena->is_plain;
  local->is_tagged = arena->is_tagged;
  local->is_wiped = arena->is_wiped;
  local->object_threshold
      = local->threshold < MA_OBJECT_MOST ? local->threshold : MA_OBJECT_MOST + 1;
  local->is_verified = arena->is_verified;
  ma_slab_begin (local);
  pthread_mutex_init (&local->lock, NULL);
}

int
ma_arena_check_tags (void)
{
  return os_check_tags (ma_options ()->tag_check == MA_SYNC);
}

static __attribute__ ((noinline, cold)) struct ma_local *
make_local (malloc_arena *arena)
{
  int refused = arena->is_tagged ? ma_arena_check_tags () : 0;
  if (refused)
    {
      errno = refused;
      return NULL;
    }
  struct ma_thread *thread = this_thread ();
  if (thread == NULL)
    {
      errno = ENOMEM;
      return NULL;
    }
  pthread_mutex_lock (&table_lock);
  struct ma_local *local = arena->locals;
  while (local && atomic_load_explicit (&local->owner, memory_order_relaxed) != MA_NOBODY)
    local = local->next;
  if (local)
    {
      pthread_mutex_lock (&local->lock);
      atomic_store_explicit (&local->owner, thread, memory_order_release);
      take_kept (local);
      pthread_mutex_unlock (&local->lock);
    }
  else
    {
      local = unused_locals;
      if (local)
        unused_locals = local->next;
      else
        local = ma_pool (sizeof *local);
      if (local)
        {
          init_local (local, arena);
          atomic_store_explicit (&local->owner, thread, memory_order_release);
          local->next = arena->locals;
          __atomic_store_n (&arena->locals, local, __ATOMIC_RELEASE);
        }
    }
  if (local)
    {
      thread->locals[arena->index] = local;
      atomic_fetch_add_explicit (&arena->owners, 1, memory_order_relaxed);
    }
  pthread_mutex_unlock (&table_lock);
  if (local == NULL)
    errno = ENOMEM;
  /* Where the stack lies is found out now: a scrub may come in a signal handler. */
  else if (thread->stack == NULL)
    ma_stack_room (__builtin_frame_address (0), 0);
  return local;
}

struct ma_local *
ma_local_of (malloc_arena *arena)
{
  struct ma_thread *thread = ma_self;
  if (likely (thread != NULL && thread->locals[arena->index] != NULL))
    return thread->locals[arena->index];
  return make_local (arena);
}

void
ma_arena_locals (malloc_arena *arena, void (*visit) (struct ma_local *, void *), void *data)
{
  for (struct ma_local *local = __atomic_load_n (&arena->locals, __ATOMIC_ACQUIRE); local;
       local = local->next)
    {
      pthread_mutex_lock (&local->lock);
      visit (local, data);
      pthread_mutex_unlock (&local->lock);
    }
}

void
ma_arena_each (void (*visit) (malloc_arena *, void *), void *data)
{
  pthread_mutex_lock (&table_lock);
  for (unsigned i = 0; i < MA_ARENAS; i++)
    if (ma_arena_table[i])
      visit (ma_arena_table[i], data);
  pthread_mutex_unlock (&table_lock);
}

/* ---- enter and leave ---- */

void
ma_arena_check (const malloc_arena *arena)
{
  if (unlikely (arena == NULL || arena->magic != MA_MAGIC))
    ma_fatal_block ("invalid arena", arena, NULL);
}

/* Enters of the ordinary malloc that no memory was left to note down: as nothing else is active in such
 * a thread, only their leaves must be let through. */
static _Atomic unsigned unnoted;

static int
is_unnoted (const malloc_arena *arena)
{
  unsigned count = atomic_load (&unnoted);
  while (arena == NULL && count != 0)
    if (atomic_compare_exchange_weak (&unnoted, &count, count - 1))
      return 1;
  return 0;
}

/* The thread's own view of its frames: nobody else writes them. */
static inline unsigned
depth_of (const struct ma_thread *thread)
{
  return atomic_load_explicit (&thread->depth, memory_order_relaxed);
}

static inline malloc_arena *
arena_of (const struct ma_frame *frame)
{
  return atomic_load_explicit (&frame->arena, memory_order_relaxed);
}

/* Whether the frame below DEPTH is ARENA's, and what is active is it: while an enter or leave is at work there it has no
 * count, and a signal's handler that enters and leaves meanwhile takes another. */
static inline int
is_innermost (const struct ma_thread *thread, unsigned depth, const malloc_arena *arena)
{
  return depth != 0 && arena_of (&thread->frames[depth - 1]) == arena
         && thread->frames[depth - 1].count != 0;
}

/* There is room for one more. The frame is taken before it is written. */
static inline void
push (struct ma_thread *thread, malloc_arena *arena, struct ma_local *local)
{
  unsigned depth = depth_of (thread);
  struct ma_frame *frame = &thread->frames[depth];
  atomic_store_explicit (&thread->depth, depth + 1, memory_order_release);
  atomic_store_explicit (&frame->arena, arena, memory_order_relaxed);
  atomic_signal_fence (memory_order_seq_cst);
  frame->before = ma_active;
  ma_active = local;
  atomic_signal_fence (memory_order_seq_cst);
  frame->count = 1;
}

static __attribute__ ((noinline, cold)) void
enter_slow (malloc_arena *arena)
{
  struct ma_thread *thread = this_thread ();
  if (thread == NULL && arena == NULL)
    {
      atomic_fetch_add (&unnoted, 1);
      return;
    }
  struct ma_local *local = arena ? ma_local_of (arena) : NULL;
  if (arena && local == NULL && errno == ENOTSUP)
    ma_fatal ("no memory tags: arena \"", arena->name,
              "\" is entered by a thread that may not have them checked", NULL);
  if (thread == NULL || (arena && local == NULL))
    ma_fatal ("out of memory: no room for another thread's part of arena \"", arena->name, "\"",
              NULL);
  if (depth_of (thread) == MA_DEPTH)
    ma_fatal ("unmatched enter: too many arenas are entered and not left", NULL);
  push (thread, arena, local);
}

void
ma_arena_enter (malloc_arena *arena)
{
  struct ma_thread *thread = ma_self;
  if (arena != NULL)
    ma_arena_check (arena);
  if (unlikely (thread == NULL))
    {
      enter_slow (arena);
      return;
    }
  struct ma_local *local = NULL;
  unsigned depth = depth_of (thread);
  if (is_innermost (thread, depth, arena))
    {
      thread->frames[depth - 1].count++;
      return;
    }
  if (arena != NULL && unlikely ((local = thread->locals[arena->index]) == NULL))
    {
      enter_slow (arena);
      return;
    }
  if (unlikely (depth == MA_DEPTH))
    {
      enter_slow (arena);
      return;
    }
  push (thread, arena, local);
}

void
ma_arena_leave (malloc_arena *arena)
{
  struct ma_thread *thread = ma_self;
  unsigned depth = thread != NULL ? depth_of (thread) : 0;
  if (unlikely (depth == 0 || arena_of (&thread->frames[depth - 1]) != arena))
    {
      if (is_unnoted (arena))
        return;
      ma_fatal ("unmatched leave: arena \"", arena ? arena->name : "ordinary", "\"", NULL);
    }
  struct ma_frame *frame = &thread->frames[depth - 1];
  if (--frame->count != 0)
    return;
  atomic_signal_fence (memory_order_seq_cst);
  ma_active = frame->before;
  atomic_signal_fence (memory_order_seq_cst);
  atomic_store_explicit (&thread->depth, depth - 1, memory_order_relaxed);
  /* Whoever deletes an arena may see the depth of the next enter before its arena: not this one in its place. */
  atomic_store_explicit (&frame->arena, NULL, memory_order_relaxed);
}

malloc_arena *
ma_active_arena (void)
{
  return ma_active ? ma_active->arena : NULL;
}

unsigned
ma_kind_of (const malloc_arena *arena)
{
  return arena->kind;
}

int
ma_requires_lock (const malloc_arena *arena)
{
  return arena->is_secure && arena->lock_policy == MALLOC_ARENA_LOCK_REQUIRE;
}

void
ma_arena_hold (malloc_arena *arena, int more)
{
  atomic_fetch_add (&arena->holds, (unsigned)more);
}

unsigned
ma_depth (void)
{
  struct ma_thread *thread = ma_self;
  size_t depth = 0;
  for (unsigned i = 0; thread && i < depth_of (thread); i++)
    depth += thread->frames[i].count;
  return (unsigned)depth;
}

/* ---- fork ---- */

/* Copies of secret memory for a child that is to have its own. Locks held. */
static void
copy_secrets (malloc_arena *arena)
{
  if (!arena->is_secretmem || arena->fork_policy != MALLOC_ARENA_FORK_KEEP)
    return;
  for (struct ma_local *local = arena->locals; local; local = local->next)
    ma_slab_before_fork (local);
  for (struct ma_unit *unit = arena->larges; unit; unit = unit->heap_next)
    /* Of those that wait for their next use there is nothing to copy, nor can it be read. */
    if (atomic_load (&unit->large) == MA_LARGE_LIVE)
      ma_heap_fork_copy (arena, unit, ma_range_start (unit), unit->pages << MA_PAGE_SHIFT);
}

static void
drop_secrets (malloc_arena *arena)
{
  if (!arena->is_secretmem || arena->fork_policy != MALLOC_ARENA_FORK_KEEP)
    return;
  for (struct ma_local *local = arena->locals; local; local = local->next)
    ma_slab_forked (local);
  for (struct ma_unit *unit = arena->larges; unit; unit = unit->heap_next)
    ma_heap_fork_done (unit);
}

static void
before_fork (void)
{
  pthread_mutex_lock (&table_lock);
  for (unsigned i = 0; i < MA_ARENAS; i++)
    if (ma_arena_table[i])
      for (struct ma_local *local = ma_arena_table[i]->locals; local; local = local->next)
        pthread_mutex_lock (&local->lock);
  for (unsigned i = 0; i < MA_ARENAS; i++)
    if (ma_arena_table[i])
      {
        pthread_mutex_lock (&ma_arena_table[i]->fork_lock);
        pthread_mutex_lock (&ma_arena_table[i]->lock);
        copy_secrets (ma_arena_table[i]);
      }
  ma_region_lock ();
}

static void
unlock_all (void)
{
  ma_region_unlock ();
  for (unsigned i = 0; i < MA_ARENAS; i++)
    if (ma_arena_table[i])
      {
        pthread_mutex_unlock (&ma_arena_table[i]->lock);
        pthread_mutex_unlock (&ma_arena_table[i]->fork_lock);
        for (struct ma_local *local = ma_arena_table[i]->locals; local; local = local->next)
          pthread_mutex_unlock (&local->lock);
      }
  pthread_mutex_unlock (&table_lock);
}

static void
after_fork (void)
{
  for (unsigned i = 0; i < MA_ARENAS; i++)
    if (ma_arena_table[i])
      drop_secrets (ma_arena_table[i]);
  unlock_all ();
}

/* A part of an arena whose policy left its memory out of the child: the address space is reserved
 * again, so that nothing else comes to lie where blocks of ours were, and is not used any more. */
static void
abandon (struct ma_local *local)
{
  for (struct ma_unit *heap = local->heaps; heap; heap = heap->heap_next)
    for (uint32_t i = 0; i < heap->heap_units; i++)
      if (heap[i].state != 0)
        ma_heap_fill_hole (ma_unit_base (&heap[i]), MA_UNIT);
  struct ma_local *next = local->next;
  struct ma_thread *owner = atomic_load (&local->owner);
  take_kept (local);
  init_local (local, local->arena);
  local->next = next;
  atomic_store (&local->owner, owner);
}

static void
restore_larges (malloc_arena *arena)
{
  for (struct ma_unit *unit = arena->larges; unit; unit = unit->heap_next)
    {
      size_t bytes = unit->pages << MA_PAGE_SHIFT;
      char *start = ma_range_start (unit);
      if (arena->fork_policy == MALLOC_ARENA_FORK_REFUSE)
        ma_heap_fill_hole (start, bytes);
      else if (unit->state & MA_UNIT_SECRET)
        {
          int is_freed = atomic_load (&unit->large) == MA_LARGE_FREED;
          /* Freed since it was copied: not that. */
          if (is_freed)
            ma_heap_fork_done (unit);
          if (ma_heap_fork_restore (arena, unit, start, bytes) != 0)
            {
              unit->is_locked = 0;
              unit->state &= (uint8_t)~MA_UNIT_OPEN;
            }
          else if (unit->state & MA_UNIT_SECRET)
            ma_count_locked (arena, bytes);
          if (arena->is_isolated && is_freed)
            os_close (start, bytes);
        }
      ma_heap_fork_done (unit);
    }
  if (arena->fork_policy != MALLOC_ARENA_FORK_REFUSE)
    return;
  arena->larges = NULL;
  atomic_store (&arena->mapped, 0);
  atomic_store (&arena->large_blocks, 0);
  atomic_store (&arena->large_bytes, 0);
}

/* After all secret memory is there again: that would be lost where the limit is met, and this is only unlocked. */
static void
lock_again (malloc_arena *arena)
{
  for (struct ma_local *local = arena->locals; local; local = local->next)
    ma_slab_lock_again (local);
  for (struct ma_unit *unit = arena->larges; unit; unit = unit->heap_next)
    if (unit->is_locked && !(unit->state & MA_UNIT_SECRET))
      unit->is_locked = ma_heap_lock_again (arena, ma_range_start (unit),
                                            unit->pages << MA_PAGE_SHIFT, unit->state);
}

/* The child has one thread, no locks on its memory, and no guards in memory that was wiped. */
static void
in_child (void)
{
  struct ma_thread *self = ma_self;
  unlock_all ();
  ma_heap_fill_lost ();
  for (struct ma_thread *thread = threads; thread;)
    {
      struct ma_thread *next = thread->next;
      if (thread != self)
        {
          memset (thread->locals, 0, sizeof thread->locals);
          thread->depth = 0;
          thread->stack = NULL;
          thread->next = unused_threads;
          unused_threads = thread;
        }
      thread = next;
    }
  threads = self;
  late_threads = 0;
  if (self)
    {
      self->previous = self->next = NULL;
      self->late = 0;
    }
  ma_range_forked ();
  for (unsigned i = 0; i < MA_ARENAS; i++)
    {
      malloc_arena *arena = ma_arena_table[i];
      if (arena == NULL)
        continue;
      ma_count_locked (arena, -atomic_load (&arena->locked));
      atomic_store (&arena->warm, 0);
      atomic_store (&arena->owners, 0);
      for (struct ma_local *local = arena->locals; local; local = local->next)
        {
          if (atomic_load (&local->owner) != self)
            atomic_store (&local->owner, MA_NOBODY);
          else
            atomic_store (&arena->owners, 1);
          atomic_store (&local->remote, ma_remote_bytes (local)); /* no guests */
          if (arena->fork_policy == MALLOC_ARENA_FORK_REFUSE)
            abandon (local);
          else
            ma_slab_after_fork (local);
        }
      restore_larges (arena);
      ma_range_inherited (arena);
    }
  for (unsigned i = 0; i < MA_ARENAS; i++)
    if (ma_arena_table[i])
      {
        lock_again (ma_arena_table[i]);
        for (struct ma_local *local = ma_arena_table[i]->locals; local; local = local->next)
          ma_range_after_fork (local);
      }
}

/* ---- arenas ---- */

/* Ended arenas are used again late, oldest first: until then a stale handle is seen as one. */
enum
{
  STALE = 64
};
static malloc_arena *stale[STALE];
static size_t stale_next;

static malloc_arena *
take_arena (void)
{
  malloc_arena *arena = stale[stale_next % STALE];
  if (arena)
    stale[stale_next % STALE] = NULL;
  return arena ? arena : ma_pool (sizeof *arena);
}

static void
put_arena (malloc_arena *arena)
{
  stale[stale_next++ % STALE] = arena;
}

/* Whether one of the properties was refused, with ERROR if that is not 0. */
static int
is_refused (malloc_arena *arena, unsigned properties, int error)
{
  for (; properties; properties &= properties - 1)
    {
      int refused = atomic_load (&arena->refused[__builtin_ctz (properties)]);
      if (refused && (error == 0 || refused == error))
        return 1;
    }
  return 0;
}

malloc_arena *
ma_arena_new (const struct malloc_arena_options *options, enum ma_use use)
{
  int refused = ma_region_init ();
  if (refused)
    {
      errno = refused;
      return NULL;
    }
  static uint32_t serial;
  pthread_mutex_lock (&table_lock);
  unsigned place = MA_ARENAS;
  for (unsigned i = 0; i < MA_ARENAS && place == MA_ARENAS; i++)
    if (ma_arena_table[(table_next + i) % MA_ARENAS] == NULL)
      place = (table_next + i) % MA_ARENAS;
  int is_full = place == MA_ARENAS;
  malloc_arena *arena = is_full ? NULL : take_arena ();
  if (arena)
    {
      memset (arena, 0, sizeof *arena);
      arena->index = place;
      arena->serial = ++serial;
      arena->kind = options->kind;
      arena->lock_policy = options->lock;
      arena->fork_policy = options->fork;
      arena->is_secure = (options->kind & HEAP_SECURE) != 0;
      arena->is_plain = options->kind == HEAP_DEFAULT;
      arena->is_isolated = (options->kind & HEAP_ISOLATED) != 0;
      arena->is_secretmem = (options->kind & HEAP_SECRETMEM) != 0;
      arena->is_tagged = (options->kind & HEAP_TAGGED) != 0;
      arena->is_wiped = arena->is_secure || arena->is_tagged;
      arena->is_verified = arena->is_secure && ma_options ()->verify == MA_ON;
      arena->use = use;
      arena->limit = options->limit;
      arena->threshold = arena->is_isolated ? 0 : options->isolate_threshold;
      if (arena->threshold > MA_DENSE_MOST + 1 && !arena->is_plain)
        arena->threshold = MA_DENSE_MOST + 1;
      arena->heap_units = os_round_up (options->heap_size, MA_UNIT) >> MA_UNIT_SHIFT;
      /* In a small region a few heaps would leave nothing to the other threads. */
      if (arena->heap_units > ma_region_units () / 256)
        arena->heap_units = ma_region_units () / 256 + 1;
      ma_heap_bounds (arena);
      strncpy (arena->name, options->name, MA_NAME - 1);
      pthread_mutex_init (&arena->fork_lock, NULL);
      pthread_mutex_init (&arena->lock, NULL);
      arena->magic = MA_MAGIC;
      ma_arena_table[place] = arena;
      table_next = place + 1;
    }
  pthread_mutex_unlock (&table_lock);
  if (arena == NULL)
    {
      errno = is_full ? ENOSPC : ENOMEM;
      return NULL;
    }
  /* What the kernel gives is seen by trying: the receipt is true from the first moment, and
   * `require` fails here rather than at the first secret. */
  struct ma_local *local = ma_local_of (arena);
  void *p = local ? ma_alloc (local, 1) : NULL;
  int error = p ? 0 : errno;
  if (p == NULL && is_refused (arena, MALLOC_ARENA_LOCKED | MALLOC_ARENA_SECRETMEM, 0))
    error = EPERM;
  /* Asked for by name, and no such thing in this kernel. */
  if (is_refused (arena, MALLOC_ARENA_SECRETMEM, ENOSYS)
      || is_refused (arena, MALLOC_ARENA_TAGGED, 0))
    error = ENOTSUP;
  if (p)
    ma_release (p);
  if (error)
    {
      ma_arena_delete (arena);
      errno = error;
      return NULL;
    }
  arena->is_made = 1;
  local->peak = 0;
  atomic_store (&arena->large_peak, 0);
  return arena;
}

static int
is_entered (const malloc_arena *arena)
{
  for (struct ma_thread *thread = threads; thread; thread = thread->next)
    for (unsigned i = 0; i < atomic_load (&thread->depth); i++)
      if (atomic_load (&thread->frames[i].arena) == arena)
        return 1;
  return 0;
}

int
ma_arena_delete (malloc_arena *arena)
{
  size_t bytes;
  pthread_mutex_lock (&table_lock);
  size_t blocks = atomic_load (&arena->large_blocks);
  for (struct ma_local *local = arena->locals; local; local = local->next)
    {
      pthread_mutex_lock (&local->lock);
      blocks += ma_slab_live (local, &bytes);
      /* Afterwards: who freed the last one there may not be done with it. */
      blocks += ma_guests (local);
      pthread_mutex_unlock (&local->lock);
    }
  if (blocks != 0 || is_entered (arena) || atomic_load (&arena->holds) != 0)
    {
      pthread_mutex_unlock (&table_lock);
      errno = EBUSY;
      return -1;
    }
  while (arena->locals)
    {
      struct ma_local *local = arena->locals;
      pthread_mutex_lock (&local->lock);
      ma_range_flush (local);
      ma_slab_end (local);
      pthread_mutex_unlock (&local->lock);
      arena->locals = local->next;
      take_kept (local);
      local->next = unused_locals;
      unused_locals = local;
    }
  for (struct ma_thread *thread = threads; thread; thread = thread->next)
    thread->locals[arena->index] = NULL;
  arena->magic = 0;
  arena->serial = 0; /* no name any more for what was in it */
  ma_arena_table[arena->index] = NULL;
  put_arena (arena);
  pthread_mutex_unlock (&table_lock);
  return 0;
}
