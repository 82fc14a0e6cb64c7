/* Handles: get, new, delete, of, name, limit, enter and leave, and what each refuses. */
#include "check.h"

static void *
get_here (void *kind)
{
  return malloc_arena_get ((unsigned)(uintptr_t)kind);
}

static void
handles (void)
{
  malloc_arena *secure = malloc_arena_get (HEAP_SECURE);
  CHECK (secure != NULL);
  for (unsigned i = 0; i < 100; i++)
    CHECK (malloc_arena_get (HEAP_SECURE) == secure);
  malloc_arena *ordinary = malloc_arena_get (HEAP_DEFAULT);
  malloc_arena *isolated = malloc_arena_get (HEAP_SECURE | HEAP_ISOLATED);
  CHECK (ordinary != NULL && isolated != NULL);
  CHECK (ordinary != secure && isolated != secure && ordinary != isolated);
  CHECK (strcmp (malloc_arena_name (secure), "secure") == 0);
  CHECK (strcmp (malloc_arena_name (ordinary), "default") == 0);
  CHECK (strcmp (malloc_arena_name (isolated), "isolated") == 0);

  /* From any thread, the same. */
  pthread_t thread;
  void *there;
  CHECK_EQUAL (pthread_create (&thread, NULL, get_here, (void *)(uintptr_t)HEAP_SECURE), 0);
  pthread_join (thread, &there);
  CHECK (there == secure);

  static const unsigned bad[] = { HEAP_ISOLATED,
                                  HEAP_SECRETMEM,
                                  HEAP_ISOLATED | HEAP_SECRETMEM,
                                  16,
                                  HEAP_SECURE | 32,
                                  1u << 31,
                                  ~0u };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    {
      errno = 0;
      CHECK (malloc_arena_get (bad[i]) == NULL);
      CHECK_EQUAL (errno, EINVAL);
    }
}

static void
own_arenas (void)
{
  struct malloc_arena_options options = { .size = sizeof options, .kind = HEAP_SECURE };
  malloc_arena *a = malloc_arena_new (&options);
  options.name = "keys";
  malloc_arena *b = malloc_arena_new (&options);
  CHECK (a != NULL && b != NULL && a != b && a != malloc_arena_get (HEAP_SECURE));
  CHECK (strcmp (malloc_arena_name (a), "secure") == 0);
  CHECK (strcmp (malloc_arena_name (b), "keys") == 0);

  char *p = malloc_arena (a, malloc, 100), *q = malloc_arena (b, malloc, 100);
  CHECK (malloc_arena_of (p) == a && malloc_arena_of (q) == b);
  CHECK (malloc_arena_of (p + 99) == a);
  CHECK (malloc_arena_of (&options) == NULL);
  CHECK (malloc_arena_of (NULL) == NULL);
  CHECK (malloc_arena_of (check_hide (own_arenas)) == NULL);

  /* EBUSY while a block lives, and while someone is inside. */
  errno = 0;
  CHECK_EQUAL (malloc_arena_delete (a), -1);
  CHECK_EQUAL (errno, EBUSY);
  CHECK_EQUAL (check_stats (a).live_blocks, 1); /* the refusal did no harm */
  free (p);
  malloc_arena_enter (a);
  errno = 0;
  CHECK_EQUAL (malloc_arena_delete (a), -1);
  CHECK_EQUAL (errno, EBUSY);
  malloc_arena_leave (a);
  char *large = malloc_arena (a, malloc, 100000);
  errno = 0;
  CHECK_EQUAL (malloc_arena_delete (a), -1);
  CHECK_EQUAL (errno, EBUSY);
  free (large);
  CHECK_EQUAL (malloc_arena_delete (a), 0);
  free (q);
  CHECK_EQUAL (malloc_arena_delete (b), 0);

  /* The process's own arenas are not deleted. */
  errno = 0;
  CHECK_EQUAL (malloc_arena_delete (malloc_arena_get (HEAP_SECURE)), -1);
  CHECK_EQUAL (errno, EINVAL);
  errno = 0;
  CHECK_EQUAL (malloc_arena_delete (NULL), -1);
  CHECK_EQUAL (errno, EINVAL);

  /* Names are cut at 31 bytes, and copied. */
  char name[64] = "a-name-of-more-than-thirty-one-bytes";
  options.name = name;
  a = malloc_arena_new (&options);
  CHECK (a != NULL);
  memset (name, 'x', 8);
  CHECK (strcmp (malloc_arena_name (a), "a-name-of-more-than-thirty-one-") == 0);
  CHECK_EQUAL (malloc_arena_delete (a), 0);

  /* Thousands one after the other use up nothing. */
  options.name = "brief";
  size_t before = 0;
  for (unsigned i = 0; i < 3000; i++)
    {
      a = malloc_arena_new (&options);
      CHECK (a != NULL);
      p = malloc_arena (a, malloc, 10 + i);
      CHECK (p != NULL);
      free (p);
      CHECK_EQUAL (malloc_arena_delete (a), 0);
      if (i == 500)
        before = check_status ("VmRSS");
    }
  CHECK (check_status ("VmRSS") < before + ((size_t)2 << 20));
}

