/* peer.h - the allocator that a program here is compiled for, -DPEER_...: where the steady and where
 * the bursty part of the program allocates.
 *
 *   peer_start (separate)    the two parts in one heap, or each in its own; NULL or what is wrong
 *   peer_steady (size)       peer_burst (size)
 *   peer_free (p)            peer_free_burst (p)
 *   peer_trim ()             what the allocator has for giving memory back at once
 */
#ifndef PEER_H
#define PEER_H

#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined PEER_ARENA

#include <malloc_arena.h>
static malloc_arena *steady_arena, *burst_arena;

static const char *
peer_start (int separate)
{
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = PEER_ARENA, .name = "burst" };
  steady_arena = malloc_arena_get (PEER_ARENA);
  burst_arena = separate ? malloc_arena_new (&options) : steady_arena;
  return steady_arena != NULL && burst_arena != NULL ? NULL : strerror (errno);
}

static inline void *
peer_steady (size_t size)
{
  return malloc_arena (steady_arena, malloc, size);
}

static inline void *
peer_burst (size_t size)
{
  return malloc_arena (burst_arena, malloc, size);
}

static inline void
peer_free (void *p)
{
  free (p);
}

static void
peer_trim (void)
{
  malloc_arena_trim (steady_arena);
  malloc_arena_trim (burst_arena);
}

#elif defined PEER_JEMALLOC

#include <jemalloc/jemalloc.h>
static int steady_flags, burst_flags;
static unsigned caches[2];

/* An arena of one's own goes without the thread's cache, or has one of its own, as here. */
static int
new_flags (unsigned *cache)
{
  unsigned arena;
  size_t size = sizeof (unsigned);
  if (mallctl ("arenas.create", &arena, &size, NULL, 0) != 0
      || mallctl ("tcache.create", cache, &size, NULL, 0) != 0)
    return 0;
  return (int)(MALLOCX_ARENA (arena) | MALLOCX_TCACHE (*cache));
}

static const char *
peer_start (int separate)
{
  if (!separate)
    return NULL;
  steady_flags = new_flags (&caches[0]);
  burst_flags = new_flags (&caches[1]);
  return steady_flags != 0 && burst_flags != 0 ? NULL : "no arena";
}

static inline void *
peer_steady (size_t size)
{
  return steady_flags ? mallocx (size, steady_flags) : malloc (size);
}

static inline void *
peer_burst (size_t size)
{
  return burst_flags ? mallocx (size, burst_flags) : malloc (size);
}

static inline void
peer_free (void *p)
{
  if (steady_flags)
    dallocx (p, steady_flags);
  else
    free (p);
}

static inline void
peer_free_burst (void *p)
{
  if (burst_flags)
    dallocx (p, burst_flags);
  else
    free (p);
}
#define PEER_FREE_BURST

static void
peer_trim (void)
{
  for (int i = 0; i < 2 && burst_flags; i++)
    mallctl ("tcache.flush", NULL, NULL, &caches[i], sizeof caches[i]);
  char name[40];
  unsigned all = MALLCTL_ARENAS_ALL;
  mallctl ("thread.tcache.flush", NULL, NULL, NULL, 0);
  snprintf (name, sizeof name, "arena.%u.purge", all);
  mallctl (name, NULL, NULL, NULL, 0);
}

#elif defined PEER_MIMALLOC

#include <mimalloc.h>
static mi_heap_t *steady_heap, *burst_heap;

static const char *
peer_start (int separate)
{
  steady_heap = mi_heap_get_default ();
  burst_heap = separate ? mi_heap_new () : steady_heap;
  return burst_heap != NULL ? NULL : "no heap";
}

static inline void *
peer_steady (size_t size)
{
  return mi_heap_malloc (steady_heap, size);
}

static inline void *
peer_burst (size_t size)
{
  return mi_heap_malloc (burst_heap, size);
}

static inline void
peer_free (void *p)
{
  mi_free (p);
}

static void
peer_trim (void)
{
  mi_collect (1);
  mi_heap_collect (burst_heap, 1);
}

#elif defined PEER_GLIBC

static const char *
peer_start (int separate)
{
  return separate ? "glibc has no second heap for one thread" : NULL;
}

static inline void *
peer_steady (size_t size)
{
  return malloc (size);
}

static inline void *
peer_burst (size_t size)
{
  return malloc (size);
}

static inline void
peer_free (void *p)
{
  free (p);
}

static void
peer_trim (void)
{
  malloc_trim (0);
}

#else
#error "compile with -DPEER_... (see run.py)"
#endif

/* jemalloc wants to be told where a block is from. */
#ifndef PEER_FREE_BURST
#define peer_free_burst peer_free
#endif
#endif
