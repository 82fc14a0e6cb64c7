/* Crimes against memory, each committed many times, and how often the allocator or the CPU stops them.
 *
 *     crimes [--assert] RUNS [NAME...]
 *
 * Each run is a child of its own. It ends in a fault (or an abort) at the access or call that is the
 * crime: caught at once; at a later call: caught late; or not at all: missed. The program knows of no
 * allocator: it takes the arena where libmalloc_arena.so is preloaded, and otherwise whatever malloc
 * there is (glibc with glibc.mem.tagging=3, Scudo), whose tags it has checked. With --assert it fails
 * if anything is missed that must not be.
 */
#include "check.h"

#include <sys/auxv.h>

extern malloc_arena *malloc_arena_get (unsigned) __attribute__ ((weak));
extern void malloc_arena_enter (malloc_arena *) __attribute__ ((weak));

enum
{
  BLOCKS = 64,
  SIZE = 64,      /* whole granules */
  ODD_SIZE = 40,  /* and one that is not */
  LARGE = 100000, /* with pages of its own */
  SET_CONTROL = 55,
  SYSTEM_CALLS_AND_PRECISE = 3 | 0xfffe << 3
};

static volatile int *stage; /* shared with the parent: 1 once the crime is done */
static malloc_arena *arena;
static char *blocks[BLOCKS];
static unsigned count;

static void
enter (void)
{
  if (malloc_arena_enter != NULL)
    malloc_arena_enter (arena);
}

static uintptr_t
address (const void *p)
{
  return (uintptr_t)p & ~(uintptr_t)0 >> 8;
}

static void
load (const char *p)
{
  (void)*(const volatile char *)check_hide (p);
}

static void
store (char *p)
{
  *(volatile char *)check_hide (p) = 0x41;
}

static char *
make (size_t size)
{
  char *p = check_hide (malloc (check_size (size)));
  CHECK (p != NULL);
  return p;
}

static void
drop (char *p)
{
  free (check_hide (p));
}

static int
by_address (const void *a, const void *b)
{
  uintptr_t p = address (*(char *const *)a), q = address (*(char *const *)b);
  return (p > q) - (p < q);
}

/* Fills a heap with blocks of one size, in order of their addresses. */
static void
fill (size_t size)
{
  for (count = 0; count < BLOCKS; count++)
    blocks[count] = make (size);
  qsort (blocks, BLOCKS, sizeof *blocks, by_address);
}

/* The block, of those in the middle, that the next one is nearest to. */
static unsigned
nearest (void)
{
  unsigned best = BLOCKS / 4;
  for (unsigned i = best; i < 3 * BLOCKS / 4; i++)
    if (address (blocks[i + 1]) - address (blocks[i])
        < address (blocks[best + 1]) - address (blocks[best]))
      best = i;
  return best;
}

/* After the free of P: blocks of its size until one lies where it did. */
static char *
take_place (const char *p, size_t size)
{
  for (unsigned i = 0; i < 2000; i++)
    {
      char *q = make (size);
      if (address (q) == address (p))
        return q;
    }
  return NULL;
}

static void
in_thread (void *(*body) (void *), void *data)
{
  pthread_t thread;
  CHECK_EQUAL (pthread_create (&thread, NULL, body, data), 0);
  pthread_join (thread, NULL);
}

/* ---- overflow ---- */

static void
overflow_one (void)
{
  fill (ODD_SIZE);
  store (blocks[9] + ODD_SIZE);
}

static void
overflow_granule (void)
{
  fill (SIZE);
  store (blocks[9] + SIZE);
}

static void
overflow_granule_read (void)
{
  fill (SIZE);
  load (blocks[9] + SIZE);
}

static void
overflow_string (void)
{
  fill (ODD_SIZE);
  strcpy (check_hide (blocks[9]), "this text of 50 bytes and more is too long for it");
}

static void
overflow_copy (void)
{
  static char bytes[200];
  fill (SIZE);
  memcpy (check_hide (blocks[9]), bytes, check_size (sizeof bytes));
}

static void
overflow_loop (void)
{
  fill (ODD_SIZE);
  for (unsigned i = 0; i <= 120; i++)
    store (blocks[9] + i);
}

