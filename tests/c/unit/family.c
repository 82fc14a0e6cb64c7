/* Every malloc-family routine at its edges: zero and huge sizes, overflow, alignment, errno; with no
 * arena active (then it is the next allocator's answer, through us) and with each kind active. */
#include "check.h"

#include <malloc.h>

void free_sized (void *, size_t);
void free_aligned_sized (void *, size_t, size_t);

static malloc_arena *arena; /* active in this pass; NULL: none, the next allocator answers */

/* P is a block of SIZE bytes at ALIGNMENT, from where it should be: fills it and reads it back. */
static void *
block (void *p, size_t size, size_t alignment)
{
  CHECK (p != NULL);
  CHECK_EQUAL ((uintptr_t)p % alignment, 0);
  CHECK (malloc_arena_of (p) == arena);
  if (arena != NULL)
    CHECK_EQUAL (malloc_usable_size (p), size);
  else
    CHECK (malloc_usable_size (p) >= size);
  memset (check_hide (p), 0xa5, size);
  CHECK (check_all (p, 0xa5, size));
  return p;
}

/* Frees P, which must leave errno alone. */
static void
release (void *p)
{
  errno = EXDEV;
  free (p);
  CHECK_EQUAL (errno, EXDEV);
}

#define REFUSED(call, error)                                                                       \
  do                                                                                               \
    {                                                                                              \
      errno = 0;                                                                                   \
      CHECK ((call) == NULL);                                                                      \
      CHECK_EQUAL (errno, error);                                                                  \
    }                                                                                              \
  while (0)

static const size_t sizes[]
    = { 1,    7,    8,     15,    16,    17,     24,      31,     32,   33,   48,
        63,   64,   65,    100,   127,   128,    255,     256,    500,  512,  1000,
        1024, 1500, 2032,  2047,  2048,  2049,   3000,    4080,   4095, 4096, 4097,
        8192, 9999, 16384, 65536, 70000, 131072, 1 << 20, 3 << 20 };
#define SIZES (sizeof sizes / sizeof *sizes)

static void
plain (void)
{
  void *blocks[SIZES];
  for (size_t i = 0; i < SIZES; i++)
    blocks[i] = block (malloc (sizes[i]), sizes[i], 16);
  for (size_t i = 0; i < SIZES; i++)
    CHECK (check_all (blocks[i], 0xa5, sizes[i]));
  for (size_t i = 0; i < SIZES; i += 2)
    release (blocks[i]);
  for (size_t i = 1; i < SIZES; i += 2)
    release (blocks[i]);
  release (NULL);
  CHECK_EQUAL (malloc_usable_size (NULL), 0);
}

static void
zero_sizes (void)
{
  void *a = malloc (0), *b = malloc (0);
  CHECK (a != NULL && b != NULL && a != b);
  CHECK (malloc_arena_of (a) == arena);
  release (a);
  release (b);
  release (block (calloc (0, 8), 0, 16));
  release (block (calloc (8, 0), 0, 16));
  release (block (realloc (NULL, 0), 0, 16));
  release (block (aligned_alloc (64, 0), 0, 64));
  release (block (memalign (64, 0), 0, 64));
  release (block (valloc (0), 0, CHECK_PAGE));
  void *p = pvalloc (0);
  CHECK (p != NULL && (uintptr_t)p % CHECK_PAGE == 0);
  release (p);
  for (size_t alignment = sizeof (void *); alignment <= (size_t)1 << 20; alignment <<= 1)
    {
      CHECK_EQUAL (posix_memalign (&p, alignment, 0), 0);
      release (block (p, 0, alignment));
    }
  /* glibc frees and gives NULL, without an error. */
  p = malloc (40);
  errno = 0;
  CHECK (realloc (p, check_size (0)) == NULL);
  CHECK_EQUAL (errno, 0);
  p = malloc (40);
  CHECK (reallocarray (p, 0, 7) == NULL);
  p = malloc (40);
  CHECK (reallocarray (p, 7, 0) == NULL);
}

