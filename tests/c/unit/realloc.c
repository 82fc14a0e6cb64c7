/* Where realloc puts a block, and what it leaves behind. */
#include "check.h"

#include <malloc.h>

static malloc_arena *secure, *isolated, *ordinary;

/* A block grown or shrunk keeps to its arena, whatever is active, and the place it leaves is wiped. */
static void
stays (malloc_arena *home, malloc_arena *active)
{
  static const size_t sizes[] = { 20, 300, 24, 5000, 40, 100000, 64, 9 };
  malloc_arena_enter (home);
  char *p = malloc (30);
  malloc_arena_leave (home);
  malloc_arena_enter (active);
  memset (p, 0x77, 30);
  size_t size = 30;
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    {
      uintptr_t old = (uintptr_t)p;
      size_t common = size < sizes[i] ? size : sizes[i];
      p = realloc (p, sizes[i]);
      CHECK (p != NULL && malloc_arena_of (p) == home);
      CHECK (check_all (p, 0x77, common));
      /* Unless it has only moved a little, in the same page. */
      size_t apart = (uintptr_t)p > old ? (uintptr_t)p - old : old - (uintptr_t)p;
      if (apart > size + sizes[i] + 16 && home != ordinary && check_touch ((void *)old, false) == 0)
        CHECK (check_all ((void *)old, 0, size));
      memset (p, 0x77, sizes[i]);
      size = sizes[i];
      CHECK_EQUAL (malloc_usable_size (p), size);
    }
  CHECK (realloc (p, check_size (0)) == NULL);
  malloc_arena_leave (active);
}

/* What is cut off by shrinking in place goes too: the place reads as zeros or canary. */
static void
shrinks (malloc_arena *home)
{
  for (size_t size = 1900; size > 40; size -= 60)
    for (size_t less = size - 1; less > size / 2; less -= 7)
      {
        char *p = malloc_arena (home, malloc, size);
        memset (p, 0x77, size);
        uintptr_t place = (uintptr_t)p;
        p = realloc (p, less);
        CHECK (p != NULL && check_all (p, 0x77, less));
        if ((uintptr_t)p == place)
          {
            const char *cut = check_hide (p + less);
            unsigned left = 0;
            for (size_t i = 0; i < size - less; i++)
              left += cut[i] == 0x77;
            CHECK (left <= (size - less) / 8 + 1); /* a canary may have that byte in each word */
          }
        free (p);
      }
}

/* What growth adds is zero: no canary, and nothing of what the place had before. */
static void
grows (malloc_arena *home)
{
  for (size_t size = 1; size < 9000; size += size / 9 + 1)
    {
      unsigned char *p = malloc_arena (home, malloc, size);
      memset (p, 0x77, size);
      for (size_t more = size; more < size + 70; more += more % 9 + 1)
        {
          p = realloc (p, more);
          CHECK (p != NULL && check_all (p, 0x77, size) && check_all (p + size, 0, more - size));
          CHECK_EQUAL (malloc_usable_size (p), more);
        }
      free (p);
    }
}

/* A block at a multiple of ALIGN ends anywhere before the guard; grown, it may end there. */
static void
grows_aligned (malloc_arena *home, size_t align)
{
  for (size_t size = 1; size < 3 * align; size += size / 5 + 1)
    for (size_t more = align - 4; more <= 3 * align; more += align / 4)
      {
        char *p = malloc_arena (home, memalign, align, size);
        CHECK (p != NULL);
        memset (p, 0x77, size);
        p = realloc (p, more);
        CHECK (p != NULL && check_all (p, 0x77, size < more ? size : more));
        free (p);
      }
}

