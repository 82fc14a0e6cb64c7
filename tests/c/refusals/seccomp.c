/* Each call the arenas make, denied by seccomp with each errno a filter or an old kernel gives, from the
 * beginning and after a time of use, as a program does that shuts itself in: the arena works on, the receipt
 * says what is missing and why, and `require` fails. */
#include "refuse.h"

static struct malloc_arena_options options = { .size = sizeof options };

static struct refusal
{
  const char *name;
  int call, advice;
  unsigned lost; /* what cannot be had then, the property with the reason lowest */
  unsigned fork; /* policy */
} refusals[] = {
  { "mlock2", SCMP_SYS (mlock2), -1, MALLOC_ARENA_LOCKED, 0 },
  { "dontdump", SCMP_SYS (madvise), MADV_DONTDUMP, MALLOC_ARENA_UNDUMPED, 0 },
  { "wipeonfork", SCMP_SYS (madvise), MADV_WIPEONFORK, MALLOC_ARENA_FORK_WIPED, 0 },
  { "dontfork", SCMP_SYS (madvise), MADV_DONTFORK,
    MALLOC_ARENA_FORK_WIPED | MALLOC_ARENA_FORK_REFUSED, MALLOC_ARENA_FORK_REFUSE },
  /* Guards, page return and filling have another way; nothing is lost. */
  { "guard", SCMP_SYS (madvise), ADVICE_GUARD_INSTALL, 0, 0 },
  { "dontneed", SCMP_SYS (madvise), MADV_DONTNEED, 0, 0 },
  { "dontneedlocked", SCMP_SYS (madvise), ADVICE_DONTNEED_LOCKED, 0, 0 },
  { "populate", SCMP_SYS (madvise), MADV_POPULATE_WRITE, 0, 0 },
  { "munlock", SCMP_SYS (munlock), -1, 0, 0 },
  { "getrandom", SCMP_SYS (getrandom), -1, 0, 0 },
};
#define REFUSALS (sizeof refusals / sizeof *refusals)

static void
one (const struct refusal *r, int error, unsigned kind, bool is_late)
{
  options.kind = kind;
  options.fork = r->fork;
  malloc_arena *arena = NULL;
  if (is_late)
    {
      CHECK ((arena = malloc_arena_new (&options)) != NULL);
      use (arena);
      malloc_arena_trim (arena);
    }
  refuse (r->call, r->advice, error);
  if (r->call == SCMP_SYS (mlock2)) /* ENOSYS: the older call is tried */
    refuse (SCMP_SYS (mlock), -1, error);
  if (is_late)
    {
      use (arena);
      malloc_arena_trim (arena); /* now closed with the call refused */
    }
  else
    CHECK ((arena = malloc_arena_new (&options)) != NULL);
  struct malloc_arena_receipt receipt = use (arena);
  CHECK_EQUAL (receipt.obtained, receipt.requested & ~r->lost);
  if (r->lost)
    CHECK_EQUAL (receipt.reason[__builtin_ctz (r->lost)], error);
  if (r->advice == ADVICE_GUARD_INSTALL)
    {
      char *p = malloc_arena (arena, malloc, CHECK_PAGE);
      CHECK_FAULTS (p + CHECK_PAGE);
      CHECK_FAULTS (p - 1);
    }
  if (r->call == SCMP_SYS (mlock2))
    {
      options.lock = MALLOC_ARENA_LOCK_REQUIRE;
      errno = 0;
      malloc_arena *strict = malloc_arena_new (&options);
      CHECK (strict == NULL);
      CHECK_EQUAL (errno, EPERM);
    }
}

/* Where there is no secret memory there is no such arena, and so nothing that goes on in another way. */
static void
no_secret_memory (void *unused)
{
  (void)unused;
  options.kind = HEAP_SECURE | HEAP_SECRETMEM;
  refuse (SCMP_SYS (memfd_secret), -1, ENOSYS);
  errno = 0;
  CHECK (malloc_arena_new (&options) == NULL);
  CHECK_EQUAL (errno, ENOTSUP);
}

int
main (int argc, char **argv)
{
  static const int errors[] = { EPERM, ENOSYS, EINVAL, ENOMEM, EAGAIN };
  if (argc > 1)
    {
      unsigned number = (unsigned)atoi (argv[1]);
      one (&refusals[number / 10 % REFUSALS], errors[number % 10],
           number >= 1000 ? HEAP_SECURE | HEAP_ISOLATED : HEAP_SECURE, number % 1000 >= 500);
      return 0;
    }
  unsigned wrong = 0;
  for (unsigned way = 0; way < 4; way++)
    for (unsigned i = 0; i < REFUSALS; i++)
      for (unsigned e = 0; e < 5; e++)
        {
          /* The older call is the sanitizer's own, which says yes and does nothing. */
          if (CHECK_SANITIZED && refusals[i].call == SCMP_SYS (mlock2) && errors[e] == ENOSYS)
            continue;
          char number[16];
          snprintf (number, sizeof number, "%u", way * 500 + i * 10 + e);
          struct check_outcome outcome = check_again (number, NULL);
          /* A refused lock is said once and names the limit; nothing else is worth a line. */
          bool said = refusals[i].call == SCMP_SYS (mlock2)
                          ? check_count (outcome.text, "\n") == 1
                                && strstr (outcome.text, "malloc_arena: lock refused: ") != NULL
                                && strstr (outcome.text, "memlock") != NULL
                          : outcome.text[0] == 0;
          if (outcome.exit_code == 0 && said)
            continue;
          wrong++;
          dprintf (STDERR_FILENO, "%s, %s, denied %swith %s: exit %d, signal %d, said: %s\n",
                   way >= 2 ? "isolated" : "secure", refusals[i].name, way % 2 ? "late " : "",
                   strerror (errors[e]), outcome.exit_code, outcome.signal, outcome.text);
        }
  struct check_outcome outcome = check_child_text (no_secret_memory, NULL);
  if (outcome.exit_code != 0 || outcome.text[0] != '\0')
    CHECK_FAIL ("no secret memory: exit %d, said: %s", outcome.exit_code, outcome.text);
  return wrong != 0;
}
