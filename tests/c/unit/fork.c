/* What a forked child finds, by policy; and that it can go on allocating and freeing, from the blocks
 * it inherited too. */
#include "check.h"

#include <malloc.h>

struct blocks
{
  malloc_arena *arena;
  char *small, *large;
  bool is_locked;
};

static struct blocks
make (unsigned kind, unsigned policy)
{
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = kind, .fork = policy, .name = "forked" };
  struct blocks b = { .arena = malloc_arena_new (&options) };
  CHECK (b.arena != NULL);
  b.small = malloc_arena (b.arena, malloc, 100);
  b.large = malloc_arena (b.arena, malloc, 20000);
  memset (b.small, 0x33, 100);
  memset (b.large, 0x33, 20000);
  b.is_locked = check_receipt (b.arena).obtained & MALLOC_ARENA_LOCKED;
  return b;
}

/* The arena is as good in the child as anywhere. */
static void
goes_on (struct blocks *b)
{
  char *fresh[300];
  malloc_arena_enter (b->arena);
  for (unsigned i = 0; i < 300; i++)
    {
      size_t size = 1 + i * 20;
      fresh[i] = malloc (size);
      CHECK (fresh[i] != NULL && malloc_arena_of (fresh[i]) == b->arena);
      memset (fresh[i], (int)i, size);
    }
  malloc_arena_leave (b->arena);
  if (b->is_locked)
    {
      struct check_mapping m = check_mapping_of (fresh[10]);
      CHECK (check_flag (&m, "lo"));
      m = check_mapping_of (fresh[299]);
      CHECK (check_flag (&m, "lo"));
      CHECK (check_receipt (b->arena).obtained & MALLOC_ARENA_LOCKED);
    }
  for (unsigned i = 0; i < 300; i++)
    {
      CHECK (check_all (fresh[i], (int)i, 1 + i * 20));
      free (fresh[i]);
    }
  /* Guards are there again: past the end of a large block. */
  char *guarded = malloc_arena (b->arena, malloc, CHECK_PAGE);
  CHECK_FAULTS (guarded + CHECK_PAGE);
  CHECK_FAULTS (guarded - 1);
  free (guarded);
}

static void
child_wiped (void *data)
{
  struct blocks *b = data;
  CHECK (check_all (b->small, 0, 100));
  CHECK (check_all (b->large, 0, 20000));
  CHECK (check_receipt (b->arena).obtained & MALLOC_ARENA_FORK_WIPED);
  size_t page = CHECK_PAGE, end = ((size_t)b->large + 20000 + page - 1) / page * page;
  CHECK_FAULTS ((void *)end); /* the inherited block's guard as well */
  goes_on (b);
  /* The wiped bytes are no crime: what is inherited can be freed and resized. */
  memset (b->small, 1, 100);
  b->small = realloc (b->small, 500);
  CHECK (b->small != NULL && check_all (b->small, 1, 100));
  free (b->small);
  free (b->large);
  CHECK_EQUAL (check_stats (b->arena).live_blocks, 0);
}

/* Whether the policy `wipe` can be had of this kernel. */
static bool
can_wipe (const struct blocks *b)
{
  return check_had (check_receipt (b->arena), MALLOC_ARENA_FORK_WIPED, "wiping at fork");
}

/* Blocks of all shapes that a child finds wiped, canaries too, and then grows and shrinks a little. */
enum
{
  RESIZED = 7
};

static void
child_resizes (void *data)
{
  static const int steps[] = { 1, -1, 3, -20, 17, -2 };
  char **blocks = data;
  for (unsigned i = 0; i < RESIZED; i++)
    for (unsigned j = 0; j < sizeof steps / sizeof *steps; j++)
      {
        size_t size = malloc_usable_size (blocks[i]) + (size_t)steps[j];
        blocks[i] = realloc (blocks[i], size);
        CHECK (blocks[i] != NULL && check_all (blocks[i], 0, size));
      }
  for (unsigned i = 0; i < RESIZED; i++)
    free (blocks[i]);
}

static void
resizes (unsigned kind)
{
  static const size_t sizes[RESIZED] = { 30, 100, 250, 700, 1500, 3000, 20000 };
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = kind, .fork = MALLOC_ARENA_FORK_WIPE };
  struct blocks b = { .arena = malloc_arena_new (&options) };
  CHECK (b.arena != NULL);
  char *blocks[RESIZED];
  for (unsigned i = 0; i < RESIZED; i++)
    {
      blocks[i] = malloc_arena (b.arena, malloc, sizes[i]);
      memset (blocks[i], 0x33, sizes[i]);
    }
  if (can_wipe (&b))
    CHECK_EQUAL (check_child (child_resizes, blocks).exit_code, 0);
  for (unsigned i = 0; i < RESIZED; i++)
    free (blocks[i]);
  CHECK_EQUAL (malloc_arena_delete (b.arena), 0);
}

