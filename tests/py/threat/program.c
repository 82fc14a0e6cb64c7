/* program.c - does with a secret what its second argument says, in memory of the kind that its first
 * one names: program KIND STORY [ARGUMENT]. "plain" is the C library's malloc, the control.
 *
 * The secret is made from a key, byte by byte: it is in one piece nowhere but where a story puts it.
 * At each stop() a test looks from outside. */
#define _GNU_SOURCE
#include <malloc_arena.h>

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

enum
{
  BLOCKS = 8
};
static const size_t sizes[BLOCKS] = { 16, 32, 100, 500, 1500, 5000, 40000, 300000 };
static char *block[BLOCKS];
static malloc_arena *arena;
static char *program;

static void
fill (volatile char *p, size_t size)
{
  static const unsigned char hidden[] = "9%((19.z52)(9z85..9?6";
  for (size_t i = 0; i < size; i++)
    p[i] = (char)(hidden[i % 21] ^ 0x5a);
}

static size_t
count_secret (const volatile char *p, size_t size)
{
  static const unsigned char hidden[] = "9%((19.z52)(9z85..9?6";
  size_t n = 0;
  for (size_t i = 0; i < size; i++)
    n += p[i] == (char)(hidden[i % 21] ^ 0x5a);
  return n;
}

static void *
hide (void *p)
{
  __asm__ volatile ("" : "+r"(p) : : "memory");
  return p;
}

/* Without stdio, whose buffers would be one more thing in memory. */
static void
say (const char *what, size_t number)
{
  char line[80];
  int n = snprintf (line, sizeof line, "%s %zu\n", what, number);
  if (write (1, line, (size_t)n) != n)
    _exit (9);
}

static void
stop (const char *what, size_t number)
{
  char c;
  say (what, number);
  while (read (0, &c, 1) != 1 || c != '\n')
    if (errno != EINTR)
      _exit (8);
}

static void
make_all (void)
{
  for (int i = 0; i < BLOCKS; i++)
    fill (block[i] = malloc (sizes[i]), sizes[i]);
}

static void
free_all (void)
{
  for (int i = 0; i < BLOCKS; i++)
    free (block[i]);
}

/* ---- what is left ---- */

static void
alive (void)
{
  make_all ();
  stop ("alive", (size_t)(uintptr_t)block[1]);
}

static void
freed (void)
{
  make_all ();
  free_all ();
  stop ("freed", 0);
}

/* Grows step by step, shrinks again, moves between sizes: each step may leave the block behind. */
static void
resized (void)
{
  char *p = malloc (16);
  fill (p, 16);
  for (size_t size = 24; size < 400000; size += size / 3)
    {
      p = realloc (p, size);
      fill (p, size);
    }
  for (size_t size = 300000; size > 30; size -= size / 4)
    p = realloc (p, size);
  p = reallocarray (p, 10, 10);
  explicit_bzero (p, 30);
  memset (hide (p), 1, 100);
  stop ("resized", 0);
  free (p);
}

/* Whatever fails, the block that was to be moved stays, and nothing else of it is left. */
static void
errors (void)
{
  struct rlimit full = { 900 << 20, RLIM_INFINITY };
  size_t refused = 0;
  make_all ();
  setrlimit (RLIMIT_AS, &full);
  for (int i = 0; i < BLOCKS; i++)
    {
      refused += realloc (block[i], PTRDIFF_MAX) == NULL;
      refused += realloc (block[i], (size_t)16 << 30) == NULL;
      refused += reallocarray (block[i], SIZE_MAX / 2, 4) == NULL;
      refused += count_secret (block[i], sizes[i]) == sizes[i];
    }
  char *line = malloc (100);
  fill (line, 100);
  size_t room = 100;
  refused += getline (&line, &room, fopen ("/dev/null", "r")) == -1;
  free (line);
  char *text = NULL;
  /* The output outgrows a buffer, and the format fails at its end. */
  char *wide = malloc (2000);
  fill (wide, 2000);
  refused += asprintf (&text, "%.*s%ls", 2000, wide, L"\x110000") == -1;
  free (wide);
  say ("refused", refused);
  free_all ();
  stop ("errors", 0);
}

static void
reused (void)
{
  size_t found = 0;
  for (int round = 0; round < 50; round++)
    for (int i = 0; i < BLOCKS; i++)
      {
        char *p = malloc (sizes[i]);
        found += count_secret (p, sizes[i]) > sizes[i] / 2;
        fill (p, sizes[i]);
        free (p);
      }
  stop ("reused", found);
}

static void *
free_there (void *unused)
{
  free_all ();
  return unused;
}

