/* RLIMIT_MEMLOCK without CAP_IPC_LOCK: none, a little, enough; under each policy. Past the limit
 * `prefer` goes on unlocked, says so once, and the receipt tells; `require` fails. */
#include "check.h"

enum
{
  FILL = 1 << 20,
  ENOUGH = 8 << 20
};

/* About 1 MiB of pages, in blocks of SIZE; how much of it was to be had. */
static size_t
fill (malloc_arena *arena, size_t size)
{
  size_t got = 0;
  bool is_isolated = check_receipt (arena).requested & MALLOC_ARENA_ISOLATED;
  while (got < FILL)
    {
      char *p = malloc_arena (arena, malloc, size);
      if (p == NULL)
        break;
      memset (p, 1, size);
      got += is_isolated ? size + CHECK_PAGE : size;
    }
  return got;
}

static void
prefer (malloc_arena *arena, size_t limit, size_t size)
{
  CHECK (arena != NULL);
  CHECK (fill (arena, size) >= FILL);
  struct malloc_arena_receipt receipt = check_honest (arena);
  CHECK (receipt.requested & MALLOC_ARENA_LOCKED);
  CHECK (receipt.locked_bytes <= limit);
  if (limit >= ENOUGH)
    CHECK (receipt.obtained & MALLOC_ARENA_LOCKED);
  else
    {
      CHECK (!(receipt.obtained & MALLOC_ARENA_LOCKED));
      int reason = receipt.reason[0];
      CHECK (reason == EPERM || reason == ENOMEM || reason == EAGAIN);
      CHECK (receipt.locked_bytes < receipt.mapped_bytes);
      /* What the limit allows is used, though not to the last page. */
      if (limit >= (size_t)256 << 10 && size < 2000)
        CHECK (receipt.locked_bytes >= limit / 16 * 14);
      char *p = malloc_arena (arena, malloc, size);
      struct check_mapping m = check_mapping_of (p);
      /* The rest holds. */
      if (check_had (receipt, MALLOC_ARENA_UNDUMPED, "exclusion from dumps"))
        CHECK (check_flag (&m, "dd"));
      if (check_had (receipt, MALLOC_ARENA_FORK_WIPED, "wiping at fork"))
        CHECK (check_flag (&m, "wf"));
      memset (p, 1, size);
      free (p);
      if (check_touch (p, false) == 0)
        CHECK (check_all (p, 0, size));
    }
}

static void
require (malloc_arena *arena, size_t limit, size_t size)
{
  if (limit == 0)
    {
      CHECK (arena == NULL);
      CHECK (errno == EPERM || errno == ENOMEM);
      return;
    }
  if (arena == NULL) /* so little that not even the first chunk is to be had */
    {
      CHECK (limit <= 65536);
      CHECK (errno == EPERM || errno == ENOMEM);
      return;
    }
  errno = 0;
  size_t got = fill (arena, size);
  if (limit < FILL)
    {
      CHECK (got < FILL);
      CHECK (errno == ENOMEM || errno == EPERM);
    }
  struct malloc_arena_receipt receipt = check_honest (arena);
  CHECK (receipt.obtained & MALLOC_ARENA_LOCKED); /* all that there is, is locked */
  CHECK_EQUAL (receipt.locked_bytes, receipt.mapped_bytes);
}

/* A block that has grown may get more room than it needs, but not where there is no more to be locked: no
 * step down for it, and no refusal. */
static void
grown_when_full (malloc_arena *arena, size_t limit)
{
  size_t page = CHECK_PAGE;
  /* Of secret memory the kernel counts more than is asked for. */
  size_t left = check_receipt (arena).requested & MALLOC_ARENA_SECRETMEM ? 28 : 14;
  char *p = malloc_arena (arena, malloc, 8 * page);
  CHECK (p != NULL);
  memset (p, 1, 8 * page);
  void *ballast[256];
  unsigned n = 0;
  while (check_receipt (arena).locked_bytes + left * page <= limit)
    {
      CHECK (n < 256);
      CHECK ((ballast[n++] = malloc_arena (arena, malloc, page)) != NULL);
    }
  CHECK ((p = realloc (p, 12 * page)) != NULL);
  CHECK (check_all (p, 1, 8 * page));
  free (p);
  while (n > 0)
    free (ballast[--n]);
}

