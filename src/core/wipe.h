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
#define MA_TARGET_32 __attribute__ ((target ("avx2,bmi,bmi2")))
#define MA_TARGET_64 __attribute__ ((target ("avx512f,avx512bw,avx512dq,avx512vl,bmi,bmi2")))

/* Bytes of the vectors to use. For the dynamic linker, which asks when nothing of ours may be called yet. */
static inline int
ma_vector_width (void)
{
  __builtin_cpu_init ();
  if (!__builtin_cpu_supports ("avx2") || !__builtin_cpu_supports ("bmi2"))
    return 16;
  /* vbmi2 is not used: it tells the CPUs that do not lower their clock much for such vectors. */
  return __builtin_cpu_supports ("avx512bw") && __builtin_cpu_supports ("avx512dq")
                 && __builtin_cpu_supports ("avx512vl") && __builtin_cpu_supports ("avx512vbmi2")
             ? 64
             : 32;
}
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

/* The same for what may be much. */
void ma_wipe_back (void *p, size_t n);

/* Copies N bytes to where nothing else of them is, and wipes the place they had. */
void ma_move (void *to, void *from, size_t n);

/* Defines NAME, which is ma_move with vectors of WIDTH bytes.
 *
 * One pass for both: what was read is in the first cache still when it is overwritten. Eight vectors at a
 * time, as the CPU gathers stores to neighbours; in turn between two places it takes half as long
 * again. The fences keep that order, and the compiler from making string instructions of it. */
#define MA_FENCE() __asm__ volatile ("" : : : "memory")
#define MA_MOVE(name, width, target)                                                               \
  target static void name (void *to, void *from, size_t n)                                         \
  {                                                                                                \
    typedef long long vector __attribute__ ((vector_size (width), aligned (1), may_alias));        \
    char *q = to;                                                                                  \
    char *p = from;                                                                                \
    for (; n >= 8 * sizeof (vector); n -= 8 * sizeof (vector))                                     \
      {                                                                                            \
        vector *target_at = (vector *)q, *source_at = (vector *)p;                                 \
        vector kept[8];                                                                            \
        _Pragma ("GCC unroll 8") for (int i = 0; i < 8; i++) kept[i] = source_at[i];               \
        MA_FENCE ();                                                                               \
        _Pragma ("GCC unroll 8") for (int i = 0; i < 8; i++) target_at[i] = kept[i];               \
        MA_FENCE ();                                                                               \
        _Pragma ("GCC unroll 8") for (int i = 0; i < 8; i++) source_at[i] = (vector){ 0 };         \
        MA_FENCE ();                                                                               \
        p += 8 * sizeof (vector);                                                                  \
        q += 8 * sizeof (vector);                                                                  \
      }                                                                                            \
    for (; n >= 16; n -= 16, p += 16, q += 16)                                                     \
      {                                                                                            \
        memcpy (q, p, 16);                                                                         \
        memset (p, 0, 16);                                                                         \
        MA_FENCE ();                                                                               \
      }                                                                                            \
    for (; n > 0; n--, p++, q++)                                                                   \
      {                                                                                            \
        *q = *p;                                                                                   \
        *p = 0;                                                                                    \
        MA_FENCE ();                                                                               \
      }                                                                                            \
  }

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
