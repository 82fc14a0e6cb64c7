/* scope.c - scopes: the stretches of a thread's work in which an arena is active; their beginnings and ends,
 * calls in them and outside of them, and callables that take them to another thread.
 *
 * The scopes of a thread are the library's own stack of enters; what is here keeps Python code from
 * leaving it unbalanced, where the library would abort. At the end of the outermost one of an arena of
 * secrets the stack below is scrubbed.
 */
#include "ext.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <structmember.h>

enum
{
  SCRUB_BYTES = 128 * 1024 /* as deep as most calls into C libraries leave copies */
};

/* `malloc-arena run --sweep`: each outermost scope sweeps. */
static int sweeps_always;

void
scope_sweep_always (void)
{
  sweeps_always = 1;
}

static int
is_finalizing (void)
{
#if PY_VERSION_HEX >= 0x030d0000
  return Py_IsFinalizing ();
#else
  return _Py_IsFinalizing ();
#endif
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
  if (result == NULL && module == NULL && is_finalizing ())
    PyErr_Clear (); /* the modules are gone, with what they kept */
  else if (result == NULL)
    PyErr_WriteUnraisable (module);
  Py_XDECREF (result);
  Py_XDECREF (module);
  is_sweeping = 0;
}

/* A generator or coroutine that is suspended inside a `with` would leave the arena active in
 * whoever runs next. Whether the block can be is decided by its code, once, and only for such frames. */
struct blocks
{
  size_t count;
  int starts[]; /* the offsets of those `with`s whose blocks cannot be suspended */
};

#if PY_VERSION_HEX < 0x030c0000
#define PyUnstable_Eval_RequestCodeExtraIndex _PyEval_RequestCodeExtraIndex
#define PyUnstable_Code_GetExtra _PyCode_GetExtra
#define PyUnstable_Code_SetExtra _PyCode_SetExtra
#endif

Py_ssize_t
scope_blocks_index (void)
{
  return PyUnstable_Eval_RequestCodeExtraIndex (free);
}

static struct blocks *
blocks_of (PyObject *code, Py_ssize_t index)
{
  void *blocks = NULL;
  PyUnstable_Code_GetExtra (code, index, &blocks);
  return blocks;
}

static int
check_block (PyFrameObject *frame, PyObject *code, Py_ssize_t index)
{
  int start = PyFrame_GetLasti (frame);
  const struct blocks *known = blocks_of (code, index);
  for (size_t i = 0; known != NULL && i < known->count; i++)
    if (likely (known->starts[i] == start))
      return 0;
  PyObject *module = PyImport_ImportModule ("malloc_arena.arena");
  PyObject *result
      = module ? PyObject_CallMethod (module, "check_frame", "O", (PyObject *)frame) : NULL;
  Py_XDECREF (module);
  if (result == NULL)
    return -1;
  Py_DECREF (result);
  if (index == -1) /* others have them all */
    return 0;
  known = blocks_of (code, index); /* other code may have run meanwhile */
  size_t count = known != NULL ? known->count : 0;
  struct blocks *blocks = malloc (sizeof *blocks + (count + 1) * sizeof blocks->starts[0]);
  if (blocks == NULL)
    return 0;
  if (count != 0)
    memcpy (blocks->starts, known->starts, count * sizeof blocks->starts[0]);
  blocks->starts[count] = start;
  blocks->count = count + 1;
  if (PyUnstable_Code_SetExtra (code, index, blocks) != 0) /* which frees what was there */
    {
      PyErr_Clear ();
      free (blocks);
    }
  return 0;
}

int
scope_check_frame (PyObject *self)
{
  PyFrameObject *frame = PyEval_GetFrame ();
  if (frame == NULL)
    return 0;
  PyCodeObject *code = PyFrame_GetCode (frame);
  int result = 0;
  if (unlikely (code->co_flags & (CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR)))
    {
      struct core_state *state = core_state_of (Py_TYPE (self));
      malloc_arena_enter (NULL); /* what the check remembers belongs to no arena */
      result = state != NULL ? check_block (frame, (PyObject *)code, state->blocks_index) : -1;
      malloc_arena_leave (NULL);
    }
  Py_DECREF (code);
  return result;
}