/* Nor where it would be missing afterwards. */
static void
grown_leaves_room (malloc_arena *arena)
{
  size_t page = CHECK_PAGE;
  char *p = malloc_arena (arena, malloc, 15 * page);
  CHECK ((p = realloc (p, 32 * page)) != NULL);
  char *q = malloc_arena (arena, malloc, 20 * page);
  CHECK (q != NULL);
  free (p);
  free (q);
}

static void
grown (unsigned kind, unsigned policy, size_t limit)
{
  struct malloc_arena_options options = { .size = sizeof options, .kind = kind, .lock = policy };
  malloc_arena *arena = malloc_arena_new (&options);
  CHECK (arena != NULL || kind & HEAP_SECRETMEM);
  if (arena == NULL) /* required, and refused from the start */
    return;
  unsigned obtained = check_receipt (arena).obtained;
  CHECK (obtained & MALLOC_ARENA_LOCKED);
  grown_when_full (arena, limit);
  malloc_arena_trim (arena);
  grown_leaves_room (arena);
  struct malloc_arena_receipt receipt = check_honest (arena);
  CHECK_EQUAL (receipt.obtained, obtained);
  CHECK_EQUAL (receipt.locked_bytes, receipt.mapped_bytes);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* What one arena keeps for its next use is not missing in another one. */
static void
kept_elsewhere (size_t size, size_t wanted)
{
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = HEAP_SECURE, .lock = MALLOC_ARENA_LOCK_REQUIRE };
  malloc_arena *first = malloc_arena_new (&options);
  malloc_arena *second = malloc_arena_new (&options);
  CHECK (first != NULL && second != NULL);
  enum
  {
    KEPT = 2500 * 1024
  };
  static void *blocks[KEPT / 100];
  size_t n = KEPT / size;
  for (size_t i = 0; i < n; i++)
    CHECK ((blocks[i] = malloc_arena (first, malloc, size)) != NULL);
  for (size_t i = 0; i < n; i++)
    free (blocks[i]);
  CHECK (check_receipt (first).locked_bytes > 0);
  size_t got = 0;
  for (void *p; got < ENOUGH / 8 * 7 && (p = malloc_arena (second, malloc, wanted)) != NULL;)
    got += wanted;
  CHECK (got >= ENOUGH / 8 * 7);
  check_honest (second);
}

/* What was opened when the limit was met is locked when it is given out after others have left. */
static void
locked_later (void)
{
  struct malloc_arena_options options = { .size = sizeof options, .kind = HEAP_SECURE };
  malloc_arena *arena = malloc_arena_new (&options);
  static void *blocks[ENOUGH / 81920 + 2];
  size_t n = 0;
  do
    CHECK ((blocks[n] = malloc_arena (arena, malloc, 80000)) != NULL);
  while (check_receipt (arena).locked_bytes == check_receipt (arena).mapped_bytes
         && ++n < sizeof blocks / sizeof blocks[0]);
  char *last = malloc_arena (arena, malloc, 160000);
  memset (last, 1, 160000);
  struct check_mapping mapping = check_mapping_of (last);
  CHECK (!check_flag (&mapping, "lo"));
  for (size_t i = 0; i <= n; i++)
    free (blocks[i]);
  free (last);
  char *p = malloc_arena (arena, malloc, 90000);
  memset (p, 1, 90000);
  CHECK ((p = realloc (p, 160000)) != NULL);
  memset (p, 1, 160000);
  mapping = check_mapping_of (p);
  CHECK (check_flag (&mapping, "lo"));
  free (p);
  CHECK ((p = malloc_arena (arena, malloc, 160000)) != NULL);
  memset (p, 1, 160000);
  mapping = check_mapping_of (p);
  CHECK (check_flag (&mapping, "lo"));
}

