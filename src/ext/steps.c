/* steps.c - _Run and _Iterate: a coroutine, or a generator, with an arena active in its steps and not
 * between them.
 *
 * An event loop takes very many steps. Each is one call here, and what it ends with is passed on as it
 * is: the scope has ended before the caller sees a value or an exception.
 */
#include "ext.h"

struct steps_object
{
  PyObject ob_base;
  struct arena_object *arena;
  PyObject *inner;
  /* A step was taken, and was not the last: what comes is to find the arena, which is held, and to run in it also
   * where that is full. */
  int is_suspended;
};

/* While it is, the arena's handle is there: close() refuses, and this object has the arena. */
static void
set_suspended (struct steps_object *steps, int is_suspended)
{
  if (steps->is_suspended != is_suspended)
    ma_arena_hold (steps->arena->handle, is_suspended ? 1 : -1);
  steps->is_suspended = is_suspended;
}

static PyObject *
steps_new (PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
  static char *names[] = { "arena", "inner", NULL };
  struct core_state *state = core_state_of (type);
  PyObject *arena, *inner;
  if (state == NULL
      || !PyArg_ParseTupleAndKeywords (args, kwargs, "O!O", names, state->arena_type, &arena,
                                       &inner))
    return NULL;
  struct steps_object *self = (struct steps_object *)type->tp_alloc (type, 0);
  if (self == NULL)
    return NULL;
  self->arena = (struct arena_object *)Py_NewRef (arena);
  self->inner = Py_NewRef (inner);
  self->is_suspended = 0;
  /* After this one, so that a collection of both ends this one first; and what that one has, after it. */
  while (PyObject_GC_IsTracked (inner))
    {
      PyObject_GC_UnTrack (inner);
      PyObject_GC_Track (inner);
      if (Py_TYPE (inner) != state->run_type && Py_TYPE (inner) != state->iterate_type)
        break;
      inner = ((struct steps_object *)inner)->inner;
    }
  return (PyObject *)self;
}

static PySendResult
steps_step (PyObject *self, PyObject *value, PyObject **result)
{
  struct steps_object *steps = (struct steps_object *)self;
  struct scope scope;
  *result = NULL;
  if (scope_begin (steps->arena, &scope, steps->is_suspended) == -1)
    return PYGEN_ERROR;
  PySendResult how = PyIter_Send (steps->inner, value, result);
  *result = scope_end (&scope, *result);
  set_suspended (steps, how == PYGEN_NEXT);
  return *result != NULL ? how : PYGEN_ERROR;
}

/* The value of a step, or NULL. At the end with a StopIteration, which __next__ need not have for
 * None. */
static PyObject *
value_of (PySendResult how, PyObject *result)
{
  if (how != PYGEN_RETURN)
    return result;
  if (result != Py_None)
    {
      /* Made first: of a tuple PyErr_SetObject would make the arguments. */
      PyObject *stop = PyObject_CallOneArg (PyExc_StopIteration, result);
      if (stop != NULL)
        PyErr_SetObject (PyExc_StopIteration, stop);
      Py_XDECREF (stop);
    }
  Py_DECREF (result);
  return NULL;
}

static PyObject *
steps_next (PyObject *self)
{
  PyObject *result;
  PySendResult how = steps_step (self, Py_None, &result);
  return value_of (how, result);
}

static PyObject *
steps_send (PyObject *self, PyObject *value)
{
  PyObject *result;
  PySendResult how = steps_step (self, value, &result);
  result = value_of (how, result);
  if (result == NULL && !PyErr_Occurred ())
    PyErr_SetNone (PyExc_StopIteration);
  return result;
}

/* A method of the inner one; NULL where it has none, with an exception if looking failed. The name is
 * one that CPython has: of any other its type cache would keep what it was asked for, from whatever
 * arena that is. */
