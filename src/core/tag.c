#include "tag.h"

#if MA_HAS_TAGS

#include "os.h"

/* For these instructions alone; what the compiler makes stays within the CPU it was told of. They are
 * not the compiler's intrinsics, of which gcc merges two random tags into one. In each, as link-time optimization
 * parts functions from what stands before them. */
#define WITH_TAGS ".arch armv8.5-a+memtag\n\t"

unsigned
ma_tag_choose (unsigned excluded)
{
  uintptr_t p;
  __asm__ volatile (WITH_TAGS "irg %0, %1, %2"
                    : "=r"(p)
                    : "r"((uintptr_t)0), "r"((uintptr_t)excluded));
  unsigned tag = (unsigned)(p >> 56);
  if (__builtin_expect (!(excluded >> tag & 1), 1))
    return tag;
  /* The instruction gives 0 where this thread was told to exclude all the others. */
  unsigned char random;
  os_random (&random, 1);
  unsigned allowed = ~excluded & 0xffff;
  for (unsigned skip = random % (unsigned)__builtin_popcount (allowed); skip > 0; skip--)
    allowed &= allowed - 1;
  return (unsigned)__builtin_ctz (allowed);
}

void
ma_tag_memory (void *p, size_t size)
{
  char *end = (char *)p + size;
  char *at = p;
  for (; end - at > MA_TAG_GRANULE; at += 2 * MA_TAG_GRANULE)
    __asm__ volatile (WITH_TAGS "st2g %0, [%0]" : : "r"(at) : "memory");
  if (at < end)
    __asm__ volatile (WITH_TAGS "stg %0, [%0]" : : "r"(at) : "memory");
}

void
ma_tag_unchecked (void)
{
  __asm__ volatile (WITH_TAGS "msr tco, #1" : : : "memory");
}

void
ma_tag_checked (void)
{
  __asm__ volatile (WITH_TAGS "msr tco, #0" : : : "memory");
}

#else

/* An empty translation unit is not C. */
typedef int ma_no_tags;

#endif
