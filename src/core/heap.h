/* heap.h - what an arena is made of: its properties and accounts, and each thread's part of it.
 *
 * Owns: struct malloc_arena, struct ma_local, and the step from address space to memory that has the
 * arena's properties (ma_heap_open and its relatives), where the kernel's refusals are met.
 * Locks: arena->lock guards the arena's lists; local->lock guards a local arena's lists against
 * everyone but its owner's fast paths, which take no lock. Order: table, local, fork_lock, arena,
 * region.
 * Invariant: a local arena has one owner at a time; only the owner touches current, the spots, the free bits
 * and the counters, or, while the owner is MA_NOBODY, whoever holds local->lock.
 */
#ifndef MA_HEAP_H
#define MA_HEAP_H

#include <sys/single_threaded.h>

#include "region.h"
#include "sizeclass.h"

enum
{
  MA_ARENAS = 256,
  MA_BINS = 73,               /* of warm large blocks, by pages */
  MA_WARM_LEAST = 256 << 10,  /* bytes of them that each thread keeps whatever the others do */
  MA_RETURNED_MOST = 1 << 20, /* of those that others give back to a thread */
  MA_NAME = 32
};

#define MA_MAGIC 0x616e6572614d614d /* of a live arena */

enum ma_use
{
  MA_FOR_PROCESS, /* malloc_arena_get */
  MA_OWN,         /* malloc_arena_new */
  MA_FOR_ALL      /* option `active`: every allocation of the program */
};

struct malloc_arena
{
  uint64_t magic;
  unsigned index;  /* in the table of arenas and in each thread's locals */
  uint32_t serial; /* no other arena's */
  unsigned kind;
  unsigned lock_policy;
  unsigned fork_policy;
  int is_secure; /* wiped, locked, undumped, verified */
  int is_plain;  /* HEAP_DEFAULT: nothing of that, and slots without canaries */
  int is_isolated;
  int is_secretmem;
  int is_tagged;
  int is_wiped; /* free blocks are zero */
  int is_verified;
  int is_made; /* it had its first block: whoever asked for it has it */
  enum ma_use use;
  size_t limit;
  _Atomic size_t reserve; /* bytes of it for who was refused more; 0 while there are no objects */
  size_t threshold;       /* requests from this size up are large */
  size_t heap_units;
  size_t spare_most;    /* bytes that may be mapped with pages that nobody asked for among them */
  size_t warm_most;     /* bytes of wiped large blocks that each thread keeps */
  size_t warm_lockable; /* locked bytes of them that all arenas and threads keep */
  size_t warm_shared;   /* bytes of them that all threads keep, of a limit; */
  _Atomic size_t warm;  /* so many they do, where there is one */
  char name[MA_NAME];
  /* Memory from the kernel, in bytes, and what it refused, by property. */
  _Atomic size_t mapped;
  _Atomic size_t locked;
  _Atomic int refused[MALLOC_ARENA_PROPERTIES];
  _Atomic size_t large_blocks;
  _Atomic size_t large_bytes;
  _Atomic size_t large_peak;
  _Atomic size_t ranged;     /* bytes of ranges that slabs could have, live or warm */
  pthread_mutex_t fork_lock; /* before LOCK: no fork between a mapping and its place in LARGES */
  pthread_mutex_t lock;
  struct ma_local *locals; /* all, for fork and stats */
  _Atomic unsigned owners; /* threads that have one of them */
  _Atomic unsigned holds;  /* scopes of who waits, to be entered again */
  struct ma_unit *larges;  /* all large ranges, live or warm */
};

/* Where objects of a size are taken from: a word of free bits in their class's current slab, never in another
 * one, which may be closed. Written without the lock: a forked child forgets it. */
struct ma_spot
{
  uint64_t *word; /* of ma_no_slab until one is looked for */
  char *start;    /* of the word's first slot */
  size_t slot;    /* bytes */
} __attribute__ ((aligned (32)));

