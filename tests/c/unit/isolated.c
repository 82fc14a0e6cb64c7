/* HEAP_ISOLATED: each block its own guarded mapping, unmapped at free; and the same for the large
 * blocks of HEAP_SECURE. */
#include "check.h"

#include <malloc.h>

static void
guarded (char *p, size_t size, size_t alignment)
{
  size_t page = CHECK_PAGE;
  CHECK_EQUAL ((uintptr_t)p % alignment, 0);
  CHECK_EQUAL (malloc_usable_size (p), size);
  memset (p, 0x42, size);
  /* Right-aligned: the trailing guard begins within one alignment of the last byte. */
  uintptr_t end = (uintptr_t)p + size;
  uintptr_t guard = (end + page - 1) / page * page;
  CHECK (guard - end < alignment);
  CHECK_FAULTS ((void *)guard);
  CHECK_READABLE ((void *)(guard - 1));
  uintptr_t start = (uintptr_t)p / page * page;
  CHECK_READABLE ((void *)start);
  CHECK_FAULTS ((void *)(start - 1));
}

int
main (void)
{
  size_t page = CHECK_PAGE;
  malloc_arena *isolated = malloc_arena_get (HEAP_SECURE | HEAP_ISOLATED);
  malloc_arena *secure = malloc_arena_get (HEAP_SECURE);
  CHECK (isolated != NULL && secure != NULL && isolated != secure);

  static const size_t sizes[] = { 1, 15, 16, 17, 100, 2047, 2048, 4080, 4095, 4096, 4097, 50000 };
  char *live[12];
  for (size_t i = 0; i < 12; i++)
    {
      live[i] = malloc_arena (isolated, malloc, sizes[i]);
      guarded (live[i], sizes[i], 16);
    }
  for (size_t i = 0; i < 12; i++)
    {
      CHECK (check_all (live[i], 0x42, sizes[i]));
      uintptr_t first = (uintptr_t)live[i], last = first + sizes[i] - 1;
      free (live[i]);
      CHECK_FAULTS ((void *)first);
      CHECK_FAULTS ((void *)last);
      for (size_t k = i + 1; k < 12; k++)
        CHECK_READABLE (live[k]);
    }

  /* A freed place stays a fault while others come and go: it is not handed out at once. */
  char *p = malloc_arena (isolated, malloc, 64);
  uintptr_t old = (uintptr_t)p;
  free (p);
  p = malloc_arena (isolated, malloc, 64);
  if ((uintptr_t)p != old)
    CHECK_FAULTS ((void *)old);
  free (p);

  /* Zero bytes: a place of its own, none of it for use. */
  p = malloc_arena (isolated, malloc, 0);
  CHECK (p != NULL);
  CHECK_EQUAL (malloc_usable_size (p), 0);
  free (p);

  for (size_t alignment = 32; alignment <= 65536; alignment *= 4)
    {
      p = malloc_arena (isolated, aligned_alloc, alignment, 100);
      CHECK_EQUAL ((uintptr_t)p % alignment, 0);
      memset (p, 1, 100);
      uintptr_t guard = ((uintptr_t)p + 100 + page - 1) / page * page;
      while (guard < (uintptr_t)p + 100 + alignment && check_touch ((void *)guard, false) == 0)
        guard += page;
      CHECK_FAULTS ((void *)guard);
      old = (uintptr_t)p;
      free (p);
      CHECK_FAULTS ((void *)old);
    }

  /* HEAP_SECURE from the threshold up: guarded the same way; below it, slots beside each other. */
  p = malloc_arena (secure, malloc, page / 2);
  guarded (p, page / 2, 16);
  free (p);
  p = malloc_arena (secure, malloc, 3 * page + 5);
  guarded (p, 3 * page + 5, 16);
  old = (uintptr_t)p;
  free (p);
  if (check_touch ((void *)old, false) == 0) /* a few may stay mapped, wiped */
    CHECK (check_all ((void *)old, 0, 3 * page + 5));

  struct malloc_arena_receipt receipt = check_receipt (isolated);
  CHECK (receipt.obtained & MALLOC_ARENA_ISOLATED);
  CHECK (receipt.obtained & MALLOC_ARENA_GUARDED);
  CHECK (!(check_receipt (secure).requested & MALLOC_ARENA_ISOLATED));

  /* A threshold of one's own. */
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = HEAP_SECURE, .name = "low", .isolate_threshold = 256 };
  malloc_arena *low = malloc_arena_new (&options);
  CHECK (low != NULL);
  p = malloc_arena (low, malloc, 256);
  guarded (p, 256, 16);
  char *q = malloc_arena (low, malloc, 255), *r = malloc_arena (low, malloc, 255);
  CHECK_EQUAL (malloc_usable_size (q), 255);
  size_t apart = q < r ? (size_t)(r - q) : (size_t)(q - r);
  CHECK (apart < page);
  free (q);
  free (r);
  free (p);
  CHECK_EQUAL (malloc_arena_delete (low), 0);

  /* Many at once: guards cost no mapping each, or the 65,530 of a process would end at 20,000. */
  enum
  {
    MANY = 20000
  };
  static char *many[MANY];
  size_t room = check_bounds ().size / (16 * page) / 4, count = room < MANY ? room : MANY;
  for (size_t i = 0; i < count; i++)
    {
      many[i] = malloc_arena (isolated, malloc, 32);
      CHECK (many[i] != NULL);
      *many[i] = 1;
    }
  CHECK (check_count_mappings () < 60000);
  for (size_t i = 0; i < count; i++)
    {
      CHECK_EQUAL (*many[i], 1);
      free (many[i]);
    }
  CHECK_EQUAL (check_stats (isolated).live_blocks, 0);
  return 0;
}
