/* The objects of a language runtime: slots without size and canary, in slabs of their own. */
#include "check.h"
#include "runtime.h"

#include <errno.h>
#include <malloc.h>

static malloc_arena *secure, *isolated, *ordinary;

static void *
object (malloc_arena *arena, size_t size)
{
  struct ma_local *local = ma_local_of (arena);
  CHECK (local != NULL);
  return ma_object_alloc (local, size);
}

/* Every size: room for it, aligned, zero where the arena wipes, nobody else's, wiped when it is freed,
 * and accounted for. */
static void
lives (malloc_arena *arena)
{
  enum
  {
    MOST = 700
  };
  static unsigned char *objects[MOST];
  size_t blocks = check_stats (arena).live_blocks;
  for (size_t size = 0; size < MOST; size++)
    {
      unsigned char *p = objects[size] = object (arena, size);
      CHECK (p != NULL && (uintptr_t)p % 16 == 0 && malloc_arena_of (p) == arena);
      CHECK (malloc_usable_size (p) >= size);
      if (arena != ordinary)
        CHECK (check_all (p, 0, size));
      memset (p, (int)(size % 255 + 1), size);
    }
  CHECK_EQUAL (check_stats (arena).live_blocks, blocks + MOST);
  for (size_t size = 0; size < MOST; size++)
    {
      unsigned char *p = objects[size];
      CHECK (check_all (p, (int)(size % 255 + 1), size));
      ma_object_free (p);
      if (arena == secure)
        CHECK (check_all (check_hide (p), 0, size));
    }
  CHECK_EQUAL (check_stats (arena).live_blocks, blocks);
}

static void
is_zeroed (malloc_arena *arena)
{
  for (size_t size = 1; size < 600; size += 13)
    {
      char *p = object (arena, size);
      memset (p, 0x55, size);
      ma_object_free (p);
      p = ma_object_zalloc (ma_local_of (arena), 1, size);
      CHECK (p != NULL && check_all (p, 0, size));
      ma_object_free (p);
    }
  CHECK (ma_object_zalloc (ma_local_of (arena), SIZE_MAX / 4, 8) == NULL);
}

static void
is_resized (malloc_arena *arena)
{
  for (size_t from = 1; from < 3000; from += from / 3 + 1)
    for (size_t to = 1; to < 3000; to += to / 3 + 1)
      {
        char *p = object (arena, from);
        memset (p, 0x66, from);
        uintptr_t place = (uintptr_t)p;
        char *q = ma_object_resize (p, to);
        CHECK (q != NULL && malloc_arena_of (q) == arena && malloc_usable_size (q) >= to);
        CHECK (check_all (q, 0x66, from < to ? from : to));
        /* Large blocks move within their pages. */
        if (arena == secure && from < 1024 && to < 1024 && (uintptr_t)q != place)
          CHECK (check_all ((void *)place, 0, from));
        else if (arena == secure && (uintptr_t)q == place && to < from && to <= 512)
          CHECK (check_all (q + to, 0, malloc_usable_size (q) - to)
                 || malloc_usable_size (q) == to);
        ma_object_free (q);
      }
}

/* Blocks may be freed as objects and objects as blocks, resized by either. */
static void
is_a_block (malloc_arena *arena)
{
  for (size_t size = 8; size < 3000; size += 56)
    {
      char *p = object (arena, size);
      memset (p, 0x33, size);
      p = realloc (p, size + 40);
      CHECK (p != NULL && malloc_arena_of (p) == arena && check_all (p, 0x33, size));
      free (p);
      p = malloc_arena (arena, malloc, size);
      memset (p, 0x33, size);
      p = ma_object_resize (p, size / 2);
      CHECK (p != NULL && check_all (p, 0x33, size / 2));
      ma_object_free (p);
    }
}

enum
{
  MANY = 20000
};
static void *many[MANY];

static void *
free_many (void *data)
{
  for (size_t i = (size_t)(uintptr_t)data; i < MANY; i += 2)
    ma_object_free (many[i]);
  return NULL;
}

/* Freed by another thread and by their own, memory given back, and used again. */
static void
is_handed_over (malloc_arena *arena)
{
  size_t blocks = check_stats (arena).live_blocks;
  for (int round = 0; round < 3; round++)
    {
      for (size_t i = 0; i < MANY; i++)
        {
          many[i] = object (arena, 16 + i % 300);
          memset (many[i], 0x44, 16 + i % 300);
        }
      pthread_t thread;
      CHECK_EQUAL (pthread_create (&thread, NULL, free_many, (void *)1), 0);
      free_many ((void *)0);
      pthread_join (thread, NULL);
      CHECK_EQUAL (check_stats (arena).live_blocks, blocks);
    }
  /* 3 MiB were in use. */
  malloc_trim (0);
  CHECK (check_stats (arena).mapped_bytes < 1 << 19);
}

static malloc_arena *kept;

static void
in_child (void *data)
{
  char *p = data;
  CHECK (check_all (p, 0x22, 50));
  ma_object_free (p);
  CHECK (check_all (check_hide (p), 0, 50));
  for (int i = 0; i < 1000; i++)
    many[i] = object (kept, 50);
  for (int i = 0; i < 1000; i++)
    ma_object_free (many[i]);
}

static void
is_forked (void)
{
  struct malloc_arena_options options = {
    .size = sizeof options, .kind = HEAP_SECURE, .name = "kept", .fork = MALLOC_ARENA_FORK_KEEP
  };
  kept = malloc_arena_new (&options);
  CHECK (kept != NULL);
  char *p = object (kept, 50);
  memset (p, 0x22, 50);
  CHECK_EQUAL (check_child (in_child, p).exit_code, 0);
  CHECK (check_all (p, 0x22, 50));
  ma_object_free (p);
  CHECK_EQUAL (malloc_arena_delete (kept), 0);
}

