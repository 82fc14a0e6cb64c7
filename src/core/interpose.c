/* interpose.c - the malloc family, and what of threads concerns it: the only file with the C library's names.
 *
 * Allocation: with no arena active, a tail call of the next implementation in the link map.
 * Everything that takes a block goes by its address. The binding (malloc_arena_call_...) is here as
 * well, as it ends in these names.
 */
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/single_threaded.h>
#include <threads.h>

#include "bind.h"
#include "block.h"
#include "fatal.h"
#include "options.h"
#include "wipe.h"

/* ---- the next implementation ---- */

/* In a sanitizer's build the family has names of its own here, and the next malloc is the first. */
#if MA_RENAMED
#define NEXT RTLD_DEFAULT
#else
#define NEXT RTLD_NEXT
#endif

struct next
{
  void *(*malloc) (size_t);
  void *(*calloc) (size_t, size_t);
  void *(*realloc) (void *, size_t);
  void *(*memalign) (size_t, size_t);
  void (*free) (void *);
  size_t (*malloc_usable_size) (void *);
  int (*malloc_trim) (size_t);
};

/* Until the first call these find the real ones. */
static void *first_malloc (size_t);
static void *first_calloc (size_t, size_t);
static void *first_realloc (void *, size_t);
static void *first_memalign (size_t, size_t);
static void first_free (void *);
static size_t first_usable (void *);
static int first_trim (size_t);

/* Sealed once it is filled in: a page of its own. */
static union
{
  struct next routine;
  char page[MA_PAGE_MOST];
} next __attribute__ ((aligned (MA_PAGE_MOST))) = {
  .routine = { first_malloc, first_calloc, first_realloc, first_memalign, first_free, first_usable,
               first_trim },
};

/* What dlsym itself allocates while it looks for the real ones, and a few bytes more. Never given
 * back. */
static char early[1 << 14] __attribute__ ((aligned (16)));
static size_t early_used;
static _Atomic int is_finding;

static int
is_early (const void *p)
{
  return (uintptr_t)p - (uintptr_t)early < sizeof early;
}

static void *
early_alloc (size_t size, size_t align)
{
  /* Each block has its size before it, for realloc. */
  size_t room = os_round_up (size, 16) + 16 + align;
  size_t at = __atomic_fetch_add (&early_used, room, __ATOMIC_RELAXED);
  if (size > sizeof early || align > sizeof early || at + room > sizeof early)
    ma_fatal ("out of memory: too much is allocated before malloc is found", NULL);
  char *p = (char *)os_round_up ((uintptr_t)early + at + 16, align);
  memcpy (p - 16, &size, sizeof size);
  return p;
}

static size_t
early_size (const void *p)
{
  size_t size;
  memcpy (&size, (const char *)p - 16, sizeof size);
  return size;
}

static struct next real;

/* In a process that has early blocks, or may have, these stand before the real ones. */
static void
careful_free (void *p)
{
  if (!is_early (p))
    real.free (p);
}

static void *
careful_realloc (void *p, size_t size)
{
  if (!is_early (p))
    return real.realloc (p, size);
  void *q = real.malloc (size);
  if (q)
    memcpy (q, p, early_size (p) < size ? early_size (p) : size);
  return q;
}

static size_t
careful_usable (void *p)
{
  return is_early (p) ? early_size (p) : real.malloc_usable_size (p);
}

/* ---- option `active`: every allocation goes to an arena ---- */

/* NULL while the arena is being made: what that allocates comes from the real malloc. */
static struct ma_local *
default_local (void)
{
  static _Atomic (malloc_arena *) arena;
  static _Atomic int is_making;
  malloc_arena *always = atomic_load_explicit (&arena, memory_order_acquire);
  if (unlikely (always == NULL))
    {
      if (atomic_exchange (&is_making, 1))
        return NULL;
      always = ma_default_arena ();
      if (always == NULL)
        ma_fatal ("no arena: option active asks for one that cannot be had", NULL);
      atomic_store_explicit (&arena, always, memory_order_release);
    }
  return ma_local_of (always);
}