static void
overflow_neighbour (void)
{
  fill (SIZE);
  unsigned i = nearest ();
  store (blocks[i] + (address (blocks[i + 1]) - address (blocks[i])));
}

static void
overflow_neighbour_read (void)
{
  fill (SIZE);
  unsigned i = nearest ();
  load (blocks[i] + (address (blocks[i + 1]) - address (blocks[i])) + 5);
}

static void
overflow_after_next (void)
{
  fill (SIZE);
  unsigned i = nearest ();
  store (blocks[i] + 2 * (address (blocks[i + 1]) - address (blocks[i])));
}

static void
overflow_far (void)
{
  fill (SIZE);
  store (blocks[9] + (address (blocks[41]) - address (blocks[9])));
}

static void
overflow_page (void)
{
  fill (4096);
  store (blocks[9] + 4096);
}

static void
overflow_large (void)
{
  char *p = make (LARGE);
  store (p + LARGE);
  drop (p);
}

static void
overflow_large_granule (void)
{
  char *p = make (LARGE);
  store (p + (LARGE + 15) / 16 * 16);
  drop (p);
}

static void *
overflow_here (void *data)
{
  enter ();
  store ((char *)data + SIZE);
  return NULL;
}

static void
overflow_in_thread (void)
{
  fill (SIZE);
  in_thread (overflow_here, blocks[9]);
}

static void
overflow_after_shrink (void)
{
  fill (SIZE);
  blocks[9] = realloc (blocks[9], check_size (20));
  store (blocks[9] + 32);
}

/* ---- underflow ---- */

static void
underflow_one (void)
{
  fill (SIZE);
  store (blocks[9] - 1);
}

static void
underflow_one_read (void)
{
  fill (SIZE);
  load (blocks[9] - 1);
}

static void
underflow_neighbour (void)
{
  fill (SIZE);
  unsigned i = nearest ();
  store (blocks[i + 1] - (address (blocks[i + 1]) - address (blocks[i])) + SIZE - 1);
}

static void
underflow_large (void)
{
  char *p = make (LARGE);
  store (p - 1);
  drop (p);
}

/* ---- use after free ---- */

static void
read_after_free (void)
{
  fill (SIZE);
  drop (blocks[9]);
  char *p = blocks[9];
  blocks[9] = NULL;
  load (p + 20);
}

static void
write_after_free (void)
{
  fill (SIZE);
  drop (blocks[9]);
  char *p = blocks[9];
  blocks[9] = NULL;
  store (p + 20);
}

static void
touch_after_reuse (bool is_write)
{
  fill (SIZE);
  char *p = blocks[9];
  drop (p);
  blocks[9] = take_place (p, SIZE);
  if (is_write)
    store (p + 20);
  else
    load (p + 20);
}

static void
read_after_reuse (void)
{
  touch_after_reuse (false);
}

static void
write_after_reuse (void)
{
  touch_after_reuse (true);
}

/* The place has had other blocks meanwhile: their tags may be any again. */
static void
write_after_reuses (void)
{
  fill (SIZE);
  char *p = blocks[9];
  drop (p);
  for (unsigned i = 0; i < 6; i++)
    {
      blocks[9] = take_place (p, SIZE);
      if (blocks[9] == NULL)
        break;
      if (i < 5)
        drop (blocks[9]);
    }
  store (p + 20);
}

static void
write_after_free_large (void)
{
  char *p = make (LARGE);
  drop (p);
  store (p + 5000);
}

static void
write_after_reuse_large (void)
{
  char *p = make (LARGE);
  drop (p);
  char *q = make (LARGE);
  store (p + 5000);
  drop (q);
}

static void
read_after_realloc (void)
{
  fill (SIZE);
  char *p = blocks[9];
  blocks[9] = realloc (check_hide (p), check_size (3000));
  load (p + 3);
}

static void *
free_here (void *data)
{
  enter ();
  drop (data);
  return NULL;
}

static void
write_after_free_elsewhere (void)
{
  fill (SIZE);
  char *p = blocks[9];
  blocks[9] = NULL;
  in_thread (free_here, p);
  store (p);
}

static void *
load_here (void *data)
{
  enter ();
  load (data);
  return NULL;
}