static void
freed_elsewhere (void)
{
  pthread_t thread;
  make_all ();
  pthread_create (&thread, NULL, free_there, NULL);
  pthread_join (thread, NULL);
  stop ("freed", 0);
}

static __attribute__ ((noinline)) void
use_stack (void)
{
  char local[8192];
  fill (local, sizeof local);
  hide (local);
}

static void *
thread_with_stack (void *unused)
{
  if (arena)
    malloc_arena_enter (arena);
  use_stack ();
  if (arena)
    malloc_arena_leave (arena);
  return unused;
}

/* glibc keeps the stack of the dead thread for the next. */
static void
dead_thread (void)
{
  pthread_t thread;
  pthread_create (&thread, NULL, thread_with_stack, NULL);
  pthread_join (thread, NULL);
  stop ("ended", 0);
}

static __attribute__ ((noinline)) void
scrubbed (void)
{
  use_stack ();
  if (arena)
    malloc_arena_scrub (32768);
  stop ("scrubbed", 0);
}

/* ---- a signal while a block is wiped ---- */

static char *volatile wiped;
static volatile size_t wiped_size;
static volatile sig_atomic_t in_the_middle;
static int ends_there;
static int tube[2];

/* Also of memory that is unmapped by now: 0 then. */
static int
byte_at (const char *p)
{
  char c = 0;
  return write (tube[1], p, 1) == 1 && read (tube[0], &c, 1) == 1 ? c : 0;
}

static void
look (int signal)
{
  int saved = errno;
  char *p = wiped;
  (void)signal;
  /* From its start, or from its end. */
  if (p != NULL && (byte_at (p) == 0) != (byte_at (p + wiped_size - 1) == 0))
    {
      in_the_middle++;
      if (ends_there)
        abort ();
    }
  errno = saved;
}

/* Large blocks with the secret all over, as signals come every few microseconds. */
static void
interrupted (void)
{
  struct sigaction action = { .sa_handler = look };
  struct itimerval often = { { 0, 53 }, { 0, 53 } };
  size_t size = 1500000;
  if (pipe (tube) != 0)
    _exit (3);
  sigaction (SIGALRM, &action, NULL);
  setitimer (ITIMER_REAL, &often, NULL);
  for (int round = 0; round < (arena || ends_there ? 5000 : 5) && in_the_middle < 20; round++)
    {
      char *p = malloc (size);
      memset (p, 1, size);
      fill (p + size / 2, 5000);
      fill (p + size - 5000, 5000);
      wiped_size = size;
      wiped = p;
      if (arena == NULL && ends_there)
        explicit_bzero (p, size); /* what a careful program does */
      free (p);
      wiped = NULL;
    }
  setitimer (ITIMER_REAL, &(struct itimerval){ 0 }, NULL);
  stop ("interrupted", (size_t)in_the_middle);
}

static void
killed_in_a_wipe (void)
{
  ends_there = 1;
  interrupted ();
}

/* ---- children ---- */

static void
forked (void)
{
  make_all ();
  char c;
  int go[2], said[2];
  if (pipe (go) != 0 || pipe (said) != 0)
    _exit (3);
  pid_t pid = fork ();
  if (pid == 0)
    {
      size_t found = 0;
      if (arena == NULL || malloc_arena_of (block[0]) == arena)
        for (int i = 0; i < BLOCKS; i++)
          found += count_secret (block[i], sizes[i]);
      say ("child", found);
      if (write (said[1], "x", 1) != 1 || read (go[0], &c, 1) != 1)
        _exit (4);
      /* What it writes is its own affair, and it can go on allocating. */
      for (int i = 0; i < BLOCKS; i++)
        {
          memset (block[i], 'c', sizes[i]);
          free (block[i]);
          fill (block[i] = malloc (sizes[i]), sizes[i]);
        }
      exit (0);
    }
  if (read (said[0], &c, 1) != 1)
    _exit (3);
  stop ("pid", (size_t)pid);
  if (write (go[1], "x", 1) != 1)
    _exit (5);
  int status;
  waitpid (pid, &status, 0);
  size_t found = 0;
  for (int i = 0; i < BLOCKS; i++)
    found += count_secret (block[i], sizes[i]);
  say ("status", (size_t)status);
  stop ("parent", found);
}

static sigjmp_buf back;

static void
fault (int signal)
{
  (void)signal;
  siglongjmp (back, 1);
}

/* Whether a child can touch the parent's blocks at all. */
static void
forked_touch (void)
{
  make_all ();
  pid_t pid = fork ();
  if (pid == 0)
    {
      volatile size_t touched = 0;
      signal (SIGSEGV, fault);
      for (volatile int i = 0; i < BLOCKS; i++)
        if (sigsetjmp (back, 1) == 0)
          touched += *(volatile char *)block[i] != 1;
      say ("touched", touched);
      _exit (0);
    }
  waitpid (pid, NULL, 0);
  stop ("pid", (size_t)pid);
}