static void
is_exhausted (void)
{
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = HEAP_SECURE, .name = "small", .limit = 1 << 16 };
  malloc_arena *small = malloc_arena_new (&options);
  CHECK (small != NULL);
  ma_object_forget_refused ();
  size_t n = 0;
  while (n < MANY && (many[n] = object (small, 100)) != NULL)
    n++;
  CHECK (n > 100 && n < 700);
  CHECK_EQUAL (errno, ENOMEM);
  size_t size;
  CHECK (ma_object_refused (&size) == small);
  ma_object_forget_refused ();
  CHECK (ma_object_refused (&size) == NULL);
  CHECK (ma_object_resize (many[0], 1 << 17) == NULL && ma_object_refused (&size) == small);
  CHECK_EQUAL (size, 1 << 17);
  while (n > 0)
    ma_object_free (many[--n]);
  CHECK_EQUAL (malloc_arena_delete (small), 0);
}

enum
{
  TURNS = 4,
  LARGEST = 512,
  A_SLAB = 15 * 4096 / LARGEST
};

static malloc_arena *kept;
static _Atomic bool is_over;

/* A slab's worth of objects, of which two that are far from each other come and go. */
static void *
take_turns (void *data)
{
  unsigned char *objects[A_SLAB];
  for (size_t i = 0; i < A_SLAB; i++)
    memset (objects[i] = object (kept, LARGEST), 0xa5, LARGEST);
  while (!is_over)
    for (size_t i = 0; i < 2; i++)
      {
        ma_object_free (objects[A_SLAB / 8]);
        ma_object_free (objects[A_SLAB - 1]);
        memset (objects[A_SLAB / 8] = object (kept, LARGEST), 0xa5, LARGEST);
        memset (objects[A_SLAB - 1] = object (kept, LARGEST), 0xa5, LARGEST);
      }
  for (size_t i = 0; i < A_SLAB; i++)
    ma_object_free (objects[i]);
  return data;
}

static void *
take_over (void *data)
{
  for (size_t i = 0; i < 4; i++)
    {
      unsigned char *p = object (kept, LARGEST);
      CHECK (p != NULL && check_all (p, 0, LARGEST));
      memset (p, 0x5a, LARGEST);
    }
  return data;
}

static void
run_all (void *(*body) (void *), pthread_t *threads)
{
  for (size_t i = 0; i < TURNS; i++)
    CHECK_EQUAL (pthread_create (&threads[i], NULL, body, NULL), 0);
}

static void
join_all (const pthread_t *threads)
{
  for (size_t i = 0; i < TURNS; i++)
    pthread_join (threads[i], NULL);
}

static void
go_on (void *data)
{
  pthread_t threads[TURNS];
  (void)data;
  run_all (take_over, threads);
  join_all (threads);
}

/* What threads were in the middle of when another one forked is theirs who come after them in the child:
 * they get nothing that lives. */
static void
is_taken_over (void)
{
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = HEAP_SECURE, .name = "kept" };
  options.fork = MALLOC_ARENA_FORK_KEEP;
  kept = malloc_arena_new (&options);
  CHECK (kept != NULL);
  pthread_t threads[TURNS];
  run_all (take_turns, threads);
  for (unsigned i = 0; i < 150; i++)
    {
      struct check_outcome outcome = check_child (go_on, NULL);
      CHECK_EQUAL (outcome.exit_code, 0);
    }
  is_over = true;
  join_all (threads);
  CHECK_EQUAL (malloc_arena_delete (kept), 0);
}

/* Who was refused one has a sixteenth of the limit for the way out: in slabs, as nothing else. */
static void
has_reserve (unsigned kind)
{
  enum
  {
    LIMIT = 4 << 20
  };
  struct malloc_arena_options options = { .size = sizeof options, .kind = kind, .limit = LIMIT };
  malloc_arena *arena = malloc_arena_new (&options);
  CHECK (arena != NULL);
  ma_object_begin (arena);
  ma_object_forget_refused ();
  malloc_arena_enter (arena);
  size_t n = 0, size = 3000, before, after;
  while ((many[n] = object (arena, size)) != NULL)
    n++;
  before = check_stats (arena).mapped_bytes;
  CHECK (before <= LIMIT - LIMIT / 16 && before > LIMIT - LIMIT / 8);
  CHECK (malloc_arena (arena, malloc, LIMIT / 32) == NULL);
  size_t more = 0;
  while ((many[n + more] = object (arena, 400)) != NULL)
    more++;
  after = check_stats (arena).mapped_bytes;
  CHECK (more * 400 > LIMIT / 32 && after <= LIMIT);
  while (more > 0)
    ma_object_free (many[n + --more]);
  ma_object_forget_refused ();
  malloc_arena_leave (arena);
  while (n > 0)
    ma_object_free (many[--n]);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

int
main (void)
{
  secure = malloc_arena_get (HEAP_SECURE);
  isolated = malloc_arena_get (HEAP_SECURE | HEAP_ISOLATED);
  ordinary = malloc_arena_get (HEAP_DEFAULT);
  CHECK (secure != NULL && isolated != NULL && ordinary != NULL);
  malloc_arena *const all[] = { secure, isolated, ordinary };
  for (size_t i = 0; i < 3; i++)
    {
      lives (all[i]);
      is_zeroed (all[i]);
      is_resized (all[i]);
      is_a_block (all[i]);
    }
  is_handed_over (secure);
  is_exhausted ();
  has_reserve (HEAP_DEFAULT);
  has_reserve (HEAP_SECURE);
  is_forked ();
  if (!CHECK_SANITIZED) /* whose threads cannot be started in a child of several */
    is_taken_over ();
  return 0;
}