static void
read_elsewhere_after_free (void)
{
  fill (SIZE);
  char *p = blocks[9];
  blocks[9] = NULL;
  drop (p);
  in_thread (load_here, p);
}

/* ---- free ---- */

static void
double_free (void)
{
  fill (SIZE);
  char *p = blocks[9];
  blocks[9] = NULL;
  drop (p);
  drop (p);
}

static void
double_free_between (void)
{
  fill (SIZE);
  char *p = blocks[9], *q = blocks[20];
  blocks[9] = blocks[20] = NULL;
  drop (p);
  drop (q);
  drop (p);
}

static void
double_free_elsewhere (void)
{
  fill (SIZE);
  char *p = blocks[9];
  blocks[9] = NULL;
  drop (p);
  in_thread (free_here, p);
}

static void
double_free_large (void)
{
  char *p = make (LARGE);
  drop (p);
  drop (p);
}

static void
free_stale (void)
{
  fill (SIZE);
  char *p = blocks[9];
  drop (p);
  blocks[9] = take_place (p, SIZE);
  drop (p);
}

static void
free_stale_elsewhere (void)
{
  fill (SIZE);
  char *p = blocks[9];
  drop (p);
  blocks[9] = take_place (p, SIZE);
  in_thread (free_here, p);
}

static void
realloc_stale (void)
{
  fill (SIZE);
  char *p = blocks[9];
  drop (p);
  blocks[9] = take_place (p, SIZE);
  if (realloc (check_hide (p), check_size (SIZE + 1)) == NULL)
    abort ();
}

static void
free_interior (void)
{
  fill (SIZE);
  drop (blocks[9] + 16);
}

static void
free_untagged (void)
{
  fill (SIZE);
  char *p = blocks[9];
  blocks[9] = NULL;
  drop ((char *)address (p));
}

/* ---- forged pointers ---- */

static void
write_untagged (void)
{
  fill (SIZE);
  store ((char *)address (blocks[9]));
}

/* A pointer that is right but for its tag, which is guessed. */
static void
write_guessed (void)
{
  fill (SIZE);
  struct timespec now;
  clock_gettime (CLOCK_MONOTONIC, &now);
  unsigned guess = (unsigned)(now.tv_nsec / 7) % 15 + 1;
  store ((char *)(address (blocks[9]) | (uintptr_t)guess << 56));
}

/* What is missed where a tag is the right one by chance, out of 500. The two parities of the
 * neighbours leave 7 or 8 tags to a place, of which the last one is out: one in six at most. */
enum
{
  NEVER = 0,
  BY_CHANCE = 1
};

static const struct crime
{
  const char *name;
  void (*commit) (void);
  int misses;
} crimes[] = {
  { "overflow_one", overflow_one, NEVER },
  { "overflow_granule", overflow_granule, NEVER },
  { "overflow_granule_read", overflow_granule_read, NEVER },
  { "overflow_string", overflow_string, NEVER },
  { "overflow_copy", overflow_copy, NEVER },
  { "overflow_loop", overflow_loop, NEVER },
  { "overflow_neighbour", overflow_neighbour, NEVER },
  { "overflow_neighbour_read", overflow_neighbour_read, NEVER },
  { "overflow_after_next", overflow_after_next, BY_CHANCE },
  { "overflow_far", overflow_far, BY_CHANCE },
  { "overflow_page", overflow_page, NEVER },
  { "overflow_large", overflow_large, NEVER },
  { "overflow_large_granule", overflow_large_granule, NEVER },
  { "overflow_in_thread", overflow_in_thread, NEVER },
  { "overflow_after_shrink", overflow_after_shrink, NEVER },
  { "underflow_one", underflow_one, NEVER },
  { "underflow_one_read", underflow_one_read, NEVER },
  { "underflow_neighbour", underflow_neighbour, NEVER },
  { "underflow_large", underflow_large, NEVER },
  { "read_after_free", read_after_free, NEVER },
  { "write_after_free", write_after_free, NEVER },
  { "read_after_reuse", read_after_reuse, NEVER },
  { "write_after_reuse", write_after_reuse, NEVER },
  { "write_after_reuses", write_after_reuses, BY_CHANCE },
  { "write_after_free_large", write_after_free_large, NEVER },
  { "write_after_reuse_large", write_after_reuse_large, NEVER },
  { "read_after_realloc", read_after_realloc, NEVER },
  { "write_after_free_elsewhere", write_after_free_elsewhere, NEVER },
  { "read_elsewhere_after_free", read_elsewhere_after_free, NEVER },
  { "double_free", double_free, NEVER },
  { "double_free_between", double_free_between, NEVER },
  { "double_free_elsewhere", double_free_elsewhere, NEVER },
  { "double_free_large", double_free_large, NEVER },
  { "free_stale", free_stale, NEVER },
  { "free_stale_elsewhere", free_stale_elsewhere, NEVER },
  { "realloc_stale", realloc_stale, NEVER },
  { "free_interior", free_interior, NEVER },
  { "free_untagged", free_untagged, NEVER },
  { "write_untagged", write_untagged, NEVER },
  { "write_guessed", write_guessed, BY_CHANCE },
};

