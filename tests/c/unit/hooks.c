/* The hooks of a language runtime: what is theirs goes to the active arena and comes back by its address, all else to
 * the original of that hook, with the context of the call. */
#include "check.h"
#include "runtime.h"

#include <malloc.h>
#include <string.h>

/* What was called of each original; the last of them are the process's malloc's. */
static struct
{
  int mallocs, callocs, reallocs, frees, moves;
  void *context;
} called[MA_HOOKS + 1];

#define ORIGINAL(i)                                                                                \
  static void *malloc_##i (void *context, size_t size)                                             \
  {                                                                                                \
    called[i].mallocs++;                                                                           \
    called[i].context = context;                                                                   \
    return malloc (size);                                                                          \
  }                                                                                                \
  static void *calloc_##i (void *context, size_t count, size_t size)                               \
  {                                                                                                \
    called[i].callocs++;                                                                           \
    called[i].context = context;                                                                   \
    return calloc (count, size);                                                                   \
  }                                                                                                \
  static void *realloc_##i (void *context, void *p, size_t size)                                   \
  {                                                                                                \
    called[i].reallocs++;                                                                          \
    called[i].context = context;                                                                   \
    return realloc (p, size);                                                                      \
  }                                                                                                \
  static void free_##i (void *context, void *p)                                                    \
  {                                                                                                \
    called[i].frees++;                                                                             \
    called[i].context = context;                                                                   \
    free (p);                                                                                      \
  }                                                                                                \
  static void *move_in_##i (void *context, void *p, size_t size)                                   \
  {                                                                                                \
    called[i].moves++;                                                                             \
    called[i].context = context;                                                                   \
    free (p);                                                                                      \
    return ma_object_alloc (ma_active, size);                                                      \
  }
ORIGINAL (0)
ORIGINAL (1)
ORIGINAL (2)

enum
{
  LIBC = MA_HOOKS
};

static void *
libc_malloc (size_t size)
{
  CHECK (size > 0);
  called[LIBC].mallocs++;
  return malloc (size);
}

static void *
libc_calloc (size_t count, size_t size)
{
  CHECK (count > 0 && size > 0);
  called[LIBC].callocs++;
  return calloc (count, size);
}

static void *
libc_realloc (void *p, size_t size)
{
  CHECK (size > 0);
  called[LIBC].reallocs++;
  return realloc (p, size);
}

static void
libc_free (void *p)
{
  called[LIBC].frees++;
  free (p);
}

struct hooks
{
  ma_hook_malloc *malloc;
  ma_hook_calloc *calloc;
  ma_hook_realloc *realloc;
  ma_hook_free *free;
  int moves; /* whose move_in is called */
};
#define HOOKS(name, moves)                                                                         \
  (struct hooks)                                                                                   \
  {                                                                                                \
    ma_hook_malloc_##name, ma_hook_calloc_##name, ma_hook_realloc_##name, ma_hook_free_##name,     \
        moves                                                                                      \
  }

static void
look (int i, struct hooks hook)
{
  malloc_arena *arena = malloc_arena_get (HEAP_SECURE);
  int context;
  void *seen = i == LIBC ? NULL : &context;
  for (int round = 1; round <= 3; round++)
    {
      /* Sizes of objects, of other small blocks and of large ones. */
      size_t size = round == 1 ? 40 : round == 2 ? 1000 : 100000;
      unsigned char *outside = hook.malloc (&context, size);
      CHECK (outside != NULL && malloc_arena_of (outside) == NULL);
      CHECK (called[i].mallocs == round && called[i].context == seen);
      unsigned char *zeros = hook.calloc (&context, size, 2);
      CHECK (zeros != NULL && malloc_arena_of (zeros) == NULL && check_all (zeros, 0, size * 2));
      memset (zeros, 7, size);
      zeros = hook.realloc (&context, zeros, size * 3);
      CHECK (zeros != NULL && malloc_arena_of (zeros) == NULL && check_all (zeros, 7, size));
      CHECK (called[i].callocs == round && called[i].reallocs == round);
      malloc_arena_enter (arena);
      size_t live = check_stats (arena).live_blocks;
      unsigned char *inside = hook.malloc (NULL, size);
      CHECK (inside != NULL && malloc_arena_of (inside) == arena && check_all (inside, 0, size));
      unsigned char *more = hook.calloc (NULL, size, 2);
      CHECK (more != NULL && malloc_arena_of (more) == arena && check_all (more, 0, size * 2));
      CHECK_EQUAL (check_stats (arena).live_blocks, live + 2);
      CHECK (called[i].mallocs == round && called[i].callocs == round);
      int moves = called[hook.moves].moves;
      zeros = hook.realloc (&context, zeros, size);
      CHECK (malloc_arena_of (zeros) == arena && called[hook.moves].moves == moves + 1);
      called[i].context = NULL;
      CHECK_EQUAL (called[i].frees, (round - 1));
      hook.free (&context, outside);
      CHECK (called[i].frees == round && called[i].context == seen);
      malloc_arena_leave (arena);
      /* By its address, whatever is active. Of no bytes it lives on. */
      memset (inside, 7, size);
      inside = hook.realloc (NULL, inside, size * 3);
      CHECK (malloc_arena_of (inside) == arena && check_all (inside, 7, size));
      inside = hook.realloc (NULL, inside, 0);
      CHECK (inside != NULL && malloc_arena_of (inside) == arena);
      hook.free (NULL, inside);
      hook.free (NULL, more);
      hook.free (NULL, zeros);
      CHECK_EQUAL (check_stats (arena).live_blocks, live);
      CHECK (called[i].mallocs == round && called[i].frees == round);
      CHECK (called[i].reallocs == round && called[hook.moves].moves == moves + 1);
    }
  hook.free (&context, NULL);
  CHECK_EQUAL (called[i].frees, 4);
  if (i == LIBC)
    {
      /* In place of allocators that ask for a byte where none is asked for. */
      void *p = hook.malloc (NULL, 0), *q = hook.calloc (NULL, 0, 5);
      p = hook.realloc (NULL, p, 0);
      CHECK (p != NULL && q != NULL);
      hook.free (NULL, p);
      hook.free (NULL, q);
      CHECK (called[i].mallocs == 4 && called[i].callocs == 4 && called[i].reallocs == 4);
    }
  /* Nobody else's was called. */
  for (int other = i + 1; other <= LIBC; other++)
    CHECK (called[other].mallocs == 0 && called[other].callocs == 0 && called[other].reallocs == 0
           && called[other].frees == 0);
}

static void *
never_malloc (void *context, size_t size)
{
  (void)context;
  (void)size;
  CHECK_FAIL ("called: %s", "the malloc of a second ma_hook");
}

static void *
never (size_t size)
{
  return never_malloc (NULL, size);
}

#define ORIGINALS(i) { malloc_##i, calloc_##i, realloc_##i, free_##i, move_in_##i }

int
main (void)
{
  CHECK (ma_hook ((struct ma_hooked[]){ ORIGINALS (0), ORIGINALS (1), ORIGINALS (2) },
                  &(struct ma_malloc){ libc_malloc, libc_calloc, libc_realloc, libc_free }));
  CHECK (!ma_hook ((struct ma_hooked[MA_HOOKS]){ { .malloc = never_malloc },
                                                 { .malloc = never_malloc },
                                                 { .malloc = never_malloc } },
                   &(struct ma_malloc){ .malloc = never }));
  look (0, HOOKS (0, 0));
  look (1, HOOKS (1, 1));
  look (2, HOOKS (2, 2));
  look (LIBC, HOOKS (libc, 0));
  return 0;
}
