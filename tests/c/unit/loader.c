/* What the dynamic linker allocates while an arena is active is none of the arena's: the list of
 * libraries, and a thread's data in them. Built twice: the program, and the library that it loads. */
#ifdef LIBRARY

__attribute__ ((visibility ("default"))) int *state_of_thread (void);

int *
state_of_thread (void)
{
  static _Thread_local struct
  {
    int state;
    char more[20000];
  } own = { .state = 42 };
  own.more[0]++;
  return &own.state;
}

#else

#include <dlfcn.h>
#include <link.h>
#include <sys/personality.h>
#include <unistd.h>

#include "check.h"

static const char *path;
static malloc_arena *arena;
static void *library;

static int *
state (void)
{
  int *(*function) (void) = (int *(*) (void))dlsym (library, "state_of_thread");
  CHECK (function != NULL);
  return function ();
}

static int
count (struct dl_phdr_info *info, size_t size, void *found)
{
  (void)size;
  *(unsigned *)found += strcmp (info->dlpi_name, path) == 0;
  return 0;
}

static void
in_child (void *data)
{
  unsigned found = 0;
  dl_iterate_phdr (count, &found);
  CHECK_EQUAL (found, 1);
  CHECK (state () == data);
  CHECK_EQUAL (*state (), 42);
  exit (0); /* the linker ends the libraries */
}

/* Both for the first time in the process, and in a thread, in the arena. */
static void *
load (void *data)
{
  malloc_arena_enter (arena);
  library = dlopen (path, RTLD_NOW);
  malloc_arena_leave (arena);
  if (library == NULL)
    CHECK_FAIL ("%s", dlerror ());
  malloc_arena_enter (arena);
  int *own = state ();
  malloc_arena_leave (arena);
  CHECK (malloc_arena_of (own) == NULL);
  CHECK_EQUAL (check_child (in_child, own).exit_code, 0);
  CHECK_EQUAL (dlclose (library), 0);
  return data;
}

static void *
use_when_full (void *data)
{
  malloc_arena_enter (arena);
  void *last = NULL;
  for (size_t size = 4096; size >= 16; size /= 16)
    for (void **p; (p = malloc (size)); last = p)
      *p = last;
  CHECK_EQUAL (*state (), 42);
  CHECK (malloc (4096) == NULL);
  malloc_arena_leave (arena);
  for (void *next; last; last = next)
    {
      next = *(void **)last;
      free (last);
    }
  return data;
}

static void
in_thread (void *(*function) (void *))
{
  pthread_t thread;
  CHECK_EQUAL (pthread_create (&thread, NULL, function, NULL), 0);
  CHECK_EQUAL (pthread_join (thread, NULL), 0);
}

int
main (int argc, char **argv)
{
  CHECK (argc > 1);
  path = argv[1];
  const unsigned kinds[] = { HEAP_DEFAULT, HEAP_SECURE, HEAP_SECURE | HEAP_ISOLATED };
  for (unsigned i = 0; i < 3 * 2; i++)
    {
      unsigned policy = i % 2 ? MALLOC_ARENA_FORK_REFUSE : MALLOC_ARENA_FORK_WIPE;
      struct malloc_arena_options options
          = { .size = sizeof options, .kind = kinds[i / 2], .limit = 1 << 20 };
      options.fork = options.kind == HEAP_DEFAULT ? 0 : policy;
      arena = malloc_arena_new (&options);
      CHECK (arena != NULL);
      in_thread (load);
      library = dlopen (path, RTLD_NOW);
      in_thread (use_when_full);
      dlclose (library);
      CHECK_EQUAL (check_stats (arena).live_blocks, 0);
      CHECK_EQUAL (malloc_arena_delete (arena), 0);
    }
  /* Once more with the linker below all others, where it is with `ulimit -s unlimited`. */
  if (!CHECK_SANITIZED && personality (ADDR_COMPAT_LAYOUT) == 0)
    execv ("/proc/self/exe", argv);
  return 0;
}

#endif
