/* arena.c - Arena, a handle of the library as a Python object, and scopes: the stretches of a
 * thread's work in which that arena is active.
 *
 * The scopes of a thread are the library's own stack of enters; what is here keeps Python code from
 * leaving it unbalanced, where the library would abort.
 */
#include "ext.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <structmember.h>

enum
{
  KINDS = 16,
  NAME_MOST = 31,
  SCRUB_BYTES = 128 * 1024 /* as deep as calls into C libraries were seen to leave copies */
};

/* Python's own arena of each kind; of the process, whatever interpreter asks first. */
static _Atomic (malloc_arena *) shared_arenas[KINDS];

/* ---- scopes ---- */

/* `malloc-arena run --sweep`: each outermost scope sweeps. */
static int sweeps_always;

void
arena_sweep_always (void)
{
  sweeps_always = 1;
}

/* What goes wrong in it is said, and does not replace what the block ended with. */
static __attribute__ ((cold, noinline)) void
sweep (const char *name)
{
  static __thread int is_sweeping; /* finalizers that it runs may have scopes of their own */
  if (is_sweeping)
    return;
  is_sweeping = 1;
  PyObject *module = PyImport_ImportModule ("malloc_arena.sweep");
  PyObject *result = module != NULL ? PyObject_CallMethod (module, name, NULL) : NULL;
  if (result == NULL)
    PyErr_WriteUnraisable (module);
  Py_XDECREF (result);
  Py_XDECREF (module);
  is_sweeping = 0;
}

static int
check_open (struct arena_object *self)
{
  if (likely (self->handle != NULL))
    return 0;
  core_error ("ArenaError", "arena \"%U\" is closed", self->name);
  return -1;
}

/* A generator or coroutine that is suspended inside a `with` would leave the arena active in
 * whoever runs next. Whether the block can be is decided by its code, and only for such frames. */
static int
check_frame (void)
{
  PyFrameObject *frame = PyEval_GetFrame ();
  if (frame == NULL)
    return 0;
  PyCodeObject *code = PyFrame_GetCode (frame);
  int may_suspend = code->co_flags & (CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR);
  Py_DECREF (code);
  if (likely (!may_suspend))
    return 0;
  malloc_arena_enter (NULL); /* what the check remembers belongs to no arena */
  PyObject *module = PyImport_ImportModule ("malloc_arena.arena");
  PyObject *result
      = module ? PyObject_CallMethod (module, "check_frame", "O", (PyObject *)frame) : NULL;
  Py_XDECREF (result);
  Py_XDECREF (module);
  malloc_arena_leave (NULL);
  return result ? 0 : -1;
}

static void
raise_exhausted (malloc_arena *handle)
{
  PyObject *message = core_exhausted (handle);
  if (message != NULL)
    PyErr_SetObject (PyExc_MemoryError, message);
  Py_XDECREF (message);
}

/* Whether this thread was in an arena of secrets since its outermost scope began: what its calls left on
 * the stack is to go. */
static __thread int was_secure;

static int
enter (malloc_arena *handle)
{
  if (unlikely (ma_local_of (handle) == NULL))
    {
      raise_exhausted (handle);
      return -1;
    }
  int is_outermost = ma_depth () == 0;
  if (is_outermost && unlikely (sweeps_always))
    sweep ("clear_free_lists");
  malloc_arena_enter (handle);
  was_secure |= ma_kind_of (handle) != HEAP_DEFAULT;
  if (!is_outermost)
    return 0;
  ma_object_forget_refused ();
  enum pyhooks_probe probe = pyhooks_probe ();
  if (likely (probe == PYHOOKS_HOLD))
    return 0;
  malloc_arena_leave (handle);
  if (probe == PYHOOKS_REFUSED)
    raise_exhausted (handle);
  else
    core_error ("HooksLost",
                "another tool has put back a memory allocator of CPython that it saved before the "
                "first arena was made, so that nothing would reach arena \"%s\" any more: make the "
                "first arena before that tool starts",
                malloc_arena_name (handle));
  return -1;
}

static void
leave (malloc_arena *handle)
{
  malloc_arena_leave (handle);
  if (ma_depth () != 0)
    return;
  if (unlikely (sweeps_always))
    sweep ("sweep");
  if (was_secure)
    {
      streams_wipe ();
      malloc_arena_scrub (SCRUB_BYTES);
    }
  was_secure = 0;
}

