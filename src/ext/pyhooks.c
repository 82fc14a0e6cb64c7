/* pyhooks.c - the hooks on CPython's allocator domains RAW, MEM and OBJ.
 *
 * Owns: one wrapping hook per domain, installed once and for good. After initialisation CPython
 * allows wrapping hooks only, and swapping them is a race: a block must not meet another free than
 * its own. So there is no way back, no module state that could die before a block, and no memory:
 * blocks are freed through here after the module, and the interpreter, are gone. A Python that is
 * started again in the same process gets them again.
 * Free of MEM and OBJ is hooked with the first scope only: pymalloc passes what is not its own on to RAW, whose
 * hook is there from the first arena on, so that until then nobody pays for it.
 *
 * numpy has its own allocator for what arrays hold; its default handler (NEP 49) gets the same wrapping.
 * A handler set in the scope, as the NEP means it, would be a context variable of the caller's: lost in
 * threads, and left behind in tasks.
 *
 * bytearray(count), what secrets are received in, is not written with zeros a second time in an arena.
 *
 * Invariant: allocations go by the thread's active arena, free and realloc by the block's address.
 */
#include "ext.h"

#include <malloc.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum
{
  DOMAINS = MA_HOOKS,
  OFTEN = 16,
  PYMALLOC_MOST = 512 /* larger requests of MEM and OBJ pass on to RAW */
};

/* What the wrapped allocator of a domain is, as far as it matters for finding a block's size. */
enum source
{
  UNKNOWN, /* a debugging or profiling layer: may hand out interior pointers */
  LIBC,    /* malloc's own pointers */
  PYMALLOC /* its own small blocks; others are RAW's */
};

static struct
{
  PyMemAllocatorEx original;
  enum source source;
} hooked[DOMAINS];

/* With MALLOC_ARENA_OPTIONS=active=..., where allocations of no active arena go. */
static malloc_arena *standing_arena;

/* pymalloc counts blocks that it had from RAW (sys.getallocatedblocks()), and would count this one for ever, as it does
 * not see it freed: one that it sees is freed in its place. */
static void
uncount (const PyMemAllocatorEx *pymalloc)
{
  void *p = PyMem_RawMalloc (1);
  if (p != NULL)
    pymalloc->free (pymalloc->ctx, p);
}

/* A block from outside is resized while LOCAL is active: it moves in, and what it leaves is wiped.
 * A failure leaves the caller's block whole, so the arena is asked before the original allocator
 * may move or free anything. */
static __attribute__ ((cold, noinline)) void *
move_in (int domain, struct ma_local *local, void *p, size_t size)
{
  const PyMemAllocatorEx *original = &hooked[domain].original;
  void *in = NULL;
  void *out;
  if (size == 0)
    size = 1;
  switch (hooked[domain].source)
    {
    case LIBC:
      {
        in = ma_object_alloc (local, size);
        if (in == NULL)
          return NULL;
        size_t usable = malloc_usable_size (p);
        memcpy (in, p, usable < size ? usable : size);
        ma_wipe (p, usable);
        original->free (original->ctx, p);
        return in;
      }

    case PYMALLOC:
      /* Nobody but pymalloc knows the size of its small blocks; its realloc makes SIZE bytes
       * readable. What stays unwiped: the old place of a small block that it moves, or the tail of
       * one that it shrinks where it is; both hold what was written to an object from outside. A
       * large block, or one that becomes large, comes back through RAW's hook and is in already. */
      if (size <= PYMALLOC_MOST)
        {
          in = ma_object_alloc (local, size);
          if (in == NULL)
            return NULL;
        }
      out = original->realloc (original->ctx, p, size);
      break;

    default:
      in = ma_object_alloc (local, size);
      if (in == NULL)
        return NULL;
      /* With no arena active, also for RAW's hook below: a layer that puts a header in front of
       * what it got from there would hand out an interior pointer of an arena block. */
      malloc_arena_enter (NULL);
      out = original->realloc (original->ctx, p, size);
      malloc_arena_leave (NULL);
      break;
    }
  if (out == NULL || in == NULL || ma_owns (out))
    {
      if (in != NULL)
        ma_object_free (in);
      if (out != NULL && hooked[domain].source == PYMALLOC && ma_owns (out))
        uncount (original);
      return out;
    }
  memcpy (in, out, size);
  ma_wipe (out, size);
  original->free (original->ctx, out);
  return in;
}

