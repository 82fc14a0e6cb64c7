/* malloc_arena_scrub overwrites what calls left on the stack, and is fit for a signal handler: where the
 * stack lies, which only pthread_getattr_np can tell, and that allocates, is asked before. */
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "check.h"
#include "runtime.h"

static _Atomic unsigned asked;

/* In place of the C library's, for the library too, which calls it right after pthread_getattr_np: of that it has one of
 * its own. */
int
pthread_attr_getstack (const pthread_attr_t *attributes, void **stack, size_t *size)
{
  static int (*real) (const pthread_attr_t *, void **, size_t *);
  if (real == NULL)
    *(void **)&real = dlsym (RTLD_NEXT, "pthread_attr_getstack");
  asked++;
  return real (attributes, stack, size);
}

static volatile char *dead; /* stack of a call that has returned */

__attribute__ ((__noinline__)) static void
leave_on_stack (void)
{
  volatile char secret[64];
  memset ((void *)secret, 0x6b, sizeof secret);
  dead = check_hide ((void *)secret);
}

enum
{
  FRAME = 96 << 10 /* bytes */
};

/* A byte here and there, with nothing around it. */
__attribute__ ((__noinline__)) static void
leave_bytes (void)
{
  volatile char room[FRAME];
  memset ((void *)room, 0, sizeof room);
  for (unsigned i = 0; i < sizeof room; i += 2111)
    room[i] = 0x6b;
  dead = check_hide ((void *)room);
}

__attribute__ ((__noinline__)) static unsigned
left (unsigned bytes)
{
  unsigned n = 0;
  for (unsigned i = 0; i < bytes; i++)
    n += dead[i] == 0x6b;
  return n;
}

/* The most of them in a row: an address that was pushed there since may have one. */
__attribute__ ((__noinline__)) static unsigned
left_in_a_row (unsigned bytes)
{
  unsigned most = 0, row = 0;
  for (unsigned i = 0; i < bytes; i++)
    {
      row = dead[i] == 0x6b ? row + 1 : 0;
      most = row > most ? row : most;
    }
  return most;
}

static void
scrub (void)
{
  leave_on_stack ();
  malloc_arena_scrub (64 << 10);
  CHECK (left (64) < 8); /* what was called since wrote there as well */
  leave_bytes ();
  CHECK (left (FRAME) > 40);
  malloc_arena_scrub (128 << 10);
  CHECK (left (FRAME) < 8);
}

static void
on_signal (int number)
{
  (void)number;
  scrub ();
}

static void
scrub_in_handler (void)
{
  unsigned before = asked;
  CHECK_EQUAL (raise (SIGUSR1), 0);
  CHECK_EQUAL (asked, before);
}

static void *
in_arena (void *kind)
{
  free (malloc_arena (malloc_arena_get ((unsigned)(uintptr_t)kind), malloc, 10));
  scrub_in_handler ();
  return NULL;
}

/* Works as well, but asks. */
static void *
in_none (void *data)
{
  unsigned before = asked;
  scrub ();
  CHECK (check_outside () != NULL || asked > before);
  return data;
}

static void
run (void *(*body) (void *), uintptr_t kind)
{
  pthread_t thread;
  CHECK_EQUAL (pthread_create (&thread, NULL, body, (void *)kind), 0);
  pthread_join (thread, NULL);
}

/* The thread that forks is the child's first, on its own stack. */
static void *
in_child (void *data)
{
  free (malloc_arena (malloc_arena_get (HEAP_SECURE), malloc, 10));
  struct check_outcome outcome = check_child ((void (*) (void *))scrub_in_handler, NULL);
  CHECK_EQUAL (outcome.exit_code, 0);
  return data;
}

/* A stack for signals ends where it ends: what lies below is not dead, least of all where it is a part of the thread's own
 * stack, as below it are then the frames that the signal interrupted. */
__attribute__ ((__noinline__)) static void
interrupted (void)
{
  volatile char live[4096];
  memset ((void *)live, 0x5a, sizeof live);
  CHECK_EQUAL (raise (SIGUSR2), 0);
  CHECK (check_all ((void *)live, 0x5a, sizeof live));
}

static void
on_signal_stack (void *is_own)
{
  enum
  {
    BYTES = 192 << 10
  };
  char inner[BYTES];
  static char outer[BYTES + 4096];
  memset (outer, 0x5a, 4096);
  struct sigaction act = { .sa_handler = on_signal, .sa_flags = SA_ONSTACK };
  stack_t stack = { .ss_sp = is_own ? check_hide (inner) : outer + 4096, .ss_size = BYTES };
  CHECK_EQUAL (sigaltstack (&stack, NULL), 0);
  CHECK_EQUAL (sigaction (SIGUSR2, &act, NULL), 0);
  malloc_arena_get (HEAP_SECURE);
  interrupted ();
  CHECK (check_all (outer, 0x5a, 4096));
}