/* Gives a bare MemoryError its message, if it is this arena that refused. */
static void
explain (malloc_arena *handle, PyObject *error)
{
  malloc_arena *by = ma_object_refused ();
  if (by == NULL || by != handle || Py_TYPE (error) != (PyTypeObject *)PyExc_MemoryError)
    return;
  ma_object_forget_refused ();
  /* Outside, as the arena has nothing left for it. */
  malloc_arena_enter (NULL);
  PyObject *args = PyObject_GetAttrString (error, "args");
  if (args != NULL && PyTuple_Check (args) && PyTuple_GET_SIZE (args) == 0)
    {
      PyObject *message = core_exhausted (by);
      PyObject *filled = message ? PyTuple_Pack (1, message) : NULL;
      if (filled != NULL)
        PyObject_SetAttrString (error, "args", filled);
      Py_XDECREF (filled);
      Py_XDECREF (message);
    }
  Py_XDECREF (args);
  malloc_arena_leave (NULL);
  PyErr_Clear ();
}

static int
check_enter (struct arena_object *self)
{
  if (HAS_HOOKS)
    return check_open (self);
  core_unavailable (0, self->kind);
  return -1;
}

static PyObject *
arena_enter (PyObject *self, PyObject *Py_UNUSED (ignored))
{
  struct arena_object *arena = (struct arena_object *)self;
  if (check_frame () == -1 || check_enter (arena) == -1 || enter (arena->handle) == -1)
    return NULL;
  return Py_NewRef (self);
}

/* Below this depth are the scopes of who called the code that runs: call(), or, in a thread that
 * inherited its scope, the thread's start. */
static __thread unsigned floor_depth;

/* Only what the innermost scope of this thread matches can be left. */
static PyObject *
arena_exit (PyObject *self, PyObject *const *args, Py_ssize_t count)
{
  struct arena_object *arena = (struct arena_object *)self;
  malloc_arena *active = ma_active_arena ();
  if (unlikely (active == NULL || ma_depth () <= floor_depth))
    return core_error ("ArenaError",
                       "arena \"%U\" is left where it is not active: its scope was entered in "
                       "another thread, or left before",
                       arena->name);
  if (unlikely (active != arena->handle))
    return core_error ("ArenaError",
                       "arena \"%U\" is left while arena \"%s\", entered after it, is active",
                       arena->name, malloc_arena_name (active));
  leave (active);
  if (count >= 2 && args[1] != Py_None)
    explain (active, args[1]);
  Py_RETURN_NONE;
}

/* The pending exception, normalized, and back. */
static PyObject *
take_error (void)
{
#if PY_VERSION_HEX >= 0x030c0000
  return PyErr_GetRaisedException ();
#else
  PyObject *type, *value, *traceback;
  PyErr_Fetch (&type, &value, &traceback);
  PyErr_NormalizeException (&type, &value, &traceback);
  if (traceback != NULL)
    PyException_SetTraceback (value, traceback);
  Py_XDECREF (traceback);
  Py_XDECREF (type);
  return value;
#endif
}

static void
put_error (PyObject *error)
{
#if PY_VERSION_HEX >= 0x030c0000
  PyErr_SetRaisedException (error);
#else
  PyErr_Restore (Py_NewRef (Py_TYPE (error)), error, PyException_GetTraceback (error));
#endif
}

static int
begin (malloc_arena *handle, struct arena_scope *scope)
{
  scope->handle = handle;
  scope->depth = ma_depth ();
  if (handle == NULL)
    malloc_arena_enter (NULL);
  else if (enter (handle) == -1)
    return -1;
  scope->floor = floor_depth;
  floor_depth = scope->depth + 1;
  return 0;
}

int
arena_begin (struct arena_object *arena, struct arena_scope *scope)
{
  return check_enter (arena) == -1 ? -1 : begin (arena->handle, scope);
}