static void
child_kept (void *data)
{
  struct blocks *b = data;
  CHECK (check_all (b->small, 0x33, 100));
  CHECK (check_all (b->large, 0x33, 20000));
  CHECK (check_receipt (b->arena).obtained & MALLOC_ARENA_FORK_KEPT);
  if (b->is_locked)
    {
      struct check_mapping m = check_mapping_of (b->small);
      CHECK (check_flag (&m, "lo"));
      m = check_mapping_of (b->large);
      CHECK (check_flag (&m, "lo"));
    }
  memset (b->small, 0x44, 100); /* its own copy: the parent looks afterwards */
  memset (b->large, 0x44, 20000);
  goes_on (b);
  free (b->small);
  free (b->large);
  CHECK_EQUAL (check_stats (b->arena).live_blocks, 0);
}

static void
child_refused (void *data)
{
  struct blocks *b = data;
  CHECK_FAULTS (b->small);
  CHECK_FAULTS (b->large);
  struct malloc_arena_receipt receipt = check_receipt (b->arena);
  if (check_had (receipt, MALLOC_ARENA_FORK_WIPED, "absence after fork"))
    CHECK (receipt.obtained & MALLOC_ARENA_FORK_REFUSED);
}

static void
goes_on_alone (void *data)
{
  goes_on (data);
}

/* The same in a child of the child. */
static void
grandchild (void *data)
{
  struct blocks *b = data;
  bool kept = check_receipt (b->arena).obtained & MALLOC_ARENA_FORK_KEPT;
  if (kept || can_wipe (b))
    CHECK_EQUAL (check_child (kept ? child_kept : child_wiped, b).exit_code, 0);
  memset (b->small, 0x33, 100);
  char *again = malloc_arena (b->arena, malloc, 20000);
  memset (again, 0x55, 20000);
  pid_t pid = fork ();
  if (pid == 0)
    {
      CHECK (check_all (again, kept || !can_wipe (b) ? 0x55 : 0, 20000));
      _exit (0);
    }
  CHECK_EQUAL (check_wait (pid, -1).exit_code, 0);
  CHECK (check_all (again, 0x55, 20000));
  free (again);
}

/* fork inside an active arena: the child is inside too, and may leave. */
static void
child_inside (void *data)
{
  struct blocks *b = data;
  CHECK (ma_active_arena () == b->arena);
  void *p = malloc (50);
  CHECK (malloc_arena_of (p) == b->arena);
  free (p);
  malloc_arena_leave (b->arena);
  p = malloc (50);
  CHECK (malloc_arena_of (p) == check_outside ());
  free (p);
}

/* Other threads allocate all the while: no lock is left held in a child. */
static _Atomic bool stop;

static void *
allocate (void *data)
{
  malloc_arena *arena = data;
  for (unsigned i = 0; !stop; i++)
    {
      char *p = malloc_arena (arena, malloc, 1 + i * 37 % 5000);
      CHECK (p != NULL);
      *p = 1;
      free (p);
    }
  return NULL;
}

static void
child_of_threads (void *data)
{
  malloc_arena *arena = data;
  alarm (20); /* a deadlock is a failure, not a hang */
  for (unsigned i = 0; i < 100; i++)
    {
      char *p = malloc_arena (arena, malloc, 1 + i * 37);
      CHECK (p != NULL);
      *p = 1;
      free (p);
      free (malloc (100));
    }
}

static void
with_threads (unsigned policy)
{
  struct blocks b = make (HEAP_SECURE, policy);
  pthread_t threads[3];
  stop = false;
  for (unsigned i = 0; i < 3; i++)
    CHECK_EQUAL (pthread_create (&threads[i], NULL, allocate, b.arena), 0);
  for (unsigned i = 0; i < 60; i++)
    CHECK_EQUAL (check_child (child_of_threads, b.arena).exit_code, 0);
  stop = true;
  for (unsigned i = 0; i < 3; i++)
    pthread_join (threads[i], NULL);
}

/* Another thread may queue a slab for a block that the owner has just taken in, and then closed the slab: some rounds
 * in a hundred end so. In a child, which has no such queue, what others free there must reach the owner again. */
enum
{
  RACES = 100,
  PASSED = 2
};
static char *passed[PASSED];
static _Atomic unsigned turn; /* odd: the other thread's */

static void *
free_passed (void *data)
{
  for (unsigned seen = 0; !stop; sched_yield ())
    if (turn != seen)
      {
        for (unsigned i = 0; i < PASSED; i++)
          free (passed[i]);
        seen = turn + 1;
        turn = seen;
      }
  return data;
}

