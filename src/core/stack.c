#include "arena.h"

#include <errno.h>
#include <string.h>

#include "wipe.h"

enum
{
  SPARE = 8192 /* of a stack, for what runs on top of a scrub: a signal handler, the linker */
};

/* ---- where it lies ---- */

/* Without a fault where it is not. What is asked about was never written, as valgrind sees it. */
static int
is_open (char *p)
{
  ma_say_defined (p, 16);
  return os_is_readable (p);
}

/* A stack that the program has made may have its guard in it, of which the C library does not know: the lowest page from
 * LOW up that can be read, as the last one before END can. */
static char *
above_guard (char *low, char *end)
{
  if (is_open (low))
    return low;
  size_t guard = 0, pages = (size_t)(end - low - 1) >> MA_PAGE_SHIFT;
  while (pages - guard > 1)
    {
      size_t middle = guard + (pages - guard) / 2;
      *(is_open (low + (middle << MA_PAGE_SHIFT)) ? &pages : &guard) = middle;
    }
  return low + (pages << MA_PAGE_SHIFT);
}

static int
ask_stack (char **low, char **end)
{
  pthread_attr_t attributes;
  void *stack;
  size_t size, guard; /* of which the C library says that it is a part */
  if (pthread_getattr_np (pthread_self (), &attributes) != 0)
    return 0;
  int is_known = pthread_attr_getstack (&attributes, &stack, &size) == 0
                 && pthread_attr_getguardsize (&attributes, &guard) == 0 && guard < size;
  pthread_attr_destroy (&attributes);
  if (is_known)
    {
      *low = (char *)stack + guard;
      *end = (char *)stack + size;
      if (guard == 0)
        *low = above_guard (*low, *end);
    }
  return is_known;
}

/* Where the thread's stack, which is not the first one, lies; 0, 0 if that cannot be known. */
static void
find_stack (const struct ma_thread *thread, char **low, char **end)
{
  int saved = errno;
  struct ma_local *before = ma_active;
  *low = *end = NULL;
  /* It allocates for a moment, maybe the only time in this thread: the C library would make the
   * thread a heap of its own for that. An arena that is full is no reason not to know the stack. */
  for (unsigned i = 0; thread != NULL && i < MA_ARENAS && ma_active == NULL; i++)
    ma_active = thread->locals[i];
  if (!ask_stack (low, end) && ma_active != NULL)
    {
      ma_active = NULL;
      ask_stack (low, end);
    }
  ma_active = before;
  errno = saved;
}

/* The first stack grows to its limit as it is now, which the process may have lowered: of ROOM below P what is
 * there already, or may come. */
static size_t
room_to_grow (struct ma_thread *thread, char *p, size_t room, int is_used)
{
  char *low, *end;
  os_first_stack (&low, &end);
  low += SPARE;
  if (thread->stack_grown > p)
    thread->stack_grown = p;
  if (low > thread->stack_grown)
    low = thread->stack_grown;
  if (room > (size_t)(p - low))
    room = (size_t)(p - low);
  if (is_used && p - room < thread->stack_grown)
    thread->stack_grown = p - room;
  return room;
}

size_t
ma_scrub_room (char *p, size_t bytes)
{
  char *low = os_signal_stack ();
  if (low == NULL)
    return ma_stack_room (p, bytes);
  size_t room = p > low + SPARE ? (size_t)(p - low) - SPARE : 0;
  return room < bytes ? room : bytes;
}

size_t
ma_stack_room (char *p, size_t bytes)
{
  struct ma_thread *thread = ma_self;
  char *low = thread != NULL ? thread->stack : NULL;
  char *end = thread != NULL ? thread->stack_end : NULL;
  if (low == NULL)
    {
      os_first_stack (&low, &end);
      int is_first = p >= low && p < end;
      if (!is_first)
        {
          if (thread != NULL && thread->is_asking)
            return 0;
          if (thread != NULL)
            thread->is_asking = 1;
          find_stack (thread, &low, &end);
        }
      if (thread != NULL)
        {
          thread->stack = low;
          thread->stack_end = end;
          thread->stack_grown = is_first ? p : NULL;
          thread->is_asking = 0;
        }
    }
  if (p < low + SPARE || p >= end)
    return 0;
  size_t room = (size_t)(p - low) - SPARE;
  if (room > bytes)
    room = bytes;
  if (thread != NULL && unlikely (p - room < thread->stack_grown))
    room = room_to_grow (thread, p, room, bytes != SIZE_MAX);
  return room;
}