static void *
always_malloc (size_t size)
{
  struct ma_local *local = default_local ();
  return local ? ma_alloc (local, size) : real.malloc (size);
}

static void *
always_calloc (size_t n, size_t size)
{
  struct ma_local *local = default_local ();
  size_t bytes;
  if (local == NULL || __builtin_mul_overflow (n, size, &bytes))
    return real.calloc (n, size);
  return ma_zalloc (local, bytes);
}

static void *
always_realloc (void *p, size_t size)
{
  return p == NULL ? always_malloc (size) : careful_realloc (p, size);
}

static void *
always_memalign (size_t align, size_t size)
{
  struct ma_local *local = default_local ();
  return local ? ma_aligned (local, size, align) : real.memalign (align, size);
}

/* ---- finding it ---- */

static void
find (void)
{
  if (atomic_exchange (&is_finding, 1))
    return;
#define FIND(name) *(void **)&real.name = dlsym (NEXT, #name)
  FIND (malloc);
  FIND (calloc);
  FIND (realloc);
  FIND (memalign);
  FIND (free);
  FIND (malloc_usable_size);
  FIND (malloc_trim);
#undef FIND
  if (!real.malloc || !real.calloc || !real.realloc || !real.memalign || !real.free
      || !real.malloc_usable_size)
    ma_fatal ("no malloc: there is no whole implementation behind this library", NULL);
  struct next found = real;
  if (!__libc_single_threaded || __atomic_load_n (&early_used, __ATOMIC_RELAXED) != 0)
    {
      found.free = careful_free;
      found.realloc = careful_realloc;
      found.malloc_usable_size = careful_usable;
    }
  if (ma_options ()->active != MA_ACTIVE_NONE)
    {
      found.malloc = always_malloc;
      found.calloc = always_calloc;
      found.realloc = always_realloc;
      found.memalign = always_memalign;
    }
  os_init ();
  next.routine = found;
  os_seal (&next, sizeof next, 1);
}

#if MA_RENAMED
/* In a process whose malloc this is, that is done before there is a second thread: making one
 * allocates. */
static __attribute__ ((constructor)) void
find_at_start (void)
{
  find ();
}
#endif

/* Whether the real ones are known by now; not while dlsym itself allocates. */
static int
is_found (void)
{
  find ();
  return next.routine.malloc != first_malloc;
}

static void *
first_malloc (size_t size)
{
  return is_found () ? next.routine.malloc (size) : early_alloc (size, 16);
}

static void *
first_calloc (size_t n, size_t size)
{
  if (is_found ())
    return next.routine.calloc (n, size);
  size_t bytes;
  if (__builtin_mul_overflow (n, size, &bytes))
    bytes = SIZE_MAX;
  return early_alloc (bytes, 16); /* zero: it is never used twice */
}

static void *
first_realloc (void *p, size_t size)
{
  if (is_found ())
    return next.routine.realloc (p, size);
  void *q = early_alloc (size, 16);
  if (p)
    memcpy (q, p, early_size (p) < size ? early_size (p) : size);
  return q;
}

static void *
first_memalign (size_t align, size_t size)
{
  return is_found () ? next.routine.memalign (align, size)
                     : early_alloc (size, align < 16 ? 16 : align);
}

static void
first_free (void *p)
{
  if (p && is_found ())
    next.routine.free (p);
}

static size_t
first_usable (void *p)
{
  return is_found () ? next.routine.malloc_usable_size (p) : 0;
}

static int
first_trim (size_t pad)
{
  return is_found () && next.routine.malloc_trim ? next.routine.malloc_trim (pad) : 0;
}

/* ---- the dynamic linker ---- */

/* It keeps its list of libraries here, and a thread's data in each, from when they happen to be used first. That is
 * the process's, and no secret: a forked child would not survive zeros there, an arena could not be deleted, and where
 * an arena is full the linker ends the process. So what it asks for is ordinary memory, whatever is active. This is for
 * functions that it calls itself. */
