/* buffer.c - SecretBuffer: bytes of fixed size and place, to be filled and read through the buffer
 * protocol, that no object of the interpreter copies and that close() wipes.
 */
#include "ext.h"

#include <errno.h>
#include <stddef.h>
#include <structmember.h>

struct buffer_object
{
  PyObject ob_base;
  char *data; /* NULL: closed */
  Py_ssize_t size;
  Py_ssize_t exports;
  PyObject *arena; /* keeps an arena of one's own open; NULL: the process's */
  PyObject *weakrefs;
};

/* Without a GIL the count of exports needs a lock. */
#ifdef Py_GIL_DISABLED
#define EXCLUSIVE(self) Py_BEGIN_CRITICAL_SECTION (self)
#define END_EXCLUSIVE Py_END_CRITICAL_SECTION ()
#else
#define EXCLUSIVE(self) {
#define END_EXCLUSIVE }
#endif

static PyObject *
buffer_new (PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
  static char *keywords[] = { "size", "arena", NULL };
  Py_ssize_t size;
  PyObject *arena = Py_None;
  if (!PyArg_ParseTupleAndKeywords (args, kwargs, "n|O:SecretBuffer", keywords, &size, &arena))
    return NULL;
  if (size < 0)
    {
      PyErr_SetString (PyExc_ValueError, "a SecretBuffer cannot have a negative size");
      return NULL;
    }
  struct core_state *state = core_state_of (type);
  if (state == NULL)
    return NULL;
  if (arena != Py_None && !PyObject_TypeCheck (arena, state->arena_type))
    {
      PyErr_Format (PyExc_TypeError, "arena must be an Arena or None, not %R", Py_TYPE (arena));
      return NULL;
    }
  struct arena_object *own = arena != Py_None ? (struct arena_object *)arena : NULL;
  unsigned kind = own != NULL ? own->kind : HEAP_SECURE;
  malloc_arena *handle;
  if (own != NULL && !own->is_shared)
    {
      handle = own->handle;
      if (handle == NULL)
        return core_error ("ArenaError", "arena \"%U\" is closed", own->name);
    }
  else
    {
      /* Not Python's arena of that kind, whose objects a forked child goes on using, but C's, which
       * the child finds wiped: no header of an object lives there. */
      handle = malloc_arena_get (kind);
      if (handle == NULL)
        return core_unavailable (errno, kind);
    }
  struct buffer_object *self = (struct buffer_object *)type->tp_alloc (type, 0);
  if (self == NULL)
    return NULL;
  struct ma_local *local = ma_local_of (handle);
  self->data = local != NULL ? ma_zalloc (local, (size_t)size) : NULL;
  if (self->data == NULL)
    {
      Py_DECREF (self);
      PyObject *message = core_exhausted (handle);
      if (message != NULL)
        PyErr_SetObject (PyExc_MemoryError, message);
      Py_XDECREF (message);
      return NULL;
    }
  self->size = size;
  if (own != NULL && !own->is_shared)
    self->arena = Py_NewRef (arena);
  return (PyObject *)self;
}

static void
let_go (struct buffer_object *self)
{
  if (self->data != NULL)
    {
      /* Arenas that are not secure do not wipe. */
      ma_wipe (self->data, (size_t)self->size);
      ma_release (self->data);
      self->data = NULL;
    }
}

static int
buffer_traverse (PyObject *self, visitproc visit, void *arg)
{
  Py_VISIT (Py_TYPE (self));
  Py_VISIT (((struct buffer_object *)self)->arena);
  return 0;
}

/* No tp_clear: an arena refers to nothing, so that there is no cycle to break here, and a finalizer
 * that still looks at the buffer finds it whole. */
static void
buffer_dealloc (PyObject *self)
{
  struct buffer_object *buffer = (struct buffer_object *)self;
  PyTypeObject *type = Py_TYPE (self);
  PyObject_GC_UnTrack (self);
  if (buffer->weakrefs != NULL)
    PyObject_ClearWeakRefs (self);
  let_go (buffer);
  Py_XDECREF (buffer->arena);
  type->tp_free (self);
  Py_DECREF (type);
}

static int
buffer_getbuffer (PyObject *self, Py_buffer *view, int flags)
{
  struct buffer_object *buffer = (struct buffer_object *)self;
  int outcome;
  EXCLUSIVE (self);
  if (buffer->data == NULL)
    {
      view->obj = NULL;
      PyErr_SetString (PyExc_ValueError, "the SecretBuffer is closed");
      outcome = -1;
    }
  else
    {
      outcome = PyBuffer_FillInfo (view, self, buffer->data, buffer->size, 0, flags);
      if (outcome == 0)
        buffer->exports++;
    }
  END_EXCLUSIVE;
  return outcome;
}

static void
buffer_releasebuffer (PyObject *self, Py_buffer *Py_UNUSED (view))
{
  EXCLUSIVE (self);
  ((struct buffer_object *)self)->exports--;
  END_EXCLUSIVE;
}

static PyObject *
buffer_close (PyObject *self, PyObject *Py_UNUSED (ignored))
{
  struct buffer_object *buffer = (struct buffer_object *)self;
  Py_ssize_t exports;
  EXCLUSIVE (self);
  exports = buffer->exports;
  if (exports == 0)
    let_go (buffer);
  END_EXCLUSIVE;
  if (exports == 0)
    Py_RETURN_NONE;
  return PyErr_Format (PyExc_BufferError,
                       "the SecretBuffer cannot be closed: %zd views of it are in use", exports);
}

static PyObject *
buffer_enter (PyObject *self, PyObject *Py_UNUSED (ignored))
{
  if (((struct buffer_object *)self)->data == NULL)
    {
      PyErr_SetString (PyExc_ValueError, "the SecretBuffer is closed");
      return NULL;
    }
  return Py_NewRef (self);
}

