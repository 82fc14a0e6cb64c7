#include "faults.h"

static struct faults none;
struct faults *faults = &none;

#define F(name, parameters, arguments, first, second) #name,
const char *const fault_names[FAULT_FUNCTIONS] = { FAULTS (F) };
#undef F

static uint64_t
random_number (void)
{
  uint64_t z = atomic_fetch_add (&faults->state, 0x9e3779b97f4a7c15u);
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

static int
is_due (enum fault_function function)
{
  unsigned long call = atomic_fetch_add (&faults->calls, 1) + 1;
  int only = atomic_load (&faults->only);
  if (only != 0 && only != (int)function + 1)
    return 0;
  unsigned long at = atomic_load (&faults->at);
  if (at != 0)
    return call == at || (call > at && atomic_load (&faults->onward));
  unsigned one_in = atomic_load (&faults->one_in);
  if (one_in == 0)
    return 0;
  unsigned left = atomic_load (&faults->burst_left);
  if (left != 0 && atomic_compare_exchange_strong (&faults->burst_left, &left, left - 1))
    return 1;
  if (random_number () % one_in != 0)
    return 0;
  unsigned burst = atomic_load (&faults->burst);
  atomic_store (&faults->burst_left, burst ? (unsigned)(random_number () % (burst + 1)) : 0);
  return 1;
}

/* The result of the fault, or 0. */
static int
fault (enum fault_function function, int first, int second)
{
  if (!is_due (function))
    return 0;
  unsigned long n = atomic_fetch_add (&faults->failed, 1);
  atomic_fetch_add (&faults->failed_of[function], 1);
  return n & 1 ? second : first;
}

#define F(name, parameters, arguments, first, second)                                              \
  int __real_##name parameters;                                                                    \
  int __wrap_##name parameters;                                                                    \
  int __wrap_##name parameters                                                                     \
  {                                                                                                \
    int failed = fault (FAULT_##name, first, second);                                              \
    return failed ? failed : __real_##name arguments;                                              \
  }
FAULTS (F)
#undef F