static inline void *
resize_from_outside (int domain, struct ma_local *local, void *p, size_t size)
{
  return p == NULL ? ma_object_alloc (local, size) : move_in (domain, local, p, size);
}

/* The set for trials in which everything is in an arena; the usual set must not pay for it. An
 * enter of NULL means the ordinary allocator here as well. */
static struct ma_local *
standing_local (void)
{
  if (ma_active != NULL || ma_depth () != 0)
    return ma_active;
  return ma_local_of (standing_arena);
}

/* Of an allocator that puts a header before its blocks, a debugging one: preloaded, what it has from malloc in a scope is
 * an arena's block, and its own begins in there. It is freed by what was found before these hooks, or by these. */
static int
is_inside_block (const void *p)
{
  return unlikely (ma_owns (p)) && !ma_begins (p);
}

/* One function per domain and operation, so that the way past an arena that is not there is one test and one
 * jump; the usual ones are the library's own. The context is the original's own: a thread that allocates RAW
 * memory while the hooks are being installed may see any mixture of old and new fields. */
#define DOMAIN(i)                                                                                  \
  static void *move_in_##i (void *ctx, void *p, size_t size)                                       \
  {                                                                                                \
    (void)ctx;                                                                                     \
    return resize_from_outside (i, ma_active, p, size);                                            \
  }                                                                                                \
  static void *standing_malloc_##i (void *ctx, size_t size)                                        \
  {                                                                                                \
    struct ma_local *local = standing_local ();                                                    \
    return local != NULL ? ma_object_alloc (local, size) : hooked[i].original.malloc (ctx, size);  \
  }                                                                                                \
  static void *standing_calloc_##i (void *ctx, size_t count, size_t size)                          \
  {                                                                                                \
    struct ma_local *local = standing_local ();                                                    \
    return local != NULL ? ma_object_zalloc (local, count, size)                                   \
                         : hooked[i].original.calloc (ctx, count, size);                           \
  }                                                                                                \
  static void *standing_realloc_##i (void *ctx, void *p, size_t size)                              \
  {                                                                                                \
    struct ma_local *local = standing_local ();                                                    \
    return ma_owns (p) || local == NULL ? ma_hook_realloc_##i (ctx, p, size)                       \
                                        : resize_from_outside (i, local, p, size);                 \
  }                                                                                                \
  static void *layered_realloc_##i (void *ctx, void *p, size_t size)                               \
  {                                                                                                \
    return is_inside_block (p) ? hooked[i].original.realloc (ctx, p, size)                         \
                               : ma_hook_realloc_##i (ctx, p, size);                               \
  }                                                                                                \
  static void layered_free_##i (void *ctx, void *p)                                                \
  {                                                                                                \
    if (is_inside_block (p))                                                                       \
      hooked[i].original.free (ctx, p);                                                            \
    else                                                                                           \
      ma_hook_free_##i (ctx, p);                                                                   \
  }
DOMAIN (0)
DOMAIN (1)
DOMAIN (2)

/* Where the original does nothing but call malloc, and asks for one byte in place of none, these do it in its place: a
 * jump less. By this file's own calls: a profiler that has put its functions into the tables of calls sees them. */
static void *
libc_malloc (void *ctx, size_t size)
{
  (void)ctx;
  struct ma_local *local = ma_active;
  if (unlikely (local != NULL))
    return ma_object_alloc (local, size);
  return malloc (unlikely (size == 0) ? 1 : size);
}

static void *
libc_calloc (void *ctx, size_t count, size_t size)
{
  (void)ctx;
  struct ma_local *local = ma_active;
  if (unlikely (local != NULL))
    return ma_object_zalloc (local, count, size);
  return count == 0 || size == 0 ? calloc (1, 1) : calloc (count, size);
}

