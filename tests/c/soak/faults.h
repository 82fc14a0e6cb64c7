/* faults.h - calls of os.h that fail, for programs that are linked with the core's objects and
 * -Wl,--wrap=NAME for each NAME of FAULTS. A call that fails does nothing, as os.h promises. */
#ifndef MA_FAULTS_H
#define MA_FAULTS_H

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* What can fail, with the errnos that the kernel gives. What os.h does not let fail is not here. */
#define FAULTS(F)                                                                                  \
  F (os_reserve, (size_t size, size_t align, void **out), (size, align, out), ENOMEM, ENOMEM)      \
  F (os_map, (size_t size, void **out), (size, out), ENOMEM, EAGAIN)                               \
  F (os_map_closed, (size_t size, void **out), (size, out), ENOMEM, EAGAIN)                        \
  F (os_open, (void *p, size_t size), (p, size), ENOMEM, EACCES)                                   \
  F (os_close, (void *p, size_t size), (p, size), ENOMEM, EACCES)                                  \
  F (os_release, (void *p, size_t size), (p, size), ENOMEM, EAGAIN)                                \
  F (os_restore, (void *p, size_t size), (p, size), ENOMEM, EAGAIN)                                \
  F (os_seal, (void *p, size_t size, int sealed), (p, size, sealed), ENOMEM, EACCES)               \
  F (os_guard, (void *p, size_t size), (p, size), ENOMEM, EINVAL)                                  \
  F (os_lock, (void *p, size_t size), (p, size), ENOMEM, EPERM)                                    \
  F (os_unlock, (void *p, size_t size), (p, size), ENOMEM, EAGAIN)                                 \
  F (os_discard, (void *p, size_t size, int locked), (p, size, locked), EINVAL, EAGAIN)            \
  F (os_exclude_from_dump, (void *p, size_t size), (p, size), ENOMEM, EAGAIN)                      \
  F (os_include_in_dump, (void *p, size_t size), (p, size), ENOMEM, EAGAIN)                        \
  F (os_fork_wiped, (void *p, size_t size), (p, size), ENOMEM, EINVAL)                             \
  F (os_fork_copied, (void *p, size_t size), (p, size), ENOMEM, EAGAIN)                            \
  F (os_fork_absent, (void *p, size_t size), (p, size), ENOMEM, EAGAIN)                            \
  F (os_open_secret, (void *p, size_t size), (p, size), ENOSYS, EAGAIN)                            \
  F (os_open_secret_copy, (void *p, size_t size, int copy), (p, size, copy), EAGAIN, ENOMEM)       \
  F (os_secret_copy, (const void *p, size_t size), (p, size), -EMFILE, -EAGAIN)

enum fault_function
{
#define F(name, parameters, arguments, first, second) FAULT_##name,
  FAULTS (F)
#undef F
  FAULT_FUNCTIONS
};
extern const char *const fault_names[FAULT_FUNCTIONS];

/* In shared memory: of all processes together. */
struct faults
{
  _Atomic unsigned one_in;  /* fails at random; 0: none do */
  _Atomic unsigned burst;   /* so many more after one that failed */
  _Atomic unsigned long at; /* the call of that number fails, from 1 */
  _Atomic int onward;       /* and all that follow */
  _Atomic int only;         /* one more than the one function that may fail; 0: all */
  _Atomic unsigned long calls, failed;
  _Atomic unsigned long failed_of[FAULT_FUNCTIONS];
  _Atomic uint64_t state;
  _Atomic unsigned burst_left;
};
extern struct faults *faults;

#endif
