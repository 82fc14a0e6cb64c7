/* Threads free the last blocks of many arenas, and enter and leave, while another one asks each of these until it can be
 * deleted. A timer makes the threads sleep wherever they are: also between a block's end and the end of what its free
 * does with the arena. */
#include "check.h"

#include <signal.h>
#include <sys/syscall.h>
#include <time.h>

enum
{
  AT_ONCE = 40,
  THREADS = 3
};

#define ROUNDS (check_emulated () ? 4 : 40)

static malloc_arena *arenas[AT_ONCE];
static char *blocks[THREADS][AT_ONCE];
static size_t wanted;
static int is_remote; /* each frees what the next one has allocated */
static pthread_barrier_t barrier;

static void
doze (int signal)
{
  (void)signal;
  int saved = errno;
  nanosleep (&(struct timespec){ .tv_nsec = 100000 }, NULL);
  errno = saved;
}

static void *
worker (void *data)
{
  size_t self = (size_t)data;
  struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1 };
  event._sigev_un._tid = (int)syscall (SYS_gettid);
  timer_t timer;
  unsigned random = (unsigned)self;
  CHECK_EQUAL (timer_create (CLOCK_MONOTONIC, &event, &timer), 0);
  for (int round = 0; round < ROUNDS; round++)
    {
      pthread_barrier_wait (&barrier);
      for (size_t i = 0; i < AT_ONCE; i++)
        {
          CHECK ((blocks[self][i] = malloc_arena (arenas[i], malloc, wanted)) != NULL);
          memset (blocks[self][i], 0x5a, wanted);
        }
      pthread_barrier_wait (&barrier);
      char **mine = blocks[is_remote ? (self + 1) % THREADS : self];
      for (size_t i = 0; i < AT_ONCE; i++)
        {
          CHECK_EQUAL (
              timer_settime (timer, 0, &(struct itimerspec){ .it_value.tv_nsec = 1000 }, NULL), 0);
          random = random * 1103515245 + 12345;
          for (volatile unsigned wait = random >> 16 & 0xfff; wait > 0; wait--)
            ;
          malloc_arena_enter (NULL);
          free (mine[i]);
          malloc_arena_leave (NULL);
        }
      pthread_barrier_wait (&barrier);
    }
  CHECK_EQUAL (timer_delete (timer), 0);
  return NULL;
}

static void
delete_all (unsigned kind)
{
  CHECK_EQUAL (pthread_barrier_init (&barrier, NULL, THREADS + 1), 0);
  pthread_t threads[THREADS];
  for (size_t i = 0; i < THREADS; i++)
    CHECK_EQUAL (pthread_create (&threads[i], NULL, worker, (void *)i), 0);
  for (int round = 0; round < ROUNDS; round++)
    {
      for (size_t i = 0; i < AT_ONCE; i++)
        {
          struct malloc_arena_options options = { .size = sizeof options, .kind = kind };
          CHECK ((arenas[i] = malloc_arena_new (&options)) != NULL);
          struct malloc_arena_stats stats = check_stats (arenas[i]);
          CHECK_EQUAL (stats.live_blocks + stats.live_bytes + stats.peak_bytes, 0);
        }
      pthread_barrier_wait (&barrier);
      pthread_barrier_wait (&barrier);
      for (size_t left = AT_ONCE; left != 0;)
        for (size_t i = 0; i < AT_ONCE; i++)
          if (arenas[i] != NULL && malloc_arena_delete (arenas[i]) == 0)
            {
              arenas[i] = NULL;
              left--;
            }
          else
            CHECK (arenas[i] == NULL || errno == EBUSY);
      pthread_barrier_wait (&barrier);
    }
  for (size_t i = 0; i < THREADS; i++)
    CHECK_EQUAL (pthread_join (threads[i], NULL), 0);
  CHECK_EQUAL (pthread_barrier_destroy (&barrier), 0);
  CHECK_EQUAL (check_region ().present, 0);
}

int
main (void)
{
  struct sigaction action = { .sa_handler = doze, .sa_flags = SA_RESTART };
  CHECK_EQUAL (sigaction (SIGUSR1, &action, NULL), 0);
  static const size_t sizes[] = { 100, 1000, 100000 };
  static const unsigned kinds[] = { HEAP_SECURE, HEAP_DEFAULT };
  for (size_t kind = 0; kind < 2; kind++)
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
      for (is_remote = 0; is_remote < 2; is_remote++)
        {
          wanted = sizes[i];
          delete_all (kinds[kind]);
        }
  return 0;
}
