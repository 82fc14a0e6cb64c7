/* Library mode: loaded late, the library takes over no malloc, but its arenas work by their own
 * routines; and binding a malloc that is not the library's is refused. Not linked with the library. */
#include <dlfcn.h>

#include "check.h"

#define SYMBOL(type, name, ...)                                                                    \
  type (*name) __VA_ARGS__ = (type (*) __VA_ARGS__)dlsym (library, "malloc_arena_" #name)

static void *library;

int
main (int argc, char **argv)
{
  CHECK (argc > 1);
  CHECK (dlsym (RTLD_DEFAULT, "malloc_arena_get") == NULL);
  void *before = malloc (100);
  library = dlopen (argv[1], RTLD_NOW | RTLD_LOCAL);
  if (library == NULL)
    CHECK_FAIL ("%s", dlerror ());
  SYMBOL (malloc_arena *, get, (unsigned));
  SYMBOL (malloc_arena *, of, (const void *));
  SYMBOL (void, enter, (malloc_arena *));
  SYMBOL (void, leave, (malloc_arena *));
  SYMBOL (int, stats, (malloc_arena *, struct malloc_arena_stats *));
  CHECK (get != NULL && of != NULL && enter != NULL && leave != NULL && stats != NULL);
  malloc_arena *secure = get (HEAP_SECURE);
  CHECK (secure != NULL);

  /* The process's malloc is still the C library's, also inside. */
  enter (secure);
  void *p = malloc (100);
  leave (secure);
  CHECK (of (p) == NULL && of (before) == NULL);
  free (p);
  free (before);

  /* The library's own routines route both kinds of block. */
  void *(*their_malloc) (size_t) = (void *(*) (size_t))dlsym (library, "malloc");
  void (*their_free) (void *) = (void (*) (void *))dlsym (library, "free");
  CHECK (their_malloc != NULL && their_malloc != malloc);
  enter (secure);
  p = their_malloc (100);
  leave (secure);
  CHECK (of (p) == secure);
  memset (p, 1, 100);
  their_free (p);
  their_free (malloc (100)); /* not an arena's: on to the next allocator */
  p = their_malloc (100);
  CHECK (of (p) == NULL);
  free (p);
  struct malloc_arena_stats now = { .size = sizeof now };
  CHECK_EQUAL (stats (secure, &now), 0);
  CHECK_EQUAL (now.live_blocks, 0);

  /* -z nodelete: blocks outlive a dlclose. */
  enter (secure);
  p = their_malloc (100);
  leave (secure);
  memset (p, 7, 100);
  dlclose (library);
  CHECK (check_all (p, 7, 100));
  their_free (p);
  return 0;
}
