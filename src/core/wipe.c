#include "wipe.h"

#include "malloc_arena.h"

void
ma_wipe (void *p, size_t n)
{
  ma_wipe_inline (p, n);
}

/* A call that handled a secret leaves pieces of it in registers that nothing has used since, and the
 * dynamic linker saves those to the stack at the next first call of a function. */
static inline void
clear_registers (void)
{
#if defined(__x86_64__)
#define MA_LOW                                                                                     \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",         \
      "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
  if (__builtin_cpu_supports ("avx"))
    __asm__ volatile ("vzeroall" : : : MA_LOW);
  else
    __asm__ volatile ("pxor %%xmm0, %%xmm0\n\tpxor %%xmm1, %%xmm1\n\t"
                      "pxor %%xmm2, %%xmm2\n\tpxor %%xmm3, %%xmm3\n\t"
                      "pxor %%xmm4, %%xmm4\n\tpxor %%xmm5, %%xmm5\n\t"
                      "pxor %%xmm6, %%xmm6\n\tpxor %%xmm7, %%xmm7\n\t"
                      "pxor %%xmm8, %%xmm8\n\tpxor %%xmm9, %%xmm9\n\t"
                      "pxor %%xmm10, %%xmm10\n\tpxor %%xmm11, %%xmm11\n\t"
                      "pxor %%xmm12, %%xmm12\n\tpxor %%xmm13, %%xmm13\n\t"
                      "pxor %%xmm14, %%xmm14\n\tpxor %%xmm15, %%xmm15"
                      :
                      :
                      : MA_LOW);
#undef MA_LOW
  /* The upper sixteen exist with AVX-512 only, and vzeroall leaves them. */
#define MA_ZERO(n) "vpxord %%zmm" #n ", %%zmm" #n ", %%zmm" #n "\n\t"
  if (__builtin_cpu_supports ("avx512f"))
    __asm__ volatile (MA_ZERO (16) MA_ZERO (17) MA_ZERO (18) MA_ZERO (19) MA_ZERO (20)
                          MA_ZERO (21) MA_ZERO (22) MA_ZERO (23) MA_ZERO (24) MA_ZERO (25)
                              MA_ZERO (26) MA_ZERO (27) MA_ZERO (28) MA_ZERO (29) MA_ZERO (30)
                                  MA_ZERO (31)
                      :
                      :
                      : "memory");
#undef MA_ZERO
#elif defined(__aarch64__)
  /* The low halves of v8 to v15 belong to the callers. */
#define MA_ZERO(n) __asm__ volatile ("movi v" #n ".2d, #0" : : : "v" #n);
  MA_ZERO (0) MA_ZERO (1) MA_ZERO (2) MA_ZERO (3) MA_ZERO (4) MA_ZERO (5) MA_ZERO (6) MA_ZERO (7)
  MA_ZERO (16) MA_ZERO (17) MA_ZERO (18) MA_ZERO (19) MA_ZERO (20) MA_ZERO (21) MA_ZERO (22)
  MA_ZERO (23) MA_ZERO (24) MA_ZERO (25) MA_ZERO (26) MA_ZERO (27) MA_ZERO (28) MA_ZERO (29)
  MA_ZERO (30) MA_ZERO (31)
#undef MA_ZERO
#endif
}

/* A frame of its own, so that the bytes are below every caller. alloca, as the size is an argument;
 * the page-wise touch of a large one is the compiler's (-fstack-clash-protection) and memset's. */
static __attribute__ ((noinline)) void
scrub_stack (size_t bytes)
{
  ma_wipe_inline (__builtin_alloca (bytes), bytes);
}

MA_EXPORT void
malloc_arena_scrub (size_t bytes)
{
  scrub_stack (bytes);
  clear_registers ();
}
