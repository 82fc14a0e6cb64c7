/* os_linux.c - the only file that makes system calls for memory. */
#include "os.h"

#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Newer than the headers that this must build with. */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif
#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT 1
#endif

#if !defined(__x86_64__)
unsigned ma_page_shift = 12;

void
os_init (void)
{
  ma_page_shift = (unsigned)__builtin_ctzl (getauxval (AT_PAGESZ));
}
#endif

/* The result of a system call as 0 or its errno, with errno as the caller had it. */
static int
outcome (long result, int saved)
{
  int refused = result == -1 ? errno : 0;
  errno = saved;
  return refused;
}

/* A user-mode emulator says yes to advice that it does not know, and does nothing. */
static int
is_advice_ignored (void)
{
  static _Atomic signed char known; /* -1: heeded, 1: ignored */
  if (known == 0)
    known = madvise (NULL, 0, -1) == 0 ? 1 : -1;
  return known > 0;
}

static int
advise (void *p, size_t size, int advice)
{
  int saved = errno;
  if (is_advice_ignored () && advice != MADV_DONTNEED)
    {
      errno = saved;
      return ENOSYS;
    }
  return outcome (madvise (p, size, advice), saved);
}

int
os_reserve (size_t size, size_t align, void **out)
{
  int saved = errno;
  size_t slack = align > MA_PAGE ? align : 0;
  char *p
      = mmap (NULL, size + slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED)
    return outcome (-1, saved);
  if (slack != 0)
    {
      char *aligned = (char *)os_round_up ((uintptr_t)p, align);
      if (aligned != p)
        munmap (p, (size_t)(aligned - p));
      if (aligned + size != p + size + slack)
        munmap (aligned + size, (size_t)(p + slack - aligned));
      p = aligned;
    }
  *out = p;
  /* After mlockall (MCL_FUTURE) it would count as locked, and be made present when it is opened. */
  munlock (p, size);
  /* gcore writes a reservation out as zeros, all 64 GiB of it, unless it is excluded. */
  advise (p, size, MADV_DONTDUMP);
  errno = saved;
  return 0;
}

void
os_unreserve (void *p, size_t size)
{
  int saved = errno;
  munmap (p, size);
  errno = saved;
}

static _Atomic int dump_refused;

