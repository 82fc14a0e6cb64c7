/* Code that knows no arenas works in one: all that it allocates between enter and leave is there, and
 * is wiped when it is freed, wherever that is. */
#include <malloc_arena.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A parser of "key=value" lines from some library. */
static char *
value_of (const char *config, const char *key)
{
  char *copy = strdup (config);
  char *value = NULL;
  char *state = NULL;
  for (char *line = strtok_r (copy, "\n", &state); line; line = strtok_r (NULL, "\n", &state))
    if (strncmp (line, key, strlen (key)) == 0 && line[strlen (key)] == '=')
      {
        value = strdup (line + strlen (key) + 1);
        break;
      }
  free (copy);
  return value;
}

int
main (void)
{
  malloc_arena *secure = malloc_arena_get (HEAP_SECURE);
  if (secure == NULL)
    {
      perror ("malloc_arena_get");
      return 1;
    }

  malloc_arena_enter (secure);
  char *token = value_of ("host=example.org\ntoken=0123456789abcdef\n", "token");
  malloc_arena_scrub (16 << 10); /* and what the calls left on the stack */
  malloc_arena_leave (secure);
  if (token == NULL)
    return 1;

  printf ("token of %zu characters in the arena \"%s\"\n", strlen (token),
          malloc_arena_name (malloc_arena_of (token)));
  free (token);

  struct malloc_arena_stats stats = { .size = sizeof stats };
  malloc_arena_stats (secure, &stats);
  printf ("%zu blocks live, %zu bytes at most\n", stats.live_blocks, stats.peak_bytes);
  return stats.live_blocks != 0;
}
