/* Blocks of a secure arena, size by size: a write past one, up to the last byte of its slot, ends the
 * process at the free, and a write into a freed one at the reuse. Alone, in a mix of sizes, and in a row of
 * its own size: the library takes different ways there. */
#include "check.h"

#include "sizeclass.h"

enum
{
  ROW = 8
};

enum history
{
  ALONE,
  IN_A_MIX,
  IN_A_ROW,
  HISTORIES
};

static malloc_arena *arena;

/* What the thread did before, as the heap may know it. */
static void
happen (enum history history, size_t size)
{
  for (int i = 0; i < ROW; i++)
    if (history == IN_A_MIX)
      free (check_hide (malloc (size + 100 + 40 * (size_t)i)));
    else if (history == IN_A_ROW)
      free (check_hide (malloc (size)));
}

/* How a child ends that does BODY: its signal, and its last line in TEXT. */
static int
end_of (void (*body) (size_t, size_t, enum history), size_t size, size_t at, enum history history,
        char *text, size_t most)
{
  int tube[2];
  CHECK_EQUAL (pipe (tube), 0);
  pid_t child = fork ();
  CHECK (child >= 0);
  if (child == 0)
    {
      dup2 (tube[1], STDERR_FILENO);
      body (size, at, history);
      _exit (0);
    }
  close (tube[1]);
  ssize_t n = read (tube[0], text, most - 1);
  text[n > 0 ? n : 0] = 0;
  close (tube[0]);
  int status;
  CHECK_EQUAL (waitpid (child, &status, 0), child);
  return WIFSIGNALED (status) ? WTERMSIG (status) : 0;
}

static void
overflow (size_t size, size_t at, enum history history)
{
  malloc_arena_enter (arena);
  happen (history, size);
  unsigned char *p = check_hide (malloc (size));
  p[at] ^= 1;
  free (p);
}

static void
use_after_free (size_t size, size_t at, enum history history)
{
  malloc_arena_enter (arena);
  void *keep = check_hide (malloc (size));
  unsigned char *p = check_hide (malloc (size));
  free (p);
  /* In a mix of sizes the slot that is free is taken by the last of them. */
  if (history == IN_A_MIX)
    free (check_hide (malloc (size > 200 ? 40 : 400)));
  p[at] ^= 1;
  for (int i = 0; i < 4000; i++)
    check_hide (malloc (size));
  free (keep);
}

static void
expect (void (*body) (size_t, size_t, enum history), size_t size, size_t at, enum history history,
        const char *words)
{
  char text[256];
  int signal = end_of (body, size, at, history, text, sizeof text);
  if (signal != SIGABRT || strstr (text, words) == NULL)
    CHECK_FAIL ("%zu bytes, byte %zu, history %d: signal %d, not \"%s\" but \"%s\"", size, at,
                (int)history, signal, words, text);
}

int
main (void)
{
  arena = malloc_arena_get (HEAP_SECURE);
  CHECK (arena != NULL);
  /* A child of its own stays what it was: its blocks are not of interest. */
  for (unsigned class = 0; class < MA_CLASSES && ma_class_slot[class] <= 2048; class++)
    {
      size_t slot = ma_class_slot[class];
      size_t first = class == 0 ? 1 : ma_class_slot[class - 1] - MA_CANARY + 1u;
      size_t sizes[] = { first, slot - MA_CANARY };
      for (unsigned i = 0; i < 2; i++)
        for (enum history history = 0; history < HISTORIES; history++)
          {
            size_t size = sizes[i];
            CHECK_EQUAL (ma_class_of (size), class);
            expect (overflow, size, size, history, "canary overwritten");
            expect (overflow, size, slot - 1, history, "canary overwritten");
            expect (use_after_free, size, 0, history, "use after wipe");
            expect (use_after_free, size, size / 2, history, "use after wipe");
            expect (use_after_free, size, slot - 1, history, "use after wipe");
          }
    }
  return 0;
}