static PyObject *
buffer_exit (PyObject *self, PyObject *Py_UNUSED (args))
{
  return buffer_close (self, NULL);
}

static PyObject *
buffer_refuse_copy (PyObject *Py_UNUSED (self), PyObject *Py_UNUSED (args))
{
  PyErr_SetString (PyExc_TypeError, "a SecretBuffer cannot be copied or pickled");
  return NULL;
}

/* The time depends on the sizes, never on where the bytes differ. */
static PyObject *
buffer_compare (PyObject *self, PyObject *other, int op)
{
  if ((op != Py_EQ && op != Py_NE) || !PyObject_CheckBuffer (other))
    Py_RETURN_NOTIMPLEMENTED;
  Py_buffer a;
  Py_buffer b;
  if (PyObject_GetBuffer (self, &a, PyBUF_SIMPLE) == -1)
    return NULL;
  if (PyObject_GetBuffer (other, &b, PyBUF_SIMPLE) == -1)
    {
      PyBuffer_Release (&a);
      return NULL;
    }
  const volatile unsigned char *p = a.buf;
  const volatile unsigned char *q = b.buf;
  unsigned char difference = a.len != b.len;
  for (Py_ssize_t i = 0; i < a.len && a.len == b.len; i++)
    difference |= p[i] ^ q[i];
  PyBuffer_Release (&b);
  PyBuffer_Release (&a);
  return PyBool_FromLong ((difference == 0) == (op == Py_EQ));
}

static Py_ssize_t
buffer_length (PyObject *self)
{
  struct buffer_object *buffer = (struct buffer_object *)self;
  return buffer->data != NULL ? buffer->size : 0;
}

/* An index gives a number, a slice a view: never a copy that nobody wipes. */
static PyObject *
buffer_subscript (PyObject *self, PyObject *key)
{
  PyObject *view = PyMemoryView_FromObject (self);
  PyObject *item = view != NULL ? PyObject_GetItem (view, key) : NULL;
  Py_XDECREF (view);
  return item;
}

static int
buffer_assign (PyObject *self, PyObject *key, PyObject *value)
{
  PyObject *view = PyMemoryView_FromObject (self);
  int outcome = -1;
  if (view != NULL)
    outcome = value != NULL ? PyObject_SetItem (view, key, value) : PyObject_DelItem (view, key);
  Py_XDECREF (view);
  return outcome;
}

static PyObject *
buffer_repr (PyObject *self)
{
  struct buffer_object *buffer = (struct buffer_object *)self;
  if (buffer->data == NULL)
    return PyUnicode_FromString ("<SecretBuffer closed>");
  return PyUnicode_FromFormat ("<SecretBuffer of %zd bytes>", buffer->size);
}

static PyObject *
buffer_get_address (PyObject *self, void *Py_UNUSED (closure))
{
  char *data = ((struct buffer_object *)self)->data;
  if (data == NULL)
    Py_RETURN_NONE;
  return PyLong_FromVoidPtr (data);
}

static PyObject *
buffer_get_closed (PyObject *self, void *Py_UNUSED (closure))
{
  return PyBool_FromLong (((struct buffer_object *)self)->data == NULL);
}

static PyMethodDef buffer_methods[] = {
  { "close", buffer_close, METH_NOARGS,
    PyDoc_STR ("close()\n--\n\nWipes the bytes. BufferError while views of them are in use.") },
  { "__enter__", buffer_enter, METH_NOARGS, NULL },
  { "__exit__", buffer_exit, METH_VARARGS, NULL },
  { "__reduce__", buffer_refuse_copy, METH_NOARGS, NULL },
  { "__reduce_ex__", buffer_refuse_copy, METH_O, NULL },
  { "__copy__", buffer_refuse_copy, METH_NOARGS, NULL },
  { "__deepcopy__", buffer_refuse_copy, METH_O, NULL },
  { NULL, NULL, 0, NULL },
};

static PyGetSetDef buffer_getset[] = {
  { "address", buffer_get_address, NULL,
    PyDoc_STR ("Where the bytes are, for Arena.owns() and foreign functions; None when closed."),
    NULL },
  { "closed", buffer_get_closed, NULL, PyDoc_STR ("Whether the bytes are gone."), NULL },
  { NULL, NULL, NULL, NULL, NULL },
};

static PyMemberDef buffer_members[] = {
  { "__weaklistoffset__", T_PYSSIZET, offsetof (struct buffer_object, weakrefs), READONLY, NULL },
  { NULL, 0, 0, 0, NULL },
};

static PyType_Slot buffer_slots[] = {
  { Py_tp_doc, (void *)PyDoc_STR ("SecretBuffer(size, arena=None)\n--\n\n"
                                  "Zeroed bytes in secure memory, wiped at close().") },
  { Py_tp_new, buffer_new },
  { Py_tp_dealloc, buffer_dealloc },
  { Py_tp_traverse, buffer_traverse },
  { Py_tp_repr, buffer_repr },
  { Py_tp_richcompare, buffer_compare },
  { Py_tp_hash, PyObject_HashNotImplemented },
  { Py_tp_methods, buffer_methods },
  { Py_tp_getset, buffer_getset },
  { Py_tp_members, buffer_members },
  { Py_mp_length, buffer_length },
  { Py_mp_subscript, buffer_subscript },
  { Py_mp_ass_subscript, buffer_assign },
  { Py_bf_getbuffer, buffer_getbuffer },
  { Py_bf_releasebuffer, buffer_releasebuffer },
  { 0, NULL },
};

PyType_Spec buffer_spec = {
  .name = "malloc_arena.SecretBuffer",
  .basicsize = sizeof (struct buffer_object),
  .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
  .slots = buffer_slots,
};
