/* malloc_arena.h - first-class malloc arenas for Linux and glibc.
 *
 * An arena is a heap with properties. A program asks for one, binds allocations to it, and
 * frees with plain free() from anywhere:
 *
 *     malloc_arena *secure = malloc_arena_get (HEAP_SECURE);
 *     char *password = malloc_arena (secure, malloc, size);
 *     ...
 *     free (password);              (in any translation unit, in any thread: wiped)
 *
 * The design follows the RFC "malloc and secure memory", libc-alpha, September 2020.
 *
 * Unless a comment says otherwise, every function here is thread-safe, may be called before main
 * and between fork and exec in a single-threaded child, and is not async-signal-safe (as malloc
 * is not). Sizes are in bytes. Misuse is one line on standard error, "malloc_arena: CRIME: ...",
 * and abort().
 *
 * It is C11 or C++11, or newer; C99 with the compiler's _Generic.
 */
#ifndef MALLOC_ARENA_H
#define MALLOC_ARENA_H

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <wchar.h>

#define MALLOC_ARENA_VERSION_MAJOR 0
#define MALLOC_ARENA_VERSION_MINOR 1
#define MALLOC_ARENA_VERSION_PATCH 0

#ifdef __cplusplus
#pragma GCC diagnostic push
/* A function may have the name of a struct, as stat has; g++ takes that for shadowing. */
#pragma GCC diagnostic ignored "-Wshadow"
extern "C" {
#define MALLOC_ARENA_NOTHROW noexcept (true)
#else
#define MALLOC_ARENA_NOTHROW __attribute__ ((__nothrow__))
#endif

typedef struct malloc_arena malloc_arena;

/* Kinds: flags that combine, or are refused with EINVAL; never ignored. */
#define HEAP_DEFAULT 0u   /* accounting, a limit, memory returned; nothing secret */
#define HEAP_SECURE 1u    /* locked, not dumped, fork policy, wiped at free */
#define HEAP_TAGGED 2u    /* Arm MTE: a random tag per allocation */
#define HEAP_ISOLATED 4u  /* with HEAP_SECURE: every allocation its own guarded mapping */
#define HEAP_SECRETMEM 8u /* with HEAP_SECURE: backed by memfd_secret(2) */

/* The process's arena of that kind; the same handle at every call. NULL with errno: ENOTSUP (this
 * kernel or CPU lacks it), EINVAL (no such kind), ENOMEM, ENOSPC (the process has 256 arenas), EPERM
 * (policy lock=require and the kernel refused the lock). */
malloc_arena *malloc_arena_get (unsigned kind) MALLOC_ARENA_NOTHROW;

/* Policies of an arena; 0 always means "as MALLOC_ARENA_OPTIONS says, else the default". */
enum malloc_arena_lock
{
  MALLOC_ARENA_LOCK_PREFER = 1, /* lock; where refused, go on unlocked, say so once (default) */
  MALLOC_ARENA_LOCK_REQUIRE,    /* lock or fail with EPERM or ENOMEM */
  MALLOC_ARENA_LOCK_OFF
};
enum malloc_arena_fork
{
  MALLOC_ARENA_FORK_WIPE = 1, /* a forked child sees zeros (default) */
  MALLOC_ARENA_FORK_KEEP,     /* a forked child has its own copy, locked again */
  MALLOC_ARENA_FORK_REFUSE    /* the memory is not in the child at all; a touch faults */
};

struct malloc_arena_options
{
  size_t size;              /* sizeof (struct malloc_arena_options), set by the caller */
  unsigned kind;            /* HEAP_... */
  unsigned lock;            /* enum malloc_arena_lock, or 0 */
  unsigned fork;            /* enum malloc_arena_fork, or 0 */
  const char *name;         /* copied, up to 31 bytes; NULL: the kind's name */
  size_t limit;             /* most bytes the arena may hold from the kernel, a page at least;
                               0: no limit */
  size_t isolate_threshold; /* requests from this size up get their own pages; 0: half a page,
                               60 KiB for HEAP_DEFAULT. Where a process with one thread has
                               more in use than may stay ready (3/8 of what may be locked, if
                               that is 1 MiB or more, 8 MiB at most), or any has 8,192,
                               others get them from 16 KiB up */
  size_t heap_size;         /* bytes taken from the region at once, 64 KiB to 64 MiB; 0: 1 MiB */
};

/* An arena of one's own. NULL with errno as malloc_arena_get. A process has at most 256 at a time,
 * those of malloc_arena_get and of Python among them: then ENOSPC, until one is deleted. */
malloc_arena *malloc_arena_new (const struct malloc_arena_options *options) MALLOC_ARENA_NOTHROW;

/* Ends an arena that malloc_arena_new made and gives back all its memory. -1 with errno: EBUSY (an
 * allocation lives, or a thread is inside it), EINVAL (not an arena of malloc_arena_new). */
int malloc_arena_delete (malloc_arena *arena) MALLOC_ARENA_NOTHROW;

/* Makes ARENA the active arena of the calling thread: every malloc-family call of this thread
 * allocates there until the matching malloc_arena_leave. Nests. NULL: the ordinary malloc. A leave
 * that does not match the last enter of this thread aborts.
 *
 * What the C library allocates for itself meanwhile is in the arena as well, and stays: a FILE, iconv's and NSS's lists
 * of modules, the list of exit handlers, where it has more than 32. Where such a thing is in use at a fork the arena
 * should be one of MALLOC_ARENA_FORK_KEEP: else a child's exit loses what was to be written to stdout, or calls no
 * handlers, and its iconv_open may fault. What the dynamic linker allocates is ordinary memory.
 *
 * A block of an arena that is resized stays in its arena, whichever is active; an ordinary block moves into the active
 * one, and its old place is wiped.
 *
 * Where the process's malloc is not this library's (see malloc_arena () below), calls of it are not in the
 * arena, and nothing is said: a program of which that is not sure binds one call first, which aborts then. */
void malloc_arena_enter (malloc_arena *arena) MALLOC_ARENA_NOTHROW;
void malloc_arena_leave (malloc_arena *arena) MALLOC_ARENA_NOTHROW;

/* The arena that owns the block or the interior address P; NULL if none does. O(1). */
malloc_arena *malloc_arena_of (const void *p) MALLOC_ARENA_NOTHROW;

/* Properties, as bits of a receipt. */
#define MALLOC_ARENA_LOCKED 0x01u     /* cannot be swapped */
#define MALLOC_ARENA_UNDUMPED 0x02u   /* left out of core dumps */
#define MALLOC_ARENA_FORK_WIPED 0x04u /* a forked child sees zeros, or nothing */
#define MALLOC_ARENA_FORK_KEPT 0x08u  /* a forked child has a copy, locked again */
#define MALLOC_ARENA_GUARDED 0x10u    /* inaccessible pages around heaps and large blocks */
#define MALLOC_ARENA_SECRETMEM 0x20u  /* not in the kernel's direct map */
#define MALLOC_ARENA_TAGGED 0x40u     /* checked by the CPU */
#define MALLOC_ARENA_ISOLATED 0x80u   /* every allocation its own mapping, unmapped at free */
#define MALLOC_ARENA_PROPERTIES 8

/* Of MALLOC_ARENA_FORK_WIPED, never without it, and with its reason: the memory is not in a forked child
 * at all, and a touch faults. */
#define MALLOC_ARENA_FORK_REFUSED 0x100u

/* What was asked of the kernel and what it gave, over all memory the arena holds at the moment of
 * the call: one page that could not be locked means MALLOC_ARENA_LOCKED is not obtained. */
struct malloc_arena_receipt
{
  size_t size;                         /* sizeof (struct malloc_arena_receipt), set by the caller */
  unsigned requested;                  /* MALLOC_ARENA_... */
  unsigned obtained;                   /* MALLOC_ARENA_... */
  int reason[MALLOC_ARENA_PROPERTIES]; /* by bit number: errno of what was refused, else 0 */
  /* Of the pages opened for blocks, used or not, until they are given back: also those of freed blocks
   * that wait, maybe closed, for their next use, and those that a secure slab gave back empty, as they
   * stay locked; guards are not counted. */
  size_t mapped_bytes;
  size_t locked_bytes; /* of these, locked */
};
int malloc_arena_receipt (malloc_arena *arena, struct malloc_arena_receipt *receipt)
    MALLOC_ARENA_NOTHROW; /* 0, or -1 with EINVAL */

/* Blocks of one size class, over all threads. */
struct malloc_arena_class
{
  size_t slot_bytes; /* room of one block; 0: blocks with pages of their own */
  size_t live_blocks;
  size_t live_bytes;
  size_t mapped_bytes; /* held for them, unused slots and pages that wait for their next use too */
};
#define MALLOC_ARENA_CLASSES 64

struct malloc_arena_stats
{
  size_t size; /* sizeof (struct malloc_arena_stats), set by the caller */
  size_t live_blocks;
  size_t live_bytes; /* as requested by the callers */
  size_t
      peak_bytes; /* no more lived at one time: the most of each thread's small blocks, and of all with pages of
                        * their own, added up, but not more than the limit */
  size_t limit_bytes;  /* 0: none */
  size_t mapped_bytes; /* as in the receipt */
  size_t locked_bytes;
  /* From here on only where SIZE has it all, at a cost of about a nanosecond for each live block. */
  size_t classes; /* that hold memory, by slot_bytes, blocks with pages of their own last */
  struct malloc_arena_class by_class[MALLOC_ARENA_CLASSES];
};
int malloc_arena_stats (malloc_arena *arena, struct malloc_arena_stats *stats)
    MALLOC_ARENA_NOTHROW; /* 0, or -1 with EINVAL */

/* Gives the pages of ARENA that no block uses back to the kernel: those of the calling thread's part, and
 * of parts whose thread has ended. (Frees do so by themselves, but for a bounded rest that waits for its
 * next use: of small blocks 256 KiB of pages to 2 MiB in each thread; of large ones in each thread at most 8
 * MiB, 2 MiB where nothing is wiped (HEAP_DEFAULT), and in all threads together three eighths of the arena's
 * limit; what is locked of them is three eighths of the lock limit in all threads and arenas together; 256 KiB
 * more in each; up to 1 MiB of what others freed of a thread's large blocks; and of all threads that have ended 1 MiB.) 1 if that was anything, 0 if not, -1 with EINVAL. */
int malloc_arena_trim (malloc_arena *arena) MALLOC_ARENA_NOTHROW;

/* What lies where in an arena, for pictures: addresses, sizes and states, not one byte of contents. An
 * arena's extent comes first, then its heaps, each before the slabs in it, and its large ranges; a slab
 * and a large range come before their slots and guards. */
enum malloc_arena_extent_type
{
  MALLOC_ARENA_EXTENT_ARENA = 1, /* ADDRESS 0, BYTES mapped, BLOCK the limit, FLAGS the receipt's */
  MALLOC_ARENA_EXTENT_HEAP,      /* BYTES of address space for slabs */
  MALLOC_ARENA_EXTENT_SLAB,      /* BYTES in use so far, in slots of BLOCK bytes */
  MALLOC_ARENA_EXTENT_LARGE,     /* BYTES of pages for one block */
  MALLOC_ARENA_EXTENT_SLOT,      /* BLOCK: bytes asked for if it lives, the slot's if not known */
  MALLOC_ARENA_EXTENT_GUARD      /* BYTES that cannot be touched */
};
enum malloc_arena_extent_state
{
  MALLOC_ARENA_EXTENT_LIVE = 1,    /* a block of the program's */
  MALLOC_ARENA_EXTENT_FREE,        /* may be given out */
  MALLOC_ARENA_EXTENT_QUARANTINED, /* freed, and not to be given out yet */
  MALLOC_ARENA_EXTENT_RETURNED     /* free, its pages given back to the kernel */
};
struct malloc_arena_extent
{
  void *address;
  size_t bytes;
  size_t block;
  malloc_arena *arena;
  const char *name; /* of the arena; readable also after the arena is deleted, though not its own */
  unsigned type;    /* enum malloc_arena_extent_type */
  unsigned state;   /* enum malloc_arena_extent_state, of a slot or a large range, else 0 */
  unsigned flags;   /* MALLOC_ARENA_LOCKED and so on: what the kernel granted for this memory */
  unsigned kind;    /* HEAP_..., of the arena */
};

/* Writes up to COUNT extents of ARENA (NULL: of all arenas), each of EXTENT_SIZE = sizeof (struct
 * malloc_arena_extent) bytes, and returns how many there are, which may be more: then nothing beyond
 * COUNT was written. -1 with EINVAL: not an arena, or another EXTENT_SIZE.
 *
 * It allocates nothing. Thread-safe, and threads that allocate are not stopped: heaps, slabs and large
 * ranges are seen as they were while their lock was held, one thread's part of an arena after the
 * other's. A slot that is allocated or freed during the walk is in either state, and if it is live its
 * BLOCK may be its last block's. In an arena that nobody uses meanwhile all is exact. Usable in a
 * forked child. With NULL no arena can be made or deleted meanwhile. */
ptrdiff_t malloc_arena_walk (malloc_arena *arena, struct malloc_arena_extent *extents,
                             size_t extent_size, size_t count) MALLOC_ARENA_NOTHROW;

/* The arena's name, for messages. Valid until the arena is deleted. */
const char *malloc_arena_name (const malloc_arena *arena) MALLOC_ARENA_NOTHROW;

/* Makes BYTES of dead stack below the caller's frame zero, and the vector registers, where calls
 * that handled a secret left copies. 128 KiB cost about 1 us. Async-signal-safe, but in a thread other
 * than the first that no arena was ever used in: its first call asks where its stack lies, which
 * allocates. Not for a stack that is cut out of the thread's own and that the kernel does not tell of, as a coroutine's or
 * one for signals with SS_AUTODISARM: frames in use below it would be overwritten. */
void malloc_arena_scrub (size_t bytes) MALLOC_ARENA_NOTHROW;

/* malloc_arena (ARENA, ROUTINE, ARGUMENTS...): calls ROUTINE with ARENA active. ROUTINE is malloc,
 * calloc, realloc, reallocarray, aligned_alloc, memalign, posix_memalign, valloc, pvalloc, or one of
 * the C library's routines that return malloc'ed memory: strdup, strndup, asprintf, vasprintf,
 * getline, getdelim, wcsdup, realpath, open_memstream (whose stream allocates in the arena while it
 * is opened only). Returns what ROUTINE returns. Aborts when ROUTINE, or this process's malloc or
 * free, is another implementation's: the block would end up in the wrong free. So it is where only a
 * library uses arenas: the C library then comes first in the order of symbols. The program itself has
 * to be linked with -lmalloc_arena, or started with LD_PRELOAD=libmalloc_arena.so.
 *
 * A function-like macro: the type's name, which is the same, is left alone. */
typedef void *(*malloc_arena_size_routine) (size_t);
typedef void *(*malloc_arena_size_size_routine) (size_t, size_t);
typedef void *(*malloc_arena_ptr_size_routine) (void *, size_t);
typedef void *(*malloc_arena_ptr_size_size_routine) (void *, size_t, size_t);
typedef int (*malloc_arena_out_size_size_routine) (void **, size_t, size_t);
typedef char *(*malloc_arena_str_routine) (const char *);
typedef char *(*malloc_arena_str_size_routine) (const char *, size_t);
typedef char *(*malloc_arena_str_buf_routine) (const char *, char *);
typedef wchar_t *(*malloc_arena_wcs_routine) (const wchar_t *);
typedef int (*malloc_arena_printf_routine) (char **, const char *, ...);
typedef int (*malloc_arena_vprintf_routine) (char **, const char *, va_list);
typedef __ssize_t (*malloc_arena_getline_routine) (char **, size_t *, FILE *);
typedef __ssize_t (*malloc_arena_getdelim_routine) (char **, size_t *, int, FILE *);
typedef FILE *(*malloc_arena_memstream_routine) (char **, size_t *);

void *malloc_arena_call_size (malloc_arena *, malloc_arena_size_routine, size_t);
void *malloc_arena_call_size_size (malloc_arena *, malloc_arena_size_size_routine, size_t, size_t);
void *malloc_arena_call_ptr_size (malloc_arena *, malloc_arena_ptr_size_routine, void *, size_t);
void *malloc_arena_call_ptr_size_size (malloc_arena *, malloc_arena_ptr_size_size_routine, void *,
                                       size_t, size_t);
int malloc_arena_call_out_size_size (malloc_arena *, malloc_arena_out_size_size_routine, void **,
                                     size_t, size_t);
char *malloc_arena_call_str (malloc_arena *, malloc_arena_str_routine, const char *);
char *malloc_arena_call_str_size (malloc_arena *, malloc_arena_str_size_routine, const char *,
                                  size_t);
char *malloc_arena_call_str_buf (malloc_arena *, malloc_arena_str_buf_routine, const char *,
                                 char *);
wchar_t *malloc_arena_call_wcs (malloc_arena *, malloc_arena_wcs_routine, const wchar_t *);
int malloc_arena_call_printf (malloc_arena *, malloc_arena_printf_routine, char **, const char *,
                              ...) __attribute__ ((__format__ (__printf__, 4, 5)));
int malloc_arena_call_vprintf (malloc_arena *, malloc_arena_vprintf_routine, char **, const char *,
                               va_list) __attribute__ ((__format__ (__printf__, 4, 0)));
__ssize_t malloc_arena_call_getline (malloc_arena *, malloc_arena_getline_routine, char **,
                                     size_t *, FILE *);
__ssize_t malloc_arena_call_getdelim (malloc_arena *, malloc_arena_getdelim_routine, char **,
                                      size_t *, int, FILE *);
FILE *malloc_arena_call_memstream (malloc_arena *, malloc_arena_memstream_routine, char **,
                                   size_t *);

#ifdef __cplusplus
} /* extern "C" */
#pragma GCC diagnostic pop