/* What is longer than the limit goes on unlocked where it is, when it grows. */
static void
grows_unlocked (void)
{
  struct malloc_arena_options options = { .size = sizeof options, .kind = HEAP_SECURE };
  malloc_arena *arena = malloc_arena_new (&options);
  size_t size = ENOUGH / 4 + 100000, moves = 0;
  char *p = malloc_arena (arena, malloc, size);
  CHECK (p != NULL);
  memset (p, 1, size);
  for (unsigned i = 0; i < 1000; i++)
    {
      char *q = realloc (p, size + 300);
      CHECK (q != NULL && check_all (q + size, 0, 300));
      memset (q + size, 1, 300);
      size += 300;
      moves += q != p;
      p = q;
    }
  CHECK (moves <= 2);
  CHECK (check_all (p, 1, size));
  CHECK_EQUAL (check_honest (arena).locked_bytes, 0);
  free (p);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

/* Nor is what is kept a step down for secret memory. */
static void
kept_secret (unsigned kind)
{
  struct malloc_arena_options options = { .size = sizeof options, .kind = kind };
  malloc_arena *first = malloc_arena_new (&options);
  options.kind = HEAP_SECURE | HEAP_SECRETMEM;
  malloc_arena *second = kind == options.kind ? first : malloc_arena_new (&options);
  if (second == NULL && errno == ENOTSUP)
    {
      puts ("left out: what is kept of secret memory, which this kernel has not");
      return;
    }
  CHECK (first != NULL && second != NULL);
  if (!(check_receipt (second).obtained & MALLOC_ARENA_SECRETMEM))
    return;
  free (malloc_arena (first, malloc, 2900 * 1024));
  char *p = malloc_arena (second, malloc, 5400 * 1024);
  CHECK (p != NULL);
  CHECK (check_receipt (second).obtained & MALLOC_ARENA_SECRETMEM);
  free (p);
  CHECK_EQUAL (malloc_arena_delete (second), 0);
  if (first != second)
    CHECK_EQUAL (malloc_arena_delete (first), 0);
}

static void
child (void *data)
{
  malloc_arena *arena = data;
  CHECK (!(check_receipt (arena).obtained & MALLOC_ARENA_LOCKED));
  free (malloc_arena (arena, malloc, 100));
}

/* A child has the limit that its parent has: what was locked there is, and secret memory is secret, whatever else
 * would be locked if it could. */
struct inherited
{
  malloc_arena *hidden, *ordinary;
  char *small, *large;
  size_t locked; /* of the ordinary arena */
  bool is_required;
};

enum
{
  SMALL = 100,
  LARGE = 20000
};

static bool
has_secret (const struct rlimit *most)
{
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = HEAP_SECURE | HEAP_SECRETMEM };
  malloc_arena *arena = most->rlim_max >= ENOUGH ? malloc_arena_new (&options) : NULL;
  bool has = arena != NULL && check_receipt (arena).obtained & MALLOC_ARENA_SECRETMEM;
  if (arena != NULL)
    CHECK_EQUAL (malloc_arena_delete (arena), 0);
  if (!has)
    puts ("left out: secret memory in a child, which is not to be had here");
  return has;
}

static void
make_inherited (struct inherited *b, unsigned fork_policy, unsigned lock_policy)
{
  struct malloc_arena_options options = { .size = sizeof options,
                                          .kind = HEAP_SECURE | HEAP_SECRETMEM,
                                          .fork = fork_policy,
                                          .lock = lock_policy };
  b->hidden = malloc_arena_new (&options);
  CHECK (b->hidden != NULL);
  b->is_required = lock_policy == MALLOC_ARENA_LOCK_REQUIRE;
  b->small = malloc_arena (b->hidden, malloc, SMALL);
  b->large = malloc_arena (b->hidden, malloc, LARGE);
  memset (b->small, 0x61, SMALL);
  memset (b->large, 0x61, LARGE);
  free (malloc_arena (b->hidden, malloc, LARGE)); /* one that waits for its next use */
  CHECK (check_receipt (b->hidden).obtained & MALLOC_ARENA_SECRETMEM);
}

