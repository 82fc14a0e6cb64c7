/* The hooks of a language runtime: what is theirs goes to the active arena and comes back by its address, all else to
 * the original of that hook, with the context of the call. */
#include "check.h"
#include "runtime.h"

#include <malloc.h>

static struct
{
  int mallocs, frees;
  void *context;
} called[MA_HOOKS];

#define ORIGINAL(i)                                                                                \
  static void *malloc_##i (void *context, size_t size)                                             \
  {                                                                                                \
    called[i].mallocs++;                                                                           \
    called[i].context = context;                                                                   \
    return malloc (size);                                                                          \
  }                                                                                                \
  static void free_##i (void *context, void *p)                                                    \
  {                                                                                                \
    called[i].frees++;                                                                             \
    called[i].context = context;                                                                   \
    free (p);                                                                                      \
  }
ORIGINAL (0)
ORIGINAL (1)
ORIGINAL (2)

static void *
never_malloc (void *context, size_t size)
{
  (void)context;
  (void)size;
  CHECK_FAIL ("called: %s", "the malloc of a second ma_hook");
}

static void
never_free (void *context, void *p)
{
  (void)context;
  (void)p;
  CHECK_FAIL ("called: %s", "the free of a second ma_hook");
}

static void
look (int i, ma_hook_malloc *hook_malloc, ma_hook_free *hook_free)
{
  malloc_arena *arena = malloc_arena_get (HEAP_SECURE);
  int context;
  for (int round = 1; round <= 3; round++)
    {
      /* Sizes of objects, of other small blocks and of large ones. */
      size_t size = round == 1 ? 40 : round == 2 ? 1000 : 100000;
      unsigned char *outside = hook_malloc (&context, size);
      CHECK (outside != NULL && malloc_arena_of (outside) == NULL);
      CHECK (called[i].mallocs == round && called[i].context == &context);
      malloc_arena_enter (arena);
      size_t live = check_stats (arena).live_blocks;
      unsigned char *inside = hook_malloc (NULL, size);
      CHECK (inside != NULL && malloc_arena_of (inside) == arena && check_all (inside, 0, size));
      CHECK_EQUAL (check_stats (arena).live_blocks, live + 1);
      CHECK (called[i].mallocs == round && called[i].frees == round - 1);
      called[i].context = NULL;
      hook_free (&context, outside);
      CHECK (called[i].frees == round && called[i].context == &context);
      malloc_arena_leave (arena);
      hook_free (NULL, inside);
      CHECK_EQUAL (check_stats (arena).live_blocks, live);
      CHECK (called[i].mallocs == round && called[i].frees == round);
    }
  hook_free (&context, NULL);
  CHECK_EQUAL (called[i].frees, 4);
  /* Nobody else's was called. */
  for (int other = i + 1; other < MA_HOOKS; other++)
    CHECK (called[other].mallocs == 0 && called[other].frees == 0);
}

int
main (void)
{
  CHECK (ma_hook (
      (struct ma_hooked[]){ { malloc_0, free_0 }, { malloc_1, free_1 }, { malloc_2, free_2 } }));
  CHECK (!ma_hook ((struct ma_hooked[]){
      { never_malloc, never_free }, { never_malloc, never_free }, { never_malloc, never_free } }));
  look (0, ma_hook_malloc_0, ma_hook_free_0);
  look (1, ma_hook_malloc_1, ma_hook_free_1);
  look (2, ma_hook_malloc_2, ma_hook_free_2);
  return 0;
}