static void
refused (struct malloc_arena_options options)
{
  errno = 0;
  CHECK (malloc_arena_new (&options) == NULL);
  CHECK_EQUAL (errno, EINVAL);
}

static void
bad_options (void)
{
  struct malloc_arena_options good = { .size = sizeof good, .kind = HEAP_SECURE }, bad;
  errno = 0;
  CHECK (malloc_arena_new (NULL) == NULL);
  CHECK_EQUAL (errno, EINVAL);
  bad = good, bad.size = 0, refused (bad);
  bad = good, bad.size = sizeof (size_t), refused (bad);
  bad = good, bad.kind = 64, refused (bad);
  bad = good, bad.kind = HEAP_ISOLATED, refused (bad);
  bad = good, bad.lock = 4, refused (bad);
  bad = good, bad.fork = 4, refused (bad);
  bad = good, bad.heap_size = 1000, refused (bad);
  bad = good, bad.limit = 1, refused (bad);
  bad = good, bad.limit = CHECK_PAGE - 1, refused (bad);
  bad = good, bad.heap_size = (size_t)1 << 30, refused (bad);
}

static void
limits (void)
{
  const size_t limit = (size_t)1 << 20;
  const unsigned kinds[] = { HEAP_DEFAULT, HEAP_SECURE, HEAP_SECURE | HEAP_ISOLATED };
  for (unsigned k = 0; k < 3; k++)
    for (unsigned big = 0; big < 2; big++)
      {
        struct malloc_arena_options options
            = { .size = sizeof options, .kind = kinds[k], .name = "tight", .limit = limit };
        malloc_arena *arena = malloc_arena_new (&options);
        CHECK (arena != NULL);
        size_t size = big ? 50000 : 100;
        static void *blocks[20000];
        size_t count = 0;
        errno = 0;
        while (count < 20000 && (blocks[count] = malloc_arena (arena, malloc, size)) != NULL)
          count++;
        CHECK_EQUAL (errno, ENOMEM);
        struct malloc_arena_stats stats = check_stats (arena);
        CHECK_EQUAL (stats.limit_bytes, limit);
        CHECK (stats.mapped_bytes <= limit);
        CHECK_EQUAL (stats.live_blocks, count);
        /* The limit is of use: most of it holds blocks, where they fill their pages. */
        if (kinds[k] != (HEAP_SECURE | HEAP_ISOLATED) || big)
          CHECK (count * size > limit / 2);
        else
          CHECK (count > limit / CHECK_PAGE / 2);
        CHECK (malloc_arena (arena, calloc, 2, limit) == NULL);
        /* realloc past it leaves the block. */
        memset (blocks[0], 9, size);
        CHECK (realloc (blocks[0], limit) == NULL);
        CHECK (check_all (blocks[0], 9, size));
        for (size_t i = 0; i < count; i++)
          free (blocks[i]);
        /* And what was freed can be had again, in the other shape too. */
        for (unsigned other = 0; other < 2; other++)
          {
            void *p = malloc_arena (arena, malloc, other ? 100 : limit / 2);
            CHECK (p != NULL);
            free (p);
          }
        CHECK_EQUAL (malloc_arena_delete (arena), 0);
      }
}