static PyObject *
method_of (const struct steps_object *steps, const char *name)
{
  PyObject *key = PyUnicode_InternFromString (name);
  PyObject *method = key != NULL ? PyObject_GetAttr (steps->inner, key) : NULL;
  if (method == NULL && PyErr_ExceptionMatches (PyExc_AttributeError))
    PyErr_Clear ();
  Py_XDECREF (key);
  return method;
}

/* Calls METHOD in the arena, and takes it over. */
static PyObject *
call_inner (struct steps_object *steps, PyObject *method, PyObject *const *args, Py_ssize_t count)
{
  struct scope scope;
  PyObject *result = NULL;
  if (scope_begin (steps->arena, &scope, steps->is_suspended) == 0)
    {
      result = PyObject_Vectorcall (method, args, (size_t)count, NULL);
      set_suspended (steps, result != NULL);
      result = scope_end (&scope, result);
    }
  Py_DECREF (method);
  return result;
}

static PyObject *
steps_throw (PyObject *self, PyObject *const *args, Py_ssize_t count)
{
  struct steps_object *steps = (struct steps_object *)self;
  PyObject *own = method_of (steps, "throw");
  if (likely (own != NULL))
    return call_inner (steps, own, args, count);
  if (PyErr_Occurred ())
    return NULL;
  /* Any iterator: raised here, from one to three arguments. */
  PyObject *module = PyImport_ImportModule ("_collections_abc");
  PyObject *generator = module != NULL ? PyObject_GetAttrString (module, "Generator") : NULL;
  PyObject *method = generator != NULL ? PyObject_GetAttrString (generator, "throw") : NULL;
  PyObject *full[4] = { self };
  PyObject *result = NULL;
  if (count > 3)
    PyErr_SetString (PyExc_TypeError, "throw() takes at most three arguments");
  else if (method != NULL)
    {
      for (Py_ssize_t i = 0; i < count; i++)
        full[i + 1] = args[i];
      result = PyObject_Vectorcall (method, full, (size_t)count + 1, NULL);
    }
  Py_XDECREF (method);
  Py_XDECREF (generator);
  Py_XDECREF (module);
  return result;
}

static PyObject *
steps_close (PyObject *self, PyObject *Py_UNUSED (ignored))
{
  struct steps_object *steps = (struct steps_object *)self;
  PyObject *method = method_of (steps, "close");
  PyObject *result = NULL;
  if (method != NULL)
    result = call_inner (steps, method, NULL, 0);
  else if (!PyErr_Occurred ())
    result = Py_NewRef (Py_None);
  set_suspended (steps, steps->is_suspended && result == NULL);
  return result;
}

/* __name__ and __qualname__: of a coroutine its function's, of another awaitable its class's. */
static PyObject *
steps_name (PyObject *self, void *which)
{
  PyObject *inner = ((struct steps_object *)self)->inner;
  PyObject *name = PyObject_GetAttrString (inner, which);
  if (name != NULL || !PyErr_ExceptionMatches (PyExc_AttributeError))
    return name;
  PyErr_Clear ();
  return PyObject_GetAttrString ((PyObject *)Py_TYPE (inner), which);
}

/* What the inner one tells of where it stands, for tracebacks of tasks and debuggers. */
static PyObject *
steps_inner (PyObject *self, void *which)
{
  PyObject *key = PyUnicode_InternFromString (which); /* see method_of */
  PyObject *value
      = key != NULL ? PyObject_GetAttr (((struct steps_object *)self)->inner, key) : NULL;
  Py_XDECREF (key);
  return value;
}

static PyObject *
steps_repr (PyObject *self)
{
  struct steps_object *steps = (struct steps_object *)self;
  return PyUnicode_FromFormat ("<%R in arena \"%U\">", steps->inner, steps->arena->name);
}

static int
steps_traverse (PyObject *self, visitproc visit, void *arg)
{
  Py_VISIT (Py_TYPE (self));
  Py_VISIT (((struct steps_object *)self)->arena);
  Py_VISIT (((struct steps_object *)self)->inner);
  return 0;
}

