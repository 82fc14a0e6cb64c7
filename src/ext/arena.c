/* arena.c - Arena, a handle of the library as a Python object: made, asked, closed.
 */
#include "ext.h"

#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <structmember.h>

enum
{
  KINDS = 16,
  NAME_MOST = 31
};

/* Python's own arena of each kind; of the process, whatever interpreter asks first. */
static _Atomic (malloc_arena *) shared_arenas[KINDS];

int
arena_check_open (struct arena_object *self)
{
  if (likely (self->handle != NULL))
    return 0;
  core_error ("ArenaError", "arena \"%U\" is closed", self->name);
  return -1;
}

/* Threads of this interpreter inherit scopes from now on, and numpy's data is in them. What sweeps is here before the
 * first sweep: in a child that is forked while another thread imports it, that import would never end. */
static int
follow_threads (PyTypeObject *type)
{
  struct core_state *state = core_state_of (type);
  if (state == NULL)
    return -1;
  if (!HAS_HOOKS || likely (state->is_following))
    return 0;
  malloc_arena_enter (NULL); /* it lasts */
  PyObject *module = PyImport_ImportModule ("malloc_arena.threads");
  PyObject *result = module != NULL ? PyObject_CallMethod (module, "install", NULL) : NULL;
  PyObject *sweep = result != NULL ? PyImport_ImportModule ("malloc_arena.sweep") : NULL;
  state->is_following = sweep != NULL;
  Py_XDECREF (sweep);
  Py_XDECREF (result);
  Py_XDECREF (module);
  malloc_arena_leave (NULL);
  return state->is_following ? 0 : -1;
}

static PyObject *
wrap (PyTypeObject *type, malloc_arena *handle, unsigned kind, int is_shared)
{
  struct arena_object *self = (struct arena_object *)type->tp_alloc (type, 0);
  if (self != NULL)
    {
      self->handle = handle;
      self->kind = kind;
      self->is_shared = is_shared;
      self->name = PyUnicode_FromString (malloc_arena_name (handle));
      if (self->name != NULL && pyhooks_install () == 0 && follow_threads (type) == 0)
        {
          streams_learn ();
          return (PyObject *)self;
        }
      Py_DECREF (self); /* and the handle with it */
    }
  else if (!is_shared)
    malloc_arena_delete (handle);
  return NULL;
}

/* Arenas whose object is gone while something in them lives; ended when a new one is made. */
static _Atomic (malloc_arena *) orphans[256];

static void
orphan (malloc_arena *handle)
{
  for (size_t i = 0; i < sizeof orphans / sizeof orphans[0]; i++)
    {
      malloc_arena *none = NULL;
      if (atomic_compare_exchange_strong (&orphans[i], &none, handle))
        return;
    }
}

static void
end_orphans (void)
{
  for (size_t i = 0; i < sizeof orphans / sizeof orphans[0]; i++)
    {
      malloc_arena *handle = atomic_load (&orphans[i]) ? atomic_exchange (&orphans[i], NULL) : NULL;
      if (handle != NULL && malloc_arena_delete (handle) == -1)
        orphan (handle);
    }
}

static malloc_arena *
new_handle (const struct malloc_arena_options *options)
{
  end_orphans ();
  /* Locks and page tables may take the kernel a while. */
  PyThreadState *thread = PyEval_SaveThread ();
  malloc_arena *handle = malloc_arena_new (options);
  int error = errno;
  PyEval_RestoreThread (thread);
  if (handle == NULL)
    core_unavailable (error, options->kind);
  return handle;
}

/* One of WORDS, which end in NULL, by number from 1; 0 for None, -1 with ValueError. */
static int
choice (PyObject *word, const char *key, const char *const *words)
{
  if (word == Py_None)
    return 0;
  const char *text = PyUnicode_Check (word) ? PyUnicode_AsUTF8 (word) : NULL;
  for (int i = 0; text != NULL && words[i] != NULL; i++)
    if (strcmp (text, words[i]) == 0)
      return i + 1;
  if (!PyErr_Occurred ())
    PyErr_Format (PyExc_ValueError, "%s must be \"%s\", \"%s\" or \"%s\", not %R", key, words[0],
                  words[1], words[2], word);
  return -1;
}