static void
too_large (void)
{
  char *keep = block (malloc (48), 48, 16);
  memset (keep, 7, 48);
  for (size_t i = 0; i < 64; i++)
    {
      const size_t huge[] = { SIZE_MAX - i, (size_t)PTRDIFF_MAX + 1 + i, SIZE_MAX - (i << 12) };
      for (size_t k = 0; k < 3; k++)
        {
          size_t n = check_size (huge[k]);
          REFUSED (malloc (n), ENOMEM);
          REFUSED (calloc (n, 1), ENOMEM);
          REFUSED (calloc (1, n), ENOMEM);
          REFUSED (realloc (NULL, n), ENOMEM);
          REFUSED (realloc (keep, n), ENOMEM);
          REFUSED (reallocarray (keep, 1, n), ENOMEM);
          REFUSED (valloc (n), ENOMEM);
          REFUSED (pvalloc (n), ENOMEM);
          for (size_t alignment = sizeof (void *); alignment < (size_t)1 << 40; alignment <<= 3)
            {
              REFUSED (aligned_alloc (alignment, n), ENOMEM);
              REFUSED (memalign (alignment, n), ENOMEM);
              void *out = keep;
              CHECK_EQUAL (posix_memalign (&out, alignment, n), ENOMEM);
              CHECK (out == keep);
            }
        }
    }
  /* Sizes whose product wraps to something small. */
  for (unsigned shift = 1; shift < 63; shift += 7)
    {
      size_t a = check_size ((size_t)1 << shift), b = check_size ((size_t)1 << (64 - shift));
      REFUSED (calloc (a, b), ENOMEM);
      REFUSED (calloc (a + 1, b), ENOMEM);
      REFUSED (reallocarray (NULL, a, b), ENOMEM);
      REFUSED (reallocarray (keep, a + 1, b), ENOMEM);
    }
  CHECK (check_all (keep, 7, 48));
  release (keep);
}

static void
alignments (void)
{
  for (size_t alignment = sizeof (void *); alignment <= (size_t)1 << 21; alignment <<= 1)
    for (size_t i = 0; i < SIZES; i += alignment > 256 ? 7 : 1)
      {
        release (block (aligned_alloc (alignment, sizes[i]), sizes[i], alignment));
        release (block (memalign (alignment, sizes[i]), sizes[i], alignment));
        void *p = NULL;
        CHECK_EQUAL (posix_memalign (&p, alignment, sizes[i]), 0);
        release (block (p, sizes[i], alignment));
      }
  for (size_t alignment = 1; alignment < sizeof (void *); alignment <<= 1)
    release (block (memalign (alignment, 100), 100, 16));

  void *out = &out;
  errno = EXDEV;
  for (size_t alignment = 0; alignment < 200; alignment++)
    {
      bool good = alignment >= sizeof (void *) && (alignment & (alignment - 1)) == 0;
      int result = posix_memalign (&out, alignment, 100);
      CHECK_EQUAL (result, good ? 0 : EINVAL);
      if (good)
        {
          free (out);
          out = &out;
        }
      CHECK (out == (void *)&out);
    }
  CHECK_EQUAL (errno, EXDEV); /* it answers by its result only */

  /* memalign takes the next power of two; an alignment that has none is an error. */
  release (block (memalign (check_size (3), 100), 100, 4));
  release (block (memalign (check_size (24), 100), 100, 32));
  release (block (memalign (check_size (5000), 100), 100, 8192));
  REFUSED (memalign (check_size (SIZE_MAX), 100), EINVAL);
  REFUSED (memalign (check_size ((size_t)1 << 63 | 1), 100), EINVAL);
  REFUSED (memalign (check_size ((size_t)1 << 62), 100), ENOMEM);
  /* aligned_alloc does not round since glibc 2.38; ours never did. */
  if (arena != NULL)
    for (size_t bad = 0; bad < 100; bad += 12)
      REFUSED (aligned_alloc (check_size (bad), 100), EINVAL);
}

static void
pages (void)
{
  size_t page = CHECK_PAGE;
  for (size_t size = 1; size < 5 * page; size += page / 2 - 1)
    {
      release (block (valloc (size), size, page));
      void *p = pvalloc (size);
      CHECK (p != NULL && (uintptr_t)p % page == 0);
      size_t whole = (size + page - 1) / page * page;
      CHECK (malloc_usable_size (p) >= whole);
      memset (p, 0x5a, whole);
      release (p);
    }
}