struct ma_local
{
  _Atomic (struct ma_thread *) owner;
  malloc_arena *arena;
  size_t threshold; /* of its arena; 0 in a plain or tagged one, */
  size_t plain;     /* of which the first has it here: the way of the others is not longer for it */
  size_t object_threshold; /* objects from this size up are blocks like any other */
  int is_plain;
  int is_tagged;
  int is_wiped;
  int is_verified;
  /* Live bytes, and the most of them that there were at a free, both less FLOOR: fewer than that lead to a look
   * for pages that nobody uses. So an allocation is one addition, and a free looks at a sign. */
  ptrdiff_t live;
  ptrdiff_t peak;
  size_t floor;
  /* Of the slabs that may be MA_MIXED (slot.h) the one that a block was taken from last, or NULL. No other of them has
   * its own shape. */
  struct ma_unit *run;
  size_t given_pages; /* since nothing lived last */
  size_t warm_most;   /* pages that nobody uses and that stay present, if no other thread has any */
  size_t present;     /* pages of slabs that are not given back */
  uint8_t turn;       /* counts how often cold ones were given back */
  struct ma_unit *current[MA_SLAB_CLASSES];      /* ma_no_slab where there is none */
  struct ma_unit *partial[MA_SLAB_CLASSES];      /* others with room */
  struct ma_spot spots[MA_OBJECT_MOST / 16 + 1]; /* by sixteenths of an object's size */
  /* Units: in use they are found through the heaps; idle ones are listed. */
  struct ma_unit *idle;
  struct ma_unit *heaps;
  struct ma_unit *fresh; /* next never used one of the first heap */
  uint32_t fresh_left;
  struct ma_unit *warm[MA_BINS]; /* wiped large blocks, ready */
  size_t warm_bytes;
  size_t warm_small;   /* of these, those in the arena's RANGED */
  unsigned warm_epoch; /* counts how often they had to make room, */
  uint8_t was_asked;   /* and whether there was a large allocation since */
  unsigned warm_hand;  /* bin that makes room next */
  /* What all arenas had locked when a lock was refused although nothing was left that nobody used; and how many were
   * since. */
  size_t locked_then;
  unsigned refusals;
  size_t kept; /* pages that stay present though its thread is gone and nobody uses them */
  struct ma_local *next; /* of the arena */
  pthread_mutex_t lock;
  /* A line of its own: other threads write it. */
  _Atomic (struct ma_unit *) queue __attribute__ ((aligned (128))); /* slabs with remote frees */
  /* Bytes freed there and still counted in LIVE; and, in MA_GUESTs, how many threads are in the middle of that: until
   * then the arena is not deleted. */
  _Atomic size_t remote;
  /* Ranges of blocks that it made and other threads freed, wiped, and their bytes. */
  _Atomic (struct ma_unit *) returned;
  _Atomic size_t returned_bytes;
};

extern MA_HIDDEN _Atomic size_t ma_locked_by_all;

static inline void
ma_count_locked (malloc_arena *arena, size_t more)
{
  atomic_fetch_add_explicit (&arena->locked, more, memory_order_relaxed);
  atomic_fetch_add_explicit (&ma_locked_by_all, more, memory_order_relaxed);
}

#define MA_GUEST ((size_t)1 << 48)

static inline size_t
ma_remote_bytes (const struct ma_local *local)
{
  return atomic_load_explicit (&local->remote, memory_order_relaxed) & (MA_GUEST - 1);
}

static inline size_t
ma_guests (const struct ma_local *local)
{
  return atomic_load_explicit (&local->remote, memory_order_acquire) / MA_GUEST;
}

/* By the owner; others read it. What the compiler makes of an atomic load, an addition and an atomic store is
 * three instructions. */
MA_INLINE void
ma_add_live (struct ma_local *local, size_t n)
{
#if defined(__x86_64__)
  __asm__ ("addq %1, %0" : "+m"(local->live) : "er"(n) : "cc");
#else
  __atomic_store_n (&local->live, local->live + (ptrdiff_t)n, __ATOMIC_RELAXED);
#endif
}

/* Whether fewer than FLOOR live now. */
MA_INLINE int
ma_subtract_live (struct ma_local *local, size_t n)
{
  ptrdiff_t live = local->live;
  if (unlikely (live > local->peak))
    __atomic_store_n (&local->peak, live, __ATOMIC_RELAXED);
  int is_low;
#if defined(__x86_64__)
  __asm__ ("subq %2, %1" : "=@ccs"(is_low), "+m"(local->live) : "er"(n));
#else
  live -= (ptrdiff_t)n;
  __atomic_store_n (&local->live, live, __ATOMIC_RELAXED);
  is_low = live < 0;
#endif
  return is_low;
}

/* A locked instruction takes five nanoseconds, and a large block that is ready has five: not while there is one
 * thread. */
static inline void
ma_count (_Atomic size_t *n, size_t more)
{
  if (__libc_single_threaded)
    atomic_store_explicit (n, atomic_load_explicit (n, memory_order_relaxed) + more,
                           memory_order_relaxed);
  else
    atomic_fetch_add_explicit (n, more, memory_order_acq_rel);
}

/* With the lock held, under which alone FLOOR changes. */
static inline size_t
ma_live_bytes (const struct ma_local *local)
{
  return (size_t)__atomic_load_n (&local->live, __ATOMIC_RELAXED) + local->floor;
}

static inline size_t
ma_peak_bytes (const struct ma_local *local)
{
  ptrdiff_t live = __atomic_load_n (&local->live, __ATOMIC_RELAXED);
  ptrdiff_t peak = __atomic_load_n (&local->peak, __ATOMIC_RELAXED);
  return (size_t)(live > peak ? live : peak) + local->floor;
}

/* The owner of a local arena whose thread has ended. */
extern MA_HIDDEN struct ma_thread ma_nobody;
#define MA_NOBODY (&ma_nobody)

