/* bench.c - runs one workload once, in a fresh process, and prints one line of JSON.
 *
 *   bench WORKLOAD MEMLOCK CPU CPU2 [ARGUMENT]
 *
 * MEMLOCK: RLIMIT_MEMLOCK in bytes, with CAP_IPC_LOCK dropped, so that root gets what a user gets.
 * CPU, CPU2: where the first and the second thread run; CPU2 -1: there is none.
 *
 * A timed workload runs in batches of about a millisecond, shorter than a time slice, so that most
 * batches are not interrupted; the sample is the median batch. A fresh process for each sample
 * gives every round another address layout, and no allocator the debris of another workload.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "peer.h"
#include "proc.h"

#define BATCHES 21
#define BATCH_NS 1000000
#define LIVE_MIXED 1000
#define MIXED_MIN 16
#define MIXED_MAX 512
#define QUEUE 1024
#define QUEUE_STEP 32 /* handed over together: the lines that the queue itself passes stay few */
#define GROWN ((size_t)64 << 10)
#define LIVE_SIZE 32
#define LIVE_SECONDS 3

/* An 8 MiB limit holds an 8 MiB pool and nothing else; speed needs no more than the half. */
#define POOL_SPEED ((size_t)4 << 20)
#define POOL_LIVE ((size_t)8 << 20)

static int cpus[2];

_Noreturn static void
give_up (const char *why)
{
  printf ("{\"error\": \"%s\"}\n", why);
  fflush (stdout);
  _exit (0);
}