/* Never NULL, so that nobody has to look. */
static int
steps_clear (PyObject *self)
{
  Py_SETREF (((struct steps_object *)self)->inner, Py_NewRef (Py_None));
  return 0;
}

/* What was left in the middle has steps still, its `finally`, which it takes as the last reference to it goes. */
static void
steps_finalize (PyObject *self)
{
  struct steps_object *steps = (struct steps_object *)self;
  if (!steps->is_suspended)
    return;
  PyObject *error = error_take ();
  struct scope scope;
  if (scope_begin (steps->arena, &scope, 1) == -1)
    PyErr_WriteUnraisable (self);
  else
    {
      steps_clear (self);
      Py_DECREF (scope_end (&scope, Py_NewRef (Py_None)));
    }
  set_suspended (steps, 0);
  error_put (error);
}

static void
steps_dealloc (PyObject *self)
{
  struct steps_object *steps = (struct steps_object *)self;
  PyTypeObject *type = Py_TYPE (self);
  if (PyObject_CallFinalizerFromDealloc (self) == -1)
    return;
  PyObject_GC_UnTrack (self);
  Py_DECREF (steps->inner);
  Py_DECREF (steps->arena);
  type->tp_free (self);
  Py_DECREF (type);
}

static PyMethodDef steps_methods[] = {
  { "send", steps_send, METH_O, NULL },
  { "throw", (PyCFunction)(void (*) (void))steps_throw, METH_FASTCALL, NULL },
  { "close", steps_close, METH_NOARGS, NULL },
  { NULL, NULL, 0, NULL },
};

/* clang-format off */
#define INNER(name) { name, steps_inner, NULL, NULL, name }
#define NAMES                                                                                      \
  { "__name__", steps_name, NULL, NULL, "__name__" },                                              \
  { "__qualname__", steps_name, NULL, NULL, "__qualname__" },

static PyGetSetDef run_getset[] = {
  NAMES
  INNER ("cr_await"),
  INNER ("cr_code"),
  INNER ("cr_frame"),
  INNER ("cr_origin"),
  INNER ("cr_running"),
  INNER ("cr_suspended"),
  { NULL, NULL, NULL, NULL, NULL },
};
static PyGetSetDef iterate_getset[] = {
  NAMES
  INNER ("gi_code"),
  INNER ("gi_frame"),
  INNER ("gi_running"),
  INNER ("gi_suspended"),
  INNER ("gi_yieldfrom"),
  { NULL, NULL, NULL, NULL, NULL },
};

#define STEPS                                                                                      \
  { Py_tp_new, steps_new },                                                                        \
  { Py_tp_dealloc, steps_dealloc },                                                                \
  { Py_tp_finalize, steps_finalize },                                                              \
  { Py_tp_traverse, steps_traverse },                                                              \
  { Py_tp_clear, steps_clear },                                                                    \
  { Py_tp_repr, steps_repr },                                                                      \
  { Py_tp_iter, PyObject_SelfIter },                                                               \
  { Py_tp_iternext, steps_next },                                                                  \
  { Py_am_send, steps_step },                                                                      \
  { Py_tp_methods, steps_methods },

static PyType_Slot run_slots[] = {
  STEPS
  { Py_am_await, PyObject_SelfIter },
  { Py_tp_getset, run_getset },
  { 0, NULL },
};
static PyType_Slot iterate_slots[] = { STEPS { Py_tp_getset, iterate_getset }, { 0, NULL } };
/* clang-format on */

PyType_Spec run_spec = {
  .name = "malloc_arena._core._Run",
  .basicsize = sizeof (struct steps_object),
  .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
  .slots = run_slots,
};
PyType_Spec iterate_spec = {
  .name = "malloc_arena._core._Iterate",
  .basicsize = sizeof (struct steps_object),
  .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
  .slots = iterate_slots,
};