/* The integer in *OUT, which stays as it is for NULL; 0, or -1 with ValueError, which begins with RULE. */
static int
to_size (PyObject *number, const char *rule, size_t *out)
{
  if (number == NULL)
    return 0;
  size_t size = PyLong_Check (number) ? PyLong_AsSize_t (number) : (size_t)-1;
  if (size == (size_t)-1)
    {
      PyErr_Clear ();
      PyErr_Format (PyExc_ValueError, "%s, not %R", rule, number);
      return -1;
    }
  *out = size;
  return 0;
}

static int
to_kind (PyObject *number, size_t *out)
{
  return to_size (number, "kind must be HEAP_ flags, as HEAP_SECURE", out);
}

static PyObject *
arena_new (PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
  static char *keywords[]
      = { "kind", "name", "limit", "lock", "fork", "isolate_threshold", "heap_size", NULL };
  static const char *const locks[] = { "prefer", "require", "off", NULL };
  static const char *const forks[] = { "wipe", "keep", "refuse", NULL };
  struct malloc_arena_options options = { .size = sizeof options };
  PyObject *lock = Py_None;
  PyObject *fork_policy = Py_None;
  PyObject *kind_number;
  PyObject *limit = NULL;
  PyObject *threshold = NULL;
  PyObject *heap_size = NULL;
  size_t kind = 0;
  if (!PyArg_ParseTupleAndKeywords (args, kwargs, "O|$zOOOOO:Arena", keywords, &kind_number,
                                    &options.name, &limit, &lock, &fork_policy, &threshold,
                                    &heap_size)
      || to_kind (kind_number, &kind) == -1
      || to_size (limit, "limit must be an integer from 0 up (0 is none), in bytes", &options.limit)
             == -1
      || to_size (threshold, "isolate_threshold must be an integer from 0 up, in bytes",
                  &options.isolate_threshold)
             == -1
      || to_size (heap_size, "heap_size must be an integer from 0 up, in bytes", &options.heap_size)
             == -1)
    return NULL;
  int lock_choice = choice (lock, "lock", locks);
  int fork_choice = lock_choice == -1 ? -1 : choice (fork_policy, "fork", forks);
  if (fork_choice == -1)
    return NULL;
  if (options.name != NULL && strlen (options.name) > NAME_MOST)
    return PyErr_Format (PyExc_ValueError, "an arena's name has at most %d bytes", NAME_MOST);
  options.kind = kind < UINT_MAX ? (unsigned)kind : UINT_MAX;
  options.lock = (unsigned)lock_choice;
  /* Object headers live here: a child that found zeros would crash at the first it drops. */
  options.fork = fork_choice == 0 ? MALLOC_ARENA_FORK_KEEP : (unsigned)fork_choice;
  malloc_arena *handle = new_handle (&options);
  return handle != NULL ? wrap (type, handle, options.kind, 0) : NULL;
}

static PyObject *
arena_shared (PyObject *type, PyObject *number)
{
  size_t kind = 0;
  if (to_kind (number, &kind) == -1)
    return NULL;
  if (kind >= KINDS)
    return core_unavailable (EINVAL, kind < UINT_MAX ? (unsigned)kind : UINT_MAX);
  malloc_arena *handle = atomic_load (&shared_arenas[kind]);
  if (handle == NULL)
    {
      struct malloc_arena_options options
          = { .size = sizeof options, .kind = (unsigned)kind, .fork = MALLOC_ARENA_FORK_KEEP };
      handle = new_handle (&options);
      if (handle == NULL)
        return NULL;
      malloc_arena *first = NULL;
      if (!atomic_compare_exchange_strong (&shared_arenas[kind], &first, handle))
        {
          malloc_arena_delete (handle);
          handle = first;
        }
    }
  return wrap ((PyTypeObject *)type, handle, (unsigned)kind, 1);
}

static int
arena_traverse (PyObject *self, visitproc visit, void *arg)
{
  Py_VISIT (Py_TYPE (self));
  return 0;
}

