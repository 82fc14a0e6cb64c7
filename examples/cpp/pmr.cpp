// A std::pmr::memory_resource over an arena: containers whose every byte is locked and wiped, without
// making the arena active for anything else.
#include <malloc_arena.h>

#include <cstdio>
#include <memory_resource>
#include <new>
#include <string>
#include <unordered_map>
#include <vector>

class arena_resource final : public std::pmr::memory_resource
{
public:
  explicit arena_resource (malloc_arena *arena) : arena_ (arena) {}

private:
  void *
  do_allocate (std::size_t size, std::size_t alignment) override
  {
    void *p = malloc_arena (arena_, aligned_alloc, alignment, size);
    if (p == nullptr)
      throw std::bad_alloc ();
    return p;
  }

  void
  do_deallocate (void *p, std::size_t, std::size_t) override
  {
    std::free (p); // finds the arena by the address
  }

  bool
  do_is_equal (const std::pmr::memory_resource &other) const noexcept override
  {
    auto same = dynamic_cast<const arena_resource *> (&other);
    return same != nullptr && same->arena_ == arena_;
  }

  malloc_arena *arena_;
};

int
main ()
{
  malloc_arena *secure = malloc_arena_get (HEAP_SECURE);
  if (secure == nullptr)
    {
      std::perror ("malloc_arena_get");
      return 1;
    }
  arena_resource resource (secure);
  bool all_inside = true;
  {
    std::pmr::unordered_map<std::pmr::string, std::pmr::string> secrets (&resource);
    secrets.emplace ("database", "a password that is longer than a small string");
    secrets.emplace ("api", "another that is longer than a small string as well");
    std::pmr::vector<std::pmr::string> words (&resource);
    for (int i = 0; i < 1000; i++)
      words.emplace_back ("word number " + std::to_string (i) + " of a long passphrase");

    for (const auto &[name, secret] : secrets)
      {
        all_inside &= malloc_arena_of (secret.data ()) == secure;
        std::printf ("%s: %zu characters\n", name.c_str (), secret.size ());
      }
    for (const auto &word : words)
      all_inside &= malloc_arena_of (word.data ()) == secure;
  }
  struct malloc_arena_stats stats = {};
  stats.size = sizeof stats;
  malloc_arena_stats (secure, &stats);
  std::printf ("%s inside; %zu blocks left, %zu bytes at most\n", all_inside ? "all" : "not all",
               stats.live_blocks, stats.peak_bytes);
  return all_inside && stats.live_blocks == 0 ? 0 : 1;
}
