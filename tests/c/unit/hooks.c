/* The hooks of a language runtime: what is theirs goes to the active arena and comes back by its address, all else to
 * the original of that hook, with the context of the call. */
#include "check.h"
#include "runtime.h"

#include <malloc.h>
#include <string.h>

/* What was called of each original. */
static struct
{
  int mallocs, callocs, reallocs, frees, moves;
  void *context;
} called[MA_HOOKS];

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

struct hooks
{
  ma_hook_malloc *malloc;
  ma_hook_calloc *calloc;
  ma_hook_realloc *realloc;
  ma_hook_free *free;
};
#define HOOKS(i)                                                                                   \
  (struct hooks) { ma_hook_malloc_##i, ma_hook_calloc_##i, ma_hook_realloc_##i, ma_hook_free_##i }

static void
look (int i, struct hooks hook)
{
  malloc_arena *arena = malloc_arena_get (HEAP_SECURE);
  int context;
  for (int round = 1; round <= 3; round++)
    {
      /* Sizes of objects, of other small blocks and of large ones. */
      size_t size = round == 1 ? 40 : round == 2 ? 1000 : 100000;
      unsigned char *outside = hook.malloc (&context, size);
      CHECK (outside != NULL && malloc_arena_of (outside) == NULL);
      CHECK (called[i].mallocs == round && called[i].context == &context);
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
      int moves = called[i].moves;
      zeros = hook.realloc (&context, zeros, size);
      CHECK (malloc_arena_of (zeros) == arena && called[i].moves == moves + 1);
      called[i].context = NULL;
      CHECK_EQUAL (called[i].frees, (round - 1));
      hook.free (&context, outside);
      CHECK (called[i].frees == round && called[i].context == &context);
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
      CHECK (called[i].reallocs == round && called[i].moves == moves + 1);
    }
  hook.free (&context, NULL);
  CHECK_EQUAL (called[i].frees, 4);
  /* Nobody else's was called. */
  for (int other = i + 1; other < MA_HOOKS; other++)
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

#define ORIGINALS(i) { malloc_##i, calloc_##i, realloc_##i, free_##i, move_in_##i }

int
main (void)
{
  CHECK (ma_hook ((struct ma_hooked[]){ ORIGINALS (0), ORIGINALS (1), ORIGINALS (2) }));
  CHECK (!ma_hook ((struct ma_hooked[MA_HOOKS]){
      { .malloc = never_malloc }, { .malloc = never_malloc }, { .malloc = never_malloc } }));
  look (0, HOOKS (0));
  look (1, HOOKS (1));
  look (2, HOOKS (2));
  return 0;
}