/* An outside block that is grown while an arena is active moves in; its old place is wiped. */
static void
moves_in (malloc_arena *home, size_t from, size_t to)
{
  if (check_outside () != NULL)
    return; /* then every block is inside */
  unsigned char *old = malloc (from);
  for (size_t i = 0; i < from; i++)
    old[i] = (unsigned char)(0x80 | i);
  uintptr_t place = (uintptr_t)old;
  size_t common = from < to ? from : to;
  malloc_arena_enter (home);
  unsigned char *p = realloc (old, to);
  CHECK (p != NULL && malloc_arena_of (p) == home);
  for (size_t i = 0; i < common; i++)
    CHECK_EQUAL (p[i], (unsigned char)(0x80 | i));
  /* The next allocator writes its lists into the first 16 bytes of what is freed, and a length into
   * the last 8. */
  if (!CHECK_SANITIZED && check_touch ((void *)place, false) == 0)
    for (size_t i = 16; i + 8 < from; i++)
      CHECK_EQUAL (*((volatile unsigned char *)place + i) & 0x80, 0);
  malloc_arena_leave (home);
  free (p);
}

/* Blocks that grow and are small share pages still. */
static void
stays_small (unsigned kind)
{
  struct malloc_arena_options options = { .size = sizeof options, .kind = kind, .name = "small" };
  malloc_arena *arena = malloc_arena_new (&options);
  if (arena == NULL && kind & HEAP_TAGGED)
    {
      puts ("left out: tagged blocks that grow, as this machine has no tags");
      return;
    }
  CHECK (arena != NULL);
  static void *blocks[1000];
  for (size_t i = 0; i < 1000; i++)
    {
      blocks[i] = malloc_arena (arena, malloc, 16);
      CHECK ((blocks[i] = realloc (blocks[i], 100)) != NULL);
    }
  CHECK (check_stats (arena).mapped_bytes <= 300000 + 4 * CHECK_PAGE);
  for (size_t i = 0; i < 1000; i++)
    free (blocks[i]);
  CHECK_EQUAL (malloc_arena_delete (arena), 0);
}

int
main (void)
{
  secure = malloc_arena_get (HEAP_SECURE);
  isolated = malloc_arena_get (HEAP_SECURE | HEAP_ISOLATED);
  ordinary = malloc_arena_get (HEAP_DEFAULT);
  CHECK (secure != NULL && isolated != NULL && ordinary != NULL);
  malloc_arena *const all[] = { secure, isolated, ordinary };
  for (size_t home = 0; home < 3; home++)
    {
      stays (all[home], NULL);
      for (size_t active = 0; active < 3; active++)
        stays (all[home], all[active]);
    }
  stays_small (HEAP_SECURE);
  stays_small (HEAP_DEFAULT);
  stays_small (HEAP_TAGGED);
  stays_small (HEAP_SECURE | HEAP_TAGGED);
  shrinks (secure);
  shrinks (isolated);
  grows (secure);
  grows (isolated);
  for (size_t align = 64; align <= 65536; align *= 4)
    {
      grows_aligned (secure, align);
      grows_aligned (isolated, align);
    }

  void *wall = malloc (64); /* keeps the freed block off the top of glibc's heap */
  for (size_t home = 0; home < 2; home++)
    {
      moves_in (all[home], 100, 200);
      moves_in (all[home], 200, 50);
      moves_in (all[home], 3000, 9000);
      moves_in (all[home], 200000, 300000);
    }
  free (wall);

  /* NULL is not outside anything: it is malloc. */
  malloc_arena_enter (secure);
  void *p = realloc (NULL, 33);
  CHECK (malloc_arena_of (p) == secure);
  malloc_arena_leave (secure);
  p = realloc (p, 34);
  CHECK (malloc_arena_of (p) == secure);
  free (p);

  /* An outside block, grown with nothing active or under enter (NULL), stays outside. */
  malloc_arena_enter (secure);
  malloc_arena_enter (NULL);
  p = malloc (10);
  p = realloc (p, 10000);
  CHECK (malloc_arena_of (p) == check_outside ());
  malloc_arena_leave (NULL);
  free (p);
  malloc_arena_leave (secure);
  return 0;
}