int
os_release (void *p, size_t size)
{
  int saved = errno;
  void *got
      = mmap (p, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (got == MAP_FAILED)
    return outcome (-1, saved);
  munlock (p, size);
  int dumped = advise (p, size, MADV_DONTDUMP);
  if (dumped)
    dump_refused = dumped;
  errno = saved;
  return 0;
}

int
os_release_refused (void)
{
  return dump_refused;
}

int
os_fill_hole (void *p, size_t size)
{
  return os_release (p, size);
}

int
os_restore (void *p, size_t size)
{
  int refused = os_unlock (p, size);
  if (refused == 0)
    refused = os_discard (p, size, 0);
  if (refused == 0)
    {
      advise (p, size, MADV_GUARD_REMOVE);
      refused = os_exclude_from_dump (p, size);
    }
  if (refused == 0)
    refused = os_fork_copied (p, size);
  return refused ? refused : os_close (p, size);
}

int
os_map_closed (size_t size, void **out)
{
  void *reserved;
  int refused = os_reserve (size + 2 * MA_PAGE, 0, &reserved);
  if (refused)
    return refused;
  char *p = (char *)reserved + MA_PAGE;
  /* Huge pages would make sparse tables resident by the 2 MiB. */
  advise (p, size, MADV_NOHUGEPAGE);
  *out = p;
  return 0;
}

int
os_map (size_t size, void **out)
{
  void *p;
  int refused = os_map_closed (size, &p);
  if (refused)
    return refused;
  refused = os_open (p, size);
  if (refused)
    os_unreserve ((char *)p - MA_PAGE, size + 2 * MA_PAGE);
  else
    *out = p;
  return refused;
}

int
os_open (void *p, size_t size)
{
  int saved = errno;
  return outcome (mprotect (p, size, PROT_READ | PROT_WRITE), saved);
}

#if defined(__aarch64__)
/* As the kernel's interface has them; older headers do not. */
enum
{
  MTE_OF_CPU = 1 << 18, /* in AT_HWCAP2 */
  MTE_PROTECTION = 0x20,
  SET_CONTROL = 55, /* prctl */
  GET_CONTROL = 56,
  CONTROL_ADDRESSES = 1, /* system calls take tagged pointers */
  CONTROL_PRECISE = 1 << 1,
  CONTROL_LATER = 1 << 2,
  CONTROL_CHECKS = CONTROL_PRECISE | CONTROL_LATER,
  CONTROL_TAGS = 0xfffe << 3 /* that the CPU may choose at random: not 0 */
};

static int
tag_control (void)
{
  if (!(getauxval (AT_HWCAP2) & MTE_OF_CPU))
    return 0;
  int control = prctl (GET_CONTROL, 0, 0, 0, 0);
  return control < 0 ? 0 : control;
}

int
os_tags_checked (void)
{
  int saved = errno;
  int control = tag_control ();
  errno = saved;
  return control & CONTROL_ADDRESSES && control & CONTROL_CHECKS ? 0 : ENOTSUP;
}

int
os_check_tags (int is_precise)
{
  int saved = errno;
  int control = tag_control ();
  int wanted = control | CONTROL_ADDRESSES | CONTROL_TAGS;
  if (is_precise)
    wanted = (wanted & ~CONTROL_LATER) | CONTROL_PRECISE;
  else if (!(wanted & CONTROL_CHECKS))
    wanted |= CONTROL_LATER;
  if (wanted != control && getauxval (AT_HWCAP2) & MTE_OF_CPU)
    prctl (SET_CONTROL, wanted, 0, 0, 0);
  errno = saved;
  return os_tags_checked ();
}

int
os_open_tagged (void *p, size_t size)
{
  int saved = errno;
  return outcome (mprotect (p, size, PROT_READ | PROT_WRITE | MTE_PROTECTION), saved);
}
#else
int
os_tags_checked (void)
{
  return ENOTSUP;
}

int
os_check_tags (int is_precise)
{
  (void)is_precise;
  return ENOTSUP;
}

int
os_open_tagged (void *p, size_t size)
{
  (void)p;
  (void)size;
  return ENOTSUP;
}
#endif

int
os_close (void *p, size_t size)
{
  int saved = errno;
  return outcome (mprotect (p, size, PROT_NONE), saved);
}

int
os_seal (void *p, size_t size, int sealed)
{
  int saved = errno;
  return outcome (mprotect (p, size, sealed ? PROT_READ : PROT_READ | PROT_WRITE), saved);
}

int
os_guard (void *p, size_t size)
{
  int refused = advise (p, size, MADV_GUARD_INSTALL);
  return refused ? os_close (p, size) : 0;
}

int
os_lock (void *p, size_t size)
{
  int saved = errno;
  long result = syscall (SYS_mlock2, p, size, MLOCK_ONFAULT);
  /* Before Linux 4.4, and in emulators: the pages are made present as well. */
  if (result == -1 && errno == ENOSYS)
    result = mlock (p, size);
  return outcome (result, saved);
}

int
os_unlock (void *p, size_t size)
{
  int saved = errno;
  return outcome (munlock (p, size), saved);
}

void
os_populate (void *p, size_t size)
{
  if (advise (p, size, MADV_POPULATE_WRITE) == 0)
    return;
  for (char *page = p; page < (char *)p + size; page += MA_PAGE)
    *(volatile char *)page = 0;
}

int
os_discard (void *p, size_t size, int locked)
{
  if (!locked)
    return advise (p, size, MADV_DONTNEED);
  int refused = advise (p, size, MADV_DONTNEED_LOCKED);
  if (refused != EINVAL && refused != ENOSYS)
    return refused;
  /* Before 5.18 a locked page goes back only when it is unlocked meanwhile. It is empty, so that
   * nothing can be swapped in between. */
  refused = os_unlock (p, size);
  if (refused)
    return refused;
  refused = advise (p, size, MADV_DONTNEED);
  int relock = os_lock (p, size);
  return refused ? refused : relock;
}

int
os_present (void *p, size_t size, unsigned char *present)
{
  int saved = errno;
  if (is_advice_ignored ()) /* an emulator: its pages may be of another size than the kernel's */
    {
      errno = saved;
      return ENOSYS;
    }
  return outcome (mincore (p, size, present), saved);
}

int
os_is_readable (const void *p)
{
  /* The kernel copies the mask before it finds that there is no such operation. */
  enum
  {
    NO_OPERATION = -1,
    MASK_BYTES = 8
  };
  int saved = errno;
  const void *mask = (const void *)((uintptr_t)p & ~(uintptr_t)(MASK_BYTES - 1));
  int is_readable
      = syscall (SYS_rt_sigprocmask, NO_OPERATION, mask, NULL, MASK_BYTES) == 0 || errno != EFAULT;
  errno = saved;
  return is_readable;
}

int
os_exclude_from_dump (void *p, size_t size)
{
  return advise (p, size, MADV_DONTDUMP);
}

int
os_include_in_dump (void *p, size_t size)
{
  return advise (p, size, MADV_DODUMP);
}

int
os_fork_wiped (void *p, size_t size)
{
  return advise (p, size, MADV_WIPEONFORK);
}

int
os_fork_copied (void *p, size_t size)
{
  int refused = advise (p, size, MADV_DOFORK);
  return refused ? refused : advise (p, size, MADV_KEEPONFORK);
}

int
os_fork_absent (void *p, size_t size)
{
  return advise (p, size, MADV_DONTFORK);
}

/* The C library's close is a cancellation point: the thread would end there, with the caller's locks. */
static void
close_file (int file)
{
  syscall (SYS_close, file);
}

/* A descriptor of SIZE bytes, or minus an errno. */
static int
secret_file (size_t size)
{
  int file = (int)syscall (SYS_memfd_secret, O_CLOEXEC);
  if (file == -1)
    return -errno;
  if (ftruncate (file, (off_t)size) == -1)
    {
      int refused = errno;
      close_file (file);
      return -refused;
    }
  return file;
}

int
os_open_secret_copy (void *p, size_t size, int file)
{
  int saved = errno;
  /* Not at P at once: a mapping that is refused, because of the lock limit, has already taken away what
   * lay there, and another thread's mmap comes to lie in the hole. */
  void *aside = mmap (NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (aside == MAP_FAILED)
    return outcome (-1, saved);
  /* Shared memory that two processes write is corruption: children do without. */
  int refused = advise (aside, size, MADV_DONTFORK);
  if (refused == 0 && mremap (aside, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, p) == MAP_FAILED)
    {
      refused = errno;
      os_release (p, size);
    }
  if (refused)
    munmap (aside, size);
  errno = saved;
  return refused;
}

int
os_open_secret (void *p, size_t size)
{
  int saved = errno;
  int file = secret_file (size);
  int refused = file < 0 ? -file : os_open_secret_copy (p, size, file);
  /* The mapping holds the file; an open descriptor would be one more way to it. */
  if (file >= 0)
    close_file (file);
  errno = saved;
  return refused;
}

/* Writes SIZE bytes into the file, STEP at a time: so many are locked twice meanwhile. 0 or an errno. */
static int
fill_secret (int file, const char *p, size_t size, size_t step)
{
  for (size_t at = 0; at < size; at += step)
    {
      size_t n = size - at < step ? size - at : step;
      void *copy = mmap (NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, file, (off_t)at);
      if (copy == MAP_FAILED)
        return errno;
      memcpy (copy, p + at, n);
      munmap (copy, n);
    }
  return 0;
}

int
os_secret_copy (const void *p, size_t size)
{
  int saved = errno;
  int file = secret_file (size);
  if (file >= 0)
    {
      int refused = fill_secret (file, p, size, size);
      if (refused)
        refused = fill_secret (file, p, size, MA_PAGE);
      if (refused)
        {
          close_file (file);
          file = -refused;
        }
    }
  errno = saved;
  return file;
}

void
os_close_copy (int copy)
{
  int saved = errno;
  close_file (copy);
  errno = saved;
}

void
os_random (void *p, size_t n)
{
  int saved = errno;
  /* Not getrandom, which is a cancellation point too. */
  if (syscall (SYS_getrandom, p, n, GRND_NONBLOCK) != (long)n)
    {
      struct timespec now;
      clock_gettime (CLOCK_MONOTONIC, &now);
      uint64_t x = (uint64_t)now.tv_nsec ^ (uint64_t)(uintptr_t)&now ^ ((uint64_t)getpid () << 32);
      for (size_t i = 0; i < n; i++)
        {
          x = x * 6364136223846793005u + 1442695040888963407u;
          ((unsigned char *)p)[i] = (unsigned char)(x >> 56);
        }
    }
  errno = saved;
}

void
os_first_stack (char **low, char **end)
{
  struct rlimit limit;
  int saved = errno;
  size_t most = (size_t)64 << 20;
  /* The kernel counts from the end of the mapping: above the strings of arguments and environment, the last
   * of which is the file's name. */
  const char *name = (const char *)getauxval (AT_EXECFN);
  *end = name != NULL
             ? (char *)os_round_up ((uintptr_t)name + strlen (name) + 1 + sizeof (void *), MA_PAGE)
             : NULL;
  *low = *end;
  if (*end != NULL && getrlimit (RLIMIT_STACK, &limit) == 0)
    *low -= limit.rlim_cur < most ? limit.rlim_cur : most;
  errno = saved;
}

void
os_loader (uintptr_t *base, size_t *size)
{
  uintptr_t loader = _r_debug.r_ldbase;
  const ElfW (Ehdr) *header = (const void *)loader;
  if (header == NULL)
    return;
  const ElfW (Phdr) *segment = (const void *)(loader + header->e_phoff);
  for (unsigned i = 0; i < header->e_phnum; i++)
    if (segment[i].p_type == PT_LOAD && segment[i].p_flags & PF_X)
      {
        *base = loader + segment[i].p_vaddr;
        *size = segment[i].p_memsz;
      }
}

char *
os_signal_stack (void)
{
  stack_t stack;
  int saved = errno;
  int is_known = sigaltstack (NULL, &stack) == 0;
  errno = saved;
  return is_known && stack.ss_flags & SS_ONSTACK ? stack.ss_sp : NULL;
}

int
os_thread (void)
{
  return (int)syscall (SYS_gettid);
}

int
os_is_gone (int thread)
{
  int saved = errno;
  int is_gone = syscall (SYS_tgkill, getpid (), thread, 0) == -1 && errno == ESRCH;
  errno = saved;
  return is_gone;
}

size_t
os_lock_limit (void)
{
  struct rlimit limit;
  int saved = errno;
  size_t bytes = SIZE_MAX;
  if (getrlimit (RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
    bytes = limit.rlim_cur;
  errno = saved;
  return bytes;
}
