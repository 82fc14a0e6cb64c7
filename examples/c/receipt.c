/* Asks what the kernel really gave, and refuses to handle a key in memory that could be swapped. */
#include <malloc_arena.h>
#include <stdio.h>
#include <string.h>

static const char *const properties[MALLOC_ARENA_PROPERTIES]
    = { "locked",  "not dumped", "wiped on fork", "kept on fork",
        "guarded", "secretmem",  "tagged",        "isolated" };

int
main (void)
{
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = HEAP_SECURE | HEAP_ISOLATED, .name = "keys" };
  options.limit = 1 << 20;
  malloc_arena *keys = malloc_arena_new (&options);
  if (keys == NULL)
    {
      perror ("malloc_arena_new");
      return 1;
    }
  unsigned char *key = malloc_arena (keys, calloc, 1, 32);
  if (key == NULL)
    {
      perror ("malloc_arena");
      return 1;
    }

  struct malloc_arena_receipt receipt = { .size = sizeof receipt };
  malloc_arena_receipt (keys, &receipt);
  for (unsigned i = 0; i < MALLOC_ARENA_PROPERTIES; i++)
    if (receipt.requested >> i & 1)
      printf ("%-14s %s\n", properties[i],
              receipt.obtained >> i & 1 ? "yes" : strerror (receipt.reason[i]));
  printf ("%zu bytes mapped, %zu locked\n", receipt.mapped_bytes, receipt.locked_bytes);
  if (!(receipt.obtained & MALLOC_ARENA_LOCKED))
    puts ("no key is made here: raise the memlock limit (ulimit -l)");

  free (key);
  return malloc_arena_delete (keys) == 0 ? 0 : 1;
}