static void
child_near_limit (void *data)
{
  struct inherited *b = data;
  struct malloc_arena_receipt receipt = check_receipt (b->hidden);
  int byte = receipt.requested & MALLOC_ARENA_FORK_KEPT ? 0x61 : 0;
  CHECK (check_all (b->small, byte, SMALL));
  CHECK (check_all (b->large, byte, LARGE));
  CHECK_EQUAL (receipt.obtained, receipt.requested);
  CHECK_EQUAL (check_receipt (b->ordinary).locked_bytes, b->locked);
  free (b->small);
  free (b->large);
  free (malloc_arena (b->hidden, malloc, SMALL));
  free (malloc_arena (b->ordinary, malloc, SMALL));
}

/* The same where no page is left for a copy: the child does not have it, nor have its own children. */
static void
child_without (void *data)
{
  struct inherited *b = data;
  struct malloc_arena_receipt receipt = check_receipt (b->hidden);
  CHECK_FAULTS (b->small);
  CHECK_FAULTS (b->large);
  CHECK (!(receipt.obtained & (MALLOC_ARENA_SECRETMEM | MALLOC_ARENA_FORK_KEPT)));
  CHECK (receipt.reason[__builtin_ctz (MALLOC_ARENA_FORK_KEPT)] != 0);
  CHECK_EQUAL (check_receipt (b->ordinary).locked_bytes, b->locked);
  for (unsigned i = 0; i < 50; i++)
    free (malloc_arena (b->hidden, malloc, (size_t)SMALL * i * i));
}

static void
child_without_forks (void *data)
{
  child_without (data);
  CHECK_EQUAL (check_child (child_without, data).exit_code, 0);
}

/* Slabs with pages on both sides of the limit. Of what is locked LEFT bytes are given back before the fork. */
static void
near_limit (unsigned fork_policy, size_t left, void (*body) (void *))
{
  check_memlock (256 << 10);
  struct malloc_arena_options options = { .size = sizeof options, .kind = HEAP_SECURE };
  struct inherited b = { .ordinary = malloc_arena_new (&options) };
  make_inherited (&b, fork_policy, MALLOC_ARENA_LOCK_PREFER);
  char *p = left != 0 ? malloc_arena (b.ordinary, malloc, left) : NULL;
  for (unsigned i = 0; i < 200; i++)
    CHECK (malloc_arena (b.ordinary, malloc, 2000) != NULL);
  struct malloc_arena_receipt receipt = check_receipt (b.ordinary);
  CHECK (!(receipt.obtained & MALLOC_ARENA_LOCKED));
  free (p);
  malloc_arena_trim (b.ordinary);
  b.locked = check_receipt (b.ordinary).locked_bytes;
  CHECK_EQUAL (check_child (body, &b).exit_code, 0);
}

/* Where the child may lock less: what has nothing in it is ordinary memory, as it is elsewhere. */
static void
child_with_less (void *data)
{
  struct inherited *b = data;
  struct malloc_arena_receipt receipt = check_receipt (b->hidden);
  CHECK (receipt.obtained & MALLOC_ARENA_FORK_WIPED);
  CHECK (!(receipt.obtained & (MALLOC_ARENA_SECRETMEM | MALLOC_ARENA_LOCKED)));
  CHECK (receipt.reason[__builtin_ctz (MALLOC_ARENA_SECRETMEM)] != 0);
  CHECK_EQUAL (receipt.locked_bytes, 0);
  CHECK (check_all (b->small, 0, SMALL));
  CHECK (check_all (b->large, 0, LARGE));
  struct check_mapping m = check_mapping_of (b->small);
  CHECK (check_flag (&m, "dd") && check_flag (&m, "wf"));
  memset (b->small, 0x62, SMALL);
  char *larger = realloc (b->large, (size_t)LARGE * 2);
  CHECK (larger != NULL || b->is_required);
  b->large = larger != NULL ? larger : b->large;
  free (b->small);
  CHECK (check_all (b->small, 0, SMALL));
  free (b->large);
  for (unsigned i = 0; i < 50; i++)
    {
      char *p = malloc_arena (b->hidden, malloc, (size_t)SMALL * i * i);
      CHECK (p != NULL || b->is_required);
      free (p);
    }
  CHECK_EQUAL (check_stats (b->hidden).live_blocks, 0);
}

