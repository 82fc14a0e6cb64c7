/* 100,000 threads (an emulator makes 5,000 in the time) that live shortly: each takes a part of the arena, some blocks, and ends, leaving some
 * of them to the next. Nothing grows. */
#include "check.h"

enum
{
  AT_ONCE = 20
};

#define THREADS (check_emulated () ? (size_t)5000 : (size_t)100000)

static malloc_arena *secure, *isolated;
static char *_Atomic left[64];

static void *
brief (void *data)
{
  size_t i = (size_t)data;
  char *p = malloc_arena (secure, malloc, 40 + i % 500);
  CHECK (p != NULL);
  memset (p, 5, 40);
  if (i % 64 == 0)
    {
      char *q = malloc_arena (isolated, malloc, 40);
      CHECK (q != NULL);
      *q = 1;
      free (q);
      q = malloc_arena (secure, malloc, 10000);
      CHECK (q != NULL);
      *q = 1;
      free (q);
    }
  /* The block stays until some later thread comes by. */
  free (__atomic_exchange_n ((char **)&left[i % 64], p, __ATOMIC_ACQ_REL));
  return NULL;
}

int
main (void)
{
  secure = malloc_arena_get (HEAP_SECURE);
  isolated = malloc_arena_get (HEAP_SECURE | HEAP_ISOLATED);
  CHECK (secure != NULL && isolated != NULL);
  pthread_attr_t attributes;
  CHECK_EQUAL (pthread_attr_init (&attributes), 0);
  CHECK_EQUAL (
      pthread_attr_setstacksize (&attributes, (size_t)sysconf (_SC_THREAD_STACK_MIN) + (48 << 10)),
      0);
  size_t size = 0, resident = 0, mapped = 0;
  for (size_t i = 0; i < THREADS; i += AT_ONCE)
    {
      pthread_t threads[AT_ONCE];
      for (size_t k = 0; k < AT_ONCE; k++)
        CHECK_EQUAL (pthread_create (&threads[k], &attributes, brief, (void *)(i + k)), 0);
      for (size_t k = 0; k < AT_ONCE; k++)
        pthread_join (threads[k], NULL);
      if (i == THREADS / 10)
        {
          size = check_status ("VmSize");
          resident = check_status ("VmRSS");
          mapped = check_stats (secure).mapped_bytes;
        }
    }
  for (size_t i = 0; i < 64; i++)
    free (left[i]);
  CHECK_EQUAL (check_stats (secure).live_blocks, 0);
  CHECK_EQUAL (check_stats (isolated).live_blocks, 0);
  size_t end_size = check_status ("VmSize"), end_resident = check_status ("VmRSS");
  size_t end_mapped = check_stats (secure).mapped_bytes;
  dprintf (STDOUT_FILENO, "VmSize %zu -> %zu, VmRSS %zu -> %zu, mapped %zu -> %zu\n", size,
           end_size, resident, end_resident, mapped, end_mapped);
  if (!check_emulated () && !CHECK_SANITIZED) /* which have tables of their own for each thread */
    {
      CHECK (end_size <= size + ((size_t)8 << 20));
      CHECK (end_resident <= resident + ((size_t)4 << 20));
    }
  CHECK (end_mapped <= mapped + ((size_t)1 << 20));
  return 0;
}
