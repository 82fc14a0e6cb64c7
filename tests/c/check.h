/* check.h - what the test programs share: an assertion, a skip, the kernel's view of an address, a
 * touch that may fault, and a run of the program itself under other conditions.
 *
 * Nothing here allocates: a test counts blocks, and runs with an arena active.
 */
#ifndef MA_CHECK_H
#define MA_CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "malloc_arena.h"
#include "runtime.h"

#define CHECK_SKIP_CODE 77 /* Meson's "skipped" */
#define CHECK_CAP_IPC_LOCK 14
#define CHECK_PAGE ((size_t)sysconf (_SC_PAGESIZE))

/* Whether the library was built with the test's sanitizer, which then owns malloc, SIGSEGV and the
 * address space. */
#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#endif
#ifdef __SANITIZE_THREAD__
#define CHECK_THREAD_SANITIZED 1
#else
#define CHECK_THREAD_SANITIZED 0
#endif
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define CHECK_SANITIZED 1
#else
#define CHECK_SANITIZED 0
#endif

/* The next of the numbers that a state leads to: a run can be had again by its seed. */
static inline uint64_t
check_random (uint64_t *state)
{
  *state += 0x9e3779b97f4a7c15u;
  uint64_t z = *state;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

/* Ends the test, in a forked child too, without flushing what the parent had buffered. */
__attribute__ ((__format__ (__printf__, 3, 4), __noreturn__, __unused__)) static void
check_fail (const char *file, int line, const char *format, ...)
{
  char text[512];
  int error = errno;
  int n = snprintf (text, sizeof text, "%s:%d: ", file, line);
  va_list arguments;
  va_start (arguments, format);
  n += vsnprintf (text + n, sizeof text - (size_t)n, format, arguments);
  va_end (arguments);
  if (n > (int)sizeof text - 32)
    n = (int)sizeof text - 32;
  n += snprintf (text + n, sizeof text - (size_t)n, " (errno %d)\n", error);
  if (write (STDERR_FILENO, text, (size_t)n) < 0)
    _exit (2);
  _exit (1);
}

#define CHECK(condition)                                                                           \
  do                                                                                               \
    {                                                                                              \
      if (!(condition))                                                                            \
        check_fail (__FILE__, __LINE__, "not so: %s", #condition);                                 \
    }                                                                                              \
  while (0)

#define CHECK_EQUAL(have, want)                                                                    \
  do                                                                                               \
    {                                                                                              \
      long long check_have = (long long)(have), check_want = (long long)(want);                    \
      if (check_have != check_want)                                                                \
        check_fail (__FILE__, __LINE__, "%s is %lld, not %lld (%s)", #have, check_have,            \
                    check_want, #want);                                                            \
    }                                                                                              \
  while (0)

#define CHECK_FAIL(...) check_fail (__FILE__, __LINE__, __VA_ARGS__)

__attribute__ ((__noreturn__, __unused__)) static void
check_skip (const char *reason)
{
  dprintf (STDOUT_FILENO, "skipped: %s\n", reason);
  _exit (CHECK_SKIP_CODE);
}

/* Whether a user-mode emulator (qemu-user) stands for the kernel: it says yes to any advice, and does
 * nothing. There the library finds properties refused that a kernel gives; a test looks at what is
 * left, and says what it left out. */
static inline bool
check_emulated (void)
{
  int saved = errno;
  bool ignored = madvise (NULL, 0, -1) == 0;
  errno = saved;
  return ignored;
}

/* Whether PROPERTY (MALLOC_ARENA_...) is had by the arena of RECEIPT. A kernel that runs the tests
 * gives it; an emulator that does not is named, once. */
static inline bool
check_had (struct malloc_arena_receipt receipt, unsigned property, const char *name)
{
  static unsigned said;
  if (receipt.obtained & property)
    return true;
  if (!check_emulated () || receipt.reason[__builtin_ctz (property)] != ENOSYS)
    check_fail (__FILE__, __LINE__, "%s is not obtained", name);
  if (!(said & property))
    dprintf (STDOUT_FILENO, "left out: %s, which the emulator of this kernel has not\n", name);
  said |= property;
  return false;
}

/* The same pointer, of which the compiler knows nothing: it would otherwise drop a malloc whose block
 * is not used, or warn of what the test does on purpose. */
static inline void *
check_hide (const void *p)
{
  __asm__ volatile ("" : "+r"(p) : : "memory");
  return (void *)(uintptr_t)p;
}

static inline size_t
check_size (size_t size)
{
  __asm__ volatile ("" : "+r"(size));
  return size;
}

static inline bool
check_all (const void *p, int byte, size_t n)
{
  const volatile unsigned char *bytes = check_hide (p);
  for (size_t i = 0; i < n; i++)
    if (bytes[i] != (unsigned char)byte)
      return false;
  return true;
}

/* One entry of /proc/self/smaps. */
struct check_mapping
{
  uintptr_t start, end;
  char mode[5];
  size_t rss, locked; /* bytes */
  char flags[128];    /* " rd wr mr mw me lo dd " */
};

struct check_lines
{
  int fd;
  size_t at, have;
  char bytes[4096];
};

/* The next line without its newline, in LINE; false at the end. */
static inline bool
check_line (struct check_lines *lines, char *line, size_t size)
{
  size_t n = 0;
  for (;;)
    {
      if (lines->at == lines->have)
        {
          ssize_t got = read (lines->fd, lines->bytes, sizeof lines->bytes);
          if (got <= 0)
            {
              line[n] = 0;
              return n > 0;
            }
          lines->at = 0;
          lines->have = (size_t)got;
        }
      char c = lines->bytes[lines->at++];
      if (c == '\n')
        break;
      if (n + 1 < size)
        line[n++] = c;
    }
  line[n] = 0;
  return true;
}

/* Calls VISIT for each mapping that touches [START, END). */
static inline void
check_mappings (uintptr_t start, uintptr_t end,
                void (*visit) (const struct check_mapping *, void *), void *data)
{
  struct check_lines lines = { .fd = open ("/proc/self/smaps", O_RDONLY | O_CLOEXEC) };
  CHECK (lines.fd >= 0);
  struct check_mapping m = { 0 };
  char line[512];
  while (check_line (&lines, line, sizeof line))
    {
      unsigned long from, to, kilobytes;
      char mode[5];
      if (sscanf (line, "%lx-%lx %4s", &from, &to, mode) == 3)
        {
          m = (struct check_mapping){ .start = from, .end = to };
          memcpy (m.mode, mode, sizeof m.mode);
        }
      else if (sscanf (line, "Rss: %lu kB", &kilobytes) == 1)
        m.rss = kilobytes << 10;
      else if (sscanf (line, "Locked: %lu kB", &kilobytes) == 1)
        m.locked = kilobytes << 10;
      else if (strncmp (line, "VmFlags:", 8) == 0)
        {
          snprintf (m.flags, sizeof m.flags, "%s ", line + 8);
          if (m.start < end && m.end > start)
            visit (&m, data);
        }
    }
  close (lines.fd);
}

static inline void
check_copy_mapping (const struct check_mapping *m, void *data)
{
  *(struct check_mapping *)data = *m;
}

/* The mapping that holds P; its end is 0 when none does. */
static inline struct check_mapping
check_mapping_of (const void *p)
{
  struct check_mapping m = { 0 };
  check_mappings ((uintptr_t)p, (uintptr_t)p + 1, check_copy_mapping, &m);
  return m;
}

/* FLAG as smaps spells it: "lo" locked, "dd" not dumped, "wf" wiped on fork, "dc" not in a child. */
static inline bool
check_flag (const struct check_mapping *m, const char *flag)
{
  char word[8];
  snprintf (word, sizeof word, " %s ", flag);
  return strstr (m->flags, word) != NULL;
}

/* How many mappings the process has. */
static inline size_t
check_count_mappings (void)
{
  struct check_lines lines = { .fd = open ("/proc/self/maps", O_RDONLY | O_CLOEXEC) };
  CHECK (lines.fd >= 0);
  char line[512];
  size_t count = 0;
  while (check_line (&lines, line, sizeof line))
    count++;
  close (lines.fd);
  return count;
}

/* A line of /proc/self/status such as "VmSize", in bytes. */
static inline size_t
check_status (const char *key)
{
  struct check_lines lines = { .fd = open ("/proc/self/status", O_RDONLY | O_CLOEXEC) };
  CHECK (lines.fd >= 0);
  char line[256];
  size_t value = 0;
  while (check_line (&lines, line, sizeof line))
    if (strncmp (line, key, strlen (key)) == 0 && line[strlen (key)] == ':')
      value = strtoul (line + strlen (key) + 1, NULL, 10) << 10;
  close (lines.fd);
  return value;
}

/* What the kernel says of all memory held in the region, for comparison with a receipt. Guard
 * markers do not show in smaps; since Linux 6.15 bit 58 of pagemap tells them. A mapping may
 * reach further than what is in use: what must be protected is the pages that are present. */
struct check_region
{
  size_t held, present, locked;                       /* bytes, guards not counted */
  bool all_locked, all_undumped, all_wiped, all_kept; /* of the pages present */
  bool all_absent;                                    /* in a child */
  bool sees_guards;                                   /* or there are none */
  int pagemap;
};

static inline void
check_add_mapping (const struct check_mapping *m, void *data)
{
  struct check_region *sum = data;
  /* Inaccessible memory that has pages is held as well: freed, and kept for the next. */
  bool is_open = m->mode[0] == 'r';
  if (!is_open && m->rss == 0)
    return;
  size_t page = CHECK_PAGE, held = 0, present = 0;
  for (uintptr_t at = m->start; at < m->end;)
    {
      uint64_t entries[512];
      size_t want = (m->end - at) / page < 512 ? (m->end - at) / page : 512;
      CHECK_EQUAL (pread (sum->pagemap, entries, want * 8, (off_t)(at / page * 8)), want * 8);
      for (size_t i = 0; i < want; i++)
        {
          bool is_guard = entries[i] >> 58 & 1;
          bool is_present = !is_guard && entries[i] >> 62; /* in memory or in swap */
          held += is_present || (is_open && !is_guard) ? page : 0;
          present += is_present ? page : 0;
        }
      at += want * page;
    }
  sum->held += held;
  sum->present += present;
  if (check_flag (m, "lo"))
    sum->locked += held;
  if (present == 0)
    return;
  if (!check_flag (m, "lo"))
    sum->all_locked = false;
  if (!check_flag (m, "dd"))
    sum->all_undumped = false;
  if (!check_flag (m, "dc"))
    sum->all_absent = false;
  if (check_flag (m, "wf") || check_flag (m, "dc"))
    sum->all_kept = false;
  else
    sum->all_wiped = false;
}

/* The reserved range. By dlsym, as a reference from a program would be a copy relocation: the library
 * would then look at the program's copy. */
static inline struct ma_region
check_bounds (void)
{
  const struct ma_region *region = dlsym (RTLD_DEFAULT, "ma_region");
  CHECK (region != NULL);
  return *region;
}

static inline bool
check_sees_guards (int pagemap)
{
  size_t page = CHECK_PAGE;
  uint64_t entry = 0;
  char *p = mmap (NULL, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED)
    return true;
  if (madvise (p, page, 102) == 0)
    CHECK_EQUAL (pread (pagemap, &entry, 8, (off_t)((uintptr_t)p / page * 8)), 8);
  else
    entry = (uint64_t)1 << 58; /* a kernel without markers: guards are mappings */
  munmap (p, page);
  return entry >> 58 & 1;
}

static inline struct check_region
check_region (void)
{
  struct ma_region region = check_bounds ();
  struct check_region sum = { .all_locked = true,
                              .all_undumped = true,
                              .all_wiped = true,
                              .all_kept = true,
                              .all_absent = true,
                              .pagemap = open ("/proc/self/pagemap", O_RDONLY | O_CLOEXEC) };
  CHECK (sum.pagemap >= 0);
  sum.sees_guards = check_sees_guards (sum.pagemap);
  check_mappings (region.base, region.base + region.size, check_add_mapping, &sum);
  close (sum.pagemap);
  return sum;
}

/* Pages that the kernel had to find; valgrind's own, and a sanitizer's, are no matter of ours. */
__attribute__ ((__unused__)) static long
check_faults (void)
{
  const char *preloaded = getenv ("LD_PRELOAD");
  if (CHECK_THREAD_SANITIZED || (preloaded != NULL && strstr (preloaded, "vgpreload") != NULL))
    return 0;
  struct rusage usage;
  CHECK_EQUAL (getrusage (RUSAGE_SELF, &usage), 0);
  return usage.ru_minflt;
}

/* Where a block goes that no arena was entered for: none, but under the option active=... */
static inline malloc_arena *
check_outside (void)
{
  return ma_default_arena ();
}

/* The receipt and the statistics of ARENA. */
static inline struct malloc_arena_receipt
check_receipt (malloc_arena *arena)
{
  struct malloc_arena_receipt receipt = { .size = sizeof receipt };
  CHECK_EQUAL (malloc_arena_receipt (arena, &receipt), 0);
  return receipt;
}

static inline struct malloc_arena_stats
check_stats (malloc_arena *arena)
{
  struct malloc_arena_stats stats = { .size = sizeof stats };
  CHECK_EQUAL (malloc_arena_stats (arena, &stats), 0);
  return stats;
}

/* Fails unless the receipt of ARENA, the only arena of the process, is what the kernel says of the
 * region, and returns it. */
static inline struct malloc_arena_receipt
check_honest (malloc_arena *arena)
{
  struct malloc_arena_receipt receipt = check_receipt (arena);
  if (check_emulated () && CHECK_PAGE != 4096) /* the kernel below has other pages */
    return receipt;
  struct check_region truth = check_region ();
  CHECK (receipt.mapped_bytes >= truth.present);
  CHECK (receipt.mapped_bytes <= truth.held);
  CHECK (receipt.locked_bytes <= truth.locked);
  if (truth.sees_guards)
    CHECK_EQUAL (receipt.locked_bytes, truth.locked);
  if (receipt.obtained & MALLOC_ARENA_LOCKED)
    CHECK (truth.all_locked);
  if (receipt.obtained & MALLOC_ARENA_UNDUMPED)
    CHECK (truth.all_undumped);
  if (receipt.obtained & MALLOC_ARENA_FORK_WIPED)
    CHECK (truth.all_wiped);
  if (receipt.obtained & MALLOC_ARENA_FORK_KEPT)
    CHECK (truth.all_kept);
  if (receipt.obtained & MALLOC_ARENA_FORK_REFUSED)
    CHECK (truth.all_absent);
  CHECK_EQUAL (receipt.obtained & ~receipt.requested, 0);
  for (unsigned bit = 0; bit < MALLOC_ARENA_PROPERTIES; bit++)
    if (receipt.requested & ~receipt.obtained & 1u << bit)
      CHECK (receipt.reason[bit] != 0);
    else
      CHECK_EQUAL (receipt.reason[bit], 0);
  return receipt;
}

static sigjmp_buf check_fault_return __attribute__ ((__unused__));

__attribute__ ((__unused__)) static void
check_on_fault (int signal_number)
{
  siglongjmp (check_fault_return, signal_number);
}

/* The signal that reading (or writing) the byte at P raises; 0: none. */
__attribute__ ((__unused__)) static int
check_touch (const void *p, bool to_write)
{
  struct sigaction act = { .sa_handler = check_on_fault }, segv, bus;
  CHECK_EQUAL (sigaction (SIGSEGV, &act, &segv), 0);
  CHECK_EQUAL (sigaction (SIGBUS, &act, &bus), 0);
  volatile char *byte = check_hide (p);
  int caught = sigsetjmp (check_fault_return, 1);
  if (caught == 0)
    {
      char value = *byte;
      if (to_write)
        *byte = value;
    }
  sigaction (SIGSEGV, &segv, NULL);
  sigaction (SIGBUS, &bus, NULL);
  return caught;
}

#define CHECK_FAULTS(p) CHECK_EQUAL (check_touch ((p), false), SIGSEGV)
#define CHECK_READABLE(p) CHECK_EQUAL (check_touch ((p), false), 0)

/* execv of this program, through the wrapper that Meson runs the tests with. */
static inline void
check_execute (char **arguments)
{
  char path[4096], words[512];
  char *list[32] = { NULL };
  unsigned n = 0;
  const char *wrapper = getenv ("MESON_EXE_WRAPPER");
  if (wrapper == NULL || *wrapper == '\0')
    {
      execv ("/proc/self/exe", arguments);
      return;
    }
  ssize_t length = readlink ("/proc/self/exe", path, sizeof path - 1);
  if (length <= 0)
    return;
  path[length] = '\0';
  snprintf (words, sizeof words, "%s", wrapper);
  for (char *word = strtok (words, " "); word != NULL && n < 16; word = strtok (NULL, " "))
    list[n++] = word;
  list[n++] = path;
  for (arguments++; *arguments != NULL && n < 31; arguments++)
    list[n++] = *arguments;
  execvp (list[0], list);
}

/* What an emulator adds of its own when a signal ends the program. */
static inline void
check_drop_emulator (char *text)
{
  char *line = strstr (text, "qemu: uncaught target signal");
  if (line != NULL)
    {
      char *end = strchr (line, '\n');
      memmove (line, end != NULL ? end + 1 : "", end != NULL ? strlen (end + 1) + 1 : 1);
    }
}

/* How a program ended, and what it said on standard error. */
struct check_outcome
{
  int exit_code, signal; /* -1, 0 where it did not end so */
  char text[4096];
};

static inline struct check_outcome
check_wait (pid_t pid, int stderr_fd)
{
  struct check_outcome outcome = { .exit_code = -1 };
  size_t n = 0;
  if (stderr_fd >= 0)
    {
      for (ssize_t got;
           n + 1 < sizeof outcome.text
           && ((got = read (stderr_fd, outcome.text + n, sizeof outcome.text - 1 - n)) > 0
               || (got == -1 && errno == EINTR));)
        n += got > 0 ? (size_t)got : 0;
      close (stderr_fd);
      check_drop_emulator (outcome.text);
    }
  int status;
  pid_t ended;
  do /* a fuzzer's timer interrupts */
    ended = waitpid (pid, &status, 0);
  while (ended == -1 && errno == EINTR);
  CHECK_EQUAL (ended, pid);
  if (WIFEXITED (status))
    outcome.exit_code = WEXITSTATUS (status);
  else
    outcome.signal = WTERMSIG (status);
  return outcome;
}

/* Forks; in the child runs BODY (DATA) and exits 0. The child's outcome. */
static inline struct check_outcome
check_child (void (*body) (void *), void *data)
{
  pid_t pid = fork ();
  CHECK (pid >= 0);
  if (pid == 0)
    {
      body (data);
      _exit (0);
    }
  return check_wait (pid, -1);
}

/* The same, with what it wrote to standard error. */
static inline struct check_outcome
check_child_text (void (*body) (void *), void *data)
{
  int ends[2];
  CHECK_EQUAL (pipe2 (ends, O_CLOEXEC), 0);
  pid_t pid = fork ();
  CHECK (pid >= 0);
  if (pid == 0)
    {
      dup2 (ends[1], STDERR_FILENO);
      body (data);
      _exit (0);
    }
  close (ends[1]);
  return check_wait (pid, ends[0]);
}

struct check_anew
{
  const char *argument;
  const char *const *environment;
};

static inline void
check_execute_anew (void *data)
{
  const struct check_anew *anew = data;
  for (const char *const *set = anew->environment; set != NULL && *set != NULL; set++)
    putenv (check_hide (*set));
  char *arguments[] = { (char *)"again", check_hide (anew->argument), NULL };
  check_execute (arguments);
  _exit (127);
}

/* Runs this program again with ARGUMENT, and with the "KEY=VALUE" strings of ENVIRONMENT, up to a
 * NULL, added. */
static inline struct check_outcome
check_again (const char *argument, const char *const *environment)
{
  return check_child_text (check_execute_anew, &(struct check_anew){ argument, environment });
}

/* Starts the program anew with MALLOC_ARENA_OPTIONS=OPTIONS, unless it was. */
static inline void
check_options (char **arguments, const char *options)
{
  const char *have = getenv ("MALLOC_ARENA_OPTIONS");
  if (have != NULL && strcmp (have, options) == 0)
    return;
  CHECK_EQUAL (setenv ("MALLOC_ARENA_OPTIONS", options, 1), 0);
  check_execute (arguments);
  CHECK_FAIL ("execv");
}

/* Takes away what lets root lock without limit, and sets the limit. */
static inline void
check_memlock (size_t limit)
{
  struct
  {
    uint32_t version;
    int pid;
  } header = { 0x20080522, 0 };
  struct
  {
    uint32_t effective, permitted, inheritable;
  } sets[2];
  prctl (PR_CAPBSET_DROP, CHECK_CAP_IPC_LOCK);
  CHECK_EQUAL (syscall (SYS_capget, &header, sets), 0);
  sets[0].effective &= ~(1u << CHECK_CAP_IPC_LOCK);
  sets[0].permitted &= ~(1u << CHECK_CAP_IPC_LOCK);
  sets[0].inheritable &= ~(1u << CHECK_CAP_IPC_LOCK);
  CHECK_EQUAL (syscall (SYS_capset, &header, sets), 0);
  struct rlimit lower = { limit, limit };
  CHECK_EQUAL (setrlimit (RLIMIT_MEMLOCK, &lower), 0);
}

/* How often WORD is in TEXT. */
static inline size_t
check_count (const char *text, const char *word)
{
  size_t count = 0;
  for (; (text = strstr (text, word)) != NULL; text += strlen (word))
    count++;
  return count;
}

#endif
