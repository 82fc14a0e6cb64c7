#include "wipe.h"

void
ma_wipe (void *p, size_t n)
{
  ma_wipe_inline (p, n);
}

/* One pass for both: what was read is in the first cache still when it is overwritten. */
MA_CLONED void
ma_move (void *to, void *from, size_t n)
{
  typedef long long vector __attribute__ ((vector_size (32), aligned (1), may_alias));
  char *q = to;
  char *p = from;
  for (; n >= 128; n -= 128, p += 128, q += 128)
    {
      vector *source = (vector *)p;
      vector *target = (vector *)q;
      vector first = source[0], second = source[1], third = source[2], fourth = source[3];
      target[0] = first;
      target[1] = second;
      target[2] = third;
      target[3] = fourth;
      source[0] = source[1] = source[2] = source[3] = (vector){ 0, 0, 0, 0 };
      __asm__ volatile ("" : : "r"(p) : "memory"); /* no call of memset, which takes a pass */
    }
  memcpy (q, p, n);
  ma_wipe_inline (p, n);
}

/* A call that handled a secret leaves pieces of it in registers that nothing has used since, and the
 * dynamic linker saves those to the stack at the next first call of a function. */
void ma_clear_registers (void);

__attribute__ ((used, visibility ("hidden"))) void
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
 * moves for the while, so that signals find room and the kernel grows the stack. */
#define MA_SCRUB_GAP "32768"
#if defined(__x86_64__)
__asm__ (".pushsection .text\n\t"
         ".globl ma_scrub_stack\n\t"
         ".hidden ma_scrub_stack\n\t"
         ".type ma_scrub_stack, @function\n"
         "ma_scrub_stack:\n\t"
         ".cfi_startproc\n\t"
         "mov %rsp, %rdx\n\t"
         ".cfi_def_cfa_register rdx\n\t"
         "mov %rdi, %rcx\n\t"
         "shr $3, %rcx\n\t"
         "and $-8, %rdi\n\t"
         "sub %rdi, %rsp\n\t"
         "mov %rsp, %rdi\n\t"
         "xor %eax, %eax\n\t"
         "rep stosq\n\t"
         "mov %rdx, %rsp\n\t"
         ".cfi_def_cfa_register rsp\n\t"
         "jmp ma_clear_registers\n\t"
         ".cfi_endproc\n\t"
         ".size ma_scrub_stack, .-ma_scrub_stack\n\t"
         ".globl ma_scrub_used_stack\n\t"
         ".hidden ma_scrub_used_stack\n\t"
         ".type ma_scrub_used_stack, @function\n"
         "ma_scrub_used_stack:\n\t"
         ".cfi_startproc\n\t"
         "mov %rsp, %rdx\n\t"
         ".cfi_def_cfa_register rdx\n\t"
         "movq $0, -8(%rsp)\n\t" /* the next below are at multiples of 16 */
         "movq $0, -16(%rsp)\n\t"
         "lea -8(%rsp), %rax\n\t"
         "and $-16, %rax\n\t"
         "and $-256, %rdi\n\t"
         "mov %rax, %rsp\n\t"
         "sub %rdi, %rsp\n\t"
         "xor %ecx, %ecx\n\t" /* bytes in a row that are zero */
         "pxor %xmm0, %xmm0\n"
         "1:\n\t"
         "sub $256, %rax\n\t"
         "cmp %rsp, %rax\n\t"
         "jb 3f\n\t"
         "movdqa (%rax), %xmm1\n\t"
         "movdqa 16(%rax), %xmm2\n\t"
         ".irp at, 32, 64, 96, 128, 160, 192, 224\n\t"
         "por \\at(%rax), %xmm1\n\t"
         "por \\at+16(%rax), %xmm2\n\t"
         ".endr\n\t"
         "por %xmm2, %xmm1\n\t"
         "pcmpeqb %xmm0, %xmm1\n\t"
         "pmovmskb %xmm1, %esi\n\t"
         "cmp $0xffff, %esi\n\t"
         "je 2f\n\t"
         ".irp at, 0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240\n\t"
         "movdqa %xmm0, \\at(%rax)\n\t"
         ".endr\n\t"
         "xor %ecx, %ecx\n\t"
         "jmp 1b\n"
         "2:\n\t"
         "add $256, %ecx\n\t"
         "cmp $" MA_SCRUB_GAP ", %ecx\n\t"
         "jb 1b\n"
         "3:\n\t"
         "mov %rdx, %rsp\n\t"
         ".cfi_def_cfa_register rsp\n\t"
         "jmp ma_clear_registers\n\t"
         ".cfi_endproc\n\t"
         ".size ma_scrub_used_stack, .-ma_scrub_used_stack\n\t"
         ".popsection");
