#include "block.h"

#include <errno.h>
#include <string.h>

#include "fatal.h"
#include "large.h"
#include "slot.h"
#include "tag.h"
#include "wipe.h"

static void *
alloc_dense (struct ma_local *local, size_t size, size_t align)
{
  if (align > 16)
    return ma_dense_aligned (local, size, align);
  return local->is_plain ? ma_dense_plain (local, size) : ma_dense_alloc (local, size);
}

#if MA_HAS_TAGS
static void *
alloc_tagged (struct ma_local *local, size_t size, size_t align, int *is_zero)
{
  void *p = NULL;
  if (size < local->arena->threshold && align <= MA_SLOT_MOST)
    p = alloc_dense (local, size, align);
  if (p == NULL)
    return ma_large_alloc (local, size, align, is_zero);
  *is_zero = 1;
  return ma_dense_tag (p, size);
}
#endif

/* Whether a block of at least the threshold goes into a slab. The kernel has some 30,000 mappings for a process, and
 * each large block takes one, so that where there are thousands of them the smaller ones do; and where there is so much
 * that no more pages would stay ready. */
static inline int
is_too_many (struct ma_local *local, size_t size, size_t align)
{
  return size <= MA_DENSE_MOST && align <= MA_SLOT_MOST && !local->arena->is_isolated
         && (ma_range_crowded () || ma_range_spent (local, size));
}

/* Not inline: a caller is MA_VECTORS, and this is not made for it. */
static __attribute__ ((noinline)) void *
alloc_large (struct ma_local *local, size_t size, size_t align, int *is_zero)
{
#if MA_HAS_TAGS
  if (local->is_tagged)
    return alloc_tagged (local, size, align, is_zero);
#endif
  void *p = NULL;
  if (unlikely (is_too_many (local, size, align)))
    {
      *is_zero = local->is_wiped;
      p = alloc_dense (local, size, align);
    }
  return p != NULL ? p : ma_large_alloc (local, size, align, is_zero);
}

MA_HOT MA_VECTORS void *
ma_alloc (struct ma_local *local, size_t size)
{
  if (likely (size < local->threshold))
    return ma_dense_alloc_here (local, size);
  if (likely (size < local->plain))
    return ma_dense_plain (local, size);
  int is_zero;
  return alloc_large (local, size, 16, &is_zero);
}

void *
ma_zalloc (struct ma_local *local, size_t size)
{
  int is_zero = local->is_wiped;
  void *p = likely (size < local->threshold) ? ma_dense_alloc (local, size)
            : size < local->plain            ? ma_dense_plain (local, size)
                                             : alloc_large (local, size, 16, &is_zero);
  if (p != NULL && !is_zero)
    memset (p, 0, size);
  return p;
}

void *
ma_aligned (struct ma_local *local, size_t size, size_t align)
{
  if (align <= 16)
    return ma_alloc (local, size);
  void *p = NULL;
  int saved = errno;
  if ((size < local->threshold || size < local->plain) && align <= MA_SLOT_MOST)
    p = alloc_dense (local, size, align);
  int is_zero;
  if (p == NULL)
    p = alloc_large (local, size, align, &is_zero);
  if (p != NULL)
    errno = saved;
  return p;
}

/* Not inline either. */
static __attribute__ ((noinline)) _Noreturn void
no_block (struct ma_unit *unit, const void *p)
{
  const malloc_arena *arena = unit->local ? unit->local->arena : NULL;
  /* Units keep what they were last: a large block that was unmapped at its free is still known. */
  if (unit->kind == MA_UNIT_FREE && unit->local != NULL && unit->units != 0
      && unit->block == ma_tagged (p, 0) && atomic_load (&unit->large) == MA_LARGE_FREED)
    ma_fatal_block ("double free", p, arena->serial == unit->serial ? arena->name : NULL);
  ma_fatal_block ("invalid free", p, unit->kind == MA_UNIT_FREE ? NULL : arena->name);
}

/* The calling thread's part of the arena that the unit is of, if it has one: to free or resize a block makes none. */
static inline struct ma_local *
own_part (const struct ma_unit *unit)
{
  struct ma_thread *thread = ma_self;
  return thread ? thread->locals[unit->local->arena->index] : NULL;
}

void
ma_release_other (struct ma_unit *unit, void *p)
{
  if (unit->kind == MA_UNIT_DENSE)
    {
      ma_dense_free_other (unit, p);
      return;
    }
  if (unlikely (unit->kind != MA_UNIT_LARGE && unit->kind != MA_UNIT_TAIL))
    no_block (unit, p);
  ma_large_free (own_part (unit), unit, p, NULL, 0);
}

MA_HOT MA_VECTORS void
ma_release (void *p)
{
  struct ma_unit *unit = ma_unit_of (p);
  if (unlikely (!ma_dense_free_here (unit, p)))
    ma_release_other (unit, p);
}

size_t
ma_usable (const void *p)
{
  struct ma_unit *unit = ma_unit_of (p);
  if (likely (unit->kind == MA_UNIT_DENSE))
    return ma_dense_check (unit, p);
  if (unlikely (unit->kind != MA_UNIT_LARGE && unit->kind != MA_UNIT_TAIL))
    no_block (unit, p);
  return ma_large_check (unit, p);
}

int
ma_begins (const void *p)
{
  struct ma_unit *unit = ma_range_head (ma_unit_of (p));
  const char *bare = ma_tagged (p, 0);
  if (unit->kind == MA_UNIT_DENSE)
    return is_start (unit, ma_unit_offset (bare) * unit->inverse, bare);
  return unit->kind != MA_UNIT_LARGE || bare == unit->block;
}

void *
ma_resize (void *p, size_t size)
{
  struct ma_unit *unit = ma_unit_of (p);
  int is_dense = unit->kind == MA_UNIT_DENSE;
  size_t before;
  if (is_dense)
    {
      if (ma_dense_resize (unit, p, size, &before))
        return p;
    }
  else if (likely (unit->kind == MA_UNIT_LARGE || unit->kind == MA_UNIT_TAIL))
    {
      void *moved = ma_large_resize (own_part (unit), unit, p, size, &before);
      if (moved)
        return moved;
    }
  else
    no_block (unit, p);
  struct ma_local *local = ma_local_of (unit->local->arena);
  void *q = NULL;
  /* A large one, where large ones are not too many: those that grow mostly do so again. */
  if (local != NULL)
    q = size > before && size >= local->arena->threshold && !ma_range_crowded ()
            ? ma_large_grown (local, size, before)
            : ma_alloc (local, size);
  /* What has become less need not move. */
  if (q == NULL && !is_dense && size < before)
    return ma_large_resize (NULL, unit, p, size, &before);
  if (q == NULL)
    return NULL;
  size_t kept = size < before ? size : before;
  if (is_dense)
    {
      memcpy (q, p, kept);
      ma_release (p);
    }
  else
    ma_large_free (local, unit, p, q, kept);
  return q;
}