static void
arena_dealloc (PyObject *self)
{
  struct arena_object *arena = (struct arena_object *)self;
  PyTypeObject *type = Py_TYPE (self);
  PyObject_GC_UnTrack (self);
  if (arena->weakrefs != NULL)
    PyObject_ClearWeakRefs (self);
  /* What lives in it goes on living, and is wiped when it dies. */
  if (arena->handle != NULL && !arena->is_shared && malloc_arena_delete (arena->handle) == -1)
    orphan (arena->handle);
  Py_XDECREF (arena->name);
  type->tp_free (self);
  Py_DECREF (type);
}

static PyObject *
arena_close (PyObject *self, PyObject *Py_UNUSED (ignored))
{
  struct arena_object *arena = (struct arena_object *)self;
  if (arena->handle == NULL)
    Py_RETURN_NONE;
  if (arena->is_shared)
    return core_error ("ArenaError", "arena \"%U\" is the process's own and stays", arena->name);
  int outcome = malloc_arena_delete (arena->handle);
  if (outcome == -1)
    {
      /* Garbage, and headers in CPython's free lists, are not alive. */
      int was_enabled = PyGC_Enable ();
      PyGC_Collect ();
      if (!was_enabled)
        PyGC_Disable ();
      if (arena->handle == NULL) /* a finalizer of the garbage has done it */
        Py_RETURN_NONE;
      outcome = malloc_arena_delete (arena->handle);
    }
  if (outcome == 0)
    {
      arena->handle = NULL;
      Py_RETURN_NONE;
    }
  struct malloc_arena_stats stats = { .size = sizeof stats };
  malloc_arena_stats (arena->handle, &stats);
  if (stats.live_blocks == 0)
    return core_error (
        "ArenaError",
        "arena \"%U\" cannot be closed inside its own scope, nor while what run() or "
        "iterate() has begun is suspended",
        arena->name);
  return core_error ("ArenaError",
                     "arena \"%U\" cannot be closed: %zu blocks (%zu bytes) are alive in it",
                     arena->name, stats.live_blocks, stats.live_bytes);
}

static PyObject *
arena_owns (PyObject *self, PyObject *address)
{
  if (!PyLong_Check (address))
    {
      PyErr_Format (PyExc_TypeError, "owns() takes an address, as id(object) gives, not %R",
                    Py_TYPE (address));
      return NULL;
    }
  struct arena_object *arena = (struct arena_object *)self;
  void *p = PyLong_AsVoidPtr (address);
  if (p == NULL && PyErr_Occurred ())
    PyErr_Clear (); /* beyond the address space, so nobody's */
  return PyBool_FromLong (arena->handle != NULL && p != NULL
                          && malloc_arena_of (p) == arena->handle);
}

PyObject *
core_receipt (malloc_arena *handle)
{
  struct malloc_arena_receipt receipt = { .size = sizeof receipt };
  malloc_arena_receipt (handle, &receipt);
  PyObject *reasons = PyTuple_New (MALLOC_ARENA_PROPERTIES);
  for (int i = 0; reasons != NULL && i < MALLOC_ARENA_PROPERTIES; i++)
    {
      PyObject *reason = PyLong_FromLong (receipt.reason[i]);
      if (reason == NULL)
        Py_CLEAR (reasons);
      else
        PyTuple_SET_ITEM (reasons, i, reason);
    }
  return reasons == NULL
             ? NULL
             : Py_BuildValue ("IINnn", receipt.requested, receipt.obtained, reasons,
                              (Py_ssize_t)receipt.mapped_bytes, (Py_ssize_t)receipt.locked_bytes);
}

static PyObject *
arena_read_receipt (PyObject *self, PyObject *Py_UNUSED (ignored))
{
  struct arena_object *arena = (struct arena_object *)self;
  return arena_check_open (arena) == -1 ? NULL : core_receipt (arena->handle);
}

