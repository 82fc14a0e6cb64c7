/* HEAP_TAGGED: the memory's tags, read from the memory, are those of the pointers and of nothing else;
 * every access that is not to a live block faults. Where the CPU or the kernel has no tags: NULL and
 * ENOTSUP. */
#include "check.h"

#include <malloc.h>

static void
cannot_be_had (void)
{
  errno = 0;
  CHECK (malloc_arena_get (HEAP_TAGGED) == NULL);
  CHECK_EQUAL (errno, ENOTSUP);
  errno = 0;
  CHECK (malloc_arena_get (HEAP_TAGGED | HEAP_SECURE) == NULL);
  CHECK_EQUAL (errno, ENOTSUP);
}

#if !defined(__aarch64__)

int
main (void)
{
  cannot_be_had ();
  struct malloc_arena_options options = { .size = sizeof options, .kind = HEAP_TAGGED };
  errno = 0;
  CHECK (malloc_arena_new (&options) == NULL);
  CHECK_EQUAL (errno, ENOTSUP);
  return 0;
}

#else

#include <sys/auxv.h>
#include <ucontext.h>

__asm__ (".arch armv8.5-a+memtag");

enum
{
  PRECISE_FAULT = 9, /* SEGV_MTESERR */
  GET_CONTROL = 56,  /* PR_GET_TAGGED_ADDR_CTRL */
  SET_CONTROL = 55
};

static unsigned
tag_of (const void *p)
{
  return (unsigned)((uintptr_t)p >> 56);
}

static char *
bare (const void *p)
{
  return (char *)((uintptr_t)p & ~(uintptr_t)0 >> 8);
}

/* The tag of the memory at P. */
static unsigned
memory_tag (const void *p)
{
  uintptr_t tagged = (uintptr_t)bare (p);
  __asm__ volatile ("ldg %0, [%0]" : "+r"(tagged) : : "memory");
  return (unsigned)(tagged >> 56);
}

static __thread sigjmp_buf back;
static __thread volatile int fault_code;
static __thread volatile bool is_expected;

static void
on_fault (int number, siginfo_t *info, void *context)
{
  (void)context;
  if (!is_expected)
    {
      signal (number, SIG_DFL);
      return;
    }
  fault_code = info->si_code;
  siglongjmp (back, 1);
}

/* The si_code of the fault that an access to P makes; 0: none. */
static int
fault_of (const void *p, bool is_write)
{
  volatile char *byte = check_hide (p);
  fault_code = 0;
  is_expected = true;
  if (sigsetjmp (back, 1) == 0)
    {
      if (is_write)
        *byte = 1;
      else
        (void)*byte;
    }
  is_expected = false;
  return fault_code;
}

/* Whether the block's own granules, and not the one before nor what follows in reach, have its tag. */
static void
check_tags (const char *p, size_t size)
{
  unsigned tag = tag_of (p);
  CHECK (tag != 0 && tag < 16);
  for (size_t at = 0; at < size; at += 16)
    CHECK_EQUAL (memory_tag (p + at), tag);
  size_t end = (size + 15) / 16 * 16;
  if (fault_of (p + end, false) != 0)
    CHECK (fault_code == PRECISE_FAULT || fault_code == SEGV_ACCERR || fault_code == SEGV_MAPERR);
  else
    CHECK_FAIL ("reads after its end, size %zu", size);
  CHECK (fault_of (p + end, true) != 0);
  CHECK (fault_of (p - 1, false) != 0);
  CHECK (fault_of (p - 1, true) != 0);
}

static void
check_gone (const char *p, size_t size)
{
  for (size_t at = 0; at < size; at += 1 + size / 50)
    CHECK (fault_of (p + at, at & 1) != 0);
}

static const size_t sizes[]
    = { 0,   1,   8,    15,   16,   17,   24,   31,    32,    40,    100,   128,    200,
        504, 505, 1000, 2000, 2040, 2041, 5000, 16000, 16384, 20000, 65536, 100000, 1 << 20 };
#define SIZES (sizeof sizes / sizeof *sizes)

static void
all_sizes (malloc_arena *arena)
{
  for (unsigned i = 0; i < SIZES; i++)
    {
      size_t size = sizes[i];
      char *p = malloc_arena (arena, malloc, size);
      CHECK (p != NULL);
      CHECK_EQUAL (malloc_usable_size (p), size);
      CHECK (malloc_arena_of (p) == arena);
      CHECK (malloc_arena_of (bare (p)) == arena);
      if (size > 0)
        CHECK (malloc_arena_of (p + size / 2) == arena);
      check_tags (p, size);
      for (size_t at = 0; at < size; at++)
        p[at] = (char)at;
      /* In place and moved: the contents stay, and nothing of the old place can be reached. */
      size_t other = sizes[(i * 7 + 3) % SIZES];
      char *q = realloc (p, other | 1);
      CHECK (q != NULL && malloc_arena_of (q) == arena);
      for (size_t at = 0; at < size && at < other; at++)
        CHECK_EQUAL (q[at], (char)at);
      check_tags (q, other | 1);
      if (bare (q) != bare (p))
        check_gone (p, size);
      free (q);
      check_gone (q, other | 1);
      p = malloc_arena (arena, calloc, size | 1, 1);
      CHECK (check_all (p, 0, size | 1));
      check_tags (p, size | 1);
      free (p);
      for (size_t align = 32; align <= 65536; align *= 8)
        {
          p = malloc_arena (arena, aligned_alloc, align, size);
          CHECK (p != NULL && (uintptr_t)bare (p) % align == 0);
          check_tags (p, size);
          free (p);
        }
    }
  char *text = malloc_arena (arena, strdup, "a text of some length, longer than a granule");
  check_tags (text, strlen (text) + 1);
  free (text);
  CHECK_EQUAL (check_stats (arena).live_blocks, 0);
}