/* The calling thread, for ownership; NULL before its first arena and after its end. */
extern MA_HIDDEN __thread struct ma_thread *ma_self __attribute__ ((tls_model ("initial-exec")));

/* The arena that refused this thread an object last, of SIZE bytes: of its reserve the thread may have slabs then. And
 * the one whose limit it met last, for whatever block, which it may have got in another way. */
struct ma_refusal
{
  malloc_arena *arena;
  size_t size;
  malloc_arena *met;
};
extern MA_HIDDEN __thread struct ma_refusal ma_refused __attribute__ ((tls_model ("initial-exec")));

/* Sets spare_most, a quarter of what the arena may have, so that who comes later finds the rest, and the bounds of what
 * stays warm, three eighths. No spare pages for secret memory, where the kernel's refusal of one would be told as a
 * step down, for an isolated arena, where the page before a block must fault, and for a plain one, whose blocks grow
 * where they are; and next to nothing warm of secret memory, for the same reason. */
void ma_heap_bounds (malloc_arena *arena);
/* BYTES more of the arena's limit, for a slab or a range; 0 or ENOMEM. */
int ma_heap_charge (malloc_arena *arena, size_t bytes, int is_slab);
void ma_heap_refund (malloc_arena *arena, size_t bytes);

/* Makes a unit's SIZE bytes at P accessible with the arena's dump and fork properties. STATE is the
 * unit's memory of what the kernel was told. 0 or an errno. */
int ma_heap_open (malloc_arena *arena, void *p, size_t size, uint8_t *state);
/* The way back: as first reserved, whatever it was told. 0 or an errno, and then what the kernel holds of it is
 * ma_heap_unsure: a part may be inaccessible, and to be used again it is to be opened. */
int ma_heap_close (void *p, size_t size, uint8_t state);
uint8_t ma_heap_unsure (uint8_t state);
/* Locks memory that is opened, where the arena wants it. *LOCKED tells whether it is; 0, or the errno
 * of the kernel's refusal. The caller may give something back and try again before it accepts that
 * with ma_heap_unlockable (noted, and said once where that is due): 0, go on unlocked, or EPERM
 * under `require`. */
int ma_heap_lock (malloc_arena *arena, void *p, size_t size, uint8_t state, int *locked);
int ma_heap_unlockable (malloc_arena *arena, int refused);
void ma_heap_unlocked (malloc_arena *arena, size_t size); /* accounts only */
/* In a forked child, where nobody can be told: refused is said and noted whatever the policy.
 * Whether it is locked. */
int ma_heap_lock_again (malloc_arena *arena, void *p, size_t size, uint8_t state);

/* N units that could not be closed, of which STATE tells what the kernel still holds, are not used again.
 * Nothing else may come to lie there in a forked child either, which reserves what it does not have. */
void ma_heap_lost (struct ma_unit *unit, size_t n, uint8_t state);
void ma_heap_fill_lost (void);
/* In a child, address space that its parent's memory is absent from, reserved again. */
void ma_heap_fill_hole (void *p, size_t size);

/* Secret memory over fork. Before it: a copy for the child where it is to have one (the unit's
 * fork_copy). After it, in the child: the copy, or new zeros, in place of the hole. Where secret memory is refused
 * zeros are ordinary memory, as the unit's state then tells, still to be locked; that is said and noted whatever the
 * policy. 0, or an errno with the hole reserved again, which the caller notes as not open: it stays one. At the end,
 * in both: the copy dropped. */
void ma_heap_fork_copy (malloc_arena *arena, struct ma_unit *unit, const void *p, size_t size);
int ma_heap_fork_restore (malloc_arena *arena, struct ma_unit *unit, void *p, size_t size);
void ma_heap_fork_done (struct ma_unit *unit);

/* Gives everything of LOCAL that no block uses back to the kernel, because a limit was met; whether
 * that was anything. By its owner, lock held. */
int ma_local_reclaim (struct ma_local *local);
/* The same for what threads that are gone have left in ARENA, in all if it is NULL. Without a lock. */
int ma_left_reclaim (malloc_arena *arena);
/* The same for what the calling thread has locked in other arenas, and threads that are gone in any, because what may
 * be locked was met. With locks held: where somebody else holds one, nothing. */
int ma_others_reclaim (const malloc_arena *arena);

/* Whether what nobody uses is given back where a lock was refused, which takes long, and leaves nothing ready. Not if it was
 * of no use the last time, and nobody has let go of much that was locked since; but of one that must be locked always,
 * and now and then, as something may have come out of use. By the owner. */
int ma_heap_may_reclaim (struct ma_local *local);
/* And whether the lock was refused after it. */
void ma_heap_reclaimed (struct ma_local *local, int was_refused);
/* Whether much that was locked then is not any more. */
int ma_heap_has_let_go (const struct ma_local *local);

/* Notes that the kernel refused a property. */
void ma_heap_refused (malloc_arena *arena, unsigned property, int error);

#endif
