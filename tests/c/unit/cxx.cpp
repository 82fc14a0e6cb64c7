/* C++: the binding's overloads, new and delete inside a scope, containers that outlive it. */
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include <malloc.h>

#include "malloc_arena.h"

#define CHECK(condition)                                                                           \
  do                                                                                               \
    {                                                                                              \
      if (!(condition))                                                                            \
        {                                                                                          \
          std::fprintf (stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);            \
          std::exit (1);                                                                           \
        }                                                                                          \
    }                                                                                              \
  while (0)

namespace
{
malloc_arena *arena;

struct scope
{
  scope () { malloc_arena_enter (arena); }
  ~scope () { malloc_arena_leave (arena); }
  scope (const scope &) = delete;
  scope &operator= (const scope &) = delete;
};

void
mine (void *p)
{
  CHECK (p != nullptr && malloc_arena_of (p) == arena);
  std::free (p);
}

void
binding ()
{
  mine (malloc_arena (arena, malloc, 10));
  mine (malloc_arena (arena, &malloc, 10));
  mine (malloc_arena (arena, std::malloc, 10));
  mine (malloc_arena (arena, calloc, 3, 10));
  mine (malloc_arena (arena, realloc, nullptr, 10));
  mine (malloc_arena (arena, reallocarray, nullptr, 3, 10));
  mine (malloc_arena (arena, aligned_alloc, 64, 128));
  mine (malloc_arena (arena, memalign, 64, 100));
  mine (malloc_arena (arena, valloc, 100));
  mine (malloc_arena (arena, pvalloc, 100));
  mine (malloc_arena (arena, strdup, "text"));
  mine (malloc_arena (arena, strndup, "text", 2));
  mine (malloc_arena (arena, wcsdup, L"text"));
  mine (malloc_arena (arena, realpath, "/", nullptr));
  void *p = nullptr;
  CHECK (malloc_arena (arena, posix_memalign, &p, 64, 100) == 0);
  mine (p);
  char *s = nullptr;
  CHECK (malloc_arena (arena, asprintf, &s, "%s %d %.1f", "x", 12, 1.5) == 8);
  CHECK (std::strcmp (s, "x 12 1.5") == 0);
  mine (s);
  size_t size = 0;
  std::FILE *stream = malloc_arena (arena, open_memstream, &s, &size);
  CHECK (stream != nullptr && std::fputs ("ok", stream) >= 0 && std::fclose (stream) == 0);
  mine (s);
  auto routine = malloc;
  mine (malloc_arena (arena, routine, 10));
}

struct alignas (256) wide
{
  char bytes[300];
};

void
operators ()
{
  int *one;
  int *many;
  wide *aligned;
  std::unique_ptr<std::string> text;
  {
    scope inside;
    one = new int (7);
    many = new int[1000]();
    aligned = new wide;
    text = std::make_unique<std::string> ("a text that is too long for its object");
    volatile size_t most = static_cast<size_t> (-1) / 2 - 64;
    CHECK (new (std::nothrow) char[most] == nullptr);
    bool thrown = false;
    try
      {
        many[0] = static_cast<int> (reinterpret_cast<size_t> (operator new (size_t (1) << 62)));
      }
    catch (const std::bad_alloc &)
      {
        thrown = true;
      }
    CHECK (thrown);
  }
  CHECK (malloc_arena_of (one) == arena && *one == 7);
  CHECK (malloc_arena_of (many) == arena && many[999] == 0);
  CHECK (malloc_arena_of (aligned) == arena && reinterpret_cast<size_t> (aligned) % 256 == 0);
  CHECK (malloc_arena_of (text.get ()) == arena && malloc_arena_of (text->data ()) == arena);
  delete one;
  delete[] many;
  delete aligned;
}

/* An exception leaves the scope as a return does. */
void
exceptions ()
{
  try
    {
      scope inside;
      throw std::runtime_error ("a message in the arena");
    }
  catch (const std::runtime_error &error)
    {
      CHECK (malloc_arena_of (&error) == arena);
      std::unique_ptr<int> outside (new int);
      CHECK (malloc_arena_of (outside.get ()) == nullptr);
    }
}

void
containers ()
{
  std::vector<std::string> words;
  {
    scope inside;
    for (int i = 0; i < 1000; i++)
      words.push_back ("a word that needs memory of its own: " + std::to_string (i));
  }
  CHECK (malloc_arena_of (words.data ()) == arena);
  CHECK (malloc_arena_of (words[500].data ()) == arena);
  words.resize (10);
  words.shrink_to_fit (); /* allocates outside, frees inside */
  CHECK (malloc_arena_of (words.data ()) == nullptr);
}
} // namespace

int
main ()
{
  const unsigned kinds[] = { HEAP_DEFAULT, HEAP_SECURE, HEAP_SECURE | HEAP_ISOLATED };
  for (unsigned kind : kinds)
    {
      arena = malloc_arena_get (kind);
      CHECK (arena != nullptr);
      binding ();
      operators ();
      exceptions ();
      containers ();
      struct malloc_arena_stats stats = {};
      stats.size = sizeof stats;
      CHECK (malloc_arena_stats (arena, &stats) == 0);
      CHECK (stats.live_blocks == 0);
    }
  return 0;
}