/* The formats are the callers', and no literals here. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-security"
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
/* One overload per routine type; a noexcept routine converts to these. */
#define MALLOC_ARENA_OVERLOAD(result, call, routine_type, params, args)                            \
  inline result malloc_arena_call (malloc_arena *arena, routine_type routine,                      \
                                   MALLOC_ARENA_UNWRAP params)                                     \
  {                                                                                                \
    return call (arena, routine, MALLOC_ARENA_UNWRAP args);                                        \
  }
#define MALLOC_ARENA_UNWRAP(...) __VA_ARGS__
MALLOC_ARENA_OVERLOAD (void *, malloc_arena_call_size, malloc_arena_size_routine, (size_t a), (a))
MALLOC_ARENA_OVERLOAD (void *, malloc_arena_call_size_size, malloc_arena_size_size_routine,
                       (size_t a, size_t b), (a, b))
MALLOC_ARENA_OVERLOAD (void *, malloc_arena_call_ptr_size, malloc_arena_ptr_size_routine,
                       (void *a, size_t b), (a, b))
MALLOC_ARENA_OVERLOAD (void *, malloc_arena_call_ptr_size_size, malloc_arena_ptr_size_size_routine,
                       (void *a, size_t b, size_t c), (a, b, c))
MALLOC_ARENA_OVERLOAD (int, malloc_arena_call_out_size_size, malloc_arena_out_size_size_routine,
                       (void **a, size_t b, size_t c), (a, b, c))