static void *
libc_realloc (void *ctx, void *p, size_t size)
{
  (void)ctx;
  if (unlikely (size == 0))
    size = 1; /* C's realloc would free */
  if (unlikely (ma_owns (p)))
    return ma_object_resize (p, size);
  struct ma_local *local = ma_active;
  if (unlikely (local != NULL))
    return resize_from_outside (0, local, p, size); /* of whatever domain: its source is LIBC */
  return realloc (p, size);
}

static void
libc_free (void *ctx, void *p)
{
  (void)ctx;
  if (unlikely (ma_owns (p)))
    ma_object_free (p);
  else
    free (p);
}

static ma_hook_realloc *const from_outside[DOMAINS] = { move_in_0, move_in_1, move_in_2 };

#define SCOPED(i)                                                                                  \
  { NULL, ma_hook_malloc_##i, ma_hook_calloc_##i, ma_hook_realloc_##i, ma_hook_free_##i }
#define LAYERED(i)                                                                                 \
  { NULL, ma_hook_malloc_##i, ma_hook_calloc_##i, layered_realloc_##i, layered_free_##i }
#define STANDING(i)                                                                                \
  { NULL, standing_malloc_##i, standing_calloc_##i, standing_realloc_##i, ma_hook_free_##i }

static const PyMemAllocatorEx scoped_set[DOMAINS] = { SCOPED (0), SCOPED (1), SCOPED (2) };
static const PyMemAllocatorEx layered_set[DOMAINS] = { LAYERED (0), LAYERED (1), LAYERED (2) };
static const PyMemAllocatorEx libc_hooks
    = { NULL, libc_malloc, libc_calloc, libc_realloc, libc_free };
static const PyMemAllocatorEx standing_set[DOMAINS] = { STANDING (0), STANDING (1), STANDING (2) };
static const PyMemAllocatorDomain domains[DOMAINS]
    = { PYMEM_DOMAIN_RAW, PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ };

/* Private to CPython, so it may be missing: then a block's size is unknown, and move_in does with
 * less. NULL also where another layer than CPython's own is in place. */
extern const char *_PyMem_GetCurrentAllocatorName (void) __attribute__ ((weak));

static const char *
allocator_name (void)
{
  return _PyMem_GetCurrentAllocatorName != NULL ? _PyMem_GetCurrentAllocatorName () : NULL;
}

/* With option active and the library preloaded, what lies under CPython's allocators is in the arena
 * already, and a debugging one hands out addresses inside such blocks: they tell of nobody whether
 * they are an arena's own or the debugging allocator's. */
static int
is_debug_on_arena (void)
{
  const char *name = allocator_name ();
  if (ma_default_arena () == NULL || name == NULL || strstr (name, "debug") == NULL)
    return 0;
  void *raw = PyMem_RawMalloc (1);
  int is_inside = ma_owns (raw);
  PyMem_RawFree (raw);
  return is_inside;
}

/* ---- bytearray ---- */

static initproc bytearray_original;

/* bytearray(count) fills with zeros what an arena has zero already, which takes longer than all else that is done with a
 * buffer of 100 KB. So it gets its memory from calloc, and is what PyByteArray_Resize would leave: a zero after the last
 * byte, which counts as allocated. Whatever is not a plain count of a new object goes on, errors too. */
static int
bytearray_init (PyObject *self, PyObject *args, PyObject *keywords)
{
  PyByteArrayObject *array = (PyByteArrayObject *)self;
  if (ma_active == NULL || keywords != NULL || array->ob_bytes != NULL || array->ob_exports != 0
      || PyTuple_GET_SIZE (args) != 1 || !PyLong_CheckExact (PyTuple_GET_ITEM (args, 0)))
    return bytearray_original (self, args, keywords);
  Py_ssize_t count = PyLong_AsSsize_t (PyTuple_GET_ITEM (args, 0));
  char *bytes = count > 0 && count < PY_SSIZE_T_MAX ? PyObject_Calloc ((size_t)count + 1, 1) : NULL;
  if (bytes == NULL)
    {
      PyErr_Clear ();
      return bytearray_original (self, args, keywords);
    }
  array->ob_bytes = array->ob_start = bytes;
  array->ob_alloc = count + 1;
  Py_SET_SIZE (self, count);
  return 0;
}

static void
hook_bytearray (void)
{
  if (PyByteArray_Type.tp_init == bytearray_init)
    return;
  bytearray_original = PyByteArray_Type.tp_init;
  atomic_thread_fence (memory_order_seq_cst);
  PyByteArray_Type.tp_init = bytearray_init;
}

/* ---- installed ---- */

static int is_owner; /* of the hooks, and not another copy of this module */
/* Scopes until it is asked again whether free of MEM and OBJ is hooked as well. */
static _Atomic unsigned complete_for;

static PyMemAllocatorEx
hook_of (int domain)
{
  enum source source = hooked[domain].source;
  return standing_arena != NULL ? standing_set[domain]
         : source == LIBC       ? libc_hooks
         : source == UNKNOWN    ? layered_set[domain]
                                : scoped_set[domain];
}

/* RAW first, to which pymalloc passes on what is not its own. */
static void
place (void)
{
  for (int i = 0; i < DOMAINS; i++)
    {
      PyMemAllocatorEx hook = hook_of (i);
      hook.ctx = hooked[i].original.ctx;
      if (standing_arena == NULL && hooked[i].source == PYMALLOC)
        hook.free = hooked[i].original.free;
      PyMem_SetAllocator (domains[i], &hook);
    }
  hook_bytearray ();
  complete_for = 0;
}

/* A Python that was ended and is started again sets its allocators anew. */
static int
are_gone (void)
{
  for (int i = 0; i < DOMAINS; i++)
    {
      PyMemAllocatorEx top;
      PyMem_GetAllocator (domains[i], &top);
      if (!is_owner || top.malloc != hooked[i].original.malloc)
        return 0;
    }
  return 1;
}

static void
install (void)
{
  const char *name = allocator_name ();
  int is_libc = name != NULL && strcmp (name, "malloc") == 0;
  int is_pymalloc = name != NULL && strcmp (name, "pymalloc") == 0;
  standing_arena = ma_default_arena ();
  struct ma_hooked originals[MA_HOOKS];
  for (int i = 0; i < DOMAINS; i++)
    {
      PyMem_GetAllocator (domains[i], &hooked[i].original);
      originals[i] = (struct ma_hooked){ hooked[i].original.malloc, hooked[i].original.calloc,
                                         hooked[i].original.realloc, hooked[i].original.free,
                                         from_outside[i] };
      if (is_libc || (is_pymalloc && domains[i] == PYMEM_DOMAIN_RAW))
        hooked[i].source = LIBC;
      else
        hooked[i].source = is_pymalloc ? PYMALLOC : UNKNOWN;
    }
  /* Another copy of this module has done it: hooks on its hooks would be for nothing. */
  if (!ma_hook (originals))
    return;
  is_owner = 1;
  atomic_thread_fence (memory_order_seq_cst);
  place ();
}

/* With the GIL. Before the first object, as pymalloc counts one block less with each that it passes on (in
 * sys.getallocatedblocks()), and takes longer. Not where another tool's layer is on top, which frees by what it found. */
void
pyhooks_complete (void)
{
  /* Not asked each time, as from 3.12 on the answer takes a lock; but another tool may put back what it saved. */
  unsigned left = atomic_load_explicit (&complete_for, memory_order_relaxed);
  atomic_store_explicit (&complete_for, left - 1, memory_order_relaxed);
  if (likely (left != 0))
    return;
  int done = 1;
  for (int i = 0; i < DOMAINS; i++)
    {
      PyMemAllocatorEx top;
      PyMem_GetAllocator (domains[i], &top);
      if (top.free == hook_of (i).free)
        continue;
      if (top.free != hooked[i].original.free || top.malloc != scoped_set[i].malloc)
        {
          done = 0;
          continue;
        }
      top.free = scoped_set[i].free;
      PyMem_SetAllocator (domains[i], &top);
    }
  complete_for = done ? OFTEN : 0;
}

/* tracemalloc puts back at its stop what it found at its start. Were that from before us, arena
 * blocks would meet pymalloc's free; so it is stopped while we install, and started on top. */
struct tracer
{
  PyObject *stop;
  PyObject *start;
  PyObject *depth; /* NULL: not tracing */
};

static int
find_tracer (struct tracer *tracer)
{
  *tracer = (struct tracer){ 0 };
  PyObject *module = PyImport_ImportModule ("_tracemalloc");
  if (module == NULL)
    {
      PyErr_Clear (); /* a build without it, or an interpreter with a GIL of its own */
      if (PyInterpreterState_Get () == PyInterpreterState_Main () || allocator_name () != NULL
          || _PyMem_GetCurrentAllocatorName == NULL)
        return 0;
      core_error ("ArenaError",
                  "a tool (tracemalloc?) is on top of CPython's memory allocators, and cannot be "
                  "stopped from this interpreter: make the first arena in the main one");
      return -1;
    }
  PyObject *is_tracing = PyObject_CallMethod (module, "is_tracing", NULL);
  int found = is_tracing == NULL ? -1 : PyObject_IsTrue (is_tracing);
  if (found == 1)
    {
      tracer->stop = PyObject_GetAttrString (module, "stop");
      tracer->start = PyObject_GetAttrString (module, "start");
      tracer->depth = PyObject_CallMethod (module, "get_traceback_limit", NULL);
      if (tracer->stop == NULL || tracer->start == NULL || tracer->depth == NULL)
        found = -1;
    }
  Py_XDECREF (is_tracing);
  Py_DECREF (module);
  return found;
}

/* The call with what find_tracer made allocates nothing that the collector tracks, so that no
 * finalizer can run between stop and start. */
static int
done (PyObject *result)
{
  Py_XDECREF (result);
  return result != NULL;
}

int
pyhooks_install (void)
{
  enum
  {
    ABSENT,
    INSTALLING,
    INSTALLED
  };
  static _Atomic int state = ABSENT;
  if (!HAS_HOOKS)
    return 0;
  if (likely (atomic_load_explicit (&state, memory_order_acquire) == INSTALLED))
    {
      if (unlikely (are_gone ()))
        place ();
      return 0;
    }
  if (is_debug_on_arena ())
    {
      core_error ("ArenaError",
                  "CPython's debugging allocator (PYTHONMALLOC=debug, -X dev) lies on "
                  "a malloc that option active has placed in an arena: start without "
                  "one of the two");
      return -1;
    }
  struct tracer tracer;
  int found = find_tracer (&tracer);
  int ok = found != -1;
  if (ok)
    {
      int seen = ABSENT;
      while (!atomic_compare_exchange_strong (&state, &seen, INSTALLING) && seen == INSTALLING)
        {
          /* An interpreter with a GIL of its own is at it. */
          PyThreadState *thread = PyEval_SaveThread ();
          sched_yield ();
          PyEval_RestoreThread (thread);
          seen = ABSENT;
        }
      if (seen == ABSENT)
        {
          ok = !found || done (PyObject_CallNoArgs (tracer.stop));
          if (ok)
            {
              install ();
              /* What is put on top now is there at the first scope. */
              if (found)
                pyhooks_complete ();
              ok = !found || done (PyObject_CallOneArg (tracer.start, tracer.depth));
              atomic_store_explicit (&state, INSTALLED, memory_order_release);
            }
          else
            atomic_store_explicit (&state, ABSENT, memory_order_release);
        }
    }
  Py_XDECREF (tracer.stop);
  Py_XDECREF (tracer.start);
  Py_XDECREF (tracer.depth);
  return ok ? 0 : -1;
}

enum pyhooks_probe
pyhooks_probe (void)
{
  /* RAW first, which the others' blocks are freed by if another tool found pymalloc's free. */
  void *raw = PyMem_RawMalloc (1);
  int held = ma_owns (raw), is_refused = raw == NULL;
  PyMem_RawFree (raw);
  if (!held)
    return is_refused ? PYHOOKS_REFUSED : PYHOOKS_LOST;
  void *mem = PyMem_Malloc (1);
  void *obj = PyObject_Malloc (1);
  held = ma_owns (mem) && ma_owns (obj);
  is_refused = mem == NULL || obj == NULL;
  PyMem_Free (mem);
  PyObject_Free (obj);
  return held ? PYHOOKS_HOLD : is_refused ? PYHOOKS_REFUSED : PYHOOKS_LOST;
}

/* ---- numpy ---- */

/* As numpy/ndarraytypes.h declares it since 1.22. */
struct numpy_handler
{
  char name[127];
  uint8_t version;
  void *ctx;
  void *(*malloc) (void *ctx, size_t size);
  void *(*calloc) (void *ctx, size_t count, size_t size);
  void *(*realloc) (void *ctx, void *p, size_t size);
  void (*free) (void *ctx, void *p, size_t size);
};

static struct numpy_handler numpy_original;

static void *
numpy_malloc (void *ctx, size_t size)
{
  if (unlikely (ma_active != NULL))
    return ma_object_alloc (ma_active, size);
  return numpy_original.malloc (ctx, size);
}

static void *
numpy_calloc (void *ctx, size_t count, size_t size)
{
  if (unlikely (ma_active != NULL))
    return ma_object_zalloc (ma_active, count, size);
  return numpy_original.calloc (ctx, count, size);
}

static void *
numpy_realloc (void *ctx, void *p, size_t size)
{
  if (ma_owns (p))
    return ma_object_resize (p, size != 0 ? size : 1);
  if (likely (ma_active == NULL))
    return numpy_original.realloc (ctx, p, size);
  void *in = ma_object_alloc (ma_active, size);
  if (in == NULL || p == NULL)
    return in;
  /* numpy 2 asks CPython's RAW domain, whose hook moves the block in; before, it asked malloc. */
  void *out = numpy_original.realloc (ctx, p, size);
  if (out == NULL || ma_owns (out))
    {
      ma_object_free (in);
      return out;
    }
  memcpy (in, out, size);
  ma_wipe (out, size);
  numpy_original.free (ctx, out, size);
  return in;
}

static void
numpy_free (void *ctx, void *p, size_t size)
{
  if (ma_owns (p))
    ma_object_free (p);
  else
    numpy_original.free (ctx, p, size);
}

/* The address of numpy's default handler, from the table of its C interface (_ARRAY_API); None where
 * it is not what this file knows. */
PyObject *
pyhooks_numpy_handler (PyObject *Py_UNUSED (module), PyObject *capsule)
{
  enum
  {
    FEATURE_VERSION = 211, /* PyArray_GetNDArrayCFeatureVersion */
    DEFAULT_HANDLER = 306, /* &PyDataMem_DefaultHandler */
    NUMPY_1_22 = 0xf
  };
  void **table = PyCapsule_GetPointer (capsule, NULL);
  if (table == NULL)
    return NULL;
  unsigned (*feature_version) (void);
  memcpy (&feature_version, &table[FEATURE_VERSION], sizeof feature_version);
  if (feature_version () < NUMPY_1_22)
    Py_RETURN_NONE;
  PyObject *inner = *(PyObject **)table[DEFAULT_HANDLER];
  struct numpy_handler *handler
      = inner != NULL ? PyCapsule_GetPointer (inner, "mem_handler") : NULL;
  if (handler == NULL && PyErr_Occurred ())
    return NULL;
  if (handler == NULL || handler->version != 1 || strcmp (handler->name, "default_allocator") != 0)
    Py_RETURN_NONE;
  return PyLong_FromVoidPtr (handler);
}

/* Wraps the handler at ADDRESS, which must be writable; once. */
PyObject *
pyhooks_hook_numpy (PyObject *Py_UNUSED (module), PyObject *address)
{
  struct numpy_handler *handler = PyLong_AsVoidPtr (address);
  if (handler == NULL)
    return PyErr_Occurred () ? NULL : Py_NewRef (Py_None);
  if (handler->malloc == numpy_malloc)
    Py_RETURN_NONE;
  numpy_original = *handler;
  atomic_thread_fence (memory_order_seq_cst);
  handler->free = numpy_free;
  handler->realloc = numpy_realloc;
  atomic_thread_fence (memory_order_seq_cst);
  handler->malloc = numpy_malloc;
  handler->calloc = numpy_calloc;
  Py_RETURN_NONE;
}