/* In the child: the crime, and then what a program goes on with. */
static void
commit (const struct crime *crime)
{
  enter ();
  crime->commit ();
  *stage = 1;
  for (unsigned i = 0; i < count; i++)
    drop (blocks[i]);
  for (unsigned i = 0; i < 2 * BLOCKS; i++)
    memset (make (SIZE), 1, SIZE);
}

enum
{
  AT_ONCE,
  LATE,
  MISSED,
  OTHER,
  OUTCOMES
};

static int
once (const struct crime *crime)
{
  *stage = 0;
  /* An emulator's random tags are of a state that a child inherits: without a step of it here each run
   * would be the same. */
  free (make (SIZE));
  pid_t child = fork ();
  CHECK (child >= 0);
  if (child == 0)
    {
      int null = open ("/dev/null", O_WRONLY | O_CLOEXEC);
      dup2 (null, STDERR_FILENO);
      alarm (60);
      commit (crime);
      _exit (0);
    }
  int status;
  CHECK_EQUAL (waitpid (child, &status, 0), child);
  if (WIFEXITED (status))
    return WEXITSTATUS (status) == 0 ? MISSED : OTHER;
  int number = WTERMSIG (status);
  if (number != SIGSEGV && number != SIGABRT && number != SIGTRAP)
    return OTHER;
  return *stage == 0 ? AT_ONCE : LATE;
}

int
main (int argc, char **argv)
{
  bool is_asserting = argc > 1 && strcmp (argv[1], "--assert") == 0;
  int first = 1 + is_asserting;
  CHECK (argc > first);
  unsigned runs = (unsigned)strtoul (argv[first++], NULL, 10), wrong = 0;
  if (!(getauxval (AT_HWCAP2) & 1 << 18))
    check_skip ("this CPU has no memory tags");
  if (malloc_arena_get != NULL)
    {
      arena = malloc_arena_get (HEAP_TAGGED);
      CHECK (arena != NULL);
      enter ();
    }
  else
    CHECK_EQUAL (prctl (SET_CONTROL, SYSTEM_CALLS_AND_PRECISE, 0, 0, 0), 0);
  stage = mmap (NULL, CHECK_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK (stage != MAP_FAILED);
  for (size_t i = 0; i < sizeof crimes / sizeof *crimes; i++)
    {
      unsigned outcomes[OUTCOMES] = { 0 };
      bool is_wanted = first == argc;
      for (int k = first; k < argc; k++)
        is_wanted |= strcmp (argv[k], crimes[i].name) == 0;
      if (!is_wanted)
        continue;
      for (unsigned run = 0; run < runs; run++)
        outcomes[once (&crimes[i])]++;
      printf ("%s %u %u %u %u\n", crimes[i].name, outcomes[AT_ONCE], outcomes[LATE],
              outcomes[MISSED], outcomes[OTHER]);
      fflush (stdout);
      /* Of one in six: five standard deviations more. */
      unsigned most = runs / 6 + 5 * 9 * (runs + 499) / 500;
      if (outcomes[OTHER] != 0 || outcomes[MISSED] > (crimes[i].misses == BY_CHANCE ? most : 0))
        {
          dprintf (STDERR_FILENO, "%s is not stopped\n", crimes[i].name);
          wrong++;
        }
    }
  return is_asserting && wrong != 0;
}