static void
then_grandchild (void *data)
{
  struct inherited *b = data;
  CHECK_EQUAL (check_child (child_with_less, b).exit_code, 0);
  memset (b->small, 0x62, SMALL);
  memset (b->large, 0x62, LARGE);
  CHECK_EQUAL (check_child (child_with_less, b).exit_code, 0);
}

static void
with_less (unsigned lock_policy)
{
  check_memlock (ENOUGH);
  struct inherited b;
  make_inherited (&b, MALLOC_ARENA_FORK_WIPE, lock_policy);
  check_memlock (0);
  CHECK_EQUAL (check_child (child_with_less, &b).exit_code, 0);
  CHECK_EQUAL (check_child (then_grandchild, &b).exit_code, 0);
}

static void
near_limit_wiped (void)
{
  near_limit (MALLOC_ARENA_FORK_WIPE, 0, child_near_limit);
}

/* A copy is made page by page where no more can be locked beside the original. */
static void
near_limit_kept (void)
{
  near_limit (MALLOC_ARENA_FORK_KEEP, 4 * CHECK_PAGE, child_near_limit);
}

static void
at_limit_kept (void)
{
  near_limit (MALLOC_ARENA_FORK_KEEP, 0, child_without_forks);
}

static void
with_less_preferred (void)
{
  with_less (MALLOC_ARENA_LOCK_PREFER);
}

static void
with_less_required (void)
{
  with_less (MALLOC_ARENA_LOCK_REQUIRE);
}

static const struct
{
  const char *mode;
  void (*run) (void);
  size_t lines; /* said by it and those of its children whose parent has not said so */
} forks[] = {
  { "fork near the limit", near_limit_wiped, 1 },
  { "fork near the limit, kept", near_limit_kept, 1 },
  { "fork at the limit, kept", at_limit_kept, 3 },
  { "fork with less", with_less_preferred, 4 },
  { "fork with less, required", with_less_required, 4 },
};