MALLOC_ARENA_OVERLOAD (char *, malloc_arena_call_str, malloc_arena_str_routine, (const char *a),
                       (a))
MALLOC_ARENA_OVERLOAD (char *, malloc_arena_call_str_size, malloc_arena_str_size_routine,
                       (const char *a, size_t b), (a, b))
MALLOC_ARENA_OVERLOAD (char *, malloc_arena_call_str_buf, malloc_arena_str_buf_routine,
                       (const char *a, char *b), (a, b))
MALLOC_ARENA_OVERLOAD (wchar_t *, malloc_arena_call_wcs, malloc_arena_wcs_routine,
                       (const wchar_t *a), (a))
MALLOC_ARENA_OVERLOAD (int, malloc_arena_call_vprintf, malloc_arena_vprintf_routine,
                       (char **a, const char *b, va_list c), (a, b, c))
MALLOC_ARENA_OVERLOAD (__ssize_t, malloc_arena_call_getline, malloc_arena_getline_routine,
                       (char **a, size_t *b, FILE *c), (a, b, c))
MALLOC_ARENA_OVERLOAD (__ssize_t, malloc_arena_call_getdelim, malloc_arena_getdelim_routine,
                       (char **a, size_t *b, int c, FILE *d), (a, b, c, d))
MALLOC_ARENA_OVERLOAD (FILE *, malloc_arena_call_memstream, malloc_arena_memstream_routine,
                       (char **a, size_t *b), (a, b))
