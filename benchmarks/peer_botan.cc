// Botan's secure allocator, as secure_vector reaches it: the locked pool for what fits into it,
// calloc without a word for the rest.
#include <botan/mem_ops.h>
#include <botan/version.h>

extern "C" {

void *
botan_alloc (size_t size)
{
  try
    {
      return Botan::allocate_memory (size, 1);
    }
  catch (const std::bad_alloc &)
    {
      return nullptr;
    }
}

void
botan_free (void *p, size_t size)
{
  Botan::deallocate_memory (p, size, 1);
}

const char *
botan_version ()
{
  return Botan::short_version_cstr ();
}
}
