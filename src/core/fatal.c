#include "fatal.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum
{
  LINE_MAX_BYTES = 1024
};

/* Nobody may read standard error any more: no reason for the program to end (SIGPIPE). */
static void
write_quietly (const char *text, size_t n)
{
  sigset_t pipe, before, pending;
  sigemptyset (&pipe);
  sigaddset (&pipe, SIGPIPE);
  sigpending (&pending);
  pthread_sigmask (SIG_BLOCK, &pipe, &before);
  for (size_t done = 0; done < n;)
    {
      /* Not write, which is a cancellation point: a thread that is to end would do so here, with the
       * caller's locks, or instead of the abort. */
      long wrote = syscall (SYS_write, STDERR_FILENO, text + done, n - done);
      if (wrote == -1 && errno == EPIPE && !sigismember (&pending, SIGPIPE))
        syscall (SYS_rt_sigtimedwait, &pipe, NULL, &(struct timespec){ 0 }, _NSIG / 8);
      if (wrote == -1 && errno != EINTR)
        break;
      done += wrote > 0 ? (size_t)wrote : 0;
    }
  pthread_sigmask (SIG_SETMASK, &before, NULL);
}

static void
line (const char *first, va_list parts)
{
  char text[LINE_MAX_BYTES] = "malloc_arena: ";
  size_t n = strlen (text);
  for (const char *part = first; part != NULL; part = va_arg (parts, const char *))
    {
      size_t length = strlen (part);
      if (length > sizeof text - 1 - n)
        length = sizeof text - 1 - n;
      memcpy (text + n, part, length);
      n += length;
    }
  text[n++] = '\n';
  int saved = errno;
  write_quietly (text, n);
  errno = saved;
}

void
ma_warn (const char *part, ...)
{
  va_list parts;
  va_start (parts, part);
  line (part, parts);
  va_end (parts);
}

_Noreturn void
ma_fatal (const char *part, ...)
{
  va_list parts;
  va_start (parts, part);
  line (part, parts);
  va_end (parts);
  abort ();
}

_Noreturn void
ma_fatal_block (const char *crime, const void *p, const char *name)
{
  char address[2 + 2 * sizeof p + 1];
  char *digit = address + sizeof address - 1;
  *digit = '\0';
  uintptr_t rest = (uintptr_t)p;
  do
    *--digit = "0123456789abcdef"[rest & 15];
  while ((rest >>= 4) != 0);
  *--digit = 'x';
  *--digit = '0';
  if (name != NULL)
    ma_fatal (crime, ": ", digit, " (arena \"", name, "\")", NULL);
  ma_fatal (crime, ": ", digit, " (no arena)", NULL);
}

char *
ma_decimal (char *text, size_t n)
{
  char digits[24];
  size_t i = sizeof digits;
  digits[--i] = '\0';
  do
    digits[--i] = (char)('0' + n % 10);
  while ((n /= 10) != 0);
  memcpy (text, digits + i, sizeof digits - i);
  return text;
}
