/* Behind the library is a malloc without malloc_usable_size (FOREIGN_MALLOC, preloaded): the C library's,
 * which knows nothing of its blocks, is not asked when one of them moves into an arena. */
#include "check.h"

#include <malloc.h>

/* Where the preloaded one takes its memory. */
static bool
is_foreign (const void *p)
{
  Dl_info info;
  return dladdr (p, &info) && strstr (info.dli_fname, "foreign_malloc") != NULL;
}

static void
moves_in (malloc_arena *arena, size_t from, size_t to)
{
  unsigned char *p = malloc (from);
  CHECK (is_foreign (p));
  memset (check_hide (p), 0x5d, from);
  malloc_arena_enter (arena);
  unsigned char *q = realloc (p, to);
  malloc_arena_leave (arena);
  CHECK (q != NULL && malloc_arena_of (q) == arena);
  CHECK (check_all (q, 0x5d, from < to ? from : to));
  CHECK_EQUAL (malloc_usable_size (q), to);
  free (q);
}

int
main (int argc, char **argv)
{
  (void)argc;
  const char *foreign = getenv ("FOREIGN_MALLOC"), *loaded = getenv ("LD_PRELOAD");
  CHECK (foreign != NULL);
  if (check_emulated () && CHECK_PAGE != 4096)
    check_skip ("with pages of this size the emulator loads no further library");
  if (loaded == NULL)
    {
      char both[8192];
      snprintf (both, sizeof both, "%s:%s", getenv ("MALLOC_ARENA_LIBRARY"), foreign);
      setenv ("LD_PRELOAD", both, 1);
      check_execute (argv);
    }
  malloc_arena *const arenas[]
      = { malloc_arena_get (HEAP_SECURE), malloc_arena_get (HEAP_SECURE | HEAP_ISOLATED),
          malloc_arena_get (HEAP_DEFAULT) };
  for (unsigned i = 0; i < 3; i++)
    {
      CHECK (arenas[i] != NULL);
      moves_in (arenas[i], 20, 10);
      moves_in (arenas[i], 20, 200);
      moves_in (arenas[i], 3000, 90000);
      malloc_arena_enter (arenas[i]);
      void *none = realloc (NULL, 0);
      CHECK (none != NULL && malloc_arena_of (none) == arenas[i]);
      malloc_arena_leave (arenas[i]);
      void *outside = malloc (10);
      malloc_arena_enter (arenas[i]);
      CHECK (realloc (outside, check_size (0)) == NULL);
      CHECK (realloc (none, check_size (0)) == NULL);
      malloc_arena_leave (arenas[i]);
      /* No room: the block is as it was. */
      outside = malloc (10);
      memset (check_hide (outside), 0x5d, 10);
      malloc_arena_enter (arenas[i]);
      CHECK (realloc (outside, check_size (SIZE_MAX / 2)) == NULL);
      malloc_arena_leave (arenas[i]);
      CHECK (check_all (outside, 0x5d, 10) && is_foreign (outside));
      free (outside);
    }
  return 0;
}
