/* malloc_arena (ARENA, ROUTINE, ...) with every routine, directly, through a variable, and linked
 * without PIE (the build makes this program twice), where &malloc is the program's own PLT entry. */
#include "check.h"

#include <malloc.h>

static malloc_arena *arena;

static void
mine (void *p)
{
  CHECK (p != NULL && malloc_arena_of (p) == arena);
  free (p);
}

static int
format (char **out, const char *text, ...)
{
  va_list arguments;
  va_start (arguments, text);
  int n = malloc_arena (arena, vasprintf, out, text, arguments);
  va_end (arguments);
  return n;
}

static void
family (void)
{
  mine (malloc_arena (arena, malloc, 10));
  mine (malloc_arena (arena, calloc, 3, 10));
  mine (malloc_arena (arena, realloc, NULL, 10));
  mine (malloc_arena (arena, reallocarray, NULL, 3, 10));
  mine (malloc_arena (arena, aligned_alloc, 64, 128));
  mine (malloc_arena (arena, memalign, 64, 100));
  mine (malloc_arena (arena, valloc, 100));
  mine (malloc_arena (arena, pvalloc, 100));
  void *p = NULL;
  CHECK_EQUAL (malloc_arena (arena, posix_memalign, &p, 64, 100), 0);
  mine (p);
  CHECK_EQUAL (malloc_arena (arena, posix_memalign, &p, 3, 100), EINVAL);
  errno = 0;
  CHECK (malloc_arena (arena, malloc, check_size (SIZE_MAX)) == NULL);
  CHECK_EQUAL (errno, ENOMEM);
  errno = 0;
  CHECK (malloc_arena (arena, calloc, check_size (SIZE_MAX), 2) == NULL);
  CHECK_EQUAL (errno, ENOMEM);

  void *(*routine) (size_t) = malloc;
  mine (malloc_arena (arena, routine, 10));
  mine (malloc_arena (arena, *routine, 10));
  mine (malloc_arena (arena, &malloc, 10));
  malloc_arena_size_routine volatile from_table = valloc;
  mine (malloc_arena (arena, from_table, 10));
  void *(*pair) (size_t, size_t) = calloc;
  mine (malloc_arena (arena, pair, 10, 1));
  char *(*copy) (const char *) = strdup;
  mine (malloc_arena (arena, copy, "through a variable"));
}

static void
strings (void)
{
  char *s = malloc_arena (arena, strdup, "password");
  CHECK (strcmp (s, "password") == 0);
  CHECK_EQUAL (malloc_usable_size (s), 9);
  mine (s);
  s = malloc_arena (arena, strndup, "password", 4);
  CHECK (strcmp (s, "pass") == 0);
  mine (s);
  wchar_t *w = malloc_arena (arena, wcsdup, L"wide");
  CHECK (wcscmp (w, L"wide") == 0);
  mine (w);
  CHECK_EQUAL (malloc_arena (arena, asprintf, &s, "%s-%d", "user", 7), 6);
  CHECK (strcmp (s, "user-7") == 0);
  mine (s);
  CHECK_EQUAL (malloc_arena (arena, asprintf, &s, "%0900d", 7), 900);
  mine (s);
  CHECK_EQUAL (format (&s, "%c%c", 'o', 'k'), 2);
  CHECK (strcmp (s, "ok") == 0);
  mine (s);
  s = malloc_arena (arena, realpath, "/proc/../proc/.", NULL);
  CHECK (strcmp (s, "/proc") == 0);
  mine (s);
  char buffer[4096];
  CHECK (malloc_arena (arena, realpath, "/", buffer) == buffer);
}

static void
streams (void)
{
  char text[] = "first line\nsecond:third\n";
  FILE *in = fmemopen (text, sizeof text - 1, "r");
  CHECK (in != NULL);
  char *line = NULL;
  size_t size = 0;
  CHECK_EQUAL (malloc_arena (arena, getline, &line, &size, in), 11);
  CHECK (strcmp (line, "first line\n") == 0 && malloc_arena_of (line) == arena);
  CHECK_EQUAL (malloc_arena (arena, getdelim, &line, &size, ':', in), 7);
  CHECK (strcmp (line, "second:") == 0);
  mine (line);
  fclose (in);

  char *out = NULL;
  FILE *stream = malloc_arena (arena, open_memstream, &out, &size);
  CHECK (stream != NULL);
  CHECK (fputs ("kept in the arena", stream) >= 0);
  CHECK_EQUAL (fclose (stream), 0);
  CHECK (strcmp (out, "kept in the arena") == 0);
  CHECK_EQUAL (size, 17);
  mine (out);
}

int
main (void)
{
  const unsigned kinds[] = { HEAP_DEFAULT, HEAP_SECURE, HEAP_SECURE | HEAP_ISOLATED };
  for (unsigned k = 0; k < 3; k++)
    {
      arena = malloc_arena_get (kinds[k]);
      CHECK (arena != NULL);
      struct malloc_arena_stats before = check_stats (arena);
      family ();
      strings ();
      streams ();
      CHECK_EQUAL (check_stats (arena).live_blocks, before.live_blocks);
    }

  /* The RFC's own listing. */
  size_t length = 12;
  char *password_storage = NULL;
  malloc_arena *secure_arena = NULL;
  secure_arena = malloc_arena_get (HEAP_SECURE);
  if (secure_arena == NULL)
    abort ();
  password_storage = malloc_arena (secure_arena, malloc, length);
  CHECK (malloc_arena_of (password_storage) == secure_arena);
  free (password_storage);
  return 0;
}