enum
{
  NEAR = 128 << 10,
  NEVER_WRITTEN = 400 << 10 /* more than the stack had before */
};

__attribute__ ((__noinline__)) static void
leave_at (size_t depth)
{
  volatile char *room = __builtin_alloca (depth);
  memset ((void *)room, 0x6b, 40);
  dead = check_hide ((void *)room);
}

/* The end of a Python scope: so many bytes are wiped, whatever in between nobody wrote, and more as far as the stack was
 * used. */
static void
used (void *unused)
{
  (void)unused;
  malloc_arena_get (HEAP_SECURE);
  for (size_t depth = 512; depth < NEAR - 256; depth += 40)
    {
      leave_at (depth);
      CHECK (left (40) > 30);
      ma_scrub_used (NEAR);
      CHECK (left_in_a_row (40) < 3);
    }
  leave_bytes ();
  ma_scrub_used (NEAR);
  CHECK (left (FRAME) < 8);
  for (size_t depth = NEAR - 8000; depth < NEVER_WRITTEN; depth += 8000)
    leave_at (depth);
  ma_scrub_used (NEAR);
  for (size_t depth = NEAR - 8000; depth < NEVER_WRITTEN; depth += 8000, dead += 8000)
    CHECK (left_in_a_row (40) < 3);
  leave_at (NEVER_WRITTEN);
  ma_scrub_used (NEAR);
  CHECK (left (40) > 30); /* nothing leads there, but for the pages */
  ma_scrub_all ();
  /* An emulator does not say which pages of its first stack there are. */
  CHECK (check_emulated () || left_in_a_row (40) < 3);
}

/* The first one of a thread does not look at pages that were never touched. */
static void *
first_in_thread (void *depth)
{
  free (malloc_arena (malloc_arena_get (HEAP_SECURE), malloc, 10));
  leave_at ((uintptr_t)depth);
  CHECK (left (40) > 30);
  struct rusage before, after;
  CHECK_EQUAL (getrusage (RUSAGE_THREAD, &before), 0);
  ma_scrub_used (NEAR);
  CHECK_EQUAL (getrusage (RUSAGE_THREAD, &after), 0);
  CHECK (left_in_a_row (40) < 3);
  CHECK (check_emulated () || (uintptr_t)depth > NEAR / 4
         || after.ru_minflt - before.ru_minflt < NEAR / (long)CHECK_PAGE / 2);
  leave_at (NEAR - 1000);
  ma_scrub_used (NEAR);
  CHECK (left_in_a_row (40) < 3);
  return NULL;
}

enum
{
  OWN_STACK = 256 << 10,
  SHALLOW = 16 << 10 /* what a thread's end writes to itself */
};

struct own_stack
{
  char *low;
  size_t depth; /* bytes below the thread's function that are written to; all, if there are less */
  size_t scope; /* what a scope's end scrubs before the thread's does; 0: none */
  size_t pages; /* that are there before that */
};

static size_t
count_pages (char *stack)
{
  unsigned char present[OWN_STACK / 4096];
  CHECK_EQUAL (mincore (stack, OWN_STACK, present), 0);
  size_t pages = 0;
  for (size_t i = 0; i < OWN_STACK / (size_t)CHECK_PAGE; i++)
    pages += present[i] & 1;
  return pages;
}

static void *
fill (void *data)
{
  struct own_stack *stack = data;
  free (malloc_arena (malloc_arena_get (HEAP_SECURE), malloc, 10));
  char here;
  char *end = (char *)check_hide (&here) - 2048;
  size_t size = (size_t)(end - stack->low);
  if (size > stack->depth)
    size = stack->depth;
  memset (end - size, 0x6b, size);
  stack->pages = count_pages (stack->low);
  if (stack->scope != 0)
    ma_scrub_used (stack->scope);
  return NULL;
}

/* A thread on a stack of the program's own. */
static void
run_on (char *stack, void *(*body) (void *), void *data)
{
  pthread_attr_t attributes;
  pthread_t thread;
  CHECK_EQUAL (pthread_attr_init (&attributes), 0);
  CHECK_EQUAL (pthread_attr_setstack (&attributes, stack, OWN_STACK), 0);
  CHECK_EQUAL (pthread_create (&thread, &attributes, body, data), 0);
  pthread_join (thread, NULL);
  pthread_attr_destroy (&attributes);
}

/* A thread's end wipes its stack to the last byte, and does not make pages of what was never touched. This one is not the C
 * library's, which drops its pages. */
