/* with.c - Scope, what Arena.scope() gives: the arena is active in the block of the `with`, and there is a
 * sweep before and after, if that was asked for.
 *
 * In Python code a signal's handler may raise, at any call. So there is none between the scope's beginning and
 * the block, nor between the block and the scope's end: the sweeps are outside.
 */
#include "ext.h"

struct with_object
{
  PyObject ob_base;
  PyObject *arena;
  int is_swept;
};

static PyObject *
with_new (PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
  static char *names[] = { "arena", "sweep", NULL };
  struct core_state *state = core_state_of (type);
  PyObject *arena;
  int is_swept;
  if (state == NULL
      || !PyArg_ParseTupleAndKeywords (args, kwargs, "O!p", names, state->arena_type, &arena,
                                       &is_swept))
    return NULL;
  struct with_object *self = (struct with_object *)type->tp_alloc (type, 0);
  if (self == NULL)
    return NULL;
  self->arena = Py_NewRef (arena);
  self->is_swept = is_swept;
  return (PyObject *)self;
}

/* Outside whatever is active, which may have no room for it. */
static int
sweep (PyObject *arena)
{
  malloc_arena_enter (NULL);
  PyObject *method = PyObject_GetAttrString (arena, "sweep");
  malloc_arena_leave (NULL);
  PyObject *result = method != NULL ? scope_outside (NULL, &method, 1, NULL) : NULL;
  Py_XDECREF (method);
  Py_XDECREF (result);
  return result != NULL ? 0 : -1;
}

static PyObject *
with_enter (PyObject *self, PyObject *Py_UNUSED (ignored))
{
  struct with_object *with = (struct with_object *)self;
  /* The sweep last: a value from the free lists is an object outside the arena that the block would use. */
  if (scope_check_frame (self) == -1 || (with->is_swept && sweep (with->arena) == -1))
    return NULL;
  return scope_open (with->arena);
}

static PyObject *
with_exit (PyObject *self, PyObject *const *args, Py_ssize_t count)
{
  struct with_object *with = (struct with_object *)self;
  PyObject *result = scope_exit (with->arena, args, count);
  if (result != NULL && with->is_swept && sweep (with->arena) == -1)
    {
      /* An error is said, and does not take the place of what the block ended with; an interrupt does. */
      if (count >= 2 && args[1] != Py_None && PyErr_ExceptionMatches (PyExc_Exception))
        PyErr_WriteUnraisable (self);
      else
        Py_CLEAR (result);
    }
  return result;
}

static int
with_traverse (PyObject *self, visitproc visit, void *arg)
{
  Py_VISIT (Py_TYPE (self));
  Py_VISIT (((struct with_object *)self)->arena);
  return 0;
}

static void
with_dealloc (PyObject *self)
{
  PyTypeObject *type = Py_TYPE (self);
  PyObject_GC_UnTrack (self);
  Py_DECREF (((struct with_object *)self)->arena);
  type->tp_free (self);
  Py_DECREF (type);
}

static PyMethodDef with_methods[] = {
  { "__enter__", with_enter, METH_NOARGS, NULL },
  { "__exit__", (PyCFunction)(void (*) (void))with_exit, METH_FASTCALL, NULL },
  { NULL, NULL, 0, NULL },
};

static PyType_Slot with_slots[] = {
  { Py_tp_doc, "One scope of an arena, with its sweeps." },
  { Py_tp_new, with_new },
  { Py_tp_dealloc, with_dealloc },
  { Py_tp_traverse, with_traverse },
  { Py_tp_methods, with_methods },
  { 0, NULL },
};

PyType_Spec scope_spec = {
  .name = "malloc_arena._core.Scope",
  .basicsize = sizeof (struct with_object),
  .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
  .slots = with_slots,
};