template <typename... Arguments>
inline int
malloc_arena_call (malloc_arena *arena, malloc_arena_printf_routine routine, char **out,
                   const char *format, Arguments... arguments)
{
  return malloc_arena_call_printf (arena, routine, out, format, arguments...);
}
#pragma GCC diagnostic pop
#undef MALLOC_ARENA_OVERLOAD
#undef MALLOC_ARENA_UNWRAP
#define malloc_arena(arena, ...) malloc_arena_call (arena, __VA_ARGS__)
#else
/* clang-format off */
#define malloc_arena(arena, routine, ...)                                                          \
  _Generic ((routine),                                                                             \
    malloc_arena_size_routine: malloc_arena_call_size,                                             \
    malloc_arena_size_size_routine: malloc_arena_call_size_size,                                   \
    malloc_arena_ptr_size_routine: malloc_arena_call_ptr_size,                                     \
    malloc_arena_ptr_size_size_routine: malloc_arena_call_ptr_size_size,                           \
    malloc_arena_out_size_size_routine: malloc_arena_call_out_size_size,                           \
    malloc_arena_str_routine: malloc_arena_call_str,                                               \
    malloc_arena_str_size_routine: malloc_arena_call_str_size,                                     \
    malloc_arena_str_buf_routine: malloc_arena_call_str_buf,                                       \
    malloc_arena_wcs_routine: malloc_arena_call_wcs,                                               \
    malloc_arena_printf_routine: malloc_arena_call_printf,                                         \
    malloc_arena_vprintf_routine: malloc_arena_call_vprintf,                                       \
    malloc_arena_getline_routine: malloc_arena_call_getline,                                       \
    malloc_arena_getdelim_routine: malloc_arena_call_getdelim,                                     \
    malloc_arena_memstream_routine: malloc_arena_call_memstream)                                   \
  ((arena), (routine), __VA_ARGS__)
/* clang-format on */
#endif

#endif /* MALLOC_ARENA_H */
