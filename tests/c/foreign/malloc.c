/* A malloc that gives out and never takes back, to stand in front of another (LD_PRELOAD); built once
 * whole and once with nothing but its free. */
#include <stddef.h>
#include <string.h>

void *malloc (size_t);
void *calloc (size_t, size_t);
void *realloc (void *, size_t);
void free (void *);

#ifndef FOREIGN_FREE_ONLY
static _Alignas (16) char memory[16 << 20];
static size_t used;

void *
malloc (size_t size)
{
  size_t whole = (size + 31) / 16 * 16;
  size_t at = __atomic_fetch_add (&used, whole, __ATOMIC_RELAXED);
  if (at + whole > sizeof memory)
    return NULL;
  memcpy (memory + at, &size, sizeof size);
  return memory + at + 16;
}

void *
calloc (size_t count, size_t size)
{
  return malloc (count * size); /* static memory is zero, and is given out once */
}

void *
realloc (void *p, size_t size)
{
  void *q = malloc (size);
  size_t old;
  if (p != NULL && q != NULL)
    {
      memcpy (&old, (char *)p - 16, sizeof old);
      memcpy (q, p, old < size ? old : size);
    }
  return q;
}
#endif

void
free (void *p)
{
  (void)p;
}