static void
zeroed (void)
{
  /* Also where it reuses what was just written. */
  for (unsigned round = 0; round < 3; round++)
    for (size_t i = 0; i < SIZES; i++)
      {
        char *p = calloc (1, sizes[i]);
        CHECK (p != NULL && check_all (p, 0, sizes[i]));
        memset (p, 0xee, sizes[i]);
        release (p);
        p = malloc (sizes[i]);
        memset (check_hide (p), 0xdd, sizes[i]);
        release (p);
        p = calloc (sizes[i], 1);
        CHECK (p != NULL && check_all (p, 0, sizes[i]));
        release (p);
      }
  unsigned *array = calloc (37, 11);
  CHECK (check_all (array, 0, 37 * 11));
  release (array);
}

static void
resizes (void)
{
  /* Every size to every other: the common prefix stays. */
  for (size_t from = 0; from < SIZES; from += 3)
    for (size_t to = 1; to < SIZES; to += 4)
      {
        size_t common = sizes[from] < sizes[to] ? sizes[from] : sizes[to];
        char *p = block (malloc (sizes[from]), sizes[from], 16);
        memset (p, 0x3c, sizes[from]);
        p = realloc (p, sizes[to]);
        CHECK (p != NULL && check_all (p, 0x3c, common));
        release (block (p, sizes[to], 16));
      }
  /* Step by step up and down, byte pattern by position. */
  unsigned char *p = NULL;
  for (size_t size = 1; size < 9000; size += 37)
    {
      CHECK ((p = realloc (p, size)) != NULL);
      for (size_t i = size > 37 ? size - 37 : 0; i < size; i++)
        p[i] = (unsigned char)(i * 31);
      for (size_t i = 0; i < size; i += 61)
        CHECK_EQUAL (p[i], (unsigned char)(i * 31));
    }
  for (size_t size = 8900; size > 140; size -= 97)
    {
      CHECK ((p = reallocarray (p, size, 1)) != NULL);
      for (size_t i = 0; i < size; i += 61)
        CHECK_EQUAL (p[i], (unsigned char)(i * 31));
    }
  release (p);
}

static void
sized_frees (void)
{
  for (size_t i = 0; i < SIZES; i++)
    {
      errno = EXDEV;
      free_sized (block (malloc (sizes[i]), sizes[i], 16), sizes[i]);
      free_aligned_sized (block (aligned_alloc (64, sizes[i]), sizes[i], 64), 64, sizes[i]);
    }
  free_sized (NULL, 0);
  free_aligned_sized (NULL, 64, 128);
  CHECK_EQUAL (errno, EXDEV);
}

static void
controls (void)
{
  void *mine = block (malloc (1000), 1000, 16);
  CHECK (mallopt (M_ARENA_TEST, 2) == 1 || CHECK_SANITIZED);
  CHECK (malloc_trim (0) >= 0);
  struct mallinfo2 info = mallinfo2 ();
  CHECK (info.arena + info.hblkhd > 0 || check_outside () != NULL || CHECK_SANITIZED);
  CHECK (check_all (mine, 0xa5, 1000));
  release (mine);
  FILE *null = fopen ("/dev/null", "w");
  CHECK (null != NULL);
  CHECK_EQUAL (malloc_info (0, null), 0);
  CHECK_EQUAL (malloc_info (1, null), EINVAL);
  fclose (null);
}

int
main (void)
{
  const unsigned kinds[] = { HEAP_DEFAULT, HEAP_SECURE, HEAP_SECURE | HEAP_ISOLATED, HEAP_DEFAULT };
  for (int pass = -1; pass < 4; pass++)
    {
      if (pass >= 0)
        {
          arena = malloc_arena_get (kinds[pass]);
          CHECK (arena != NULL);
        }
      else
        arena = check_outside ();
      struct malloc_arena_stats before = { 0 };
      if (arena != NULL)
        before = check_stats (arena);
      if (pass >= 0)
        malloc_arena_enter (arena);
      plain ();
      zero_sizes ();
      too_large ();
      alignments ();
      pages ();
      zeroed ();
      resizes ();
      sized_frees ();
      controls ();
      if (pass >= 0)
        malloc_arena_leave (arena);
      if (arena != NULL)
        {
          struct malloc_arena_stats after = check_stats (arena);
          CHECK_EQUAL (after.live_blocks, before.live_blocks);
          CHECK_EQUAL (after.live_bytes, before.live_bytes);
        }
    }
  return 0;
}
