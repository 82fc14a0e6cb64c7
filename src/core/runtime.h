/* runtime.h - what a language runtime needs of the library, and nothing that a program should call.
 *
 * A runtime with allocator hooks of its own (CPython) routes by address and by the active arena
 * itself, also where the process's malloc is not this library (it was loaded late). These symbols
 * are exported for the extension that ships with the library; they are not a public interface.
 */
#ifndef MA_RUNTIME_H
#define MA_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#include "malloc_arena.h"

struct ma_local; /* one thread's part of one arena */

#define MA_EXPORT __attribute__ ((visibility ("default")))

/* The local arena that is active in this thread; NULL: none. Initial-exec, so that the test costs
 * one load; one word, so that a late dlopen finds room for it. Written by enter and leave only. */
extern MA_EXPORT __thread struct ma_local *ma_active __attribute__ ((tls_model ("initial-exec")));

/* The reserved range that holds every arena block; both 0 before the first arena. Set once. To be read
 * from position-independent code (-fPIC, not -fPIE) or by dlsym: other programs do not link. */
struct ma_region
{
  uintptr_t base;
  size_t size;
};
extern MA_EXPORT struct ma_region ma_region;

/* Where the CPU may have memory tags (see tag.h), the top byte of a pointer is not of its address. */
#if defined(__aarch64__)
#define MA_HAS_TAGS 1
#define MA_UNTAGGED (~(uintptr_t)0 >> 8)
#else
#define MA_HAS_TAGS 0
#define MA_UNTAGGED (~(uintptr_t)0)
#endif

/* Whether P was allocated here. The ownership test: one subtract, one compare. */
static inline int
ma_owns (const void *p)
{
  return ((uintptr_t)p & MA_UNTAGGED) - ma_region.base < ma_region.size;
}

/* As malloc, calloc (for one object), realloc, free, malloc_usable_size, with the arena given
 * (allocation) or found from the block, which must be one of ours. errno as glibc's. */
MA_EXPORT void *ma_alloc (struct ma_local *local, size_t size);
MA_EXPORT void *ma_zalloc (struct ma_local *local, size_t size);
MA_EXPORT void *ma_resize (void *p, size_t size);
MA_EXPORT void ma_release (void *p);
MA_EXPORT size_t ma_usable (const void *p);
/* Whether P, an address of ours, is where blocks begin: what lies on us, as a debugging allocator with a header of its
 * own, hands out others. */
MA_EXPORT int ma_begins (const void *p);

/* The same for the objects of a language runtime, which come and go by the million: without a canary
 * behind them, and without a look at whether a slot is still zero when it is given out. All else
 * holds. A failure is remembered for the thread. calloc's overflow is one. */
MA_EXPORT void *ma_object_alloc (struct ma_local *local, size_t size);
MA_EXPORT void *ma_object_zalloc (struct ma_local *local, size_t count, size_t size);
MA_EXPORT void *ma_object_resize (void *p, size_t size);
MA_EXPORT void ma_object_free (void *p);
/* Before the first object of the arena. If it has a limit, a sixteenth of that, up to 1 MiB, is a reserve from now on
 * where the arena is active: for small objects of a thread that was refused one, as a runtime that tells of that makes
 * some for each frame that it leaves. */
MA_EXPORT void ma_object_begin (malloc_arena *arena);
/* The arena that refused an object of this thread last, of *SIZE bytes, or whose limit it met with another block, of 0;
 * NULL if none since it was forgotten. */
MA_EXPORT malloc_arena *ma_object_refused (size_t *size);
MA_EXPORT void ma_object_forget_refused (void);

/* Hooks on three allocators of a runtime, whose functions take a context first: a block comes from the active arena, or
 * from the original, with the context of the call, if there is none; it is freed and resized by its address. Not by way
 * of the functions above: each jump counts here. */
enum
{
  MA_HOOKS = 3
};
typedef void *ma_hook_malloc (void *context, size_t size);
typedef void *ma_hook_calloc (void *context, size_t count, size_t size);
typedef void *ma_hook_realloc (void *context, void *p, size_t size);
typedef void ma_hook_free (void *context, void *p);
struct ma_hooked
{
  ma_hook_malloc *malloc;
  ma_hook_calloc *calloc;
  ma_hook_realloc *realloc;
  ma_hook_free *free;
  ma_hook_realloc *move_in; /* in an arena: of a block from outside, or of none */
};
/* Before a hook is called: what it hooks. Whether that was the first call; it is once and for good, so that another
 * copy of the extension finds its hooks in place. */
MA_EXPORT int ma_hook (const struct ma_hooked originals[MA_HOOKS]);
MA_EXPORT ma_hook_malloc ma_hook_malloc_0, ma_hook_malloc_1, ma_hook_malloc_2;
MA_EXPORT ma_hook_calloc ma_hook_calloc_0, ma_hook_calloc_1, ma_hook_calloc_2;
MA_EXPORT ma_hook_realloc ma_hook_realloc_0, ma_hook_realloc_1, ma_hook_realloc_2;
MA_EXPORT ma_hook_free ma_hook_free_0, ma_hook_free_1, ma_hook_free_2;

/* The calling thread's part of ARENA, made at first use; NULL with ENOMEM. */
MA_EXPORT struct ma_local *ma_local_of (malloc_arena *arena);

/* The arena that is active in the calling thread, NULL if none. */
MA_EXPORT malloc_arena *ma_active_arena (void);

/* HEAP_... of an arena. */
MA_EXPORT unsigned ma_kind_of (const malloc_arena *arena);

/* Whether it gives no memory that is not locked. */
MA_EXPORT int ma_requires_lock (const malloc_arena *arena);

/* Counts MORE who will enter ARENA again, or less: meanwhile it is not deleted. Takes no memory. */
MA_EXPORT void ma_arena_hold (malloc_arena *arena, int more);

/* How many enters of the calling thread are open. */
MA_EXPORT unsigned ma_depth (void);

/* stack.c: where a thread's stack lies, and what calls have left on it. Never more than the thread's own is written.
 * Room of the calling thread's stack below P, at most BYTES, which are then used, or all there is (SIZE_MAX); 0 on a
 * stack that is not the thread's. */
MA_EXPORT size_t ma_stack_room (char *p, size_t bytes);

/* As malloc_arena_scrub with LEAST bytes, from 32 KiB up; and if the last 16 KiB of them were written, as far as the
 * stack below was: until 16 KiB of it are zero. */
MA_EXPORT void ma_scrub_used (size_t least);

/* As malloc_arena_scrub with all of the thread's stack that is dead: the pages that are present are wiped, and what is in
 * swap of the others is dropped. Not on a stack for signals. */
MA_EXPORT void ma_scrub_all (void);

/* Wipes N bytes at P; the compiler cannot drop it. */
MA_EXPORT void ma_wipe (void *p, size_t n);

/* The arena that every allocation of the process goes to when MALLOC_ARENA_OPTIONS says so
 * (active=secure, active=default), else NULL. Its memory is kept in forked children. */
MA_EXPORT malloc_arena *ma_default_arena (void);

#endif
