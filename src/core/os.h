/* os.h - everything this library asks of the kernel, one contract each.
 *
 * Ranges are whole pages. A function returns 0 or the errno of the refusal, and has then changed
 * nothing that its contract does not name. errno itself is left alone. No function allocates.
 */
#ifndef MA_OS_H
#define MA_OS_H

#include <stddef.h>
#include <stdint.h>

/* On x86-64 a constant, so that the hot paths fold it; elsewhere what the kernel says. */
#if defined(__x86_64__)
#define MA_PAGE_SHIFT 12
#define MA_PAGE_MOST 4096
static inline void
os_init (void)
{
}
#else
extern unsigned ma_page_shift;
#define MA_PAGE_SHIFT ma_page_shift
#define MA_PAGE_MOST 65536 /* what sealed structures are aligned to and fill */
void os_init (void);
#endif
#define MA_PAGE ((size_t)1 << MA_PAGE_SHIFT)

static inline size_t
os_round_up (size_t n, size_t align)
{
  return (n + align - 1) & ~(align - 1);
}

/* Address space only: inaccessible, uncommitted, left out of dumps, aligned to ALIGN. */
int os_reserve (size_t size, size_t align, void **out);
void os_unreserve (void *p, size_t size);
/* Zeroed memory for metadata, committed as it is touched, a guard page on each side. */
int os_map (size_t size, void **out);

/* The same, inaccessible until os_open is told of a part: only that counts as memory that may be written, of which
 * the kernel promises no more than it has (RLIMIT_DATA, strict overcommit), and is made present by mlockall. */
int os_map_closed (size_t size, void **out);

/* Accessible; new pages read as zero. */
int os_open (void *p, size_t size);
/* The same with a memory tag beside each 16 bytes, all 0 at first (Arm MTE). EINVAL, or ENOTSUP where
 * this library knows of no tags: not offered. */
int os_open_tagged (void *p, size_t size);
/* Has the accesses of the calling thread, and of those that it starts from now on, checked against memory
 * tags, and the system calls take tagged pointers: with IS_PRECISE at the access, else at the next entry
 * of the kernel. What the thread has of that already is never weakened. ENOTSUP where the CPU, the
 * kernel or a limit of this process lacks it; that is also for a thread that may not have it. */
int os_check_tags (int is_precise);
/* Whether they are, and the same errno if not. */
int os_tags_checked (void);
/* Inaccessible; what was there stays until os_discard. */
int os_close (void *p, size_t size);
/* As first reserved: inaccessible, unlocked, its pages and guards gone, its advice forgotten, in one
 * step. Not a wipe: the pages are zeroed when the kernel gives them out again. */
int os_release (void *p, size_t size);
/* An errno if that could not leave something out of dumps again, since a filter on system calls, say; else 0. */
int os_release_refused (void);
/* The same in a forked child, for what os_fork_absent left out of it: nothing else may come to lie there.
 * The child has fewer mappings than its parent had, so that this fails only where the kernel is out of
 * memory itself. */
int os_fill_hole (void *p, size_t size);
/* The same for anonymous memory (not secret memory, which keeps its pages) where os_release is
 * refused: at max_map_count the kernel makes no mapping, not even in the place of another. What the
 * memory was told is taken back step by step; where it is a mapping of its own no step splits one,
 * and the last joins it to its neighbours, which makes room again. */
int os_restore (void *p, size_t size);
/* Write-protects a structure of whole pages, or makes it writable again. */
int os_seal (void *p, size_t size, int sealed);

/* A fault on touch, at no cost in mappings where the kernel has guard markers (6.13), else by
 * protection. Refused (EINVAL) on locked memory: guards first, locks after. */
int os_guard (void *p, size_t size);

/* Never swapped: pages present now, and others as they are touched. Guarded pages in the range are
 * allowed. EPERM, ENOMEM, EAGAIN: over the limit; ENOSYS and the like: not offered. */
int os_lock (void *p, size_t size);
int os_unlock (void *p, size_t size);
/* Makes the pages present and writable now, in one call instead of one fault each. */
void os_populate (void *p, size_t size);
/* Pages back to the kernel; they read as zero at the next touch. Locked ranges stay locked. */
int os_discard (void *p, size_t size, int locked);

/* Bit 0 of PRESENT[I] tells whether page I of anonymous memory is present. One that is not was never written, or is
 * swapped out: os_discard makes both zero. */
int os_present (void *p, size_t size, unsigned char *present);
/* Whether the byte at P can be read, by asking: no fault, and nothing is written. */
int os_is_readable (const void *p);

int os_exclude_from_dump (void *p, size_t size);
int os_include_in_dump (void *p, size_t size);

/* What a forked child finds: zeros, a copy, or nothing. */
int os_fork_wiped (void *p, size_t size);
int os_fork_copied (void *p, size_t size);
int os_fork_absent (void *p, size_t size);

/* Memory that is in no other address space, the kernel's included (memfd_secret): accessible, zero,
 * locked, not dumped. It can only be shared over fork, so that a child has none of it. ENOSYS: not
 * offered; EAGAIN and the like: over the lock limit. */
int os_open_secret (void *p, size_t size);
/* For a child that is to have its own: a descriptor (>= 0) of a copy, or minus an errno; and the copy
 * in place of the hole. The descriptor is the caller's to close. */
int os_secret_copy (const void *p, size_t size);
int os_open_secret_copy (void *p, size_t size, int copy);
void os_close_copy (int copy);

/* N unpredictable bytes. Weak ones (time, addresses) where the kernel refuses: callers use them for
 * detection only. */
void os_random (void *p, size_t n);

/* Bounds of the stack that the process began with, down to where it may grow, 64 MiB at most: the kernel keeps
 * everything else further away. Async-signal-safe. */
void os_first_stack (char **low, char **end);

/* Where the code of the dynamic linker is; left alone where there is none. */
void os_loader (uintptr_t *base, size_t *size);

/* Where the stack for signals begins if the caller is on one (sigaltstack), else NULL. Async-signal-safe. */
char *os_signal_stack (void);

/* The calling thread, and whether a thread of the process has ended; by a number that is used again. */
int os_thread (void);
int os_is_gone (int thread);

/* The lock limit in bytes, SIZE_MAX if none. */
size_t os_lock_limit (void);

#endif
