/* soak.c - a mixed program under load, while calls of os.h fail at random and another process looks for
 * bytes that should be gone.
 *
 *   soak [--minutes N | --seconds N] [--seed N] [--seconds-each N]
 *
 * A controller starts one worker after another. A worker has threads that allocate, resize, check, hand
 * to each other and free in arenas of all kinds, some with limits, some made and deleted on the way;
 * that end and start again; that fork children, which do the same; and that are interrupted by a timer.
 * Now and then the controller has them stand still, and searches all memory of the worker: what secure
 * blocks hold must be in blocks that live, and nowhere else.
 */
#include "faults.h"
#include "scan.h"

#include <malloc.h>
#include <sys/time.h>
#include <time.h>

enum
{
  THREADS = 5,
  SLOTS = 256,
  SHARED = 128,
  ARENAS = 11, /* the last is NULL: the ordinary malloc */
  OWN = 7,     /* made and deleted by the way */
  MEMLOCK = 8 << 20,
  STACKS = 4096
};

struct block
{
  unsigned char *p;
  size_t size;
  uint64_t stamp;
  int arena;
};

/* What both processes see. */
struct common
{
  struct faults faults;
  _Atomic int is_paused, is_stopped, running;
  _Atomic unsigned long operations, refusals, forks, signals, arenas, threads;
  _Atomic int child; /* that waits to be searched */
  struct block blocks[THREADS + 1][SLOTS];
  struct block shared[SHARED];
  _Atomic unsigned stack_count;
  struct
  {
    uintptr_t low, end;
  } stacks[STACKS];
};
static struct common *common;
static uint64_t seed;
static bool is_child;
static unsigned needle; /* of this process */

/* ---- a worker ---- */

static malloc_arena *_Atomic arenas[ARENAS];
static pthread_rwlock_t own_lock = PTHREAD_RWLOCK_INITIALIZER;
static pthread_mutex_t shared_lock[SHARED];

static size_t
some_size (uint64_t *state)
{
  unsigned shift = (unsigned)(check_random (state) % 64);
  shift = shift < 48 ? 4 + shift % 8 : shift < 62 ? 12 + shift % 4 : 18;
  return check_random (state) % ((size_t)1 << shift);
}

static void
run_again (void)
{
  for (;;)
    {
      while (common->is_paused)
        usleep (500);
      common->running++;
      if (!common->is_paused)
        return;
      common->running--;
    }
}

static void
pause_here (void)
{
  if (is_child || !common->is_paused)
    return;
  common->running--;
  run_again ();
}

static void
verify (const struct block *b)
{
  if (b->p != NULL
      && !scan_is_filled (b->p, b->size, b->size, b->arena == -1 ? 9 : needle, b->stamp))
    CHECK_FAIL ("data lost: %zu bytes at %p of arena %d", b->size, (void *)b->p, b->arena);
}

/* Ordinary blocks and those of HEAP_DEFAULT, which nobody wipes, hold another needle. */
static bool
is_secret (malloc_arena *arena)
{
  return arena != NULL && check_receipt (arena).requested & MALLOC_ARENA_UNDUMPED;
}

static void
fill (struct block *b, malloc_arena *arena, uint64_t *state)
{
  b->arena = is_secret (arena) ? 0 : -1;
  b->stamp = check_random (state);
  scan_fill (b->p, b->size, b->arena == -1 ? 9 : needle, b->stamp);
}

static void
refused (void)
{
  if (errno != ENOMEM)
    CHECK_FAIL ("an allocation failed with errno %d", errno);
  common->refusals++;
}

