/* refuse.h - a kernel that says no: seccomp filters on single calls and single madvise advices. */
#ifndef MA_REFUSE_H
#define MA_REFUSE_H

#include "check.h"

#include <seccomp.h>
#include <sys/mman.h>

#define ADVICE_DONTNEED_LOCKED 24
#define ADVICE_GUARD_INSTALL 102

/* From here on CALL fails with ERROR, for good; where ADVICE is not -1, when its third argument is
 * that. */
static inline void
refuse (int call, int advice, int error)
{
  scmp_filter_ctx filter = seccomp_init (SCMP_ACT_ALLOW);
  CHECK (filter != NULL);
  struct scmp_arg_cmp third = { .arg = 2, .op = SCMP_CMP_EQ, .datum_a = (scmp_datum_t)advice };
  CHECK_EQUAL (seccomp_rule_add_array (filter, SCMP_ACT_ERRNO ((uint32_t)error), call,
                                       advice >= 0 ? 1 : 0, &third),
               0);
  CHECK_EQUAL (seccomp_load (filter), 0);
  seccomp_release (filter);
}

/* Uses ARENA, the process's only one: blocks of all sizes, their contents, wiping, and a receipt that
 * is the truth. Returns it. */
static inline struct malloc_arena_receipt
use (malloc_arena *arena)
{
  static char *blocks[600];
  for (unsigned i = 0; i < 600; i++)
    {
      size_t size = 1 + i * 17 % 3000 + (i % 50 == 0) * 30000;
      blocks[i] = malloc_arena (arena, malloc, size);
      CHECK (blocks[i] != NULL);
      memset (blocks[i], (int)i | 1, size);
    }
  struct malloc_arena_receipt receipt = check_honest (arena);
  for (unsigned i = 0; i < 600; i++)
    {
      size_t size = 1 + i * 17 % 3000 + (i % 50 == 0) * 30000;
      CHECK (check_all (blocks[i], (int)i | 1, size));
      uintptr_t place = (uintptr_t)blocks[i];
      free (blocks[i]);
      if (check_touch ((void *)place, false) == 0)
        CHECK (check_all ((void *)place, 0, size));
    }
  check_honest (arena);
  CHECK_EQUAL (check_stats (arena).live_blocks, 0);
  return receipt;
}

#endif
