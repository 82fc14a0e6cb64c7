/* Blocks of a secure arena, size by size: a write past one, up to the last byte of its slot, ends the
 * process at the free, and a write into a freed one at the reuse. In a mix of sizes and in a row of one: the
 * library takes different ways there. And a block that two threads free at the same moment. */
#include "check.h"

#include "sizeclass.h"

enum
{
  ROW = 8
};

enum history
{
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
    free (check_hide (malloc (history == IN_A_ROW ? size : 100 + 40 * (size_t)i)));
}

struct crime
{
  size_t size;
  size_t at; /* the byte that is written */
  enum history history;
};

static void
overflow (void *data)
{
  const struct crime *crime = data;
  malloc_arena_enter (arena);
  happen (crime->history, crime->size);
  unsigned char *p = check_hide (malloc (crime->size));
  p[crime->at] ^= 1;
  free (p);
}

static void
use_after_free (void *data)
{
  const struct crime *crime = data;
  size_t size = crime->size;
  malloc_arena_enter (arena);
  happen (crime->history, size);
  void *keep = check_hide (malloc (size));
  unsigned char *p = check_hide (malloc (size));
  free (p);
  if (crime->history == IN_A_MIX)
    free (check_hide (malloc (size > 200 ? 100 : 400)));
  p[crime->at] ^= 1;
  for (int i = 0; i < 4000; i++)
    {
      check_hide (malloc (size));
      /* More than 40 bytes: those of the least slots are no part of a mix. */
      if (crime->history == IN_A_MIX)
        free (check_hide (malloc (size > 200 ? 100 : 400)));
    }
  free (keep);
}

/* Wherever the block's end moves to in its slot, what was written behind it is seen: now or at the free. */
static void
resize_after_overflow (const struct crime *crime, size_t size)
{
  char *p = malloc_arena (arena, malloc, crime->size);
  p[crime->at] ^= 1;
  free (check_hide (realloc (p, size)));
}

static void
overflow_and_shrink (void *crime)
{
  resize_after_overflow (crime, ((struct crime *)crime)->size - 1);
}

static void
overflow_and_stay (void *crime)
{
  resize_after_overflow (crime, ((struct crime *)crime)->size);
}

static void
overflow_and_grow (void *crime)
{
  resize_after_overflow (crime, ((struct crime *)crime)->size + 1);
}

static void
expect (void (*body) (void *), struct crime crime, const char *words)
{
  struct check_outcome outcome = check_child_text (body, &crime);
  if (outcome.signal != SIGABRT || strstr (outcome.text, words) == NULL)
    CHECK_FAIL ("%zu bytes, byte %zu, history %d: signal %d, not \"%s\" but \"%s\"", crime.size,
                crime.at, (int)crime.history, outcome.signal, words, outcome.text);
}

static _Atomic unsigned ready;

/* Frees the block at the same moment as the other one. */
static void *
free_at_once (void *p)
{
  malloc_arena_enter (arena);
  free (check_hide (malloc (1000))); /* a part of the arena, which keeps what is freed */
  ready++;
  while (ready < 2)
    ;
  free (p);
  malloc_arena_leave (arena);
  return NULL;
}

static void
free_twice_at_once (void *data)
{
  pthread_t threads[2];
  void *p = malloc_arena (arena, malloc, *(const size_t *)data);
  for (unsigned i = 0; i < 2; i++)
    CHECK_EQUAL (pthread_create (&threads[i], NULL, free_at_once, p), 0);
  for (unsigned i = 0; i < 2; i++)
    pthread_join (threads[i], NULL);
}

/* A block that two threads free: one of them is told so, or sees what the other one has wiped. */
static void
is_freed_once (size_t size)
{
  for (unsigned i = 0; i < 300; i++)
    {
      struct check_outcome outcome = check_child_text (free_twice_at_once, &size);
      if (outcome.signal != SIGABRT)
        CHECK_FAIL ("%zu bytes: signal %d, exit %d: \"%s\"", size, outcome.signal,
                    outcome.exit_code, outcome.text);
    }
}

int
main (void)
{
  arena = malloc_arena_get (HEAP_SECURE);
  CHECK (arena != NULL);
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
            expect (overflow, (struct crime){ size, size, history }, "canary overwritten");
            expect (overflow, (struct crime){ size, slot - 1, history }, "canary overwritten");
            expect (use_after_free, (struct crime){ size, 0, history }, "use after wipe");
            expect (use_after_free, (struct crime){ size, size / 2, history }, "use after wipe");
            expect (use_after_free, (struct crime){ size, slot - 1, history }, "use after wipe");
          }
    }
  for (size_t size = 200; size < 2040; size += 115)
    {
      size_t slot = ma_class_slot[ma_class_of (size)];
      for (size_t at = size + 1; at < slot; at += 1 + (slot - size) / 9)
        {
          struct crime crime = { size, at, IN_A_MIX };
          expect (overflow_and_shrink, crime, "canary overwritten");
          expect (overflow_and_stay, crime, "canary overwritten");
          expect (overflow_and_grow, crime, "canary overwritten");
        }
    }
  /* What a large block's size was rounded up by: beyond it is the guard. */
  for (size_t size = 5009; size < 5024; size++)
    for (size_t at = size; at < 5024; at++)
      expect (overflow, (struct crime){ size, at, IN_A_MIX }, "canary overwritten");
  if (!CHECK_SANITIZED)
    {
      is_freed_once (100);
      is_freed_once (5000);
    }
  return 0;
}
