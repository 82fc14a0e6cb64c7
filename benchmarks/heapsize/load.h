/* load.h - what the programs here share: a thread's objects and the work on them, in CPU time; what the
 * kernel says of the process. Needs a peer.h before it. */
#ifndef LOAD_H
#define LOAD_H

#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "../proc.h"

_Noreturn static void
give_up (const char *why)
{
  printf ("{\"error\": \"%s\"}\n", why);
  fflush (stdout);
  _exit (0);
}

/* Of the calling thread: the machine may have other work. */
static double
cpu_ns (void)
{
  struct timespec t;
  clock_gettime (CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static inline uint32_t
draw (uint64_t *seed, uint32_t below)
{
  *seed = *seed * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)((*seed >> 32) * below >> 32);
}

struct object
{
  void *p;
  size_t size;
};

struct load
{
  struct object *objects; /* not from the allocator that is measured */
  size_t count;
  size_t bytes;
  uint64_t seed;
};

static struct object *
new_objects (size_t count)
{
  struct object *objects = mmap (NULL, count * sizeof *objects, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (objects == MAP_FAILED)
    give_up ("no room for the list of objects");
  return objects;
}

/* 16 to 512 bytes. */
static inline size_t
small_size (uint64_t *seed)
{
  return 16 + draw (seed, 497);
}

static inline int
make (struct object *o, void *p, size_t size)
{
  o->p = p;
  o->size = size;
  if (p != NULL)
    memset (p, 0xa5, size);
  return p != NULL;
}

/* COUNT objects replaced at random. */
static inline int
replace (struct load *load, size_t count)
{
  for (size_t i = 0; i < count; i++)
    {
      struct object *o = &load->objects[draw (&load->seed, (uint32_t)load->count)];
      size_t size = small_size (&load->seed);
      peer_free (o->p);
      load->bytes += size - o->size;
      if (!make (o, peer_steady (size), size))
        return 0;
    }
  return 1;
}

/* A line of /proc/self/status, in bytes. */
static long
status (const char *key)
{
  long kb = 0;
  char *line;
  size_t length = strlen (key);
  if (lines_open ("/proc/self/status"))
    while ((line = lines_next ()) != NULL)
      if (strncmp (line, key, length) == 0 && line[length] == ':')
        sscanf (line + length + 1, "%ld", &kb);
  return kb * 1024;
}

#endif
