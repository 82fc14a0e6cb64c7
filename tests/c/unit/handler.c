/* A signal's handler that enters an arena and leaves it may come anywhere in an enter or a leave of the thread: at each of
 * their instructions, one after the other. */
#include "check.h"

#if defined(__x86_64__) && !CHECK_SANITIZED
#include <signal.h>

enum
{
  TRAP_FLAG = 0x100
};

static malloc_arena *outer, *inner, *wanted;
static volatile sig_atomic_t steps, wrong;

static void
at_each_step (int number)
{
  (void)number;
  steps++;
  malloc_arena_enter (wanted);
  void *p = malloc (20);
  wrong += malloc_arena_of (p) != wanted;
  free (p);
  malloc_arena_leave (wanted);
}

__attribute__ ((__noinline__)) static void
set_steps (unsigned long flag)
{
  __asm__ volatile ("lea -128(%%rsp), %%rsp\n\t"
                    "pushfq\n\t"
                    "andq %0, (%%rsp)\n\t"
                    "orq %1, (%%rsp)\n\t"
                    "popfq\n\t"
                    "lea 128(%%rsp), %%rsp"
                    :
                    : "r"(~(unsigned long)TRAP_FLAG), "r"(flag)
                    : "memory", "cc");
}

static void
enter_and_leave (void)
{
  malloc_arena_enter (outer);
  malloc_arena_enter (inner);
  malloc_arena_enter (NULL);
  malloc_arena_leave (NULL);
  malloc_arena_leave (inner);
  malloc_arena_enter (outer);
  malloc_arena_leave (outer);
  malloc_arena_leave (outer);
}

int
main (void)
{
  if (check_emulated ())
    check_skip ("an emulator's CPU takes no steps");
  struct malloc_arena_options options = { .size = sizeof options, .kind = HEAP_SECURE };
  outer = malloc_arena_new (&options);
  inner = malloc_arena_new (&options);
  CHECK (outer != NULL && inner != NULL);
  malloc_arena *all[] = { NULL, outer, inner };
  struct sigaction action = { .sa_handler = at_each_step };
  CHECK_EQUAL (sigaction (SIGTRAP, &action, NULL), 0);
  for (unsigned i = 0; i < 3; i++)
    {
      wanted = all[i];
      at_each_step (0); /* what is done once, and not in a handler */
      enter_and_leave ();
      set_steps (TRAP_FLAG);
      enter_and_leave ();
      set_steps (0);
    }
  CHECK (steps > 300);
  CHECK_EQUAL (wrong, 0);
  CHECK_EQUAL (malloc_arena_delete (outer), 0);
  CHECK_EQUAL (malloc_arena_delete (inner), 0);
  return 0;
}
#else
int
main (void)
{
  check_skip ("only an x86-64 takes single steps here");
}
#endif
