/* buffer.c - SecretBuffer: bytes of fixed size and place, to be filled and read through the buffer
 * protocol, that no object of the interpreter copies and that close() wipes.
 */
#include "ext.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <structmember.h>
#include <unistd.h>

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
make (PyTypeObject *type, Py_ssize_t size, PyObject *arena)
{
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
      PyObject *message = core_exhausted (handle, (size_t)size, 0);
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
  return make (type, size, arena);
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

/* int() and float() of any buffer make a copy of it, in ordinary memory, and int() shows it if it is no number. */
static PyObject *
buffer_refuse_number (PyObject *Py_UNUSED (self))
{
  PyErr_SetString (PyExc_TypeError, "a SecretBuffer is no number");
  return NULL;
}

/* The byte at POSITION of a view whose items lie apart. */
static unsigned char
byte_at (const Py_buffer *view, Py_ssize_t position)
{
  Py_ssize_t indices[PyBUF_MAX_NDIM];
  Py_ssize_t item = position / view->itemsize;
  for (int i = view->ndim; i-- > 0; item /= view->shape[i])
    indices[i] = item % view->shape[i];
  return ((unsigned char *)PyBuffer_GetPointer (view, indices))[position % view->itemsize];
}

/* As below. PyBuffer_ToContiguous would make a copy, by way of another one, in ordinary memory. */
static int
is_equal_apart (const Py_buffer *a, const Py_buffer *b)
{
  volatile unsigned char difference = a->len != b->len;
  for (Py_ssize_t i = 0; i < a->len && a->len == b->len; i++)
    difference |= byte_at (a, i) ^ byte_at (b, i);
  return difference == 0;
}

/* The time depends on the sizes, never on where the bytes differ. */
static int
is_equal (const void *a, Py_ssize_t a_size, const void *b, Py_ssize_t b_size)
{
  const volatile unsigned char *p = a;
  const volatile unsigned char *q = b;
  unsigned char difference = a_size != b_size;
  for (Py_ssize_t i = 0; i < a_size && a_size == b_size; i++)
    difference |= p[i] ^ q[i];
  return difference == 0;
}

/* 1 or 0, or -1 with an exception. */
static int
are_equal (PyObject *a, PyObject *b)
{
  Py_buffer view;
  Py_buffer other;
  /* Without their formats: numpy has none for dates. */
  if (PyObject_GetBuffer (a, &view, PyBUF_INDIRECT) == -1)
    return -1;
  int equal = PyObject_GetBuffer (b, &other, PyBUF_INDIRECT);
  if (equal == 0)
    {
      equal = PyBuffer_IsContiguous (&view, 'C') && PyBuffer_IsContiguous (&other, 'C')
                  ? is_equal (view.buf, view.len, other.buf, other.len)
                  : is_equal_apart (&view, &other);
      PyBuffer_Release (&other);
    }
  PyBuffer_Release (&view);
  return equal;
}

static PyObject *
buffer_compare (PyObject *self, PyObject *other, int op)
{
  if ((op != Py_EQ && op != Py_NE) || !PyObject_CheckBuffer (other))
    Py_RETURN_NOTIMPLEMENTED;
  int equal = are_equal (self, other);
  return equal == -1 ? NULL : PyBool_FromLong (equal == (op == Py_EQ));
}

/* By the values' own ==, in the arena of one of them: what is made of a secret on the way stays there. */
static PyObject *
are_equal_values (PyObject *a, PyObject *b)
{
  malloc_arena *handle = HAS_HOOKS ? malloc_arena_of (a) : NULL;
  if (HAS_HOOKS && handle == NULL)
    handle = malloc_arena_of (b);
  struct scope scope;
  if (handle != NULL && scope_begin_in (handle, &scope, 0) == -1)
    return NULL;
  /* Not PyObject_RichCompareBool, to which a value is equal to itself whatever it says. */
  PyObject *answer = PyObject_RichCompare (a, b, Py_EQ);
  int equal = answer != NULL ? PyObject_IsTrue (answer) : -1;
  Py_XDECREF (answer);
  PyObject *result = equal == -1 ? NULL : PyBool_FromLong (equal);
  return handle != NULL ? scope_end (&scope, result) : result;
}

/* Two texts or two bytes-like objects are compared as they lie in memory: hmac.compare_digest refuses
 * texts that are not ASCII, and encoding one would make a copy. */
PyObject *
buffer_equal (PyObject *Py_UNUSED (module), PyObject *const *args, Py_ssize_t count)
{
  if (count != 2)
    {
      PyErr_SetString (PyExc_TypeError, "two values are compared");
      return NULL;
    }
  PyObject *a = args[0];
  PyObject *b = args[1];
  int is_text = PyUnicode_Check (a) + PyUnicode_Check (b);
  int is_buffer = PyObject_CheckBuffer (a) + PyObject_CheckBuffer (b);
  if (is_buffer == 2)
    {
      int equal = are_equal (a, b);
      return equal == -1 ? NULL : PyBool_FromLong (equal);
    }
  /* Under -b, == of these is a warning, and so is that of bytes and a number. */
  if (is_buffer == 1 && (is_text == 1 || PyLong_Check (a) || PyLong_Check (b)))
    Py_RETURN_FALSE;
  if (is_text != 2)
    return are_equal_values (a, b);
  if (PyUnicode_READY (a) == -1 || PyUnicode_READY (b) == -1)
    return NULL;
  /* Each text has the narrowest characters it can: equal ones have equal widths. */
  if (PyUnicode_KIND (a) != PyUnicode_KIND (b))
    Py_RETURN_FALSE;
  return PyBool_FromLong (
      is_equal (PyUnicode_DATA (a), PyUnicode_GET_LENGTH (a) * PyUnicode_KIND (a),
                PyUnicode_DATA (b), PyUnicode_GET_LENGTH (b) * PyUnicode_KIND (b)));
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

/* Bytes FROM a view, maybe apart and maybe of the same buffer, to every STEP-th place; 0, or -1 with an exception. */
static int
assign_apart (char *to, Py_ssize_t step, const Py_buffer *from)
{
  malloc_arena *handle = malloc_arena_of (to);
  struct ma_local *local = handle != NULL ? ma_local_of (handle) : NULL;
  char *between = local != NULL ? ma_alloc (local, (size_t)from->len) : NULL;
  if (between == NULL)
    {
      PyErr_NoMemory ();
      return -1;
    }
  for (Py_ssize_t i = 0; i < from->len; i++)
    between[i] = (char)byte_at (from, i);
  for (Py_ssize_t i = 0; i < from->len; i++)
    to[i * step] = between[i];
  ma_wipe (between, (size_t)from->len);
  ma_release (between);
  return 0;
}

static int
is_of_bytes (const Py_buffer *view)
{
  const char *format = view->format != NULL ? view->format : "B";
  return view->ndim == 1 && strcmp (format + (format[0] == '@'), "B") == 0;
}

/* memoryview copies what does not lie together, on either side, to ordinary memory first. 1: that is done here, 0: it
 * is no such assignment, or a wrong one, of which memoryview says what is wrong; -1 with an exception. */
static int
assign_slice (PyObject *self, PyObject *slice, PyObject *value)
{
  Py_ssize_t start, stop, step;
  Py_buffer own;
  Py_buffer view;
  if (!PyObject_CheckBuffer (value) || PySlice_Unpack (slice, &start, &stop, &step) == -1)
    return PyErr_Occurred () ? -1 : 0;
  if (PyObject_GetBuffer (self, &own, PyBUF_SIMPLE) == -1)
    return -1;
  int outcome = PyObject_GetBuffer (value, &view, PyBUF_FULL_RO);
  if (outcome == 0)
    {
      Py_ssize_t length = PySlice_AdjustIndices (own.len, &start, &stop, step);
      if ((step != 1 || !PyBuffer_IsContiguous (&view, 'C')) && length == view.len && length != 0
          && is_of_bytes (&view))
        outcome = assign_apart ((char *)own.buf + start, step, &view) == 0 ? 1 : -1;
      PyBuffer_Release (&view);
    }
  PyBuffer_Release (&own);
  return outcome;
}

static int
buffer_assign (PyObject *self, PyObject *key, PyObject *value)
{
  if (value != NULL && PySlice_Check (key))
    {
      int outcome = assign_slice (self, key, value);
      if (outcome != 0)
        return outcome == 1 ? 0 : -1;
    }
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

static PyObject *
buffer_get_receipt (PyObject *self, void *Py_UNUSED (closure))
{
  char *data = ((struct buffer_object *)self)->data;
  if (data == NULL)
    Py_RETURN_NONE;
  malloc_arena *handle = malloc_arena_of (data);
  malloc_arena_enter (NULL);
  PyObject *module = PyImport_ImportModule ("malloc_arena.receipt");
  PyObject *make = module != NULL ? PyObject_GetAttrString (module, "make_receipt") : NULL;
  PyObject *kind = make != NULL ? Py_BuildValue ("(I)", ma_kind_of (handle)) : NULL;
  PyObject *given = kind != NULL ? core_receipt (handle) : NULL;
  PyObject *arguments = given != NULL ? PySequence_Concat (kind, given) : NULL;
  PyObject *receipt = arguments != NULL ? PyObject_CallObject (make, arguments) : NULL;
  Py_XDECREF (arguments);
  Py_XDECREF (given);
  Py_XDECREF (kind);
  Py_XDECREF (make);
  Py_XDECREF (module);
  malloc_arena_leave (NULL);
  return receipt;
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
  { "receipt", buffer_get_receipt, NULL,
    PyDoc_STR (
        "What protection was really obtained, of all memory of the arena that it lies in; None "
        "when closed."),
    NULL },
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
  { Py_nb_int, buffer_refuse_number },
  { Py_nb_float, buffer_refuse_number },
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

/* ---- the environment ---- */

static int
is_entry_of (const char *entry, const char *name, size_t length)
{
  return strncmp (entry, name, length) == 0 && entry[length] == '=';
}

/* What the kernel shows in /proc/self/environ: START to END hold the entries that the process was
 * started with, each ended by a zero. */
static void
wipe_start_block (char *start, char *end, const char *name, size_t length)
{
  for (char *entry = start; entry < end;)
    {
      size_t size = strnlen (entry, (size_t)(end - entry));
      if (size > length && is_entry_of (entry, name, length))
        ma_wipe (entry + length + 1, size - length - 1);
      entry += size + 1;
    }
}

/* (name, os.environb, arena, start, end, finish): what FINISH makes of a SecretBuffer with the value of the
 * environment variable NAME (bytes), None if there is no such variable. Unless that raises, the value is
 * wiped in the C library's environment, in the block that the process started with, which is from START to
 * END (0, 0: unknown), and in the object that os.environ holds, unless others hold it too; and the variable
 * is removed. */
PyObject *
buffer_of_environment (PyObject *module, PyObject *args)
{
  const char *name;
  Py_ssize_t length;
  PyObject *environb;
  PyObject *arena;
  unsigned long long start;
  unsigned long long end;
  PyObject *finish;
  if (!PyArg_ParseTuple (args, "y#OOKKO", &name, &length, &environb, &arena, &start, &end, &finish))
    return NULL;
  PyTypeObject *type = ((struct core_state *)PyModule_GetState (module))->buffer_type;
  /* No variable has such a name, though getenv and a look at the entries would find a part of one. */
  if (length == 0 || strlen (name) != (size_t)length || strchr (name, '=') != NULL)
    Py_RETURN_NONE;
  PyObject *value = PyObject_CallMethod (environb, "get", "y", name);
  if (value == NULL)
    return NULL;
  const char *data = getenv (name);
  Py_ssize_t size = data != NULL ? (Py_ssize_t)strlen (data) : 0;
  if (PyBytes_Check (value)) /* goes before, as what Python code sees */
    {
      data = PyBytes_AS_STRING (value);
      size = PyBytes_GET_SIZE (value);
    }
  if (data == NULL)
    return value;
  PyObject *buffer = make (type, size, arena);
  if (buffer == NULL)
    {
      Py_DECREF (value);
      return NULL;
    }
  memcpy (((struct buffer_object *)buffer)->data, data, (size_t)size);
  PyObject *result = PyObject_CallOneArg (finish, buffer);
  Py_DECREF (buffer);
  if (result == NULL)
    {
      Py_DECREF (value);
      return NULL;
    }
  for (char **entry = environ; entry != NULL && *entry != NULL; entry++)
    if (is_entry_of (*entry, name, (size_t)length))
      ma_wipe (*entry + length + 1, strlen (*entry + length + 1));
  wipe_start_block ((char *)(uintptr_t)start, (char *)(uintptr_t)end, name, (size_t)length);
  PyObject *removed = PyObject_CallMethod (environb, "pop", "yO", name, Py_None);
  /* Also an entry that os.environ did not know. */
  unsetenv (name);
  Py_XDECREF (removed);
  /* The last reference is ours: nobody will look at the object again. One byte is a singleton. */
  if (removed != NULL && PyBytes_Check (value) && Py_REFCNT (value) == 1 && size > 1)
    ma_wipe (PyBytes_AS_STRING (value), (size_t)size);
  Py_DECREF (value);
  if (removed == NULL)
    Py_CLEAR (result);
  return result;
}