/* Two processes on one mapping: the control of secret memory, which can only be shared. */
static void
forked_shared (void)
{
  char *p = arena ? malloc (5000)
                  : mmap (NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  fill (p, 5000);
  pid_t pid = fork ();
  if (pid == 0)
    {
      memset (p, 'c', 5000);
      _exit (0);
    }
  waitpid (pid, NULL, 0);
  stop ("intact", count_secret (p, 5000));
}

/* The program that takes this one's place: ARGUMENT says how it is started. */
static void
started (const char *how)
{
  make_all ();
  if (arena == NULL)
    {
      /* What a secret in a file of memory does, when nobody thinks of its descriptor. */
      int fd = memfd_create ("secret", 0);
      if (write (fd, block[5], sizes[5]) != (ssize_t)sizes[5])
        _exit (6);
    }
  char *arguments[] = { program, "plain", "idle", NULL };
  pid_t pid = 0;
  if (strcmp (how, "exec") == 0)
    {
      stop ("pid", (size_t)getpid ());
      execv (program, arguments);
      _exit (7);
    }
  if (strcmp (how, "spawn") == 0)
    posix_spawn (&pid, program, NULL, NULL, arguments, environ);
  else if ((pid = strcmp (how, "vfork") == 0 ? vfork () : fork ()) == 0)
    {
      execv (program, arguments);
      _exit (7);
    }
  waitpid (pid, NULL, 0);
}

static void
idle (void)
{
  stop ("idle", (size_t)getpid ());
}

/* ---- crimes: "survived" is what must not be said ---- */

/* How much of a block is to be seen from the one before it. */
static size_t
read_behind (size_t size, size_t reach)
{
  size_t seen = 0;
  char *p = malloc (size);
  char *q = malloc (size);
  fill (q, size);
  volatile char *at = hide (p);
  for (size_t i = 0; i < reach; i++)
    seen += at[i] != 0;
  free (q);
  return seen;
}

static void
crime (const char *what)
{
  char *p, *q;
  size_t seen = 0;
  if (strcmp (what, "overflow") == 0)
    {
      p = malloc (20);
      ((char *)hide (p))[20] = 'x';
      free (p);
    }
  else if (strcmp (what, "overflow-large") == 0)
    {
      p = malloc (100000);
      ((char *)hide (p))[100000] = 'x';
      free (p);
    }
  else if (strcmp (what, "read-behind") == 0)
    seen = read_behind (100000, 120000);
  else if (strcmp (what, "read-behind-small") == 0)
    seen = read_behind (100, 5000);
  else if (strcmp (what, "read-freed") == 0)
    {
      p = malloc (300);
      fill (p, 300);
      q = hide (p);
      free (p);
      seen = count_secret (q + 16, 200) > 0;
    }
  else if (strcmp (what, "write-freed") == 0)
    {
      p = malloc (300);
      q = hide (p);
      free (p);
      q[100] = 'x';
      for (int i = 0; i < 100; i++)
        seen += malloc (300) != NULL;
    }
  else if (strcmp (what, "free-twice") == 0)
    {
      /* With another in between, and out of the thread cache. */
      char *first[9];
      for (int i = 0; i < 9; i++)
        first[i] = malloc (40);
      for (int i = 0; i < 9; i++)
        free (first[i]);
      free (hide (first[7]));
    }
  else if (strcmp (what, "free-inside") == 0)
    {
      /* A block inside a block that looks like one of malloc's. */
      p = malloc (400);
      size_t *words = hide (p);
      words[3] = 0x41;
      free (hide (p + 32));
    }
  say ("survived", seen);
}

/* What lies right before the block: bookkeeping, which an overflow of a neighbour overwrites. */
static void
before_the_block (void)
{
  size_t bookkeeping = 0;
  char *some[40];
  if (pipe (tube) != 0)
    _exit (3);
  for (size_t i = 0; i < 40; i++)
    memset (some[i] = malloc (64 + i), 0, 64 + i);
  for (int i = 1; i < 40; i++)
    {
      size_t word = 0;
      /* Before the first block of a page there may be a guard. */
      if (write (tube[1], some[i] - 8, 8) == 8 && read (tube[0], &word, 8) != 8)
        _exit (3);
      bookkeeping += (word & ~(size_t)7) >= 64 && (word & ~(size_t)7) < 200;
    }
  stop ("bookkeeping", bookkeeping);
}

/* ---- swap ---- */

/* More memory than the control group has. */
static void
press (void)
{
  enum
  {
    PRESSURE = 96 << 20
  };
  char *pressure
      = mmap (NULL, PRESSURE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (int round = 0; round < 2; round++)
    for (size_t at = 0; at < PRESSURE; at += 4096)
      pressure[at] = (char)(at >> 12 | 1);
}

/* 512 secrets, each with a page to itself, numbered. */
static void
swapped (void)
{
  enum
  {
    SECRETS = 512
  };
  char *secrets[SECRETS];
  for (int i = 0; i < SECRETS; i++)
    {
      secrets[i] = malloc (4096 + 64);
      memset (secrets[i], 0, 4096 + 64);
      for (int at = 0; at + 32 <= 4096 + 64; at += 32)
        {
          fill (secrets[i] + at, 21);
          secrets[i][at + 21] = (char)(0x80 | i >> 8);
          secrets[i][at + 22] = (char)(0x80 | (i >> 4 & 15));
          secrets[i][at + 23] = (char)(0x80 | (i & 15));
        }
    }
  if (arena)
    malloc_arena_leave (arena);
  press ();
  stop ("swapped", 0);
  _exit (0); /* with all secrets alive */
}

enum
{
  OWN_STACK = 256 << 10,
  DEAD = 64 << 10
};

/* What its calls left at the low end of its stack is in swap by now. */
static void *
thread_with_swapped_stack (void *low)
{
  unsigned char present[DEAD / 4096];
  if (arena)
    malloc_arena_enter (arena);
  fill (low, DEAD);
  if (arena)
    malloc_arena_leave (arena);
  press ();
  if (mincore (low, DEAD, present) != 0)
    _exit (3);
  size_t absent = 0;
  for (size_t page = 0; page < sizeof present; page++)
    absent += !(present[page] & 1);
  return (void *)absent;
}

static void
dead_thread_in_swap (void)
{
  pthread_t thread;
  pthread_attr_t attributes;
  void *absent;
  char *stack = mmap (NULL, OWN_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  pthread_attr_init (&attributes);
  pthread_attr_setstack (&attributes, stack, OWN_STACK);
  pthread_create (&thread, &attributes, thread_with_swapped_stack, stack);
  pthread_join (thread, &absent);
  say ("absent", (size_t)absent);
  stop ("left", count_secret (stack, DEAD)); /* which has it read from the disk */
}

int
main (int argc, char **argv)
{
  static const struct
  {
    const char *name;
    unsigned kind;
    enum malloc_arena_fork fork;
  } kinds[] = {
    { "secure", HEAP_SECURE, 0 },
    { "isolated", HEAP_SECURE | HEAP_ISOLATED, 0 },
    { "secretmem", HEAP_SECURE | HEAP_SECRETMEM, 0 },
    { "keep", HEAP_SECURE, MALLOC_ARENA_FORK_KEEP },
    { "refuse", HEAP_SECURE, MALLOC_ARENA_FORK_REFUSE },
    { "default", HEAP_DEFAULT, 0 },
  };
  static const struct
  {
    const char *name;
    void (*tell) (void);
  } stories[] = {
    { "alive", alive },
    { "freed", freed },
    { "resized", resized },
    { "errors", errors },
    { "reused", reused },
    { "freed-elsewhere", freed_elsewhere },
    { "dead-thread", dead_thread },
    { "scrubbed", scrubbed },
    { "interrupted", interrupted },
    { "killed-in-a-wipe", killed_in_a_wipe },
    { "forked", forked },
    { "forked-touch", forked_touch },
    { "forked-shared", forked_shared },
    { "idle", idle },
    { "before-the-block", before_the_block },
    { "swapped", swapped },
    { "dead-thread-in-swap", dead_thread_in_swap },
  };
  if (argc < 3)
    return 2;
  program = argv[0];
  struct rlimit all = { RLIM_INFINITY, RLIM_INFINITY };
  setrlimit (RLIMIT_CORE, &all);
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
    if (strcmp (argv[1], kinds[i].name) == 0)
      {
        struct malloc_arena_options options
            = { .size = sizeof options, .kind = kinds[i].kind, .fork = kinds[i].fork };
        options.limit = (size_t)64 << 20;
        arena = malloc_arena_new (&options);
        if (arena == NULL)
          {
            say ("errno", (size_t)errno);
            return 3;
          }
        malloc_arena_enter (arena);
      }
  if (strcmp (argv[2], "started") == 0 && argc > 3)
    started (argv[3]);
  else if (strcmp (argv[2], "crime") == 0 && argc > 3)
    crime (argv[3]);
  for (size_t i = 0; i < sizeof stories / sizeof *stories; i++)
    if (strcmp (argv[2], stories[i].name) == 0)
      stories[i].tell ();
  return 0;
}
