/* arena.h - handles, threads, and which arena is active where.
 *
 * Owns: the table of arenas, each thread's struct ma_thread, the making and handing over of local
 * arenas, and what happens to all of it at fork.
 * Lock: the table lock, for making and ending arenas, locals and threads; never on a fast path.
 * Invariant: ma_active is the local arena of the innermost enter of this thread, or NULL.
 */
#ifndef MA_ARENA_H
#define MA_ARENA_H

#include "heap.h"

enum
{
  MA_DEPTH = 4096 /* different arenas nested in one thread; one entered again and again is one */
};

struct ma_frame
{
  _Atomic (malloc_arena *) arena; /* NULL: the ordinary malloc, or no more entered */
  struct ma_local *before;
  size_t count; /* enters of the same arena in a row */
};

struct ma_thread
{
  struct ma_local *locals[MA_ARENAS]; /* by arena index */
  _Atomic unsigned
      depth;   /* and the frames' arenas: written by the thread, read by who deletes one */
  char *stack; /* lowest address, once it is known */
  char *stack_end;
  char *stack_grown;      /* how far down the first stack was used, whatever its limit is by now */
  volatile int is_asking; /* for it: a signal handler must not ask again */
  unsigned scrubs;        /* ends of scopes */
  int late;               /* its id, if it had ended before; 0 */
  struct ma_thread *next; /* of all, or of the unused */
  struct ma_thread *previous;
  struct ma_frame frames[MA_DEPTH];
};

/* Makes an arena with options that are checked and complete; NULL with errno. */
malloc_arena *ma_arena_new (const struct malloc_arena_options *options, enum ma_use use);
/* Has tags checked in the calling thread, as option tag_check says; 0 or ENOTSUP. Each thread that deals
 * with a tagged arena needs that, and the kernel takes it from the thread itself only. */
int ma_arena_check_tags (void);
/* 0, or -1 with EBUSY. */
int ma_arena_delete (malloc_arena *arena);
/* Aborts unless ARENA is the handle of a live arena. */
void ma_arena_check (const malloc_arena *arena);

/* Gives what the calling thread's part of the arena, and parts of no thread, keep warm back to the
 * kernel; whether that was anything. The second is for all arenas, the thread's own parts only. */
int ma_arena_trim (malloc_arena *arena);
int ma_arena_trim_all (void);

/* As ma_stack_room, of the stack that the caller is on, for a handler of signals too. A stack for signals may be a part of
 * the thread's own, with frames in use below it. */
size_t ma_scrub_room (char *p, size_t bytes);

void ma_arena_enter (malloc_arena *arena);
void ma_arena_leave (malloc_arena *arena);

/* For walks: calls VISIT for each local arena, its lock held, with remote frees not yet taken in. */
void ma_arena_locals (malloc_arena *arena, void (*visit) (struct ma_local *, void *), void *data);
/* Calls VISIT for each arena, the table lock held: none is made or ended meanwhile. */
void ma_arena_each (void (*visit) (malloc_arena *, void *), void *data);
/* By index, NULL where there is none; for readers from outside. */
extern MA_HIDDEN malloc_arena *ma_arena_table[MA_ARENAS];

#endif