/* The place that was just freed is used again, by a block of another tag: of the very pointer that is
 * stale, no access ever goes through. */
static void
reused (malloc_arena *arena, size_t size)
{
  unsigned seen = 0, same_place = 0;
  char *keep = malloc_arena (arena, malloc, size);
  for (unsigned i = 0; i < 2000; i++)
    {
      char *p = malloc_arena (arena, malloc, size);
      free (p);
      char *q = malloc_arena (arena, malloc, size);
      if (bare (q) == bare (p))
        {
          same_place++;
          CHECK (tag_of (q) != tag_of (p));
          CHECK_EQUAL (fault_of (p, i & 1), PRECISE_FAULT);
        }
      seen |= 1u << tag_of (q);
      free (q);
      if (i % 100 == 0) /* the same of pages that were away meanwhile */
        malloc_arena_trim (arena);
    }
  free (keep);
  CHECK (same_place > 1000);
  CHECK (__builtin_popcount (seen) >= 7);
  CHECK (!(seen & 1));
}

/* Neighbours never have the same tag, however they come and go. */
static void
neighbours (malloc_arena *arena, size_t size)
{
  enum
  {
    COUNT = 300
  };
  static char *blocks[COUNT];
  for (unsigned round = 0; round < 20; round++)
    {
      for (unsigned i = 0; i < COUNT; i++)
        if (blocks[i] == NULL)
          blocks[i] = malloc_arena (arena, malloc, size);
      for (unsigned i = 0; i < COUNT; i++)
        for (unsigned j = 0; j < i; j++)
          {
            size_t apart = (size_t)llabs (bare (blocks[i]) - bare (blocks[j]));
            if (apart < 2 * size + 16)
              CHECK (tag_of (blocks[i]) != tag_of (blocks[j]));
          }
      for (unsigned i = 0; i < COUNT; i++)
        if ((i * 7 + round) % 3 == 0)
          {
            free (blocks[i]);
            blocks[i] = NULL;
          }
    }
  for (unsigned i = 0; i < COUNT; i++)
    {
      free (blocks[i]);
      blocks[i] = NULL;
    }
}

/* A thread that was there before the arena: it may have to ask the kernel itself. */
static pthread_barrier_t barrier;
static malloc_arena *shared;
static char *passed;

static void *
existing (void *data)
{
  (void)data;
  pthread_barrier_wait (&barrier);
  CHECK_EQUAL (prctl (GET_CONTROL, 0, 0, 0, 0) & 7, 0); /* nothing yet */
  /* Asked for where it cannot be said yes, and where it can. */
  CHECK (malloc_arena_get (HEAP_TAGGED) == shared);
  CHECK_EQUAL (fault_of (passed + 48, true), PRECISE_FAULT);
  char *p = malloc_arena (shared, malloc, 100);
  check_tags (p, 100);
  free (passed);
  check_gone (passed, 48);
  passed = p;
  return NULL;
}

static void *
entering (void *data)
{
  malloc_arena *arena = data;
  pthread_barrier_wait (&barrier);
  malloc_arena_enter (arena);
  char *p = malloc (64);
  malloc_arena_leave (arena);
  check_tags (p, 64);
  free (p);
  check_gone (p, 64);
  return NULL;
}

static void *
unprotected (void *data)
{
  malloc_arena *arena = data;
  CHECK_EQUAL (prctl (SET_CONTROL, 0, 0, 0, 0), 0);
  struct malloc_arena_receipt receipt = check_receipt (arena);
  CHECK (receipt.requested & MALLOC_ARENA_TAGGED);
  CHECK (!(receipt.obtained & MALLOC_ARENA_TAGGED));
  CHECK_EQUAL (receipt.reason[__builtin_ctz (MALLOC_ARENA_TAGGED)], ENOTSUP);
  return NULL;
}

static void *
child_of (void *data)
{
  free (data);
  check_gone (data, 300);
  return malloc_arena (shared, malloc, 200);
}

