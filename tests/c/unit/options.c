/* MALLOC_ARENA_OPTIONS: each key does what it says, a bad one is named with what is allowed. */
#include <malloc.h>

#include "check.h"

#include <threads.h>

static struct check_outcome
run (const char *mode, const char *options)
{
  char setting[512];
  snprintf (setting, sizeof setting, "MALLOC_ARENA_OPTIONS=%s", options);
  return check_again (mode, (const char *const[]){ setting, NULL });
}

static void
works (const char *mode, const char *options)
{
  struct check_outcome outcome = run (mode, options);
  if (outcome.exit_code != 0 || outcome.text[0] != 0)
    CHECK_FAIL ("%s under %s: exit %d, signal %d: %s", mode, options, outcome.exit_code,
                outcome.signal, outcome.text);
}

static void
refused (const char *options, const char *pair, const char *word)
{
  struct check_outcome outcome = run ("get", options);
  char line[256];
  snprintf (line, sizeof line, "malloc_arena: bad option: %s (allowed: ", pair);
  if (outcome.signal != SIGABRT || strncmp (outcome.text, line, strlen (line)) != 0
      || strstr (outcome.text, word) == NULL || check_count (outcome.text, "\n") != 1)
    CHECK_FAIL ("%s: exit %d, signal %d: %s", options, outcome.exit_code, outcome.signal,
                outcome.text);
}

/* Where address space is short, large blocks come to lie where slabs were, of sizes that took turns: nothing of what
 * those were may be known of them. */
static void
large_where_slabs_were (malloc_arena *secure)
{
  enum
  {
    COUNT = 40000,
    LARGE = 200000
  };
  static char *blocks[COUNT];
  uintptr_t least = UINTPTR_MAX, most = 0;
  for (size_t i = 0; i < COUNT; i++)
    {
      blocks[i] = malloc_arena (secure, malloc, 60 + i * 7 % 400);
      CHECK (blocks[i] != NULL);
      least = (uintptr_t)blocks[i] < least ? (uintptr_t)blocks[i] : least;
      most = (uintptr_t)blocks[i] > most ? (uintptr_t)blocks[i] : most;
    }
  for (size_t i = 0; i < COUNT; i++)
    free (blocks[i]);
  malloc_trim (0);
  size_t count = 0, there = 0;
  for (char *p; (p = malloc_arena (secure, malloc, LARGE)) != NULL; blocks[count++] = p)
    there += (uintptr_t)p > least && (uintptr_t)p < most;
  CHECK (there > 10);
  /* Slots again, beside them: where the last turn of before was is a block now. */
  for (size_t i = 0; i < 8; i++)
    free (blocks[--count]);
  for (size_t i = 0; i < 100; i++)
    {
      char *p = malloc_arena (secure, malloc, 60 + i * 7 % 400);
      CHECK (p != NULL);
      free (p);
    }
  for (size_t i = 0; i < count; i++)
    {
      memset (blocks[i], 0x5a, LARGE);
      free (blocks[i]);
    }
}

static void
same (const char *mode)
{
  malloc_arena *secure = malloc_arena_get (HEAP_SECURE);
  CHECK (secure != NULL);
  char *p = malloc_arena (secure, malloc, 300);
  struct malloc_arena_receipt receipt = check_receipt (secure);
  struct check_mapping m = check_mapping_of (p);
  if (strcmp (mode, "get") == 0)
    CHECK (malloc_arena_of (p) == secure);
  else if (strcmp (mode, "short") == 0)
    large_where_slabs_were (secure);
  else if (strcmp (mode, "off") == 0)
    {
      CHECK (!(receipt.requested & MALLOC_ARENA_LOCKED));
      CHECK (!check_flag (&m, "lo"));
    }
  else if (strcmp (mode, "keep") == 0)
    {
      CHECK (receipt.requested & MALLOC_ARENA_FORK_KEPT);
      CHECK (!check_flag (&m, "wf"));
      /* The arena's own option comes first. */
      struct malloc_arena_options options
          = { .size = sizeof options, .kind = HEAP_SECURE, .fork = MALLOC_ARENA_FORK_WIPE };
      malloc_arena *own = malloc_arena_new (&options);
      m = check_mapping_of (malloc_arena (own, malloc, 10));
      if (check_had (check_receipt (own), MALLOC_ARENA_FORK_WIPED, "wiping at fork"))
        CHECK (check_flag (&m, "wf"));
    }
  else if (strcmp (mode, "refuse") == 0)
    {
      if (check_had (receipt, MALLOC_ARENA_FORK_WIPED, "absence after fork"))
        CHECK (check_flag (&m, "dc") && receipt.obtained & MALLOC_ARENA_FORK_REFUSED);
    }
  else if (strcmp (mode, "region") == 0)
    CHECK_EQUAL (check_bounds ().size, (size_t)1 << 30);
  else if (strcmp (mode, "threshold") == 0)
    {
      char *q = malloc_arena (secure, malloc, 128);
      CHECK_FAULTS (q + 128);
      CHECK_FAULTS (p + 304);
      free (q);
    }
  else if (strcmp (mode, "limit") == 0)
    {
      CHECK_EQUAL (check_stats (secure).limit_bytes, 1 << 20);
      errno = 0;
      CHECK (malloc_arena (secure, malloc, 2 << 20) == NULL);
      CHECK_EQUAL (errno, ENOMEM);
    }
  else if (strcmp (mode, "unverified") == 0)
    {
      char *q = malloc_arena (secure, malloc, 300);
      free (q);
      q = check_hide (q);
      q[100] = 1;
      for (unsigned i = 0; i < 100; i++)
        CHECK (check_hide (malloc_arena (secure, malloc, 300)) != NULL);
    }
  else
    CHECK_FAIL ("no such mode");
  free (p);
}