#define IS_LOADER()                                                                                \
  ((uintptr_t)__builtin_return_address (0) - ma_sealed.loader < ma_sealed.loader_size)

/* malloc asks at the least cost: callers are seldom where the linker is, or above. To ask for the return address the
 * compiler would make a frame; without one, and as the library is meant to be built, it is on top of the stack. */
#if defined(MA_WIDE) && defined(__OPTIMIZE__) && !defined(MA_HAS_FRAMES)
#define MAY_BE_LOADER()                                                                            \
  ({                                                                                               \
    int is_above;                                                                                  \
    __asm__ ("cmpq %1, (%%rsp)" : "=@ccae"(is_above) : "r"(ma_sealed.loader));                     \
    is_above;                                                                                      \
  })

/* Called in the last place: what this returns to is malloc's caller. */
MA_COLD static void *
malloc_from_above (size_t size)
{
  return IS_LOADER () ? next.routine.malloc (size) : ma_alloc (ma_active, size);
}
#else
#define MAY_BE_LOADER() IS_LOADER ()
#define malloc_from_above next.routine.malloc
#endif

/* ---- the family ---- */

/* What is on the way past an arena that is not there is in one cache line. */
#define IN_A_LINE __attribute__ ((aligned (64)))

MA_EXPORT MA_HOT IN_A_LINE MA_VECTORS void *
malloc (size_t size)
{
  struct ma_local *local = ma_active;
  if (likely (local == NULL))
    return next.routine.malloc (size);
  if (unlikely (MAY_BE_LOADER ()))
    return malloc_from_above (size);
  return likely (size < local->threshold) ? ma_dense_alloc_here (local, size)
                                          : ma_alloc (local, size);
}

MA_EXPORT MA_HOT IN_A_LINE MA_VECTORS void
free (void *p)
{
  if (likely (!ma_is_ours (p)))
    {
      next.routine.free (p);
      return;
    }
  struct ma_unit *unit = ma_unit_of (p);
  if (unlikely (!ma_dense_free_here (unit, p)))
    ma_release_other (unit, p);
}

MA_EXPORT MA_HOT IN_A_LINE void *
calloc (size_t n, size_t size)
{
  struct ma_local *local = ma_active;
  if (likely (local == NULL) || unlikely (IS_LOADER ()))
    return next.routine.calloc (n, size);
  size_t bytes;
  if (__builtin_mul_overflow (n, size, &bytes))
    {
      errno = ENOMEM;
      return NULL;
    }
  return ma_zalloc (local, bytes);
}

/* Whether the next malloc's blocks are known to the malloc_usable_size that was found: an
 * implementation may have none, and the C library's, found in its place, would take its blocks for
 * its own. */
static int
is_size_known (void)
{
  static _Atomic int known; /* 0: not looked yet; 1: no; 2: yes */
  int answer = atomic_load_explicit (&known, memory_order_relaxed);
  if (answer == 0)
    {
      answer = 1 + ma_bind_together (*(void **)&real.malloc, *(void **)&real.malloc_usable_size);
      atomic_store_explicit (&known, answer, memory_order_relaxed);
    }
  return answer == 2;
}

/* Where nobody can tell the old size the block is resized outside first: then it has SIZE bytes at
 * least. What that leaves behind elsewhere is not wiped. */
static void *
move_in_blindly (struct ma_local *local, void *p, size_t size)
{
  if (size == 0)
    {
      next.routine.free (p);
      return NULL;
    }
  void *q = ma_alloc (local, size);
  void *outside = q != NULL ? next.routine.realloc (p, size) : NULL;
  if (outside == NULL)
    {
      if (q != NULL)
        ma_release (q);
      return NULL;
    }
  memcpy (q, outside, size);
  ma_wipe_inline (outside, size);
  next.routine.free (outside);
  return q;
}

/* An ordinary block that is resized while an arena is active moves in, and its old place is wiped:
 * it may hold the beginning of what the arena is for. */