static void
raise_exhausted (malloc_arena *handle)
{
  PyObject *message = core_exhausted (handle, 0, 1);
  if (message != NULL)
    PyErr_SetObject (PyExc_MemoryError, message);
  Py_XDECREF (message);
}

/* Whether this thread was in an arena of secrets since its outermost scope began: what its calls left on
 * the stack is to go. */
static __thread int was_secure;

/* Has a thread's switches of greenlets followed; NULL while nobody has imported greenlet. It is the main interpreter's:
 * of greenlet's tracers there is one for a thread, whatever runs in it, and another's may end before. */
static PyObject *follow_greenlets;

static __attribute__ ((cold, noinline)) void
follow_here (void)
{
  static __thread int is_following;
  if (is_following || PyInterpreterState_Get () != PyInterpreterState_Main ())
    return;
  is_following = 1;
  PyObject *result = PyObject_CallNoArgs (follow_greenlets);
  if (result == NULL)
    PyErr_WriteUnraisable (follow_greenlets);
  Py_XDECREF (result);
}

/* From 3.12 on greenlet makes, at a switch, frame objects of all functions that run, which would stay in the arena until
 * those of its callers return. So these are made before. */
static __attribute__ ((cold, noinline)) void
make_frames (void)
{
#if PY_VERSION_HEX >= 0x030c0000
  for (PyFrameObject *frame = PyThreadState_GetFrame (PyThreadState_Get ()), *back; frame != NULL;
       frame = back)
    {
      back = PyFrame_GetBack (frame);
      Py_DECREF (frame);
    }
  PyErr_Clear ();
#endif
}

