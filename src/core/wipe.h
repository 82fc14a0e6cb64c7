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
#define MA_IS_WIDE 1 /* for an if */
#if __GNUC__ >= 12   /* older ones do not know the name; the bit instructions are missing there */
#define MA_CLONED __attribute__ ((target_clones ("arch=x86-64-v3", "default")))
#else
#define MA_CLONED __attribute__ ((target_clones ("avx2", "default")))
#endif
/* Of what runs on any x86-64 up to its first vector: without the bit instructions, which the compiler may use
 * anywhere. What such a function calls must not be inlined into it, unless it is made for that. The tests on an old
 * CPU see whether that holds. */
#define MA_VECTORS __attribute__ ((target ("avx2")))
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
/* Of a function that is chosen so: its callers jump to it, not to a jump to it. */
#define MA_DIRECT __attribute__ ((noplt))
#else
#define MA_IS_WIDE 0
#define MA_CLONED
#define MA_VECTORS
#define MA_DIRECT
#endif

typedef long long ma_v16 __attribute__ ((vector_size (16), may_alias));

/* memset, which nobody can tell from a dead store, and a fence that the compiler has to respect. Not for a
 * few bytes, of which glibc's makes one masked store of 64: where that reaches into a guard page, or is of
 * no byte at all before one, the CPU takes a quarter of a microsecond to see that it may. */
static inline void
ma_wipe_inline (void *p, size_t n)
{
  typedef volatile uint64_t word __attribute__ ((aligned (1), may_alias));
  typedef long long vector __attribute__ ((vector_size (16), aligned (1), may_alias));
  volatile char *at = p;
  if (n >= 64)
    memset (p, 0, n);
  else if (n >= 16)
    {
      *(vector *)at = *(vector *)(at + n - 16) = (vector){ 0, 0 };
      if (n > 32)
        *(vector *)(at + 16) = *(vector *)(at + n - 32) = (vector){ 0, 0 };
    }
  else if (n >= 8)
    *(word *)at = *(word *)(at + n - 8) = 0;
  else
    for (; n > 0; n--, at++)
      *at = 0;
  __asm__ volatile ("" : : "r"(p) : "memory");
}

/* The same for what may be much: from the end, as most blocks are written from their start, so that the end
 * is what the first cache still has. What is zero is not written again: a buffer of which the half was
 * used, and to read memory takes half as long. */
void ma_wipe_back (void *p, size_t n);

/* Copies N bytes to where nothing else of them is, and wipes the place they had. One pass for both: what
 * was read is in the first cache still when it is overwritten. */
void ma_move (void *to, void *from, size_t n);

/* Whether N bytes at P, whole cache lines, are zero, as far as is looked: at MA_LOOK_ALL bytes, at a line in every
 * MA_LOOK_STEP of the rest, and at the last one. */
int ma_looks_zero (const void *p, size_t n);

enum
{
  MA_WIPE_CHUNK = 8192, /* much beside the look at its end, little for the first cache */
  MA_LINE = 64,
  MA_LOOK_ALL = 512,
  MA_LOOK_STEP = 512 /* a third pass over it all would cost too much */
};

#define MA_FENCE() __asm__ volatile ("" : : : "memory")

/* valgrind takes memory that was never written, and what has just become stack, for undefined, and would report
 * the look at it. These instructions, which do nothing, are how a program tells it otherwise: its request
 * MAKE_MEM_DEFINED. */
static inline void
ma_say_defined (void *p, size_t n)
{
  const volatile uintptr_t request[6] = { 0x4d430002, (uintptr_t)p, n, 0, 0, 0 };
#if defined(__x86_64__)
  uintptr_t result = 0;
  __asm__ volatile ("rolq $3, %%rdi\n\trolq $13, %%rdi\n\t"
                    "rolq $61, %%rdi\n\trolq $51, %%rdi\n\t"
                    "xchgq %%rbx, %%rbx"
                    : "+d"(result)
                    : "a"(request)
                    : "cc", "memory");
#elif defined(__aarch64__)
  register uintptr_t result __asm__ ("x3") = 0;
  register const volatile uintptr_t *place __asm__ ("x4") = request;
  __asm__ volatile ("ror x12, x12, #3\n\tror x12, x12, #13\n\t"
                    "ror x12, x12, #51\n\tror x12, x12, #61\n\t"
                    "orr x10, x10, x10"
                    : "+r"(result)
                    : "r"(place)
                    : "cc", "memory");
#endif
}