/* ---- at the end of a scope, and of the thread ---- */

enum
{
  STEP = 16 << 10, /* more than nearly any frame has that is not written */
  OWN = 1 << 10,   /* what a scrub leaves right below what it wiped: its own frames */
  NEAR = 8 << 10   /* below a function here, where it and what it calls have their frames */
};

/* How far below HERE, the caller's frame, the stack was written: LEAST bytes, and on in steps up to one that is zero,
 * or to MOST. The stack pointer goes along, as the kernel need not grow the stack for a look far below it. */
static __attribute__ ((noinline)) size_t
find_used (const char *here, size_t least, size_t most)
{
  char *low = __builtin_alloca (least);
  for (size_t depth = least; depth + STEP <= most; depth += STEP)
    {
      char *step = __builtin_alloca (STEP);
      __asm__ volatile ("" : "+r"(step) : : "memory"); /* it is not new to us */
      ma_say_defined (step, STEP);
      /* Not looked at, as the last scrub's frames are there. */
      char *own = step + STEP - OWN;
      ma_wipe (own, (size_t)(low - own));
      if (ma_is_all_zero (step, STEP - OWN))
        break;
      low = step;
    }
  __asm__ volatile ("" : "+r"(low));
  return (size_t)(here - low);
}

/* After a scrub, when BYTES below HERE are zero. Pages that are not written to are the kernel's one page of zeros from then
 * on: a look at it does not take the place of anything in the second cache, nor the time to come from the third. */
static void
drop_zeros (char *here, size_t bytes)
{
  uintptr_t low = os_round_up ((uintptr_t)(here - bytes), MA_PAGE);
  uintptr_t end = ((uintptr_t)here - NEAR) & ~(MA_PAGE - 1);
  if (low < end)
    os_discard ((void *)low, end - low, 0);
}

/* A page of dead stack, which is there. What was only looked at is not written to, as that would make a page of it. */
static void
wipe_page (char *page)
{
  ma_say_defined (page, MA_PAGE);
  if (!ma_is_all_zero (page, MA_PAGE))
    ma_wipe (page, MA_PAGE);
}

/* Where what is not wiped ends, for a scrub of the rest: END, or a little above, where the page below it is not there. To
 * touch one takes longer than all else at the end of a short thread. */
static char *
stay_above (char *end, int is_absent)
{
  if (!is_absent)
    return end;
  ma_wipe (end, OWN);
  return end + OWN;
}

/* Dead stack of BYTES below HERE, where the thread has left no scope before, but what is NEAR, of which it returns the
 * end; NULL if it is not known, or as far down as that, what there is. Where it is not, there may be something in swap. */
static __attribute__ ((noinline)) char *
wipe_young (char *here, size_t bytes)
{
  unsigned char present[64];
  char *low = (char *)((uintptr_t)(here - bytes) & ~(MA_PAGE - 1));
  char *end = (char *)((uintptr_t)(here - NEAR) & ~(MA_PAGE - 1));
  size_t pages = (size_t)(end - low) >> MA_PAGE_SHIFT;
  if (pages > sizeof present || os_present (low, pages << MA_PAGE_SHIFT, present) != 0)
    return NULL;
  size_t absent = 0;
  while (absent < pages && !(present[absent] & 1))
    absent++;
  if (absent << MA_PAGE_SHIFT < STEP || os_discard (low, absent << MA_PAGE_SHIFT, 0) != 0)
    return NULL;
  for (char *page = low + (absent << MA_PAGE_SHIFT); page < end; page += MA_PAGE)
    wipe_page (page);
  return stay_above (end, absent == pages);
}