static __attribute__ ((noinline)) void *
move_in (struct ma_local *local, void *p, size_t size)
{
  if (unlikely (!is_size_known ()))
    return move_in_blindly (local, p, size);
  size_t before = next.routine.malloc_usable_size (p);
  void *q = NULL;
  if (size != 0)
    {
      q = ma_alloc (local, size);
      if (q == NULL)
        return NULL;
      memcpy (q, p, size < before ? size : before);
    }
  ma_wipe_inline (p, before);
  next.routine.free (p);
  return q;
}

MA_EXPORT MA_HOT IN_A_LINE void *
realloc (void *p, size_t size)
{
  if (ma_is_ours (p))
    {
      if (likely (size != 0))
        return ma_resize (p, size);
      ma_release (p);
      return NULL;
    }
  struct ma_local *local = ma_active;
  if (likely (local == NULL) || unlikely (IS_LOADER ()))
    return next.routine.realloc (p, size);
  return p == NULL ? ma_alloc (local, size) : move_in (local, p, size);
}

MA_EXPORT void *
reallocarray (void *p, size_t n, size_t size)
{
  size_t bytes;
  if (__builtin_mul_overflow (n, size, &bytes))
    {
      errno = ENOMEM;
      return NULL;
    }
  return realloc (p, bytes);
}

static void *
aligned (size_t align, size_t size)
{
  struct ma_local *local = ma_active;
  if (likely (local == NULL))
    return next.routine.memalign (align, size);
  return ma_aligned (local, size, align);
}

/* As glibc: the next power of two. */
MA_EXPORT void *
memalign (size_t align, size_t size)
{
  if (align > SIZE_MAX / 2 + 1)
    {
      errno = EINVAL;
      return NULL;
    }
  if (align < 16)
    align = 16;
  if (align & (align - 1))
    align = (size_t)1 << (64 - __builtin_clzl (align));
  return aligned (align, size);
}

MA_EXPORT void *
aligned_alloc (size_t align, size_t size)
{
  if (align == 0 || (align & (align - 1)))
    {
      errno = EINVAL;
      return NULL;
    }
  return memalign (align, size);
}

MA_EXPORT int
posix_memalign (void **out, size_t align, size_t size)
{
  if (align % sizeof (void *) != 0 || align == 0 || (align & (align - 1)))
    return EINVAL;
  int saved = errno;
  void *p = memalign (align, size);
  errno = saved;
  if (p == NULL)
    return ENOMEM;
  *out = p;
  return 0;
}

MA_EXPORT void *
valloc (size_t size)
{
  return memalign (MA_PAGE, size);
}

MA_EXPORT void *
pvalloc (size_t size)
{
  if (size > SIZE_MAX - MA_PAGE)
    {
      errno = ENOMEM;
      return NULL;
    }
  return memalign (MA_PAGE, os_round_up (size, MA_PAGE));
}

MA_EXPORT size_t
malloc_usable_size (void *p)
{
  if (ma_is_ours (p))
    return ma_usable (p);
  return next.routine.malloc_usable_size (p);
}

MA_EXPORT void free_sized (void *p, size_t size);
MA_EXPORT void free_aligned_sized (void *p, size_t align, size_t size);

MA_EXPORT void
free_sized (void *p, size_t size)
{
  (void)size;
  free (p);
}

MA_EXPORT void
free_aligned_sized (void *p, size_t align, size_t size)
{
  (void)align;
  (void)size;
  free (p);
}

MA_EXPORT int
malloc_trim (size_t pad)
{
  return ma_arena_trim_all () | (next.routine.malloc_trim ? next.routine.malloc_trim (pad) : 0);
}

/* ---- threads ---- */

/* The C library's NAME, looked for once, in whatever thread comes first; NULL if it has none. */
static void *
find_once (_Atomic (void *) *found, const char *name)
{
  void *p = atomic_load_explicit (found, memory_order_relaxed);
  if (unlikely (p == NULL))
    {
      p = dlsym (NEXT, name);
      atomic_store_explicit (found, p, memory_order_relaxed);
    }
  return p;
}