static void
whole_thread (size_t depth, size_t scope)
{
  char *stack = mmap (NULL, OWN_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK (stack != MAP_FAILED);
  struct own_stack own = { .low = stack, .depth = depth, .scope = scope };
  run_on (stack, fill, &own);
  CHECK (check_emulated () || depth < SHALLOW || count_pages (stack) == own.pages);
  dead = stack;
  CHECK (left_in_a_row (OWN_STACK) < 3);
  munmap (stack, OWN_STACK);
}

static void *
scrub_thrice (void *data)
{
  free (malloc_arena (malloc_arena_get (HEAP_SECURE), malloc, 10));
  for (unsigned i = 0; i < 3; i++)
    ma_scrub_used (NEAR);
  ma_scrub_all ();
  return data;
}

/* Of a guard that the program has put into a stack of its own nobody knows; its pages may be there. */
static void
guard_of_its_own (size_t guard, int is_used)
{
  char *stack = mmap (NULL, OWN_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK (stack != MAP_FAILED);
  if (is_used)
    memset (stack, 1, OWN_STACK);
  CHECK_EQUAL (mprotect (stack, guard, PROT_NONE), 0);
  run_on (stack, scrub_thrice, NULL);
  munmap (stack, OWN_STACK);
}

/* All there is of the first stack, of which arguments and environment have their part. */
static void
whole_stack (void)
{
  static char big[100000];
  memset (big, 'x', sizeof big - 1);
  memcpy (big, "BIG=", 4);
  for (unsigned i = 0; i < 2; i++)
    {
      struct check_outcome outcome
          = check_again ("whole", (const char *[]){ i == 0 ? "BIG=" : big, NULL });
      CHECK_EQUAL (outcome.signal, 0);
      CHECK_EQUAL (outcome.exit_code, 0);
    }
}

/* The first stack may grow no further than to its limit, which is lower by now than when it was asked for. */
static void
lower_limit (void *data)
{
  (void)data;
  struct rlimit limit;
  malloc_arena *arena = malloc_arena_get (HEAP_SECURE);
  malloc_arena_enter (arena);
  CHECK_EQUAL (getrlimit (RLIMIT_STACK, &limit), 0);
  limit.rlim_cur = 16 << 10;
  CHECK_EQUAL (setrlimit (RLIMIT_STACK, &limit), 0);
  malloc_arena_scrub (1 << 20);
  malloc_arena_leave (arena);
}

/* What was scrubbed once is there, whatever the limit says. */
static void
lower_later (void *data)
{
  malloc_arena_enter (malloc_arena_get (HEAP_SECURE));
  malloc_arena_scrub (1 << 20);
  lower_limit (data);
  leave_bytes ();
  malloc_arena_scrub (1 << 20);
  CHECK (left (FRAME) < 8);
}

int
main (int argc, char **argv)
{
  if (argc > 1)
    {
      CHECK (strcmp (argv[1], "whole") == 0);
      malloc_arena_scrub ((size_t)1 << 30);
      return 0;
    }
  struct sigaction act = { .sa_handler = on_signal };
  CHECK_EQUAL (sigaction (SIGUSR1, &act, NULL), 0);
  scrub_in_handler (); /* the first thread, before any arena */
  CHECK (malloc_arena_get (HEAP_SECURE) != NULL);
  scrub_in_handler ();
  run (in_arena, HEAP_SECURE);
  run (in_arena, HEAP_SECURE | HEAP_ISOLATED);
  run (in_arena, HEAP_DEFAULT);
  run (in_none, 0);
  run (in_child, 0);
  CHECK_EQUAL (check_child (used, NULL).exit_code, 0);
  for (size_t depth = 600; depth < NEAR - 256; depth += 984)
    run (first_in_thread, depth);
  whole_thread (SIZE_MAX, 0);
  for (size_t depth = 0; depth < 32 << 10; depth += 500)
    for (size_t scope = 0; scope <= NEAR; scope += NEAR)
      whole_thread (depth, scope);
  for (size_t guard = CHECK_PAGE; guard <= OWN_STACK / 8 * 5; guard += 13 * CHECK_PAGE)
    for (int is_used = 0; is_used < 2; is_used++)
      guard_of_its_own (guard, is_used);
  whole_stack ();
  CHECK_EQUAL (check_child (on_signal_stack, NULL).exit_code, 0);
  CHECK_EQUAL (check_child (on_signal_stack, &asked).exit_code, 0);
  CHECK_EQUAL (check_child (lower_limit, NULL).signal, 0);
  CHECK_EQUAL (check_child (lower_later, NULL).exit_code, 0);
  return 0;
}