/* MAY_BE_FULL: of what was begun in it, which meets the MemoryError itself. */
static int
enter (malloc_arena *handle, int may_be_full)
{
  if (unlikely (ma_local_of (handle) == NULL))
    {
      raise_exhausted (handle);
      return -1;
    }
  int is_outermost = ma_depth () == 0;
  if (is_outermost && unlikely (follow_greenlets != NULL))
    {
      follow_here ();
      make_frames ();
    }
  if (is_outermost)
    pyhooks_complete ();
  if (is_outermost && unlikely (sweeps_always))
    sweep ("clear_free_lists");
  malloc_arena_enter (handle);
  ma_object_begin (handle);
  was_secure |= ma_kind_of (handle) != HEAP_DEFAULT;
  if (!is_outermost)
    return 0;
  ma_object_forget_refused ();
  enum pyhooks_probe probe = pyhooks_probe ();
  if (likely (probe == PYHOOKS_HOLD))
    return 0;
  if (probe == PYHOOKS_REFUSED && may_be_full)
    {
      ma_object_forget_refused ();
      return 0;
    }
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
scrub (void)
{
  if (was_secure)
    {
      streams_wipe ();
      ma_scrub_used (SCRUB_BYTES);
    }
  was_secure = 0;
}

static void
leave (malloc_arena *handle)
{
  malloc_arena_leave (handle);
  if (ma_depth () != 0)
    return;
  if (unlikely (sweeps_always))
    sweep (was_secure ? "sweep" : "sweep_budget");
  scrub ();
}

/* Says of a MemoryError which arena it was, if it is this one that refused: a bare one gets its message, a
 * library's own (numpy's) keeps that, and gets a note. */
static void
explain (malloc_arena *handle, PyObject *error)
{
  size_t size;
  malloc_arena *by = ma_object_refused (&size);
  if (by == NULL || by != handle || !PyErr_GivenExceptionMatches (error, PyExc_MemoryError))
    return;
  ma_object_forget_refused ();
  /* Outside, as the arena has nothing left for it. */
  malloc_arena_enter (NULL);
  PyObject *args = PyObject_GetAttrString (error, "args");
  PyObject *message = args != NULL && PyTuple_Check (args) ? core_exhausted (by, size, 1) : NULL;
  if (message != NULL && PyTuple_GET_SIZE (args) == 0
      && Py_TYPE (error) == (PyTypeObject *)PyExc_MemoryError)
    {
      PyObject *filled = PyTuple_Pack (1, message);
      if (filled != NULL)
        PyObject_SetAttrString (error, "args", filled);
      Py_XDECREF (filled);
    }
  else if (message != NULL)
    Py_XDECREF (PyObject_CallMethod (error, "add_note", "O", message));
  Py_XDECREF (message);
  Py_XDECREF (args);
  malloc_arena_leave (NULL);
  PyErr_Clear ();
}

static int
check_enter (struct arena_object *self)
{
  if (HAS_HOOKS)
    return arena_check_open (self);
  core_unavailable (0, self->kind);
  return -1;
}

PyObject *
scope_open (PyObject *self)
{
  struct arena_object *arena = (struct arena_object *)self;
  if (check_enter (arena) == -1 || enter (arena->handle, 0) == -1)
    return NULL;
  return Py_NewRef (self);
}

PyObject *
scope_enter (PyObject *self, PyObject *Py_UNUSED (ignored))
{
  return scope_check_frame (self) == -1 ? NULL : scope_open (self);
}

/* Below this depth are the scopes of who called the code that runs: call(), or, in a thread that
 * inherited its scope, the thread's start. */
static __thread unsigned floor_depth;

/* Only what the innermost scope of this thread matches can be left. */
PyObject *
scope_exit (PyObject *self, PyObject *const *args, Py_ssize_t count)
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

PyObject *
error_take (void)
{
#if PY_VERSION_HEX >= 0x030c0000
  return PyErr_GetRaisedException ();
#else
  PyObject *type, *value, *traceback;
  PyErr_Fetch (&type, &value, &traceback);
  if (type == NULL)
    return NULL;
  PyErr_NormalizeException (&type, &value, &traceback);
  if (traceback != NULL)
    PyException_SetTraceback (value, traceback);
  Py_XDECREF (traceback);
  Py_XDECREF (type);
  return value;
#endif
}

void
error_put (PyObject *error)
{
#if PY_VERSION_HEX >= 0x030c0000
  PyErr_SetRaisedException (error);
#else
  if (error == NULL)
    PyErr_Clear ();
  else
    PyErr_Restore (Py_NewRef (Py_TYPE (error)), error, PyException_GetTraceback (error));
#endif
}

int
scope_begin_in (malloc_arena *handle, struct scope *scope, int may_be_full)
{
  scope->handle = handle;
  scope->depth = ma_depth ();
  if (handle == NULL)
    malloc_arena_enter (NULL);
  else if (enter (handle, may_be_full) == -1)
    return -1;
  scope->floor = floor_depth;
  floor_depth = scope->depth + 1;
  return 0;
}

int
scope_begin (struct arena_object *arena, struct scope *scope, int may_be_full)
{
  return check_enter (arena) == -1 ? -1 : scope_begin_in (arena->handle, scope, may_be_full);
}

PyObject *
scope_end (const struct scope *scope, PyObject *result)
{
  malloc_arena *handle = scope->handle;
  PyObject *error = result == NULL ? error_take () : NULL;
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
      error_put (error);
    }
  return result;
}

/* Calls FUNCTION with HANDLE active, NULL: with the ordinary malloc. KEYWORDS is a dictionary, or a
 * tuple of names as in a vectorcall. */
static PyObject *
call_in (malloc_arena *handle, PyObject *function, PyObject *const *args, size_t count,
         PyObject *keywords)
{
  struct scope scope;
  if (scope_begin_in (handle, &scope, 0) == -1)
    return NULL;
  return scope_end (&scope, keywords != NULL && PyDict_Check (keywords)
                                ? PyObject_VectorcallDict (function, args, count, keywords)
                                : PyObject_Vectorcall (function, args, count, keywords));
}