PyObject *
arena_end (const struct arena_scope *scope, PyObject *result)
{
  malloc_arena *handle = scope->handle;
  PyObject *error = result == NULL ? take_error () : NULL;
  floor_depth = scope->floor;
  if (unlikely (ma_depth () != scope->depth + 1 || ma_active_arena () != handle))
    {
      /* The callee left a scope open. */
      while (ma_depth () > scope->depth)
        malloc_arena_leave (ma_active_arena ());
      Py_CLEAR (result);
      Py_XDECREF (error);
      return core_error (
          "ArenaError",
          "the function that arena \"%s\" called has entered a scope without leaving it",
          handle != NULL ? malloc_arena_name (handle) : "none");
    }
  if (handle != NULL)
    leave (handle);
  else
    malloc_arena_leave (NULL);
  if (error != NULL)
    {
      if (handle != NULL)
        explain (handle, error);
      put_error (error);
    }
  return result;
}

/* Calls FUNCTION with HANDLE active, NULL: with the ordinary malloc. KEYWORDS is a dictionary, or a
 * tuple of names as in a vectorcall. */
static PyObject *
call_in (malloc_arena *handle, PyObject *function, PyObject *const *args, size_t count,
         PyObject *keywords)
{
  struct arena_scope scope;
  if (begin (handle, &scope) == -1)
    return NULL;
  return arena_end (&scope, keywords != NULL && PyDict_Check (keywords)
                                ? PyObject_VectorcallDict (function, args, count, keywords)
                                : PyObject_Vectorcall (function, args, count, keywords));
}

static PyObject *
arena_call (PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
  struct arena_object *arena = (struct arena_object *)self;
  if (count < 1)
    {
      PyErr_SetString (PyExc_TypeError, "call() needs a callable");
      return NULL;
    }
  if (check_enter (arena) == -1)
    return NULL;
  return call_in (arena->handle, args[0], args + 1, (size_t)(count - 1), names);
}

/* ---- without a scope, and from one thread to another ---- */

PyObject *
arena_outside (PyObject *Py_UNUSED (module), PyObject *const *args, Py_ssize_t count,
               PyObject *names)
{
  if (count < 1)
    {
      PyErr_SetString (PyExc_TypeError, "outside() needs a callable");
      return NULL;
    }
  /* Before the first arena there is nothing to be outside of, and nothing is set up for it. */
  if (ma_region.size == 0 && ma_default_arena () == NULL)
    return PyObject_Vectorcall (args[0], args + 1, (size_t)(count - 1), names);
  return call_in (NULL, args[0], args + 1, (size_t)(count - 1), names);
}

/* A callable that runs in the scope in which it was made, whatever thread calls it. */
struct inherited_object
{
  PyObject ob_base;
  malloc_arena *handle;
  void *pin; /* a block of the arena: while it lives, the handle does */
  PyObject *function;
};

PyObject *
arena_inherit (PyObject *module, PyObject *function)
{
  malloc_arena *handle = ma_active_arena ();
  if (likely (handle == NULL))
    return Py_NewRef (function);
  PyTypeObject *type = ((struct core_state *)PyModule_GetState (module))->inherited_type;
  void *pin = ma_alloc (ma_active, 1);
  if (pin == NULL)
    {
      raise_exhausted (handle);
      return NULL;
    }
  struct inherited_object *self = (struct inherited_object *)type->tp_alloc (type, 0);
  if (self == NULL)
    {
      ma_release (pin);
      return NULL;
    }
  self->handle = handle;
  self->pin = pin;
  self->function = Py_NewRef (function);
  return (PyObject *)self;
}

static PyObject *
inherited_call (PyObject *self, PyObject *args, PyObject *kwargs)
{
  struct inherited_object *inherited = (struct inherited_object *)self;
  return call_in (inherited->handle, inherited->function, PySequence_Fast_ITEMS (args),
                  (size_t)PyTuple_GET_SIZE (args), kwargs);
}

static int
inherited_traverse (PyObject *self, visitproc visit, void *arg)
{
  Py_VISIT (Py_TYPE (self));
  Py_VISIT (((struct inherited_object *)self)->function);
  return 0;
}

static int
inherited_clear (PyObject *self)
{
  Py_CLEAR (((struct inherited_object *)self)->function);
  return 0;
}

static void
inherited_dealloc (PyObject *self)
{
  struct inherited_object *inherited = (struct inherited_object *)self;
  PyTypeObject *type = Py_TYPE (self);
  PyObject_GC_UnTrack (self);
  inherited_clear (self);
  if (inherited->pin != NULL)
    ma_release (inherited->pin);
  type->tp_free (self);
  Py_DECREF (type);
}