static void
child_takes_back (void *data)
{
  malloc_arena *arena = data;
  pthread_t thread;
  stop = false;
  turn = 0;
  for (unsigned i = 0; i < PASSED; i++)
    passed[i] = malloc_arena (arena, malloc, 1000);
  CHECK_EQUAL (pthread_create (&thread, NULL, free_passed, NULL), 0);
  turn = 1;
  while (turn != 2)
    sched_yield ();
  stop = true;
  pthread_join (thread, NULL);
  malloc_arena_trim (arena);
  CHECK_EQUAL (check_stats (arena).mapped_bytes, 0);
}

static void
closed_while_queued (void)
{
  struct malloc_arena_options options = { .size = sizeof options, .kind = HEAP_SECURE };
  malloc_arena *arena = malloc_arena_new (&options);
  pthread_t thread;
  stop = false;
  turn = 0;
  CHECK_EQUAL (pthread_create (&thread, NULL, free_passed, NULL), 0);
  for (unsigned n = 0; n < RACES; n++)
    {
      for (unsigned i = 0; i < PASSED; i++)
        passed[i] = malloc_arena (arena, malloc, 1000);
      turn = turn + 1;
      while (turn % 2)
        malloc_arena_trim (arena);
      CHECK_EQUAL (check_child (child_takes_back, arena).exit_code, 0);
    }
  stop = true;
  pthread_join (thread, NULL);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* What the C library keeps for itself in an arena serves the child's exit as well, where it is kept. */
static void
exits (void)
{
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = HEAP_SECURE, .fork = MALLOC_ARENA_FORK_KEEP };
  malloc_arena *arena = malloc_arena_new (&options);
  malloc_arena_enter (arena);
  FILE *file = fopen ("/dev/null", "r");
  malloc_arena_leave (arena);
  CHECK (malloc_arena_of (file) == arena || CHECK_SANITIZED); /* whose fopen it is */
  int ends[2];
  char text[16] = "";
  CHECK_EQUAL (pipe (ends), 0);
  fflush (stdout);
  pid_t pid = fork ();
  if (pid == 0)
    {
      dup2 (ends[1], STDOUT_FILENO);
      fputs ("written", stdout);
      exit (7);
    }
  int status;
  CHECK_EQUAL (waitpid (pid, &status, 0), pid);
  CHECK (WIFEXITED (status) && WEXITSTATUS (status) == 7);
  CHECK_EQUAL (read (ends[0], text, sizeof text - 1), 7);
  CHECK (strcmp (text, "written") == 0);
  close (ends[0]);
  close (ends[1]);
  fclose (file);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

int
main (void)
{
  const unsigned kinds[] = { HEAP_SECURE, HEAP_SECURE | HEAP_ISOLATED };
  for (unsigned k = 0; k < 2; k++)
    {
      struct blocks wiped = make (kinds[k], MALLOC_ARENA_FORK_WIPE);
      struct blocks kept = make (kinds[k], MALLOC_ARENA_FORK_KEEP);
      struct blocks refused = make (kinds[k], MALLOC_ARENA_FORK_REFUSE);
      if (can_wipe (&wiped))
        CHECK_EQUAL (check_child (child_wiped, &wiped).exit_code, 0);
      CHECK_EQUAL (check_child (child_kept, &kept).exit_code, 0);
      CHECK_EQUAL (check_child (child_refused, &refused).exit_code, 0);
      CHECK_EQUAL (check_child (goes_on_alone, &refused).exit_code, 0);
      CHECK_EQUAL (check_child (grandchild, &wiped).exit_code, 0);
      CHECK_EQUAL (check_child (grandchild, &kept).exit_code, 0);
      malloc_arena_enter (wiped.arena);
      CHECK_EQUAL (check_child (child_inside, &wiped).exit_code, 0);
      malloc_arena_leave (wiped.arena);
      /* None of it was seen here. */
      struct blocks *const all[] = { &wiped, &kept, &refused };
      for (unsigned i = 0; i < 3; i++)
        {
          CHECK (check_all (all[i]->small, 0x33, 100));
          CHECK (check_all (all[i]->large, 0x33, 20000));
          CHECK_EQUAL (check_receipt (all[i]->arena).obtained & MALLOC_ARENA_LOCKED ? 1 : 0,
                       all[i]->is_locked);
          free (all[i]->small);
          free (all[i]->large);
          CHECK_EQUAL (malloc_arena_delete (all[i]->arena), 0);
        }
      resizes (kinds[k]);
    }
  with_threads (MALLOC_ARENA_FORK_WIPE);
  with_threads (MALLOC_ARENA_FORK_KEEP);
  with_threads (MALLOC_ARENA_FORK_REFUSE);
  closed_while_queued ();
  exits ();
  return 0;
}