void
ma_scrub_used (size_t least)
{
  enum
  {
    SOON = 2, /* scrubs: what was called before the first scope, imports above all, went deeper than what is now */
    OFTEN = 1024
  };
  struct ma_thread *thread = ma_self;
  char *here = __builtin_frame_address (0);
  size_t bytes = ma_stack_room (here, least);
  int is_whole = bytes == least;
  char *end = is_whole && thread != NULL && thread->scrubs == 0 ? wipe_young (here, least) : NULL;
  if (end != NULL)
    bytes = (size_t)(here - end);
  else if (is_whole)
    {
      bytes = find_used (here, least - STEP, least);
      if (unlikely (bytes >= least))
        bytes = find_used (here, least - STEP, ma_stack_room (here, SIZE_MAX));
    }
  /* Which counts from the caller's frame. */
  ma_scrub_stack (bytes + (size_t)((char *)__builtin_dwarf_cfa () - here));
  if (is_whole && thread != NULL
      && unlikely (++thread->scrubs == SOON || thread->scrubs % OFTEN == 0))
    drop_zeros (here, least);
}

/* The lowest page of the first stack from LOW up that is mapped; END if none is, or that cannot be known. A look below it
 * would have the stack grow. */
static char *
first_mapped (char *low, char *end)
{
  unsigned char present;
  size_t below = 0, pages = (size_t)(end - low) >> MA_PAGE_SHIFT;
  while (below < pages)
    {
      size_t middle = below + (pages - below) / 2;
      if (os_present (low + (middle << MA_PAGE_SHIFT), MA_PAGE, &present) == 0)
        pages = middle;
      else
        below = middle + 1;
    }
  return low + (pages << MA_PAGE_SHIFT);
}

/* Dead stack, whole pages from LOW to END: of 8 MiB, the usual size, few are there. Returns END as stay_above has it. */
static __attribute__ ((noinline)) char *
wipe_present (char *low, char *end)
{
  unsigned char present[2048] = { 0 };
  size_t pages = 0;
  for (char *at = low; at < end; at += pages << MA_PAGE_SHIFT)
    {
      pages = (size_t)(end - at) >> MA_PAGE_SHIFT;
      if (pages > sizeof present)
        pages = sizeof present;
      int unknown = os_present (at, pages << MA_PAGE_SHIFT, present);
      if (unknown == ENOMEM) /* a part that the program has unmapped */
        for (size_t i = 0; i < pages; i++)
          {
            if (os_present (at + (i << MA_PAGE_SHIFT), MA_PAGE, present + i) != 0)
              present[i] = 0;
          }
      else if (unknown != 0)
        memset (present, 1, pages);
      for (size_t i = 0; i < sizeof present; i++) /* all of them, which is a few vectors */
        present[i] &= 1;
      for (size_t i = 0, absent = 0; i < pages; i++, absent = i)
        {
          const unsigned char *page = memchr (present + i, 1, pages - i);
          i = page != NULL ? (size_t)(page - present) : pages;
          /* There may be something in swap. */
          if (i != absent)
            os_discard (at + (absent << MA_PAGE_SHIFT), (i - absent) << MA_PAGE_SHIFT, 0);
          if (i < pages)
            wipe_page (at + (i << MA_PAGE_SHIFT));
        }
    }
  return stay_above (end, pages != 0 && !present[pages - 1]);
}

__attribute__ ((noinline)) void
ma_scrub_all (void)
{
  char *here = __builtin_frame_address (0);
  size_t room = ma_stack_room (here, SIZE_MAX);
  char *end = (char *)(((uintptr_t)here - NEAR) & ~(MA_PAGE - 1));
  int is_first = ma_self == NULL || ma_self->stack_grown != NULL;
  /* What room is spared for runs somewhere else, or is over. The first stack's end is none. */
  size_t all = is_first ? room : room + SPARE;
  char *low = (char *)os_round_up ((uintptr_t)here - all, MA_PAGE);
  size_t bytes = room; /* which counts from the caller's frame */
  if (room > 2 * NEAR && low < end)
    {
      if (is_first)
        low = first_mapped (low, end);
      bytes = (size_t)((char *)__builtin_dwarf_cfa () - wipe_present (low, end));
    }
  ma_scrub_stack (bytes);
}
