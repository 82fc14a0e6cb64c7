/* spread.c - many threads, each with a few objects: what the heaps that they get cost.
 *
 *   spread THREADS BYTES ADDRESS_SPACE
 *
 * BYTES of live objects for each thread; ADDRESS_SPACE: RLIMIT_AS in bytes, 0: none. The heap size is
 * the environment's business. All that is said of memory is the difference to the process before. */
#include "peer.h"

#include <pthread.h>
#include <sys/resource.h>

#include "load.h"

enum
{
  MOST_THREADS = 256,
  STACK = 256 << 10, /* small: they are no heaps, and count as address space */
  OPERATIONS = 20000
};

struct worker
{
  struct load load;
  size_t wanted;
  int failed;
  double grow_ns, steady_ns;
};
static struct worker workers[MOST_THREADS];
static pthread_barrier_t barrier;

static void *
work (void *data)
{
  struct worker *w = data;
  struct load *load = &w->load;
  double start = cpu_ns ();
  size_t count = load->count;
  load->count = 0;
  for (size_t i = 0; i < count && load->bytes < w->wanted; i++)
    {
      size_t size = small_size (&load->seed);
      if (!make (&load->objects[i], peer_steady (size), size))
        {
          w->failed = 1;
          break;
        }
      load->bytes += size;
      load->count++;
    }
  w->grow_ns = load->count ? (cpu_ns () - start) / (double)load->count : 0;
  pthread_barrier_wait (&barrier); /* all have what they get */
  pthread_barrier_wait (&barrier); /* which has been looked at */
  if (!w->failed)
    {
      start = cpu_ns ();
      w->failed = !replace (load, OPERATIONS);
      w->steady_ns = (cpu_ns () - start) / OPERATIONS;
    }
  for (size_t i = 0; i < load->count; i++)
    peer_free (load->objects[i].p);
  return NULL;
}

int
main (int argc, char **argv)
{
  if (argc != 4)
    return 2;
  unsigned threads = (unsigned)atoi (argv[1]);
  size_t bytes = strtoul (argv[2], NULL, 10);
  rlim_t space = strtoul (argv[3], NULL, 10);
  if (threads == 0 || threads > MOST_THREADS)
    return 2;
  for (unsigned i = 0; i < threads; i++)
    {
      workers[i].load = (struct load){ .count = bytes / 64, .seed = 1 + i };
      workers[i].load.objects = new_objects (bytes / 64);
      workers[i].wanted = bytes;
    }
  if (space != 0 && setrlimit (RLIMIT_AS, &(struct rlimit){ space, space }) != 0)
    give_up ("RLIMIT_AS cannot be set");
  footprint (); /* the reader's own pages are no part of the difference */
  long size = status ("VmSize"), data = status ("VmData"), tables = status ("VmPTE");
  struct footprint before = footprint ();
  const char *why = peer_start (0);
  if (why != NULL)
    give_up (why);
  pthread_barrier_init (&barrier, NULL, threads + 1);
  pthread_attr_t attributes;
  pthread_attr_init (&attributes);
  pthread_attr_setstacksize (&attributes, STACK);
  pthread_t ids[MOST_THREADS];
  for (unsigned i = 0; i < threads; i++)
    if (pthread_create (&ids[i], &attributes, work, &workers[i]) != 0)
      give_up ("pthread_create failed");
  pthread_barrier_wait (&barrier);
  struct footprint full = footprint ();
  size = status ("VmSize") - size - (long)threads * STACK;
  data = status ("VmData") - data - (long)threads * STACK;
  tables = status ("VmPTE") - tables;
  pthread_barrier_wait (&barrier);
  unsigned failed = 0;
  size_t live = 0;
  double grow = 0, steady = 0;
  for (unsigned i = 0; i < threads; i++)
    {
      pthread_join (ids[i], NULL);
      failed += workers[i].failed != 0;
      live += workers[i].load.bytes;
      grow += workers[i].grow_ns / threads;
      steady += workers[i].steady_ns / threads;
    }
  printf ("{\"failed\": %u, \"live\": %zu, \"size\": %ld, \"data\": %ld, \"tables\": %ld, "
          "\"rss\": %ld, \"vmas\": %ld, \"grow_ns\": %.2f, \"steady_ns\": %.2f}\n",
          failed, live, size, data, tables, full.rss - before.rss, full.vmas - before.vmas, grow,
          steady);
  return 0;
}