static void
threads (void)
{
  pthread_t thread, enterer;
  pthread_barrier_init (&barrier, NULL, 3);
  CHECK_EQUAL (pthread_create (&thread, NULL, existing, NULL), 0);
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = HEAP_TAGGED, .name = "own" };
  /* Before any arena: what these two start with is nothing. */
  static malloc_arena *own;
  CHECK_EQUAL (prctl (GET_CONTROL, 0, 0, 0, 0) & 7, 0);
  shared = malloc_arena_get (HEAP_TAGGED);
  if (shared == NULL)
    CHECK_FAIL ("no tags");
  own = malloc_arena_new (&options);
  CHECK_EQUAL (pthread_create (&enterer, NULL, entering, own), 0);
  passed = malloc_arena (shared, malloc, 48);
  pthread_barrier_wait (&barrier);
  pthread_join (thread, NULL);
  pthread_join (enterer, NULL);
  check_tags (passed, 100);
  free (passed);
  CHECK_EQUAL (pthread_create (&thread, NULL, unprotected, own), 0);
  pthread_join (thread, NULL);
  CHECK (check_receipt (own).obtained & MALLOC_ARENA_TAGGED);
  CHECK_EQUAL (malloc_arena_delete (own), 0);
  for (unsigned i = 0; i < 20; i++)
    {
      void *result;
      char *p = malloc_arena (shared, malloc, 300);
      CHECK_EQUAL (pthread_create (&thread, NULL, child_of, p), 0);
      pthread_join (thread, &result);
      check_gone (p, 300);
      check_tags (result, 200);
      free (result);
    }
}

static void
child (void *data)
{
  char *p = data;
  CHECK (check_all (p, 0x21, 500));
  check_tags (p, 500);
  free (p);
  check_gone (p, 500);
  p = malloc_arena (shared, malloc, 500);
  check_tags (p, 500);
}

static void
combined (void)
{
  errno = 0;
  CHECK (malloc_arena_get (HEAP_TAGGED | HEAP_ISOLATED) == NULL);
  CHECK_EQUAL (errno, EINVAL);
  CHECK (malloc_arena_get (HEAP_TAGGED | HEAP_SECURE | HEAP_SECRETMEM) == NULL);
  CHECK_EQUAL (errno, EINVAL);
  malloc_arena *secure = malloc_arena_get (HEAP_TAGGED | HEAP_SECURE);
  malloc_arena *isolated = malloc_arena_get (HEAP_TAGGED | HEAP_SECURE | HEAP_ISOLATED);
  CHECK (secure != NULL && isolated != NULL);
  const unsigned both = MALLOC_ARENA_TAGGED | MALLOC_ARENA_LOCKED;
  CHECK_EQUAL (check_receipt (secure).obtained & both, both);
  all_sizes (secure);
  all_sizes (isolated);
  /* Wiped: seen past the tags, with the pointer that the allocator uses. */
  char *keep = malloc_arena (secure, malloc, 300), *p = malloc_arena (secure, malloc, 300);
  for (unsigned i = 0; i < 300; i++)
    p[i] = 0x77;
  free (p);
  CHECK (check_all (bare (p), 0, 300));
  free (keep);
  p = malloc_arena (isolated, malloc, 300);
  check_tags (p, 300);
  free (p);
  CHECK (fault_of (bare (p), false) != 0);
}

/* Option tag_check=async: the bad access is done, and the next system call ends the program. */
static void
later (void)
{
  char *p = malloc_arena (malloc_arena_get (HEAP_TAGGED), malloc, 64);
  CHECK_EQUAL (prctl (GET_CONTROL, 0, 0, 0, 0) & 7, 5);
  volatile char *byte = check_hide (p);
  byte[64] = 1;
  for (unsigned i = 0; i < 100; i++)
    syscall (SYS_getppid);
}

int
main (int argc, char **argv)
{
  (void)argv;
  if (argc > 1)
    {
      later ();
      return 0;
    }
  if (!(getauxval (AT_HWCAP2) & 1 << 18))
    {
      cannot_be_had ();
      dprintf (STDOUT_FILENO, "this CPU has no memory tags, and the answer is ENOTSUP\n");
      return 0;
    }
  struct sigaction act = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
  CHECK_EQUAL (sigaction (SIGSEGV, &act, NULL), 0);
  threads ();
  struct malloc_arena_receipt receipt = check_receipt (shared);
  CHECK (receipt.requested & receipt.obtained & MALLOC_ARENA_TAGGED);
  all_sizes (shared);
  for (unsigned i = 1; i < SIZES - 4; i += 3)
    {
      reused (shared, sizes[i]);
      if (sizes[i] < 3000)
        neighbours (shared, sizes[i]);
    }
  char *p = malloc_arena (shared, malloc, 500);
  for (unsigned i = 0; i < 500; i++)
    p[i] = 0x21;
  CHECK_EQUAL (check_child (child, p).exit_code, 0);
  CHECK (check_all (p, 0x21, 500));
  free (p);
  combined ();
  static const char *const is_async[]
      = { "MALLOC_ARENA_OPTIONS=region_size=1G,tag_check=async", NULL };
  CHECK_EQUAL (check_again ("later", is_async).signal, SIGSEGV);
  CHECK_EQUAL (check_stats (shared).live_blocks, 0);
  return 0;
}

#endif