/* Defines all three, as wipe_back_WIDTH, move_WIDTH and looks_zero_WIDTH, with vectors of so many bytes, eight at a time.
 * A CPU gathers stores to neighbours: in turn between two places they take half as long again. The fences keep that
 * order, and the compiler from making string instructions of what is left. */
#define MA_LONG_WAYS(width, target)                                                                \
  typedef long long ma_v##width##_any                                                              \
      __attribute__ ((vector_size (width), aligned (1), may_alias));                               \
                                                                                                   \
  target static __attribute__ ((always_inline)) inline int is_zero_##width (const char *p,         \
                                                                            size_t n)              \
  {                                                                                                \
    ma_v##width##_any low = { 0 }, high = { 0 };                                                   \
    while (n > 0)                                                                                  \
      {                                                                                            \
        n -= 8 * width;                                                                            \
        const ma_v##width##_any *q = (const ma_v##width##_any *)(p + n);                           \
        high |= (q[7] | q[6]) | (q[5] | q[4]);                                                     \
        low |= (q[3] | q[2]) | (q[1] | q[0]);                                                      \
      }                                                                                            \
    low |= high;                                                                                   \
    int64_t any = 0;                                                                               \
    _Pragma ("GCC unroll 8") for (unsigned i = 0; i < width / 8; i++) any |= low[i];               \
    return any == 0;                                                                               \
  }                                                                                                \
                                                                                                   \
  target static __attribute__ ((always_inline)) inline void wipe_##width (char *p, size_t n)       \
  {                                                                                                \
    if (n >= 8 * width)                                                                            \
      {                                                                                            \
        /* Up to a cache line: a store to two of them takes twice as long. */                      \
        size_t head = width - (uintptr_t)p % width;                                                \
        *(ma_v##width##_any *)p = (ma_v##width##_any){ 0 };                                        \
        n -= head;                                                                                 \
        p += head;                                                                                 \
      }                                                                                            \
    for (; n >= 8 * width; n -= 8 * width, p += 8 * width)                                         \
      {                                                                                            \
        _Pragma ("GCC unroll 8") for (int i = 0; i < 8; i++) ((ma_v##width##_any *)p)[i]           \
            = (ma_v##width##_any){ 0 };                                                            \
        MA_FENCE ();                                                                               \
      }                                                                                            \
    for (; n >= width; n -= width, p += width)                                                     \
      {                                                                                            \
        *(ma_v##width##_any *)p = (ma_v##width##_any){ 0 };                                        \
        MA_FENCE ();                                                                               \
      }                                                                                            \
    ma_wipe_inline (p, n);                                                                         \
  }                                                                                                \
                                                                                                   \
  target static void wipe_back_##width (void *p, size_t n)                                         \
  {                                                                                                \
    if (n >= MA_WIPE_CHUNK + 64)                                                                   \
      {                                                                                            \
        ma_say_defined (p, n);                                                                     \
        size_t odd = ((uintptr_t)p + n) % 64; /* chunks are whole cache lines */                   \
        n -= odd;                                                                                  \
        ma_wipe_inline ((char *)p + n, odd);                                                       \
        /* Of a stack often no more was written since the last time. */                            \
        for (size_t part = MA_WIPE_CHUNK / 8, done = 0; done < MA_WIPE_CHUNK; part = done)         \
          {                                                                                        \
            n -= part;                                                                             \
            done += part;                                                                          \
            const char *end = (char *)p + n + part;                                                \
            if (!is_zero_##width (end - 8 * width, 8 * width)                                      \
                || !is_zero_##width ((char *)p + n, part - 8 * width))                             \
              wipe_##width ((char *)p + n, part);                                                  \
          }                                                                                        \
      }                                                                                            \
    while (n >= MA_WIPE_CHUNK)                                                                     \
      {                                                                                            \
        const char *end = (char *)p + n;                                                           \
        n -= MA_WIPE_CHUNK;                                                                        \
        if (!is_zero_##width (end - 8 * width, 8 * width)                                          \
            || !is_zero_##width ((char *)p + n, MA_WIPE_CHUNK - 8 * width))                        \
          wipe_##width ((char *)p + n, MA_WIPE_CHUNK);                                             \
      }                                                                                            \
    wipe_##width (p, n);                                                                           \
  }                                                                                                \
                                                                                                   \
  target static __attribute__ ((always_inline)) inline ma_v##width##_any line_##width (            \
      const char *p)                                                                               \
  {                                                                                                \
    ma_v##width##_any seen = { 0 };                                                                \
    _Pragma ("GCC unroll 4") for (int i = 0; i < MA_LINE / width; i++) seen                        \
        |= ((const ma_v##width##_any *)p)[i];                                                      \
    return seen;                                                                                   \
  }                                                                                                \
                                                                                                   \
  /* One test for all: one for each took a twentieth of a large block's time. */                   \
  target static int looks_zero_##width (const void *p, size_t n)                                   \
  {                                                                                                \
    const char *from = p;                                                                          \
    ma_v##width##_any seen = line_##width (from + n - MA_LINE), other = { 0 };                     \
    if (n > MA_LOOK_ALL)                                                                           \
      {                                                                                            \
        _Pragma ("GCC unroll 8") for (size_t at = 0; at < MA_LOOK_ALL; at += MA_LINE) seen         \
            |= line_##width (from + at);                                                           \
        size_t at = MA_LOOK_ALL;                                                                   \
        /* Four at a time: one by one they took a tenth of the time of 32 KiB. */                  \
        for (; at + 3 * MA_LOOK_STEP < n - MA_LINE; at += 4 * MA_LOOK_STEP)                        \
          {                                                                                        \
            other |= line_##width (from + at) | line_##width (from + at + MA_LOOK_STEP);           \
            seen |= line_##width (from + at + 2 * MA_LOOK_STEP)                                    \
                    | line_##width (from + at + 3 * MA_LOOK_STEP);                                 \
          }                                                                                        \
        for (; at < n - MA_LINE; at += MA_LOOK_STEP)                                               \
          other |= line_##width (from + at);                                                       \
      }                                                                                            \
    else                                                                                           \
      for (size_t at = 0; at < n; at += MA_LINE)                                                   \
        other |= line_##width (from + at);                                                         \
    seen |= other;                                                                                 \
    int64_t any = 0;                                                                               \
    _Pragma ("GCC unroll 8") for (unsigned i = 0; i < width / 8; i++) any |= seen[i];              \
    return any == 0;                                                                               \
  }                                                                                                \
                                                                                                   \
  target static void move_##width (void *to, void *from, size_t n)                                 \
  {                                                                                                \
    char *q = to;                                                                                  \
    char *p = from;                                                                                \
    for (; n >= 8 * width; n -= 8 * width, p += 8 * width, q += 8 * width)                         \
      {                                                                                            \
        ma_v##width##_any *there = (ma_v##width##_any *)q, *here = (ma_v##width##_any *)p;         \
        ma_v##width##_any kept[8];                                                                 \
        _Pragma ("GCC unroll 8") for (int i = 0; i < 8; i++) kept[i] = here[i];                    \
        MA_FENCE ();                                                                               \
        _Pragma ("GCC unroll 8") for (int i = 0; i < 8; i++) there[i] = kept[i];                   \
        MA_FENCE ();                                                                               \
        _Pragma ("GCC unroll 8") for (int i = 0; i < 8; i++) here[i] = (ma_v##width##_any){ 0 };   \
        MA_FENCE ();                                                                               \
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

/* The same as a function, chosen once. */
int ma_is_all_zero (const void *p, size_t n);

/* Zeroes BYTES of stack right below the caller's frame, which must be there, and the vector
 * registers. */
void ma_scrub_stack (size_t bytes);

#endif
