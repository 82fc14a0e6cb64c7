#include "wipe.h"

/* Called from assembly below, which gcc's optimizer of the whole library (-flto) does not read. */
#if defined(__has_attribute) && __has_attribute(externally_visible)
#define MA_FROM_ASSEMBLY __attribute__ ((used, externally_visible))
#else
#define MA_FROM_ASSEMBLY __attribute__ ((used))
#endif

#ifdef MA_WIDE
MA_LONG_WAYS (16, )
MA_LONG_WAYS (32, MA_TARGET_32)
MA_LONG_WAYS (64, MA_TARGET_64)

#define MA_CHOICE(name, result, arguments)                                                         \
  static result (*choose_##name (void)) arguments                                                  \
  {                                                                                                \
    int width = ma_vector_width ();                                                                \
    return width == 64 ? name##_64 : width == 32 ? name##_32 : name##_16;                          \
  }                                                                                                \
  result ma_##name arguments __attribute__ ((ifunc ("choose_" #name)))

extern MA_FROM_ASSEMBLY __typeof__ (ma_wipe_back) ma_wipe_back;
MA_CHOICE (wipe_back, void, (void *, size_t));
MA_CHOICE (move, void, (void *, void *, size_t));
MA_CHOICE (looks_zero, int, (const void *, size_t));
#else
MA_LONG_WAYS (16, )

MA_FROM_ASSEMBLY void
ma_wipe_back (void *p, size_t n)
{
  wipe_back_16 (p, n);
}

void
ma_move (void *to, void *from, size_t n)
{
  move_16 (to, from, n);
}

int
ma_looks_zero (const void *p, size_t n)
{
  return looks_zero_16 (p, n);
}
#endif

void
ma_wipe (void *p, size_t n)
{
  ma_wipe_back (p, n);
}

MA_CLONED int
ma_is_all_zero (const void *p, size_t n)
{
  return ma_is_zero (p, n);
}

/* A call that handled a secret leaves pieces of it in registers that nothing has used since, and the
 * dynamic linker saves those to the stack at the next first call of a function. */
void ma_clear_registers (void);

MA_FROM_ASSEMBLY __attribute__ ((visibility ("hidden"))) void
ma_clear_registers (void)
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
    /* clang-format off */
    __asm__ volatile (MA_ZERO (16) MA_ZERO (17) MA_ZERO (18) MA_ZERO (19)
                      MA_ZERO (20) MA_ZERO (21) MA_ZERO (22) MA_ZERO (23)
                      MA_ZERO (24) MA_ZERO (25) MA_ZERO (26) MA_ZERO (27)
                      MA_ZERO (28) MA_ZERO (29) MA_ZERO (30) MA_ZERO (31)
                      :::"memory");
  /* clang-format on */
#undef MA_ZERO
#elif defined(__aarch64__)
  /* The low halves of v8 to v15 belong to the callers. */
#define MA_ZERO(n) __asm__ volatile ("movi v" #n ".2d, #0" : : : "v" #n);
  /* clang-format off */
  MA_ZERO (0) MA_ZERO (1) MA_ZERO (2) MA_ZERO (3) MA_ZERO (4) MA_ZERO (5) MA_ZERO (6) MA_ZERO (7)
  MA_ZERO (16) MA_ZERO (17) MA_ZERO (18) MA_ZERO (19) MA_ZERO (20) MA_ZERO (21) MA_ZERO (22)
  MA_ZERO (23) MA_ZERO (24) MA_ZERO (25) MA_ZERO (26) MA_ZERO (27) MA_ZERO (28) MA_ZERO (29)
  MA_ZERO (30) MA_ZERO (31)
  /* clang-format on */
#undef MA_ZERO
#endif
}

/* Assembly, as a C function has a frame, with holes in it that it does not write. The stack pointer
 * moves for the while, so that signals find room and the kernel grows the stack; what is called
 * has its frame below it all. The caller's frame is where the word on top of the stack says. */
#if defined(__x86_64__)
__asm__ (".pushsection .text\n\t"
         ".globl ma_scrub_stack\n\t"
         ".hidden ma_scrub_stack\n\t"
         ".type ma_scrub_stack, @function\n"
         "ma_scrub_stack:\n\t"
         ".cfi_startproc\n\t"
         "mov %rsp, %rax\n\t"
         ".cfi_def_cfa_register rax\n\t"
         "mov %rdi, %rsi\n\t"
         "and $-16, %rsi\n\t"
         "mov %rsp, %rdi\n\t"
         "sub %rsi, %rdi\n\t"
         "mov %rdi, %rsp\n\t"
         "and $-16, %rsp\n\t"
         "sub $8, %rsp\n\t"
         "push %rax\n\t"
         ".cfi_escape 0x0f, 5, 0x77, 0, 0x06, 0x23, 8\n\t" /* CFA: 8 + *rsp */
         "call ma_wipe_back\n\t"
         "pop %rsp\n\t"
         ".cfi_def_cfa rsp, 8\n\t"
         "jmp ma_clear_registers\n\t"
         ".cfi_endproc\n\t"
         ".size ma_scrub_stack, .-ma_scrub_stack\n\t"
         ".popsection");
#elif defined(__aarch64__)
__asm__ (".pushsection .text\n\t"
         ".globl ma_scrub_stack\n\t"
         ".hidden ma_scrub_stack\n\t"
         ".type ma_scrub_stack, %function\n"
         "ma_scrub_stack:\n\t"
         ".cfi_startproc\n\t"
         "and x1, x0, #-16\n\t"
         "mov x2, sp\n\t"
         ".cfi_def_cfa_register x2\n\t"
         "sub x0, x2, x1\n\t"
         "sub x3, x0, #16\n\t"
         "mov sp, x3\n\t"
         "stp x2, x30, [sp]\n\t"
         ".cfi_escape 0x0f, 3, 0x8f, 0, 0x06\n\t" /* CFA: *sp */
         ".cfi_escape 0x10, 0x1e, 2, 0x8f, 8\n\t" /* x30: at sp + 8 */
         "bl ma_wipe_back\n\t"
         "ldp x2, x30, [sp]\n\t"
         "mov sp, x2\n\t"
         ".cfi_def_cfa sp, 0\n\t"
         ".cfi_restore x30\n\t"
         "b ma_clear_registers\n\t"
         ".cfi_endproc\n\t"
         ".size ma_scrub_stack, .-ma_scrub_stack\n\t"
         ".popsection");
#endif