PyObject *
scope_call (PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
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

/* ---- of greenlets, which change places within a thread ---- */

/* The scopes of one that is suspended, outermost first. */
struct suspended
{
  unsigned depth, floor;
  int was_secure;
  malloc_arena *scopes[]; /* held, so that they cannot be closed: a block may find no room */
};

static void
suspended_free (PyObject *capsule)
{
  struct suspended *suspended = PyCapsule_GetPointer (capsule, NULL);
  for (unsigned i = 0; i < suspended->depth; i++)
    if (suspended->scopes[i] != NULL)
      ma_arena_hold (suspended->scopes[i], -1);
  PyMem_RawFree (suspended);
}

PyObject *
scope_follow_greenlets (PyObject *Py_UNUSED (module), PyObject *follow)
{
  if (PyInterpreterState_Get () == PyInterpreterState_Main ())
    Py_XSETREF (follow_greenlets, Py_NewRef (follow));
  Py_RETURN_NONE;
}

PyObject *
scope_suspend (PyObject *Py_UNUSED (module), PyObject *ends)
{
  unsigned depth = ma_depth ();
  if (depth == 0)
    Py_RETURN_NONE;
  struct suspended *suspended;
  malloc_arena_enter (NULL); /* it is nobody's secret */
  suspended = PyMem_RawMalloc (sizeof *suspended + depth * sizeof suspended->scopes[0]);
  PyObject *capsule = suspended != NULL ? PyCapsule_New (suspended, NULL, suspended_free) : NULL;
  malloc_arena_leave (NULL);
  if (capsule == NULL)
    {
      PyMem_RawFree (suspended);
      return PyErr_NoMemory ();
    }
  suspended->depth = depth;
  suspended->floor = floor_depth;
  suspended->was_secure = was_secure;
  for (unsigned i = depth; i-- > 0;)
    {
      malloc_arena *handle = ma_active_arena ();
      suspended->scopes[i] = handle;
      if (handle != NULL)
        ma_arena_hold (handle, 1);
      malloc_arena_leave (handle);
    }
  floor_depth = 0;
  if (ends == Py_True)
    scrub ();
  was_secure = 0;
  return capsule;
}

PyObject *
scope_resume (PyObject *Py_UNUSED (module), PyObject *const *args, Py_ssize_t count)
{
  if (count != 2 || args[0] == Py_None)
    Py_RETURN_NONE;
  const struct suspended *suspended = PyCapsule_GetPointer (args[0], NULL);
  if (suspended == NULL)
    return NULL;
  int is_inherited = args[1] == Py_True;
  for (unsigned i = is_inherited ? suspended->depth - 1 : 0; i < suspended->depth; i++)
    malloc_arena_enter (suspended->scopes[i]);
  floor_depth = is_inherited ? 1 : suspended->floor;
  was_secure = suspended->was_secure;
  Py_RETURN_NONE;
}

/* ---- without a scope, and from one thread to another ---- */

PyObject *
scope_outside (PyObject *Py_UNUSED (module), PyObject *const *args, Py_ssize_t count,
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
  int is_start; /* of a thread: an error of the function ends here */
};

static PyObject *
inherit (PyObject *module, PyObject *function, int is_start)
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
  self->is_start = is_start;
  return (PyObject *)self;
}

PyObject *
scope_is_inside (PyObject *Py_UNUSED (module), PyObject *Py_UNUSED (ignored))
{
  return PyBool_FromLong (ma_active_arena () != NULL);
}

PyObject *
scope_inherit (PyObject *module, PyObject *function)
{
  return inherit (module, function, 0);
}

PyObject *
scope_inherit_start (PyObject *module, PyObject *function)
{
  return inherit (module, function, 1);
}

/* As the interpreter says it at the end of a thread, which would name the wrapper. */
static PyObject *
report (PyObject *function)
{
  if (PyErr_ExceptionMatches (PyExc_SystemExit))
    PyErr_Clear ();
  else
#if PY_VERSION_HEX >= 0x030d0000
    PyErr_FormatUnraisable ("Exception ignored in thread started by %R", function);
#else
    _PyErr_WriteUnraisableMsg ("in thread started by", function);
#endif
  return Py_NewRef (Py_None);
}

static PyObject *
start_in (malloc_arena *handle, PyObject *function, PyObject *args, PyObject *kwargs)
{
  struct scope scope;
  if (scope_begin_in (handle, &scope, 0) == -1)
    return report (function);
  PyObject *result = PyObject_Call (function, args, kwargs);
  /* In the scope, as a traceback holds values; but the arena may be what has no memory. */
  if (result == NULL && !PyErr_ExceptionMatches (PyExc_MemoryError))
    result = report (function);
  result = scope_end (&scope, result);
  return result != NULL ? result : report (function);
}

static PyObject *
inherited_call (PyObject *self, PyObject *args, PyObject *kwargs)
{
  struct inherited_object *inherited = (struct inherited_object *)self;
  if (inherited->is_start)
    return start_in (inherited->handle, inherited->function, args, kwargs);
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