int
main (int argc, char **argv)
{
  static const size_t limits[] = { 0, 4096, 65536, 256 << 10, 300 << 10, 512 << 10, ENOUGH };
  struct rlimit most;
  CHECK_EQUAL (getrlimit (RLIMIT_MEMLOCK, &most), 0);
  if (argc < 2)
    {
      unsigned wrong = 0;
      for (unsigned kind = 0; kind < 2; kind++)
        for (unsigned policy = 1; policy <= 3; policy++)
          for (unsigned i = 0; i < 6; i++)
            {
              if (limits[i] > most.rlim_max)
                continue;
              char mode[64];
              snprintf (mode, sizeof mode, "%u %u %zu", kind, policy, limits[i]);
              struct check_outcome outcome = check_again (mode, NULL);
              size_t lines = policy == MALLOC_ARENA_LOCK_PREFER && limits[i] < ENOUGH;
              if (outcome.exit_code == 0 && check_count (outcome.text, "\n") == lines
                  && (!lines
                      || (strstr (outcome.text, "malloc_arena: lock refused: ") == outcome.text
                          && strstr (outcome.text, "memlock") != NULL)))
                continue;
              wrong++;
              dprintf (STDERR_FILENO, "kind, policy, limit %s: exit %d, signal %d, said: %s\n",
                       mode, outcome.exit_code, outcome.signal, outcome.text);
            }
      for (size_t size = 100; size <= 600000 && most.rlim_max >= ENOUGH; size *= 77)
        for (size_t wanted = 500; wanted <= 30000; wanted *= 60)
          {
            char mode[64];
            snprintf (mode, sizeof mode, "kept %zu %zu", size, wanted);
            struct check_outcome outcome = check_again (mode, NULL);
            if (outcome.exit_code == 0 && outcome.text[0] == '\0')
              continue;
            wrong++;
            dprintf (STDERR_FILENO, "%s: exit %d, said: %s\n", mode, outcome.exit_code,
                     outcome.text);
          }
      bool is_secret = has_secret (&most);
      for (unsigned i = 0; i < sizeof forks / sizeof *forks && is_secret; i++)
        {
          struct check_outcome outcome = check_again (forks[i].mode, NULL);
          if (outcome.exit_code == 0 && check_count (outcome.text, "\n") == forks[i].lines)
            continue;
          wrong++;
          dprintf (STDERR_FILENO, "%s: exit %d, said: %s\n", forks[i].mode, outcome.exit_code,
                   outcome.text);
        }
      if (most.rlim_max >= ENOUGH)
        {
          struct check_outcome outcome = check_again ("secret", NULL);
          wrong += outcome.exit_code != 0 || outcome.text[0] != '\0';
          dprintf (STDERR_FILENO, "%s", outcome.text);
          outcome = check_again ("later", NULL);
          wrong += outcome.exit_code != 0 || check_count (outcome.text, "\n") != 1;
          dprintf (STDERR_FILENO, "%s", outcome.text);
          outcome = check_again ("steps", NULL);
          wrong += outcome.exit_code != 0 || check_count (outcome.text, "\n") != 1;
          dprintf (STDERR_FILENO, "%s", outcome.text);
        }
      return wrong != 0;
    }
  size_t kept, wanted;
  if (sscanf (argv[1], "kept %zu %zu", &kept, &wanted) == 2)
    {
      check_memlock (ENOUGH);
      kept_elsewhere (kept, wanted);
      return 0;
    }
  if (strcmp (argv[1], "secret") == 0)
    {
      check_memlock (ENOUGH);
      kept_secret (HEAP_SECURE | HEAP_SECRETMEM);
      kept_secret (HEAP_SECURE);
      return 0;
    }
  if (strcmp (argv[1], "later") == 0)
    {
      check_memlock (ENOUGH / 4);
      locked_later ();
      return 0;
    }
  for (unsigned i = 0; i < sizeof forks / sizeof *forks; i++)
    if (strcmp (argv[1], forks[i].mode) == 0)
      {
        forks[i].run ();
        return 0;
      }
  if (strcmp (argv[1], "steps") == 0)
    {
      check_memlock (ENOUGH / 4);
      grows_unlocked ();
      return 0;
    }
  unsigned kind, policy;
  size_t limit;
  CHECK_EQUAL (sscanf (argv[1], "%u %u %zu", &kind, &policy, &limit), 3);
  check_memlock (limit);
  struct malloc_arena_options options = { .size = sizeof options,
                                          .kind = kind ? HEAP_SECURE | HEAP_ISOLATED : HEAP_SECURE,
                                          .lock = policy };
  errno = 0;
  if (policy != MALLOC_ARENA_LOCK_OFF && limit >= 64 * CHECK_PAGE && limit < ENOUGH)
    {
      grown (HEAP_SECURE, policy, limit);
      grown (HEAP_SECURE | HEAP_ISOLATED, policy, limit);
      if (limit >= 128 * CHECK_PAGE)
        grown (HEAP_SECURE | HEAP_SECRETMEM, policy, limit);
    }
  malloc_arena *arena = malloc_arena_new (&options);
  for (size_t size = 100; size < 200000; size *= 40)
    if (policy == MALLOC_ARENA_LOCK_PREFER)
      prefer (arena, limit, size);
    else if (policy == MALLOC_ARENA_LOCK_REQUIRE)
      require (arena, limit, size);
    else
      {
        CHECK (arena != NULL);
        CHECK (fill (arena, size) >= FILL);
        CHECK_EQUAL (check_honest (arena).locked_bytes, 0);
      }
  /* The child has its own, same limit. */
  if (policy == MALLOC_ARENA_LOCK_PREFER && limit < ENOUGH)
    CHECK_EQUAL (check_child (child, arena).exit_code, 0);
  return 0;
}
