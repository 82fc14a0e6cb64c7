/* burst.c - a long-lived small workload beside a bursty large one, in one heap or each in its own.
 *
 *   burst SEPARATE LIVE BURST
 *
 * LIVE bytes of objects of 16 to 512 bytes live for ever and are replaced at random. A burst is BURST
 * bytes of objects, three small ones for each of up to 32 KiB, as a parsed document has them; while it
 * grows the long-lived objects go on being replaced, and then all of it is freed, in another order. */
#include "peer.h"

#include "load.h"

enum
{
  BURSTS = 3,
  OPERATIONS = 400000
};

static double
steady (struct load *load)
{
  double start = cpu_ns ();
  if (!replace (load, OPERATIONS))
    give_up ("an allocation failed");
  return (cpu_ns () - start) / OPERATIONS;
}

int
main (int argc, char **argv)
{
  if (argc != 4)
    return 2;
  int separate = atoi (argv[1]);
  size_t live = strtoul (argv[2], NULL, 10), bursting = strtoul (argv[3], NULL, 10);
  struct load load = { .objects = new_objects (live / 128), .seed = 1 };
  struct load burst = { .objects = new_objects (bursting / 512), .seed = 2 };
  footprint ();
  struct footprint before = footprint ();
  const char *why = peer_start (separate);
  if (why != NULL)
    give_up (why);
  while (load.bytes < live)
    {
      size_t size = small_size (&load.seed);
      if (!make (&load.objects[load.count++], peer_steady (size), size))
        give_up ("an allocation failed");
      load.bytes += size;
    }
  steady (&load);
  double ns_before = steady (&load);
  struct footprint settled = footprint (), peak, after;
  size_t live_before = load.bytes, live_after = 0;
  double burst_ns = 0;
  long peak_rss = 0, after_rss = 0;
  for (int i = 0; i < BURSTS; i++)
    {
      double start = cpu_ns ();
      size_t blocks = 0;
      for (burst.count = burst.bytes = 0; burst.bytes < bursting; burst.count++, blocks++)
        {
          size_t size
              = burst.count % 4 ? small_size (&burst.seed) : 512 + draw (&burst.seed, 32256);
          if (!make (&burst.objects[burst.count], peer_burst (size), size)
              || (burst.count % 4 == 0 && !replace (&load, 1)))
            give_up ("an allocation failed");
          burst.bytes += size;
        }
      burst_ns += cpu_ns () - start;
      peak = footprint ();
      start = cpu_ns ();
      for (size_t left = burst.count; left > 0; left--)
        {
          struct object *o = &burst.objects[draw (&burst.seed, (uint32_t)left)];
          peer_free_burst (o->p);
          *o = burst.objects[left - 1];
        }
      burst_ns = (burst_ns + cpu_ns () - start) / (double)(i == BURSTS - 1 ? blocks * BURSTS : 1);
      after = footprint ();
      peak_rss = peak.rss > peak_rss ? peak.rss : peak_rss;
      after_rss = after.rss - before.rss;
      live_after = load.bytes;
    }
  double ns_after = steady (&load);
  peer_trim ();
  struct footprint trimmed = footprint ();
  printf ("{\"live_before\": %zu, \"settled\": %ld, \"peak\": %ld, \"live\": %zu, \"after\": %ld, "
          "\"live_trimmed\": %zu, \"trimmed\": %ld, \"before_ns\": %.2f, \"after_ns\": %.2f, "
          "\"burst_ns\": %.2f}\n",
          live_before, settled.rss - before.rss, peak_rss - before.rss, live_after, after_rss,
          load.bytes, trimmed.rss - before.rss, ns_before, ns_after, burst_ns);
  return 0;
}