static PyObject *
inherited_repr (PyObject *self)
{
  struct inherited_object *inherited = (struct inherited_object *)self;
  return PyUnicode_FromFormat ("<%R in arena \"%s\">", inherited->function,
                               malloc_arena_name (inherited->handle));
}

static PyMemberDef inherited_members[] = {
  { "__wrapped__", T_OBJECT, offsetof (struct inherited_object, function), READONLY, NULL },
  { NULL, 0, 0, 0, NULL },
};

static PyType_Slot inherited_slots[] = {
  { Py_tp_dealloc, inherited_dealloc },
  { Py_tp_traverse, inherited_traverse },
  { Py_tp_clear, inherited_clear },
  { Py_tp_call, inherited_call },
  { Py_tp_repr, inherited_repr },
  { Py_tp_members, inherited_members },
  { 0, NULL },
};

PyType_Spec inherited_spec = {
  .name = "malloc_arena._core._Inherited",
  .basicsize = sizeof (struct inherited_object),
  .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE
           | Py_TPFLAGS_DISALLOW_INSTANTIATION,
  .slots = inherited_slots,
};

/* ---- the object ---- */

/* Threads of this interpreter inherit scopes from now on, and numpy's data is in them. */
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
  state->is_following = result != NULL;
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

static int
to_size (PyObject *number, void *out)
{
  size_t size = PyLong_Check (number) ? PyLong_AsSize_t (number) : (size_t)-1;
  if (size == (size_t)-1)
    {
      PyErr_Clear ();
      PyErr_Format (PyExc_ValueError, "a size must be an integer from 0 up, not %R", number);
      return 0;
    }
  *(size_t *)out = size;
  return 1;
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
  size_t kind;
  if (!PyArg_ParseTupleAndKeywords (args, kwargs, "O&|$zO&OOO&O&:Arena", keywords, to_size, &kind,
                                    &options.name, to_size, &options.limit, &lock, &fork_policy,
                                    to_size, &options.isolate_threshold, to_size,
                                    &options.heap_size))
    return NULL;
  int lock_choice = choice (lock, "lock", locks);
  int fork_choice = lock_choice == -1 ? -1 : choice (fork_policy, "fork", forks);
  if (fork_choice == -1)
    return NULL;
  if (options.name != NULL && strlen (options.name) > NAME_MOST)
    return PyErr_Format (PyExc_ValueError, "an arena's name has at most %d bytes", NAME_MOST);
  options.kind = kind < KINDS ? (unsigned)kind : KINDS;
  options.lock = (unsigned)lock_choice;
  /* Object headers live here: a child that found zeros would crash at the first it drops. */
  options.fork = fork_choice == 0 ? MALLOC_ARENA_FORK_KEEP : (unsigned)fork_choice;
  malloc_arena *handle = new_handle (&options);
  return handle != NULL ? wrap (type, handle, options.kind, 0) : NULL;
}

static PyObject *
arena_shared (PyObject *type, PyObject *number)
{
  size_t kind;
  if (!to_size (number, &kind))
    return NULL;
  if (kind >= KINDS)
    return core_unavailable (EINVAL, KINDS);
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
    return core_error ("ArenaError", "arena \"%U\" cannot be closed inside its own scope",
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

static PyObject *
arena_read_receipt (PyObject *self, PyObject *Py_UNUSED (ignored))
{
  struct arena_object *arena = (struct arena_object *)self;
  if (check_open (arena) == -1)
    return NULL;
  struct malloc_arena_receipt receipt = { .size = sizeof receipt };
  malloc_arena_receipt (arena->handle, &receipt);
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
arena_read_stats (PyObject *self, PyObject *Py_UNUSED (ignored))
{
  struct arena_object *arena = (struct arena_object *)self;
  if (check_open (arena) == -1)
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
  if (check_open (arena) == -1)
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
  { "__enter__", arena_enter, METH_NOARGS, NULL },
  { "__exit__", (PyCFunction)(void (*) (void))arena_exit, METH_FASTCALL, NULL },
  { "call", (PyCFunction)(void (*) (void))arena_call, METH_FASTCALL | METH_KEYWORDS,
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