static PyObject *
arena_read_stats (PyObject *self, PyObject *Py_UNUSED (ignored))
{
  struct arena_object *arena = (struct arena_object *)self;
  if (arena_check_open (arena) == -1)
    return NULL;
  struct malloc_arena_stats stats = { .size = sizeof stats };
  malloc_arena_stats (arena->handle, &stats);
  PyObject *classes = PyTuple_New ((Py_ssize_t)stats.classes);
  for (size_t i = 0; classes != NULL && i < stats.classes; i++)
    {
      const struct malloc_arena_class *class = &stats.by_class[i];
      PyObject *counts
          = Py_BuildValue ("nnnn", (Py_ssize_t)class->slot_bytes, (Py_ssize_t)class->live_blocks,
                           (Py_ssize_t)class->live_bytes, (Py_ssize_t)class->mapped_bytes);
      if (counts == NULL)
        Py_CLEAR (classes);
      else
        PyTuple_SET_ITEM (classes, (Py_ssize_t)i, counts);
    }
  if (classes == NULL)
    return NULL;
  return Py_BuildValue ("nnnnnnN", (Py_ssize_t)stats.live_blocks, (Py_ssize_t)stats.live_bytes,
                        (Py_ssize_t)stats.peak_bytes, (Py_ssize_t)stats.limit_bytes,
                        (Py_ssize_t)stats.mapped_bytes, (Py_ssize_t)stats.locked_bytes, classes);
}

static PyObject *
arena_trim (PyObject *self, PyObject *Py_UNUSED (ignored))
{
  struct arena_object *arena = (struct arena_object *)self;
  if (arena_check_open (arena) == -1)
    return NULL;
  return PyBool_FromLong (malloc_arena_trim (arena->handle) == 1);
}

static PyObject *
arena_repr (PyObject *self)
{
  struct arena_object *arena = (struct arena_object *)self;
  return PyUnicode_FromFormat ("<Arena \"%U\"%s>", arena->name, arena->handle ? "" : " closed");
}

static PyObject *
arena_get_name (PyObject *self, void *Py_UNUSED (closure))
{
  return Py_NewRef (((struct arena_object *)self)->name);
}

static PyObject *
arena_get_kind (PyObject *self, void *Py_UNUSED (closure))
{
  return PyLong_FromUnsignedLong (((struct arena_object *)self)->kind);
}

static PyMethodDef arena_methods[] = {
  { "__enter__", scope_enter, METH_NOARGS, NULL },
  { "__exit__", (PyCFunction)(void (*) (void))scope_exit, METH_FASTCALL, NULL },
  { "call", (PyCFunction)(void (*) (void))scope_call, METH_FASTCALL | METH_KEYWORDS,
    PyDoc_STR ("call(function, /, *args, **kwargs)\n--\n\n"
               "Calls the function with this arena active.") },
  { "owns", arena_owns, METH_O,
    PyDoc_STR ("owns(address, /)\n--\n\n"
               "Whether a live block of this arena holds the address, for example id(object).") },
  { "close", arena_close, METH_NOARGS,
    PyDoc_STR ("close()\n--\n\n"
               "Gives the arena's memory back. ArenaError while anything lives in it.") },
  { "trim", arena_trim, METH_NOARGS,
    PyDoc_STR (
        "trim()\n--\n\n"
        "Gives the pages that no live block needs back to the kernel now: this thread's, and "
        "those of ended threads. Whether there were any.") },
  { "_shared", arena_shared, METH_O | METH_CLASS, NULL },
  { "_receipt", arena_read_receipt, METH_NOARGS, NULL },
  { "_stats", arena_read_stats, METH_NOARGS, NULL },
  { NULL, NULL, 0, NULL },
};

static PyGetSetDef arena_getset[] = {
  { "name", arena_get_name, NULL, PyDoc_STR ("The arena's name, for messages."), NULL },
  { "kind", arena_get_kind, NULL, PyDoc_STR ("``HEAP_`` flags."), NULL },
  { NULL, NULL, NULL, NULL, NULL },
};

static PyMemberDef arena_members[] = {
  { "__weaklistoffset__", T_PYSSIZET, offsetof (struct arena_object, weakrefs), READONLY, NULL },
  { NULL, 0, 0, 0, NULL },
};

static PyType_Slot arena_slots[] = {
  { Py_tp_new, arena_new },           { Py_tp_dealloc, arena_dealloc },
  { Py_tp_traverse, arena_traverse }, { Py_tp_repr, arena_repr },
  { Py_tp_methods, arena_methods },   { Py_tp_getset, arena_getset },
  { Py_tp_members, arena_members },   { 0, NULL },
};

PyType_Spec arena_spec = {
  .name = "malloc_arena._core.Arena",
  .basicsize = sizeof (struct arena_object),
  .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
  .slots = arena_slots,
};
