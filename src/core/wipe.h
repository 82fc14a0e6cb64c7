/* wipe.h - making bytes zero so that they are zero, and seeing that they still are.
 */
#ifndef MA_WIPE_H
#define MA_WIPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "runtime.h"

/* The fast paths are compiled twice where that pays; which one is used is settled when the library is
 * loaded. */
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)         \
    && defined(__GNUC__) && !defined(__clang__)
#define MA_WIDE 1
#define MA_CLONED __attribute__ ((target_clones ("avx2", "default")))
#else
#define MA_CLONED
#endif

typedef long long ma_v16 __attribute__ ((vector_size (16), may_alias));

/* memset, which nobody can tell from a dead store, and a fence that the compiler has to respect. Not for a
 * few bytes, of which glibc's makes one masked store of 64: where that reaches into a guard page, or is of
 * no byte at all before one, the CPU takes a quarter of a microsecond to see that it may. */
static inline void
ma_wipe_inline (void *p, size_t n)
{
  typedef volatile uint64_t word __attribute__ ((aligned (1), may_alias));
  if (n >= 64)
    memset (p, 0, n);
  else
    {
      char *at = p;
      for (; n >= 8; n -= 8, at += 8)
        *(word *)at = 0;
      for (; n > 0; n--, at++)
        *(volatile char *)at = 0;
    }
  __asm__ volatile ("" : : "r"(p) : "memory");
}

/* Copies N bytes to where nothing else of them is, and wipes the place they had. */
void ma_move (void *to, void *from, size_t n);

/* Whether all N bytes at P are zero; both multiples of 16. Inline in each caller, so that one that is
 * cloned has it in the CPU's widest vectors. */
static inline __attribute__ ((always_inline)) int
ma_is_zero (const void *p, size_t n)
{
  typedef long long vector __attribute__ ((vector_size (32), aligned (16), may_alias));
  const char *at = p;
  const char *end = at + n;
  vector wide = { 0, 0, 0, 0 };
  for (; end - at >= 128; at += 128)
    {
      const vector *q = (const vector *)at;
      wide |= (q[0] | q[1]) | (q[2] | q[3]);
    }
  ma_v16 seen = { wide[0] | wide[2], wide[1] | wide[3] };
  for (; at != end; at += 16)
    seen |= *(const ma_v16 *)at;
  return (seen[0] | seen[1]) == 0;
}

/* Zeroes BYTES of stack right below the caller's frame, which must be there, and the vector
 * registers. */
void ma_scrub_stack (size_t bytes);

#endif