static void
make (struct block *b, uint64_t *state)
{
  struct block made = { .size = some_size (state) };
  int index = (int)(check_random (state) % ARENAS);
  if (index == OWN)
    pthread_rwlock_rdlock (&own_lock);
  malloc_arena *arena = arenas[index];
  size_t alignment = (size_t)16 << check_random (state) % 9;
  malloc_arena_enter (arena);
  errno = 0;
  switch (check_random (state) % 5)
    {
    case 0:
      made.p = calloc (1, made.size);
      if (made.p != NULL && !check_all (made.p, 0, made.size))
        CHECK_FAIL ("calloc: %zu bytes at %p of arena %d are not zero", made.size, (void *)made.p,
                    index);
      break;
    case 1:
      made.p = aligned_alloc (alignment, made.size);
      CHECK ((uintptr_t)made.p % alignment == 0);
      break;
    default: made.p = malloc (made.size);
    }
  malloc_arena_leave (arena);
  if (made.p == NULL)
    refused ();
  else
    {
      CHECK (malloc_arena_of (made.p) == arena);
      fill (&made, arena, state);
      *b = made;
    }
  if (index == OWN)
    pthread_rwlock_unlock (&own_lock);
}

static void
drop (struct block *b)
{
  if (b->p == NULL)
    return;
  verify (b);
  errno = EXDEV;
  free (b->p);
  CHECK_EQUAL (errno, EXDEV);
  b->p = NULL;
}

static void
resize (struct block *b, uint64_t *state)
{
  verify (b);
  struct block moved = *b;
  moved.size = some_size (state) + 1;
  /* An ordinary block moves into the arena that is active; others stay. Of a block that is ours
   * the arena lives as long as the block. */
  malloc_arena *home = malloc_arena_of (b->p);
  malloc_arena *active = home == NULL ? arenas[check_random (state) % OWN] : NULL;
  malloc_arena_enter (active);
  errno = 0;
  moved.p = realloc (b->p, moved.size);
  malloc_arena_leave (active);
  if (moved.p == NULL)
    {
      refused ();
      verify (b);
      return;
    }
  malloc_arena *now = malloc_arena_of (moved.p);
  CHECK (now == (home ? home : active));
  size_t kept = moved.size < b->size ? moved.size : b->size;
  CHECK (scan_is_filled (moved.p, kept, 0, b->arena == -1 ? 9 : needle, b->stamp));
  fill (&moved, now, state);
  *b = moved;
}

static void
swap_shared (struct block *b, uint64_t *state)
{
  size_t at = check_random (state) % SHARED;
  pthread_mutex_lock (&shared_lock[at]);
  struct block other = common->shared[at];
  common->shared[at] = *b;
  *b = other;
  pthread_mutex_unlock (&shared_lock[at]);
  verify (b);
}

static malloc_arena *
some_arena (const char *name, uint64_t *state)
{
  static const unsigned kinds[]
      = { HEAP_SECURE, HEAP_DEFAULT, HEAP_SECURE | HEAP_ISOLATED, HEAP_SECURE | HEAP_SECRETMEM };
  struct malloc_arena_options options = { .size = sizeof options, .name = name };
  options.kind = kinds[check_random (state) % 4];
  options.lock = (unsigned)(check_random (state) % 4);
  options.fork = (unsigned)(check_random (state) % 4);
  options.limit = check_random (state) % 2 ? 0 : (size_t)128 << 10 << check_random (state) % 5;
  errno = 0;
  malloc_arena *arena = malloc_arena_new (&options);
  if (arena == NULL)
    CHECK (errno == ENOMEM || errno == EPERM || errno == ENOTSUP);
  common->arenas++;
  return arena;
}

/* An arena of all threads, which comes and goes as its blocks do. */
static void
change_own (uint64_t *state)
{
  if (pthread_rwlock_trywrlock (&own_lock) != 0)
    return;
  malloc_arena *arena = arenas[OWN];
  if (arena != NULL && malloc_arena_delete (arena) == 0)
    arenas[OWN] = NULL;
  else if (arena != NULL)
    CHECK_EQUAL (errno, EBUSY);
  if (arenas[OWN] == NULL)
    arenas[OWN] = some_arena ("own", state);
  pthread_rwlock_unlock (&own_lock);
}