struct start
{
  void *(*routine) (void *);
  int (*c11_routine) (void *);
  void *argument;
  malloc_arena *arena;
};

/* No leave: it is for the thread's life, which may end in pthread_exit. */
static struct start
begin_inside (void *data)
{
  struct start start = *(struct start *)data;
  ma_release (data);
  ma_arena_enter (start.arena);
  return start;
}

static void *
start_inside (void *data)
{
  struct start start = begin_inside (data);
  return start.routine (start.argument);
}

static int
c11_start_inside (void *data)
{
  struct start start = begin_inside (data);
  return start.c11_routine (start.argument);
}

/* Option `inherit`: a thread that is started with an arena active has it active for its life. What a
 * library hands to a worker of its own is what the caller wanted in the arena. */
static int
is_inherited (void)
{
  return ma_options ()->inherit == MA_INHERIT;
}

static struct start *
pass_on (struct ma_local *local, struct start start)
{
  struct start *passed = ma_alloc (local, sizeof *passed);
  start.arena = local->arena;
  if (passed != NULL)
    *passed = start;
  return passed;
}

/* In both the thread is made outside: its own tables outlive it, with its stack. */
MA_EXPORT int
pthread_create (pthread_t *thread, const pthread_attr_t *attributes, void *(*routine) (void *),
                void *argument)
{
  static _Atomic (void *) found;
  int (*create) (pthread_t *, const pthread_attr_t *, void *(*) (void *), void *);
  *(void **)&create = find_once (&found, "pthread_create");
  if (unlikely (create == NULL))
    return EAGAIN;
  struct ma_local *local = ma_active;
  if (likely (local == NULL))
    return create (thread, attributes, routine, argument);
  struct start *start = NULL;
  if (is_inherited ())
    {
      start = pass_on (local, (struct start){ .routine = routine, .argument = argument });
      if (start == NULL)
        return EAGAIN;
      routine = start_inside;
      argument = start;
    }
  ma_arena_enter (NULL);
  int refused = create (thread, attributes, routine, argument);
  ma_arena_leave (NULL);
  if (refused && start)
    ma_release (start);
  return refused;
}

MA_EXPORT int
thrd_create (thrd_t *thread, thrd_start_t routine, void *argument)
{
  static _Atomic (void *) found;
  int (*create) (thrd_t *, thrd_start_t, void *);
  *(void **)&create = find_once (&found, "thrd_create");
  if (unlikely (create == NULL))
    return thrd_error;
  struct ma_local *local = ma_active;
  if (likely (local == NULL))
    return create (thread, routine, argument);
  struct start *start = NULL;
  if (is_inherited ())
    {
      start = pass_on (local, (struct start){ .c11_routine = routine, .argument = argument });
      if (start == NULL)
        return thrd_nomem;
      routine = c11_start_inside;
      argument = start;
    }
  ma_arena_enter (NULL);
  int result = create (thread, routine, argument);
  ma_arena_leave (NULL);
  if (result != thrd_success && start)
    ma_release (start);
  return result;
}

/* Option `active`: the thread has its part of the arena before the C library allocates here, with a lock of the thread's
 * held: to make the part is to ask this. */
MA_EXPORT int
pthread_getattr_np (pthread_t thread, pthread_attr_t *attributes)
{
  static _Atomic (void *) found;
  int (*ask) (pthread_t, pthread_attr_t *);
  *(void **)&ask = find_once (&found, "pthread_getattr_np");
  if (unlikely (ask == NULL))
    return ENOSYS;
  if (next.routine.malloc == always_malloc)
    default_local ();
  return ask (thread, attributes);
}

/* ---- malloc_arena (arena, routine, ...) ---- */

static inline void
begin (malloc_arena *arena, void (*routine) (void))
{
  ma_arena_check (arena);
  ma_bind_check (routine);
  ma_arena_enter (arena);
}