/* As many as there may be, those of malloc_arena_get among them; one that ends makes room. */
static void
too_many (void)
{
  enum
  {
    MOST = 256
  };
  struct malloc_arena_options options = { .size = sizeof options, .name = "one of many" };
  malloc_arena *arenas[MOST];
  unsigned count = 0;
  errno = 0;
  while (count < MOST && (arenas[count] = malloc_arena_new (&options)) != NULL)
    count++;
  CHECK (count > MOST - 16);
  CHECK_EQUAL (errno, ENOSPC);
  errno = 0;
  CHECK (malloc_arena_new (&options) == NULL);
  CHECK_EQUAL (errno, ENOSPC);
  /* What there is already goes on. */
  CHECK (malloc_arena_get (HEAP_SECURE) != NULL);
  CHECK_EQUAL (malloc_arena_delete (arenas[--count]), 0);
  arenas[count] = malloc_arena_new (&options);
  CHECK (arenas[count] != NULL);
  for (unsigned i = 0; i <= count; i++)
    CHECK_EQUAL (malloc_arena_delete (arenas[i]), 0);
}

static void *
allocate_here (void *unused)
{
  (void)unused;
  return malloc (10);
}

static void
nesting (void)
{
  malloc_arena *secure = malloc_arena_get (HEAP_SECURE),
               *ordinary = malloc_arena_get (HEAP_DEFAULT);
  CHECK (ma_active_arena () == NULL);
  malloc_arena_enter (secure);
  void *a = malloc (10);
  malloc_arena_enter (ordinary);
  void *b = malloc (10);
  malloc_arena_enter (NULL);
  void *c = malloc (10);
  malloc_arena_enter (secure);
  malloc_arena_enter (secure);
  CHECK_EQUAL (ma_depth (), 5);
  void *d = malloc (10);
  malloc_arena_leave (secure);
  malloc_arena_leave (secure);
  void *e = malloc (10);
  malloc_arena_leave (NULL);
  void *f = malloc (10);
  malloc_arena_leave (ordinary);
  void *g = malloc (10);
  malloc_arena_leave (secure);
  void *h = malloc (10);
  CHECK_EQUAL (ma_depth (), 0);
  CHECK (malloc_arena_of (a) == secure && malloc_arena_of (b) == ordinary);
  CHECK (malloc_arena_of (c) == NULL && malloc_arena_of (d) == secure);
  CHECK (malloc_arena_of (e) == NULL && malloc_arena_of (f) == ordinary);
  CHECK (malloc_arena_of (g) == secure && malloc_arena_of (h) == NULL);
  void *const all[] = { a, b, c, d, e, f, g, h };
  for (unsigned i = 0; i < 8; i++)
    free (all[i]);

  /* As deep as anyone goes. */
  for (unsigned i = 0; i < 200; i++)
    malloc_arena_enter (i % 2 ? secure : ordinary);
  for (unsigned i = 0; i < 10000; i++)
    malloc_arena_enter (secure);
  a = malloc (10);
  CHECK (malloc_arena_of (a) == secure);
  free (a);
  for (unsigned i = 0; i < 10000; i++)
    malloc_arena_leave (secure);
  for (unsigned i = 200; i-- > 0;)
    malloc_arena_leave (i % 2 ? secure : ordinary);
  CHECK (ma_active_arena () == NULL);

  /* It is the thread's, not the process's: a thread started inside begins outside. */
  malloc_arena_enter (secure);
  pthread_t thread;
  CHECK_EQUAL (pthread_create (&thread, NULL, allocate_here, NULL), 0);
  pthread_join (thread, &a);
  malloc_arena_leave (secure);
  CHECK (malloc_arena_of (a) == NULL);
  free (a);

  /* The binding is an enter and a leave. */
  malloc_arena_enter (ordinary);
  a = malloc_arena (secure, malloc, 10);
  b = malloc (10);
  malloc_arena_leave (ordinary);
  CHECK (malloc_arena_of (a) == secure && malloc_arena_of (b) == ordinary);
  free (a);
  free (b);

  /* Scrubbing overwrites dead stack only. */
  volatile char here[64];
  memset ((void *)here, 3, sizeof here);
  malloc_arena_scrub (128 << 10);
  malloc_arena_scrub (0);
  CHECK (check_all ((void *)here, 3, sizeof here));
}

int
main (void)
{
  handles ();
  own_arenas ();
  bad_options ();
  limits ();
  too_many ();
  nesting ();
  return 0;
}