/* And one of a moment. */
static void
use_brief (struct block *mine, uint64_t *state)
{
  malloc_arena *arena = some_arena ("brief", state);
  if (arena == NULL)
    return;
  struct block *made[8];
  int n = 0;
  for (int i = 0; i < SLOTS && n < 8; i++)
    if (mine[i].p == NULL)
      {
        struct block *b = &mine[i];
        b->size = some_size (state);
        malloc_arena_enter (arena);
        errno = 0;
        unsigned char *p = malloc (b->size);
        malloc_arena_leave (arena);
        if (p == NULL)
          refused ();
        else
          {
            b->p = p;
            fill (b, arena, state);
            made[n++] = b;
          }
      }
  CHECK (n == 0 || malloc_arena_delete (arena) == -1);
  while (n > 0)
    drop (made[--n]);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

static void
one_step (struct block *mine, uint64_t *state)
{
  struct block *b = &mine[check_random (state) % SLOTS];
  unsigned what = (unsigned)(check_random (state) % 64);
  if (b->p == NULL)
    make (b, state);
  else if (what < 26)
    drop (b);
  else if (what < 38)
    resize (b, state);
  else if (what < 56 && !is_child)
    swap_shared (b, state);
  else if (what < 62)
    verify (b);
  else if (what == 62)
    malloc_trim (0);
  else
    malloc_arena_scrub (4096);
}

/* A child has one thread, and blocks that others were just writing: it works on its own. It has a
 * needle of its own, of which nothing may be left when all is freed. */
static void
child (uint64_t state)
{
  static struct block mine[SLOTS];
  is_child = true;
  needle = 1;
  alarm (120);
  for (unsigned i = 0; i < 400; i++)
    {
      one_step (mine, &state);
      if (i % 100 == 50)
        use_brief (mine, &state);
    }
  for (size_t i = 0; i < SLOTS; i++)
    drop (&mine[i]);
  int none = 0;
  if (check_random (&state) % 4 == 0
      && atomic_compare_exchange_strong (&common->child, &none, getpid ()))
    while (common->child == getpid ())
      usleep (500);
}

static void
fork_once (uint64_t *state)
{
  uint64_t of_child = check_random (state);
  /* Not between the end of an arena and the end of its name. */
  pthread_rwlock_rdlock (&own_lock);
  pid_t pid = fork ();
  if (pid != 0)
    pthread_rwlock_unlock (&own_lock);
  else
    {
      own_lock = (pthread_rwlock_t)PTHREAD_RWLOCK_INITIALIZER;
      signal (SIGALRM, SIG_DFL);
      child (of_child);
      _exit (0);
    }
  if (pid < 0)
    return;
  common->forks++;
  /* The controller may want to search while it waits. */
  int status;
  while (waitpid (pid, &status, WNOHANG) == 0)
    {
      pause_here ();
      usleep (300);
    }
  if (!WIFEXITED (status) || WEXITSTATUS (status) != 0)
    CHECK_FAIL ("a forked child: status %x", status);
}

static void
mask_signals (int how)
{
  sigset_t timer;
  sigemptyset (&timer);
  sigaddset (&timer, SIGALRM);
  CHECK_EQUAL (pthread_sigmask (how, &timer, NULL), 0);
}

/* Before the first signal: a handler may scrub in threads that have been in an arena. */
static void
let_signals_in (void)
{
  malloc_arena_enter (arenas[2]);
  malloc_arena_leave (arenas[2]);
  mask_signals (SIG_UNBLOCK);
}

static void
note_stack (void)
{
  pthread_attr_t attributes;
  void *low;
  size_t size;
  CHECK_EQUAL (pthread_getattr_np (pthread_self (), &attributes), 0);
  CHECK_EQUAL (pthread_attr_getstack (&attributes, &low, &size), 0);
  pthread_attr_destroy (&attributes);
  unsigned at = common->stack_count++ % STACKS;
  common->stacks[at].low = (uintptr_t)low;
  common->stacks[at].end = (uintptr_t)low + size;
}

static _Atomic bool is_generation_over;

static void *
thread_body (void *data)
{
  size_t number = (size_t)data % 1000;
  uint64_t state = seed * 77 + (size_t)data;
  struct block *mine = common->blocks[number];
  note_stack ();
  let_signals_in ();
  run_again ();
  for (unsigned long i = 1; !is_generation_over; i++)
    {
      one_step (mine, &state);
      if (i % 64 == 0)
        {
          common->operations += 64;
          pause_here ();
        }
      if (i % 512 == 0)
        {
          if (check_random (&state) % 4 == 0)
            change_own (&state);
          else
            use_brief (mine, &state);
        }
      if (i % 2048 == 0 && number == 0)
        fork_once (&state);
    }
  /* Some go with their hands empty; what others leave is freed by the next. */
  if (check_random (&state) % 2)
    for (size_t i = 0; i < SLOTS; i++)
      drop (&mine[i]);
  common->running--;
  /* The C library frees as the thread ends, and nobody knows its stack any more. */
  mask_signals (SIG_BLOCK);
  return NULL;
}

static void
on_timer (int signal)
{
  int saved = errno;
  (void)signal;
  malloc_arena_scrub (2048);
  common->signals++;
  errno = saved;
}

/* For a look with a debugger. */
static void
on_crash (int signal)
{
  setitimer (ITIMER_REAL, &(struct itimerval){ 0 }, NULL);
  dprintf (STDERR_FILENO, "process %d stands: signal %d\n", getpid (), signal);
  for (;;)
    pause ();
}

static void
open_arenas (void)
{
  static const unsigned kinds[]
      = { HEAP_SECURE, HEAP_SECURE | HEAP_ISOLATED, HEAP_DEFAULT, HEAP_SECURE | HEAP_SECRETMEM };
  for (int i = 0; i < 4; i++)
    if (arenas[i] == NULL)
      arenas[i] = malloc_arena_get (kinds[i]);
  static const struct malloc_arena_options own[] = {
    { .size = sizeof *own, .kind = HEAP_SECURE, .fork = MALLOC_ARENA_FORK_KEEP, .name = "kept" },
    { .size = sizeof *own, .kind = HEAP_SECURE, .limit = 256 << 10, .name = "small" },
    { .size = sizeof *own,
      .kind = HEAP_SECURE,
      .lock = MALLOC_ARENA_LOCK_REQUIRE,
      .name = "strict" },
    { .size = sizeof *own, .kind = HEAP_DEFAULT, .limit = 512 << 10, .name = "budget" },
    { .size = sizeof *own,
      .kind = HEAP_SECURE | HEAP_SECRETMEM,
      .fork = MALLOC_ARENA_FORK_KEEP,
      .name = "hidden" },
  };
  static const int places[] = { 4, 5, 6, 8, 9 };
  for (int i = 0; i < 5; i++)
    if (arenas[places[i]] == NULL)
      arenas[places[i]] = malloc_arena_new (&own[i]);
}

_Noreturn static void
worker (void)
{
  struct sigaction action = { .sa_handler = on_timer, .sa_flags = SA_RESTART };
  struct itimerval often = { { 0, 9000 }, { 0, 9000 } };
  uint64_t state = seed;
  prctl (PR_SET_PDEATHSIG, SIGKILL);
  check_memlock (MEMLOCK);
  mask_signals (SIG_BLOCK);
  for (size_t i = 0; i < SHARED; i++)
    CHECK_EQUAL (pthread_mutex_init (&shared_lock[i], NULL), 0);
  sigaction (SIGALRM, &action, NULL);
  if (getenv ("SOAK_HOLD") != NULL)
    for (int i = 0; i < 3; i++)
      signal ((int[]){ SIGSEGV, SIGBUS, SIGABRT }[i], on_crash);
  setitimer (ITIMER_REAL, &often, NULL);
  while (!common->is_stopped)
    {
      /* Without one a thread cannot even leave the ordinary malloc; with one it always can. */
      do
        open_arenas ();
      while (arenas[2] == NULL);
      is_generation_over = false;
      pthread_t threads[THREADS];
      for (size_t t = 0; t < THREADS; t++, common->threads++)
        CHECK_EQUAL (pthread_create (&threads[t], NULL, thread_body,
                                     (void *)(t + 1000 * (size_t)(check_random (&state) % 100000))),
                     0);
      for (int i = 0; i < 100 && !common->is_stopped; i++)
        usleep (20000);
      is_generation_over = true;
      for (size_t t = 0; t < THREADS; t++)
        pthread_join (threads[t], NULL);
    }
  setitimer (ITIMER_REAL, &(struct itimerval){ 0 }, NULL);
  run_again ();
  for (size_t t = 0; t < THREADS; t++)
    for (size_t i = 0; i < SLOTS; i++)
      drop (&common->blocks[t][i]);
  for (size_t i = 0; i < SHARED; i++)
    drop (&common->shared[i]);
  for (int i = 0; i < ARENAS; i++)
    if (arenas[i] != NULL)
      {
        struct malloc_arena_stats stats = check_stats (arenas[i]);
        CHECK_EQUAL (stats.live_blocks, 0);
        CHECK_EQUAL (stats.live_bytes, 0);
        if (i >= 4)
          CHECK_EQUAL (malloc_arena_delete (arenas[i]), 0);
      }
  common->running--;
  while (common->is_stopped != 2)
    usleep (500);
  _exit (0);
}

/* ---- the controller ---- */

static struct
{
  unsigned long scans, child_scans, bytes, seen;
  unsigned workers;
} done;

static double
now (void)
{
  struct timespec t;
  clock_gettime (CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static bool
is_in (const struct block *b, uintptr_t p)
{
  return b->p != NULL && p - (uintptr_t)b->p < b->size;
}

/* In a block that lives, or on a stack, where the registers of an interrupted copy are. */
static bool
is_expected (uintptr_t p, void *unused)
{
  (void)unused;
  for (size_t t = 0; t < THREADS + 1; t++)
    for (size_t i = 0; i < SLOTS; i++)
      if (is_in (&common->blocks[t][i], p))
        return true;
  for (size_t i = 0; i < SHARED; i++)
    if (is_in (&common->shared[i], p))
      return true;
  unsigned stacks = common->stack_count < STACKS ? common->stack_count : STACKS;
  for (unsigned i = 0; i < stacks; i++)
    if (p - common->stacks[i].low < common->stacks[i].end - common->stacks[i].low)
      return true;
  return false;
}

static void
search (pid_t pid, unsigned of_needle, bool nothing)
{
  struct scan scan = { .needle = of_needle };
  scan.is_expected = nothing ? scan_expects_nothing : is_expected;
  scan_process (&scan, pid);
  done.bytes += scan.bytes;
  done.seen += scan.found;
  if (scan.unexpected != 0)
    {
      CHECK_FAIL ("seed %llu: process %d has %zu unwiped places, the first at %p in %s",
                  (unsigned long long)seed, pid, scan.unexpected, (void *)scan.first, scan.mapping);
    }
}

/* A worker that hangs is left to a debugger where that is wanted. */
_Noreturn static void
hangs (pid_t pid, const char *where)
{
  dprintf (STDERR_FILENO, "seed %llu: process %d hangs %s: %d run, child %d\n",
           (unsigned long long)seed, pid, where, common->running, common->child);
  while (getenv ("SOAK_HOLD") != NULL)
    pause ();
  _exit (1);
}

static void
expect_alive (pid_t pid)
{
  int status;
  if (waitpid (pid, &status, WNOHANG) == pid)
    CHECK_FAIL ("seed %llu: the worker ended with status %x after %lu operations",
                (unsigned long long)seed, status, common->operations);
}

static void
wait_until_still (pid_t pid)
{
  double start = now ();
  common->is_paused = 1;
  while (common->running > 0)
    {
      usleep (500);
      expect_alive (pid);
      if (now () - start > 120)
        hangs (pid, "and does not stand still");
    }
}

static void
search_child (void)
{
  pid_t pid = common->child;
  if (pid == 0)
    return;
  search (pid, 1, true);
  done.child_scans++;
  common->child = 0;
}

static void
report (const char *what, double start)
{
  dprintf (STDOUT_FILENO,
           "%s: %.1f minutes, %u workers, %lu threads, %lu forks, %lu operations, %lu refused, %lu "
           "arenas made, %lu signals; %lu of %lu calls failed; %lu searches, %lu of children, of "
           "%.1f GiB, %lu live needles seen, 0 unwiped, 0 mismatches\n",
           what, (now () - start) / 60, done.workers, common->threads, common->forks,
           common->operations, common->refusals, common->arenas, common->signals,
           common->faults.failed, common->faults.calls, done.scans, done.child_scans,
           (double)done.bytes / (1 << 30), done.seen);
}

static void
one_worker (double seconds, uint64_t *state)
{
  memset (common->blocks, 0, sizeof common->blocks);
  memset (common->shared, 0, sizeof common->shared);
  common->is_paused = common->is_stopped = common->running = common->child = 0;
  common->stack_count = 0;
  faults->one_in = 0;
  seed++;
  double start = now ();
  unsigned long before = common->operations;
  /* Sometimes from the first call on. */
  if (check_random (state) % 2)
    faults->one_in = 16;
  pid_t pid = fork ();
  CHECK (pid >= 0);
  if (pid == 0)
    worker ();
  done.workers++;
  while (now () - start < seconds)
    {
      static const unsigned rates[] = { 0, 3, 8, 30, 100, 300 };
      faults->one_in = rates[check_random (state) % 6];
      faults->burst = check_random (state) % 3 ? 0 : 12;
      for (int i = 0; i < 40; i++)
        {
          usleep (10000);
          search_child ();
        }
      expect_alive (pid);
      wait_until_still (pid);
      search (pid, 0, false);
      done.scans++;
      common->is_paused = 0;
    }
  common->is_stopped = 1;
  usleep (50000);
  /* At its end it has nothing. */
  double end = now ();
  for (;;)
    {
      bool is_empty = common->running == 0;
      for (size_t t = 0; is_empty && t < THREADS; t++)
        for (size_t i = 0; is_empty && i < SLOTS; i++)
          is_empty = common->blocks[t][i].p == NULL;
      for (size_t i = 0; is_empty && i < SHARED; i++)
        is_empty = common->shared[i].p == NULL;
      if (is_empty)
        break;
      search_child ();
      expect_alive (pid);
      usleep (2000);
      if (now () - end > 120)
        hangs (pid, "at its end");
    }
  search (pid, 0, false);
  done.scans++;
  common->is_stopped = 2;
  struct check_outcome outcome = check_wait (pid, -1);
  if (outcome.exit_code != 0)
    CHECK_FAIL ("seed %llu: the worker: exit %d, signal %d", (unsigned long long)seed,
                outcome.exit_code, outcome.signal);
  CHECK (common->operations > before);
}

int
main (int argc, char **argv)
{
  double seconds = 10, each = 15;
  seed = 1;
  if (check_emulated ())
    check_skip ("an emulator's memory is not that of its program");
  for (int i = 1; i + 1 < argc; i += 2)
    if (strcmp (argv[i], "--minutes") == 0)
      seconds = 60 * atof (argv[i + 1]);
    else if (strcmp (argv[i], "--seconds") == 0)
      seconds = atof (argv[i + 1]);
    else if (strcmp (argv[i], "--seconds-each") == 0)
      each = atof (argv[i + 1]);
    else if (strcmp (argv[i], "--seed") == 0)
      seed = strtoull (argv[i + 1], NULL, 10) * 1000;
    else
      return 2;
  if (getenv ("MALLOC_ARENA_OPTIONS") == NULL)
    {
      CHECK_EQUAL (setenv ("MALLOC_ARENA_OPTIONS", "region_size=4G", 1), 0);
      check_execute (argv);
    }
  common = mmap (NULL, sizeof *common, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK (common != MAP_FAILED);
  faults = &common->faults;
  faults->state = seed;
  uint64_t state = seed;
  double start = now (), told = start;
  do
    {
      double left = seconds - (now () - start);
      one_worker (left < each ? left : each, &state);
      if (now () - told >= 60)
        {
          report ("so far", start);
          told = now ();
        }
    }
  while (now () - start < seconds);
  report ("soak", start);
  CHECK (done.seen > 0 && faults->failed > 0);
  for (int i = 0; i < FAULT_FUNCTIONS; i++)
    dprintf (STDOUT_FILENO, "  %-24s %lu\n", fault_names[i], faults->failed_of[i]);
  return 0;
}