/* The C library holds a lock of the thread's while it allocates here, before the thread has allocated anything. */
static void *
ask_first (void *data)
{
  pthread_attr_t attributes;
  CHECK_EQUAL (pthread_getattr_np (pthread_self (), &attributes), 0);
  CHECK_EQUAL (pthread_attr_destroy (&attributes), 0);
  return data;
}

/* Every allocation from the first instruction, libraries' and stdio's too. */
static int
ask_first_too (void *data)
{
  return ask_first (data) != NULL;
}

static void
everything (const char *name)
{
  malloc_arena *arena = ma_default_arena ();
  CHECK (arena != NULL && strcmp (malloc_arena_name (arena), name) == 0);
  void *p = malloc (100);
  CHECK (malloc_arena_of (p) == arena);
  free (p);
  p = strdup ("text");
  CHECK (malloc_arena_of (p) == arena);
  free (p);
  FILE *file = fopen ("/proc/self/status", "r");
  CHECK (file != NULL && malloc_arena_of (file) == arena);
  fclose (file);
  malloc_arena_enter (NULL);
  p = malloc (100);
  malloc_arena_leave (NULL);
  free (p);
  pthread_t thread;
  CHECK_EQUAL (pthread_create (&thread, NULL, ask_first, arena), 0);
  CHECK_EQUAL (pthread_join (thread, &p), 0);
  CHECK (p == arena);
  /* Nor does the library see how this one begins. */
  thrd_t other;
  if (CHECK_THREAD_SANITIZED)
    return;
  CHECK_EQUAL (thrd_create (&other, ask_first_too, NULL), thrd_success);
  CHECK_EQUAL (thrd_join (other, NULL), thrd_success);
}

int
main (int argc, char **argv)
{
  if (argc > 1)
    {
      if (strcmp (argv[1], "all-secure") == 0)
        everything ("secure");
      else if (strcmp (argv[1], "all-default") == 0)
        everything ("default");
      else
        same (argv[1]);
      return 0;
    }
  works ("get", "");
  works ("get", ",,");
  works ("get", "lock=prefer,fork=wipe,verify=on,active=none,verbose=off");
  works ("off", "lock=off");
  works ("keep", "fork=keep");
  works ("keep", "lock=off,fork=keep,");
  works ("refuse", "fork=refuse");
  works ("region", "region_size=1G");
  works ("region", "region_size=1073741824");
  works ("region", "region_size=1048576k");
  works ("short", "region_size=64M,lock=off");
  works ("get", "region_size=1T");
  works ("get", "region_size=1t");
  works ("get", "heap_size=64K");
  works ("get", "heap_size=64M");
  works ("threshold", "isolate_threshold=128");
  works ("limit", "limit=1M");
  works ("unverified", "verify=off");
  works ("all-secure", "active=secure");
  works ("all-default", "active=default");
  refused ("lock=maybe", "lock=maybe", "prefer|require|off");
  refused ("lock=", "lock=", "prefer|require|off");
  refused ("lock", "lock", "prefer|require|off");
  refused ("lock=off,fork=maybe", "fork=maybe", "wipe|keep|refuse");
  refused ("active=all", "active=all", "none|secure|default");
  refused ("verify=1", "verify=1", "on|off");
  refused ("heap_size=1", "heap_size=1", "65536");
  refused ("heap_size=65M", "heap_size=65M", "67108864");
  refused ("heap_size=1Q", "heap_size=1Q", "65536");
  refused ("heap_size=-1", "heap_size=-1", "65536");
  refused ("heap_size=99999999999999999999", "heap_size=99999999999999999999", "65536");
  refused ("limit=18014398509481984K", "limit=18014398509481984K", "4096");
  refused ("region_size=2T", "region_size=2T", "K, M, G and T");
  refused ("limit=16777216T", "limit=16777216T", "4096");
  refused ("colour=red", "colour=red", "isolate_threshold");
  refused ("LOCK=off", "LOCK=off", "lock");
  return 0;
}