#elif defined(__aarch64__)
__asm__ (".pushsection .text\n\t"
         ".globl ma_scrub_stack\n\t"
         ".hidden ma_scrub_stack\n\t"
         ".type ma_scrub_stack, %function\n"
         "ma_scrub_stack:\n\t"
         ".cfi_startproc\n\t"
         "and x0, x0, #-16\n\t"
         "mov x2, sp\n\t"
         ".cfi_def_cfa_register x2\n\t"
         "sub x1, x2, x0\n\t"
         "mov sp, x1\n"
         "1:\n\t"
         "cmp x1, x2\n\t"
         "b.hs 2f\n\t"
         "stp xzr, xzr, [x1], #16\n\t"
         "b 1b\n"
         "2:\n\t"
         "mov sp, x2\n\t"
         ".cfi_def_cfa_register sp\n\t"
         "b ma_clear_registers\n\t"
         ".cfi_endproc\n\t"
         ".size ma_scrub_stack, .-ma_scrub_stack\n\t"
         ".globl ma_scrub_used_stack\n\t"
         ".hidden ma_scrub_used_stack\n\t"
         ".type ma_scrub_used_stack, %function\n"
         "ma_scrub_used_stack:\n\t"
         ".cfi_startproc\n\t"
         "and x0, x0, #-256\n\t"
         "mov x2, sp\n\t"
         ".cfi_def_cfa_register x2\n\t"
         "sub x1, x2, x0\n\t"
         "mov sp, x1\n\t"
         "mov x3, x2\n\t"
         "mov x4, #0\n" /* bytes in a row that are zero */
         "1:\n\t"
         "sub x3, x3, #256\n\t"
         "cmp x3, x1\n\t"
         "b.lo 3f\n\t"
         "ldp q0, q1, [x3]\n\t"
         ".irp at, 32, 64, 96, 128, 160, 192, 224\n\t"
         "ldp q2, q3, [x3, #\\at]\n\t"
         "orr v0.16b, v0.16b, v2.16b\n\t"
         "orr v1.16b, v1.16b, v3.16b\n\t"
         ".endr\n\t"
         "orr v0.16b, v0.16b, v1.16b\n\t"
         "umaxv s0, v0.4s\n\t"
         "fmov w5, s0\n\t"
         "cbz w5, 2f\n\t"
         ".irp at, 0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240\n\t"
         "stp xzr, xzr, [x3, #\\at]\n\t"
         ".endr\n\t"
         "mov x4, #0\n\t"
         "b 1b\n"
         "2:\n\t"
         "add x4, x4, #256\n\t"
         "cmp x4, #" MA_SCRUB_GAP "\n\t"
         "b.lo 1b\n"
         "3:\n\t"
         "mov sp, x2\n\t"
         ".cfi_def_cfa_register sp\n\t"
         "b ma_clear_registers\n\t"
         ".cfi_endproc\n\t"
         ".size ma_scrub_used_stack, .-ma_scrub_used_stack\n\t"
         ".popsection");
#endif
