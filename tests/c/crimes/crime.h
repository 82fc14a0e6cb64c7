/* crime.h - what the crimes share: the arena of a variant, and a word before each step, so that the
 * runner knows at which one the program died. */
#ifndef MA_CRIME_H
#define MA_CRIME_H

#include "check.h"

#include <malloc.h>

/* "secure", "isolated" or "default", and "-SIZE" where the crime has a size. */
static inline malloc_arena *
crime_arena (const char *variant)
{
  unsigned kind = strncmp (variant, "secure", 6) == 0     ? HEAP_SECURE
                  : strncmp (variant, "isolated", 8) == 0 ? HEAP_SECURE | HEAP_ISOLATED
                                                          : HEAP_DEFAULT;
  malloc_arena *arena = malloc_arena_get (kind);
  CHECK (arena != NULL);
  return arena;
}

static inline size_t
crime_size (const char *variant)
{
  const char *dash = strchr (variant, '-');
  return dash != NULL ? strtoul (dash + 1, NULL, 10) : 40;
}

/* The next step is NAME, and if it is a crime, it is done to P. */
static inline void
step (const char *name, const void *p)
{
  dprintf (STDOUT_FILENO, "%s 0x%lx\n", name, (unsigned long)(uintptr_t)p);
}

static inline void *
crime_free (void *p)
{
  free (p);
  return NULL;
}

static inline void
in_thread (void *(*body) (void *), void *data)
{
  pthread_t thread;
  CHECK_EQUAL (pthread_create (&thread, NULL, body, data), 0);
  pthread_join (thread, NULL);
}

#endif