static uint64_t
now (void)
{
  struct timespec t;
  clock_gettime (CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void
pin (int cpu)
{
  cpu_set_t set;
  CPU_ZERO (&set);
  CPU_SET (cpu, &set);
  sched_setaffinity (0, sizeof set, &set);
}

/* What an ordinary user may lock. The capability goes first: it overrides the limit. */
static void
limit_locking (rlim_t bytes)
{
  struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
  struct __user_cap_data_struct data[2];
  struct rlimit limit = { bytes, bytes };
  if (syscall (SYS_capget, &header, data) != 0)
    give_up ("capget failed");
  uint32_t bit = 1u << CAP_IPC_LOCK;
  data[0].effective &= ~bit;
  data[0].permitted &= ~bit;
  data[0].inheritable &= ~bit;
  if (syscall (SYS_capset, &header, data) != 0)
    give_up ("capset failed");
  if (setrlimit (RLIMIT_MEMLOCK, &limit) != 0)
    give_up ("RLIMIT_MEMLOCK cannot be set: the hard limit is lower");
}

/* The write of a user's data. The barrier tells the compiler that someone reads it. */
static inline void
fill (void *p, size_t n)
{
  memset (p, 0xa5, n);
  __asm__ volatile ("" : : "r"(p) : "memory");
}

static inline void *
must (void *p)
{
  if (__builtin_expect (p == NULL, 0))
    give_up ("an allocation failed");
  return p;
}

static void
look (void)
{
  if (!read_ranges ())
    give_up ("/proc/self/smaps cannot be read");
}

/* ---- timing ---- */

typedef void batch_fn (void *state, size_t operations);

struct timing
{
  double ns; /* per operation, of the median batch */
  size_t operations;
};

static int
ascending (const void *a, const void *b)
{
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static size_t
calibrate (batch_fn *batch, void *state)
{
  for (size_t operations = 1;; operations *= 2)
    {
      /* the better of two: the first call pays for cold code and fresh pages */
      uint64_t took = UINT64_MAX;
      for (int i = 0; i < 2; i++)
        {
          uint64_t start = now ();
          batch (state, operations);
          uint64_t again = now () - start;
          took = again < took ? again : took;
        }
      if (took >= BATCH_NS / 2)
        {
          size_t fitting = (size_t)((double)operations * BATCH_NS / (double)took);
          return fitting > 0 ? fitting : 1;
        }
    }
}

static struct timing
measure (batch_fn *batch, void *state, size_t operations)
{
  double ns[BATCHES];
  for (int i = 0; i < BATCHES; i++)
    {
      uint64_t start = now ();
      batch (state, operations);
      ns[i] = (double)(now () - start) / (double)operations;
    }
  /* qsort allocates when there is much to sort; this is not much */
  qsort (ns, BATCHES, sizeof ns[0], ascending);
  return (struct timing){ ns[BATCHES / 2], operations };
}

static struct timing
warm_and_measure (batch_fn *batch, void *state)
{
  size_t operations = calibrate (batch, state);
  batch (state, operations);
  return measure (batch, state, operations);
}

/* ---- one at a time ---- */

static void
one_batch (void *state, size_t operations)
{
  size_t size = *(size_t *)state;
  for (size_t i = 0; i < operations; i++)
    {
      void *p = must (peer_alloc (size));
      fill (p, size);
      peer_free (p, size);
    }
}

/* ---- zeros written to two blocks in turn, of no allocator; an arena's wipe looks at the one that was left ---- */

static void
zeros_batch (void *state, size_t operations)
{
  enum
  {
    MOST = 1 << 20
  };
  static _Alignas (4096) char blocks[2][MOST];
  size_t size = *(size_t *)state;
  if (size > MOST)
    give_up ("at most 1 MiB");
  for (size_t i = 0; i < operations; i++)
    {
      memset (blocks[i & 1], 0, size);
      __asm__ volatile ("" : : : "memory");
#ifdef PEER_ARENA
      ma_wipe (blocks[~i & 1], size);
#endif
    }
}

/* ---- 1,000 live objects of 16-512 B, replaced at random ---- */

struct object
{
  void *p;
  size_t size;
};

struct mixed
{
  _Alignas (64) uint64_t seed;
  struct object live[LIVE_MIXED];
};

static inline uint32_t
draw (uint64_t *seed, uint32_t below)
{
  *seed = *seed * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)((*seed >> 32) * below >> 32);
}

static inline size_t
mixed_size (uint64_t *seed)
{
  return MIXED_MIN + draw (seed, MIXED_MAX - MIXED_MIN + 1);
}

static void
mixed_batch (void *state, size_t operations)
{
  struct mixed *m = state;
  for (size_t i = 0; i < operations; i++)
    {
      struct object *o = &m->live[draw (&m->seed, LIVE_MIXED)];
      size_t size = mixed_size (&m->seed);
      peer_free (o->p, o->size);
      o->p = must (peer_alloc (size));
      o->size = size;
      fill (o->p, size);
    }
}

static void
mixed_fill (struct mixed *m, uint64_t seed)
{
  m->seed = seed;
  for (int i = 0; i < LIVE_MIXED; i++)
    {
      struct object *o = &m->live[i];
      o->size = mixed_size (&m->seed);
      o->p = must (peer_alloc (o->size));
      fill (o->p, o->size);
    }
}

/* ---- two threads of that, each with objects of its own ---- */

static struct mixed mixed[2];
static struct timing mixed_timing[2];
static pthread_barrier_t both_ready;
static atomic_int unfinished = 2;

static void *
mixed_thread (void *arg)
{
  int me = (int)(intptr_t)arg;
  pin (cpus[me]);
  peer_thread ();
  mixed_fill (&mixed[me], 20200917u + (unsigned)me);
  pthread_barrier_wait (&both_ready);
  size_t operations = calibrate (mixed_batch, &mixed[me]);
  pthread_barrier_wait (&both_ready);
  mixed_timing[me] = measure (mixed_batch, &mixed[me], operations);
  /* the other thread must not finish alone, at the speed of one thread */
  atomic_fetch_sub (&unfinished, 1);
  while (atomic_load (&unfinished) > 0)
    mixed_batch (&mixed[me], 1 + operations / 16);
  return NULL;
}

static struct timing
mixed_two_threads (void)
{
  pthread_t threads[2];
  pthread_barrier_init (&both_ready, NULL, 2);
  for (int i = 0; i < 2; i++)
    if (pthread_create (&threads[i], NULL, mixed_thread, (void *)(intptr_t)i) != 0)
      give_up ("pthread_create failed");
  for (int i = 0; i < 2; i++)
    pthread_join (threads[i], NULL);
  return (struct timing){ (mixed_timing[0].ns + mixed_timing[1].ns) / 2,
                          mixed_timing[0].operations };
}

/* ---- producer and consumer: one thread allocates, the other frees ---- */

struct queue
{
  _Alignas (64) atomic_size_t head; /* written by the consumer */
  _Alignas (64) atomic_size_t tail; /* written by the producer */
  _Alignas (64) size_t head_seen;   /* the producer's copy: most steps touch no foreign line */
  size_t pushed;
  uint64_t seed;
  _Alignas (64) struct object slot[QUEUE];
};
static struct queue queue;

static inline void
pause_a_little (unsigned *spins)
{
#if defined __x86_64__
  __builtin_ia32_pause ();
#elif defined __aarch64__
  __asm__ volatile ("yield");
#endif
  if (++*spins % 256 == 0)
    sched_yield (); /* someone else may be on the other's CPU */
}

static inline void
queue_push (struct object o)
{
  unsigned spins = 0;
  while (queue.pushed - queue.head_seen == QUEUE)
    {
      queue.head_seen = atomic_load_explicit (&queue.head, memory_order_acquire);
      if (queue.pushed - queue.head_seen == QUEUE)
        pause_a_little (&spins);
    }
  queue.slot[queue.pushed++ % QUEUE] = o;
  if (queue.pushed % QUEUE_STEP == 0 || o.p == NULL)
    atomic_store_explicit (&queue.tail, queue.pushed, memory_order_release);
}

static void *
consumer_thread (void *arg)
{
  (void)arg;
  pin (cpus[1]);
  size_t head = 0, tail = 0;
  unsigned spins = 0;
  for (;;)
    {
      while (head == tail)
        {
          tail = atomic_load_explicit (&queue.tail, memory_order_acquire);
          if (head == tail)
            pause_a_little (&spins);
        }
      struct object o = queue.slot[head++ % QUEUE];
      if (head % QUEUE_STEP == 0)
        atomic_store_explicit (&queue.head, head, memory_order_release);
      if (o.p == NULL)
        return NULL;
      if (*(volatile unsigned char *)o.p != 0xa5)
        give_up ("the consumer read something else than the producer wrote");
      peer_free (o.p, o.size);
    }
}

static void
handoff_batch (void *state, size_t operations)
{
  (void)state;
  for (size_t i = 0; i < operations; i++)
    {
      struct object o;
      o.size = mixed_size (&queue.seed);
      o.p = must (peer_alloc (o.size));
      fill (o.p, o.size);
      queue_push (o);
    }
}

static struct timing
handoff (void)
{
  pthread_t consumer;
  queue.seed = 20200917u;
  if (pthread_create (&consumer, NULL, consumer_thread, NULL) != 0)
    give_up ("pthread_create failed");
  handoff_batch (NULL, 4 * QUEUE); /* the queue at its steady level, full or empty */
  struct timing t = warm_and_measure (handoff_batch, NULL);
  queue_push ((struct object){ NULL, 0 });
  pthread_join (consumer, NULL);
  return t;
}

/* ---- growth from 16 B to 64 KiB; one operation is the whole growth ---- */

static void
grow_batch (void *state, size_t operations)
{
  int doubling = *(int *)state;
  for (size_t i = 0; i < operations; i++)
    {
      size_t size = 16;
      char *p = must (peer_alloc (size));
      fill (p, size);
      while (size < GROWN)
        {
          size_t next = doubling ? size * 2 : size + size / 8;
          if (next > GROWN)
            next = GROWN;
          p = must (peer_resize (p, size, next));
          fill (p + size, next - size);
          size = next;
        }
      peer_free (p, size);
    }
}

/* ---- an allocation-heavy C program: words into a hash table, an index printed, all torn down ----
 * Plain malloc, calloc, realloc, strdup and free, as written by someone who never heard of arenas.
 */

#define BUCKETS 512

struct place
{
  struct place *next;
  unsigned number;
};

struct word
{
  struct word *next;
  char *text;
  struct place *places;
  unsigned count;
};

static void
index_add (struct word **buckets, const char *text, unsigned number)
{
  uint32_t hash = 2166136261u;
  for (const char *c = text; *c != '\0'; c++)
    hash = (hash ^ (unsigned char)*c) * 16777619u;
  struct word **at = &buckets[hash % BUCKETS];
  char *copy = must (strdup (text));
  while (*at != NULL && strcmp (copy, (*at)->text) != 0)
    at = &(*at)->next;
  if (*at == NULL)
    {
      *at = must (calloc (1, sizeof **at));
      (*at)->text = copy;
    }
  else
    free (copy);
  struct place *place = must (malloc (sizeof *place));
  *place = (struct place){ (*at)->places, number };
  (*at)->places = place;
  (*at)->count++;
}

static char *
index_print (struct word *const *buckets)
{
  char *out = NULL;
  size_t length = 0, room = 0;
  for (size_t i = 0; i < BUCKETS; i++)
    for (const struct word *w = buckets[i]; w != NULL; w = w->next)
      {
        size_t text = strlen (w->text) + 1;
        if (length + text > room)
          {
            room = room * 2 + text;
            out = must (realloc (out, room));
          }
        memcpy (out + length, w->text, text);
        length += text;
      }
  return out;
}

static void
index_delete (struct word **buckets)
{
  for (size_t i = 0; i < BUCKETS; i++)
    for (struct word *w = buckets[i], *next; w != NULL; w = next)
      {
        for (struct place *p = w->places, *follower; p != NULL; p = follower)
          {
            follower = p->next;
            free (p);
          }
        next = w->next;
        free (w->text);
        free (w);
      }
  free (buckets);
}

static void
program_batch (void *state, size_t operations)
{
  (void)state;
  for (size_t i = 0; i < operations; i++)
    {
      uint64_t seed = 20200917u;
      struct word **buckets = must (calloc (BUCKETS, sizeof *buckets));
      for (unsigned number = 0; number < 2000; number++)
        {
          char text[24];
          uint32_t code = draw (&seed, 600);
          size_t length = 3 + code % 19;
          for (size_t j = 0; j < length; j++)
            text[j] = (char)('a' + (code >> (j % 4) * 4) % 16);
          text[length] = '\0';
          index_add (buckets, text, number);
        }
      char *out = index_print (buckets);
      __asm__ volatile ("" : : "r"(out) : "memory");
      free (out);
      index_delete (buckets);
    }
}

/* ---- many live secrets ---- */

_Noreturn static void
live (size_t wanted)
{
  void **secret = mmap (NULL, wanted * sizeof *secret, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (secret == MAP_FAILED)
    give_up ("no room for the list of secrets");
  footprint (); /* the reader's own pages are no part of the difference */
  struct footprint before = footprint ();
  const char *why = peer_start (POOL_LIVE);
  if (why != NULL)
    give_up (why);
  uint64_t start = now ();
  uint64_t deadline = start + LIVE_SECONDS * 1000000000ull;
  const char *ended = "complete";
  size_t n = 0;
  while (n < wanted)
    {
      void *p = peer_alloc (LIVE_SIZE);
      if (p == NULL)
        {
          ended = "allocation failed";
          break;
        }
      fill (p, LIVE_SIZE);
      secret[n++] = p;
      if (n % 64 == 0 && now () > deadline)
        {
          ended = "out of time";
          break;
        }
    }
  uint64_t took = now () - start;
  struct footprint after = footprint ();
  look ();
  size_t locked = 0;
  for (size_t i = 0; i < n; i++)
    locked += (size_t)is_locked (secret[i], LIVE_SIZE);
  deadline = now () + LIVE_SECONDS * 1000000000ull;
  size_t freed = 0;
  while (freed < n && (freed % 64 != 0 || now () < deadline))
    peer_free (secret[freed++], LIVE_SIZE);
  struct footprint end = footprint ();
  printf ("{\"wanted\": %zu, \"live\": %zu, \"ended\": \"%s\", \"locked_secrets\": %zu, "
          "\"rss\": %ld, \"locked\": %ld, \"vmlck\": %ld, \"vmas\": %ld, \"ns\": %.1f, "
          "\"freed\": %zu, \"rss_after_free\": %ld, \"vmas_after_free\": %ld}\n",
          wanted, n, ended, locked, after.rss - before.rss, after.locked - before.locked,
          after.vmlck - before.vmlck, after.vmas - before.vmas,
          n > 0 ? (double)took / (double)n : 0.0, freed, end.rss - before.rss,
          end.vmas - before.vmas);
  fflush (stdout);
  _exit (0); /* an exit handler that walks 150,000 blocks measures nothing */
}

#ifdef PEER_ARENA

/* ---- what binding costs ---- */

static void
enter_leave_batch (void *state, size_t operations)
{
  (void)state;
  for (size_t i = 0; i < operations; i++)
    {
      malloc_arena_enter (peer_arena);
      __asm__ volatile ("" : : : "memory");
      malloc_arena_leave (peer_arena);
    }
}

static void
entered_batch (void *state, size_t operations)
{
  (void)state;
  for (size_t i = 0; i < operations; i++)
    {
      void *p = must (malloc (LIVE_SIZE));
      __asm__ volatile ("" : : "r"(p) : "memory");
      free (p);
    }
}

static void
bound_batch (void *state, size_t operations)
{
  (void)state;
  for (size_t i = 0; i < operations; i++)
    {
      void *p = must (malloc_arena (peer_arena, malloc, LIVE_SIZE));
      __asm__ volatile ("" : : "r"(p) : "memory");
      free (p);
    }
}

/* ---- the properties that the speed must not have been bought with ---- */

/* Nonzero when every byte at P reads as zero, or P cannot be read any more. The read is the
 * kernel's: it faults nobody, and the compiler knows nothing of it. */
static int
gone (int mem, uintptr_t p, size_t n)
{
  static unsigned char copy[4096];
  for (size_t done = 0; done < n;)
    {
      size_t step = n - done < sizeof copy ? n - done : sizeof copy;
      ssize_t got = pread (mem, copy, step, (off_t)(p + done));
      if (got <= 0)
        return 1;
      for (ssize_t i = 0; i < got; i++)
        if (copy[i] != 0)
          return 0;
      done += (size_t)got;
    }
  return 1;
}

static int
double_free_aborts (void)
{
  pid_t child = fork ();
  if (child == 0)
    {
      struct rlimit none = { 0, 0 };
      setrlimit (RLIMIT_CORE, &none);
      if (dup2 (open ("/dev/null", O_WRONLY), 2) < 0)
        _exit (2);
      void *p = malloc (LIVE_SIZE);
      void *volatile again = p;
      free (p);
      free (again);
      _exit (0);
    }
  int status = 0;
  return child > 0 && waitpid (child, &status, 0) == child && WIFSIGNALED (status)
         && WTERMSIG (status) == SIGABRT;
}

_Noreturn static void
properties (void)
{
  static const size_t sizes[] = { 16, 32, 256, 1000, 4096, 65536, 1048576 };
  int locked = 1, undumped = 1, wiped = 1;
  int mem = open ("/proc/self/mem", O_RDONLY | O_CLOEXEC);
  if (mem < 0)
    give_up ("/proc/self/mem cannot be read");
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
    {
      char *p = must (peer_alloc (sizes[i]));
      fill (p, sizes[i]);
      uintptr_t address = (uintptr_t)p;
      look ();
      const struct range *range = range_of (p);
      locked &= is_locked (p, sizes[i]);
      undumped &= range != NULL && range->undumped;
      if (gone (mem, address, sizes[i]))
        give_up ("a live block cannot be read: the check checks nothing");
      peer_free (p, sizes[i]);
      wiped &= gone (mem, address, sizes[i]);
    }
  struct malloc_arena_receipt receipt = { .size = sizeof receipt };
  if (malloc_arena_receipt (peer_arena, &receipt) != 0)
    give_up ("no receipt");
  printf ("{\"locked\": %s, \"undumped\": %s, \"wiped\": %s, \"double_free_aborts\": %s, "
          "\"receipt_requested\": %u, \"receipt_obtained\": %u}\n",
          locked ? "true" : "false", undumped ? "true" : "false", wiped ? "true" : "false",
          double_free_aborts () ? "true" : "false", receipt.requested, receipt.obtained);
  fflush (stdout);
  _exit (0);
}

#endif

static void
about (void)
{
  char version[128];
  Dl_info malloc_info = { 0 }, free_info = { 0 };
  /* by dlsym: &malloc may be this program's own PLT entry */
  dladdr (dlsym (RTLD_DEFAULT, "malloc"), &malloc_info);
  dladdr (dlsym (RTLD_DEFAULT, "free"), &free_info);
  const char *why = peer_start (POOL_SPEED);
  if (why != NULL)
    give_up (why);
  peer_version (version, sizeof version);
  printf ("{\"version\": \"%s\", \"malloc\": \"%s\", \"free\": \"%s\"}\n", version,
          malloc_info.dli_fname != NULL ? malloc_info.dli_fname : "?",
          free_info.dli_fname != NULL ? free_info.dli_fname : "?");
}

int
main (int argc, char **argv)
{
  if (argc < 5)
    {
      fprintf (stderr, "usage: bench WORKLOAD MEMLOCK CPU CPU2 [ARGUMENT]\n");
      return 2;
    }
  const char *workload = argv[1];
  size_t argument = argc > 5 ? strtoul (argv[5], NULL, 10) : 0;
  limit_locking (strtoul (argv[2], NULL, 10));
  cpus[0] = atoi (argv[3]);
  cpus[1] = atoi (argv[4]);
  pin (cpus[0]);
  if (!reserve_ranges ())
    give_up ("no room for the list of mappings");
  if (strcmp (workload, "about") == 0)
    {
      about ();
      return 0;
    }
  if (strcmp (workload, "live") == 0)
    live (argument);

  const char *why = peer_start (POOL_SPEED);
  if (why != NULL)
    give_up (why);
  int two = strcmp (workload, "mixed2") == 0 || strcmp (workload, "handoff") == 0;
  if (two && cpus[1] < 0)
    give_up ("needs two CPUs");

  struct timing t;
  size_t probe = LIVE_SIZE; /* the size of block whose lock is looked at afterwards */
  if (strcmp (workload, "one") == 0)
    {
      t = warm_and_measure (one_batch, &argument);
      probe = argument;
    }
  else if (strcmp (workload, "zeros") == 0)
    t = warm_and_measure (zeros_batch, &argument);
  else if (strcmp (workload, "mixed") == 0)
    {
      mixed_fill (&mixed[0], 20200917u);
      t = warm_and_measure (mixed_batch, &mixed[0]);
    }
  else if (strcmp (workload, "mixed2") == 0)
    t = mixed_two_threads ();
  else if (strcmp (workload, "handoff") == 0)
    t = handoff ();
  else if (strcmp (workload, "grow") == 0)
    {
      int doubling = argument == 2;
      t = warm_and_measure (grow_batch, &doubling);
      probe = GROWN;
    }
  else if (strcmp (workload, "program") == 0)
    t = warm_and_measure (program_batch, NULL);
#ifdef PEER_ARENA
  else if (strcmp (workload, "enter_leave") == 0)
    t = warm_and_measure (enter_leave_batch, NULL);
  else if (strcmp (workload, "entered") == 0)
    t = warm_and_measure (entered_batch, NULL);
  else if (strcmp (workload, "bound") == 0)
    {
      /* back to the ordinary malloc, as where a single call is bound */
      malloc_arena_leave (peer_arena);
      t = warm_and_measure (bound_batch, NULL);
      malloc_arena_enter (peer_arena);
    }
  else if (strcmp (workload, "properties") == 0)
    properties ();
#endif
  else
    {
      fprintf (stderr, "bench: no workload %s\n", workload);
      return 2;
    }

  int locked = 0;
  if (PEER_LOCKS)
    {
      void *p = must (peer_alloc (probe));
      fill (p, probe);
      look ();
      locked = is_locked (p, probe);
      peer_free (p, probe);
    }
  printf ("{\"ns\": %.4f, \"operations\": %zu, \"locked\": %s}\n", t.ns, t.operations,
          PEER_LOCKS ? (locked ? "true" : "false") : "null");
  return 0;
}