/* The routine with the arena active; RESULT is what it returns. */
#define BOUND(type, call)                                                                          \
  type result;                                                                                     \
  begin (arena, (void (*) (void))routine);                                                         \
  result = call;                                                                                   \
  ma_arena_leave (arena);                                                                          \
  return result

MA_EXPORT MA_HOT void *
malloc_arena_call_size (malloc_arena *arena, malloc_arena_size_routine routine, size_t size)
{
  if (likely (routine == malloc))
    {
      ma_arena_check (arena);
      ma_bind_check ((void (*) (void))routine);
      struct ma_local *local = ma_local_of (arena);
      return local ? ma_alloc (local, size) : NULL;
    }
  BOUND (void *, routine (size));
}

MA_EXPORT void *
malloc_arena_call_size_size (malloc_arena *arena, malloc_arena_size_size_routine routine, size_t a,
                             size_t b)
{
  BOUND (void *, routine (a, b));
}

MA_EXPORT void *
malloc_arena_call_ptr_size (malloc_arena *arena, malloc_arena_ptr_size_routine routine, void *p,
                            size_t size)
{
  BOUND (void *, routine (p, size));
}

MA_EXPORT void *
malloc_arena_call_ptr_size_size (malloc_arena *arena, malloc_arena_ptr_size_size_routine routine,
                                 void *p, size_t n, size_t size)
{
  BOUND (void *, routine (p, n, size));
}

MA_EXPORT int
malloc_arena_call_out_size_size (malloc_arena *arena, malloc_arena_out_size_size_routine routine,
                                 void **out, size_t align, size_t size)
{
  BOUND (int, routine (out, align, size));
}

MA_EXPORT char *
malloc_arena_call_str (malloc_arena *arena, malloc_arena_str_routine routine, const char *s)
{
  BOUND (char *, routine (s));
}

MA_EXPORT char *
malloc_arena_call_str_size (malloc_arena *arena, malloc_arena_str_size_routine routine,
                            const char *s, size_t n)
{
  BOUND (char *, routine (s, n));
}

MA_EXPORT char *
malloc_arena_call_str_buf (malloc_arena *arena, malloc_arena_str_buf_routine routine, const char *s,
                           char *buffer)
{
  BOUND (char *, routine (s, buffer));
}

MA_EXPORT wchar_t *
malloc_arena_call_wcs (malloc_arena *arena, malloc_arena_wcs_routine routine, const wchar_t *s)
{
  BOUND (wchar_t *, routine (s));
}

MA_EXPORT int
malloc_arena_call_printf (malloc_arena *arena, malloc_arena_printf_routine routine, char **out,
                          const char *format, ...)
{
  /* Only asprintf has that type, and only its va_list form can be called from here. */
  va_list arguments;
  begin (arena, (void (*) (void))routine);
  va_start (arguments, format);
  int result = vasprintf (out, format, arguments);
  va_end (arguments);
  ma_arena_leave (arena);
  return result;
}

MA_EXPORT int
malloc_arena_call_vprintf (malloc_arena *arena, malloc_arena_vprintf_routine routine, char **out,
                           const char *format, va_list arguments)
{
  BOUND (int, routine (out, format, arguments));
}

MA_EXPORT __ssize_t
malloc_arena_call_getline (malloc_arena *arena, malloc_arena_getline_routine routine, char **line,
                           size_t *size, FILE *file)
{
  BOUND (__ssize_t, routine (line, size, file));
}

MA_EXPORT __ssize_t
malloc_arena_call_getdelim (malloc_arena *arena, malloc_arena_getdelim_routine routine, char **line,
                            size_t *size, int delimiter, FILE *file)
{
  BOUND (__ssize_t, routine (line, size, delimiter, file));
}

MA_EXPORT FILE *
malloc_arena_call_memstream (malloc_arena *arena, malloc_arena_memstream_routine routine,
                             char **buffer, size_t *size)
{
  BOUND (FILE *, routine (buffer, size));
}
