/* peer.h - one allocator under measurement, chosen at compile time.
 *
 * Every contender is a program of its own, linked as its user would link it and called directly:
 * no table of function pointers that all pay for, no allocator that lives in a corner of another's
 * process with the wrong thread caches.
 *
 *   peer_start (pool)            before the first allocation; NULL, or why it cannot work here
 *   peer_thread ()               at the start of every thread that allocates
 *   peer_alloc (size)            NULL on failure
 *   peer_free (p, size)          size is for those that want it back (Botan)
 *   peer_resize (p, old, size)   by the peer's realloc; alloc, copy, free where there is none
 *   peer_version (text, size)
 *
 * POOL is the size of the pool for those that want one at start.
 */
#ifndef PEER_H
#define PEER_H

#include <errno.h>
#include <gnu/libc-version.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined PEER_ARENA

#include <malloc_arena.h>
#define PEER_LOCKS ((PEER_ARENA & HEAP_SECURE) != 0)
static malloc_arena *peer_arena;
void ma_wipe (void *p, size_t n); /* for the extension, and exported therefore */

static const char *
peer_start (size_t pool)
{
  (void)pool;
  peer_arena = malloc_arena_get (PEER_ARENA);
  if (peer_arena == NULL)
    return strerror (errno);
  malloc_arena_enter (peer_arena);
  return NULL;
}

static void
peer_thread (void)
{
  malloc_arena_enter (peer_arena);
}

static void
peer_version (char *text, size_t size)
{
  snprintf (text, size, "%d.%d.%d", MALLOC_ARENA_VERSION_MAJOR, MALLOC_ARENA_VERSION_MINOR,
            MALLOC_ARENA_VERSION_PATCH);
}

#elif defined PEER_JEMALLOC

#include <jemalloc/jemalloc.h>

static void
peer_version (char *text, size_t size)
{
  const char *version = "?";
  size_t length = sizeof version;
  mallctl ("version", &version, &length, NULL, 0);
  snprintf (text, size, "%s", version);
}

#elif defined PEER_MIMALLOC

#include <mimalloc.h>
#define PEER_OWN_CALLS

static inline void *
peer_alloc (size_t size)
{
  return mi_malloc (size);
}

static inline void
peer_free (void *p, size_t size)
{
  (void)size;
  mi_free (p);
}

static inline void *
peer_resize (void *p, size_t old, size_t size)
{
  (void)old;
  return mi_realloc (p, size);
}

static void
peer_version (char *text, size_t size)
{
  int version = mi_version ();
  snprintf (text, size, "%d.%d.%d", version / 100, version / 10 % 10, version % 10);
}

#elif defined PEER_SODIUM

#include <sodium.h>
#define PEER_OWN_CALLS
#define PEER_NO_REALLOC
#define PEER_LOCKS 1

static const char *
peer_start (size_t pool)
{
  (void)pool;
  return sodium_init () < 0 ? "sodium_init failed" : NULL;
}
#define PEER_OWN_START

static inline void *
peer_alloc (size_t size)
{
  return sodium_malloc (size);
}

static inline void
peer_free (void *p, size_t size)
{
  (void)size;
  sodium_free (p);
}

static void
peer_version (char *text, size_t size)
{
  snprintf (text, size, "%s", sodium_version_string ());
}

#elif defined PEER_OPENSSL

#include <openssl/crypto.h>
#define PEER_OWN_CALLS
#define PEER_NO_REALLOC
#define PEER_LOCKS 1

/* Never initialised, the secure heap is silently plain malloc. */
static const char *
peer_start (size_t pool)
{
  return CRYPTO_secure_malloc_init (pool, 16) == 0 ? "CRYPTO_secure_malloc_init failed" : NULL;
}
#define PEER_OWN_START

static inline void *
peer_alloc (size_t size)
{
  return OPENSSL_secure_malloc (size);
}

static inline void
peer_free (void *p, size_t size)
{
  (void)size;
  OPENSSL_secure_free (p);
}

static void
peer_version (char *text, size_t size)
{
  snprintf (text, size, "%s", OpenSSL_version (OPENSSL_VERSION));
}

#elif defined PEER_GCRYPT

#include <gcrypt.h>
#define PEER_OWN_CALLS
#define PEER_LOCKS 1

static const char *
peer_start (size_t pool)
{
  if (gcry_check_version (NULL) == NULL)
    return "gcry_check_version failed";
  gcry_control (GCRYCTL_SUSPEND_SECMEM_WARN);
  if (gcry_control (GCRYCTL_INIT_SECMEM, (unsigned)pool, 0) != 0)
    return "GCRYCTL_INIT_SECMEM failed";
  gcry_control (GCRYCTL_INITIALIZATION_FINISHED, 0);
  return NULL;
}
#define PEER_OWN_START

static inline void *
peer_alloc (size_t size)
{
  return gcry_malloc_secure (size);
}

static inline void
peer_free (void *p, size_t size)
{
  (void)size;
  gcry_free (p);
}

static inline void *
peer_resize (void *p, size_t old, size_t size)
{
  (void)old;
  return gcry_realloc (p, size);
}

static void
peer_version (char *text, size_t size)
{
  snprintf (text, size, "%s", gcry_check_version (NULL));
}

#elif defined PEER_BOTAN

#define PEER_OWN_CALLS
#define PEER_NO_REALLOC
#define PEER_LOCKS 1

/* peer_botan.cc */
void *botan_alloc (size_t size);
void botan_free (void *p, size_t size);
const char *botan_version (void);

static inline void *
peer_alloc (size_t size)
{
  return botan_alloc (size);
}

static inline void
peer_free (void *p, size_t size)
{
  botan_free (p, size);
}

static void
peer_version (char *text, size_t size)
{
  snprintf (text, size, "%s", botan_version ());
}

#elif defined PEER_GLIBC

static void
peer_version (char *text, size_t size)
{
  snprintf (text, size, "%s", gnu_get_libc_version ());
}

#else
#error "compile with -DPEER_... (see run.py)"
#endif

#ifndef PEER_LOCKS
#define PEER_LOCKS 0
#endif

#ifndef PEER_ARENA
#ifndef PEER_OWN_START
static const char *
peer_start (size_t pool)
{
  (void)pool;
  return NULL;
}
#endif

static void
peer_thread (void)
{
}
#endif

#ifndef PEER_OWN_CALLS
static inline void *
peer_alloc (size_t size)
{
  return malloc (size);
}

static inline void
peer_free (void *p, size_t size)
{
  (void)size;
  free (p);
}

static inline void *
peer_resize (void *p, size_t old, size_t size)
{
  (void)old;
  return realloc (p, size);
}
#endif

#ifdef PEER_NO_REALLOC
static inline void *
peer_resize (void *p, size_t old, size_t size)
{
  void *q = peer_alloc (size);
  if (q == NULL)
    return NULL;
  memcpy (q, p, old < size ? old : size);
  peer_free (p, old);
  return q;
}
#endif

#endif
