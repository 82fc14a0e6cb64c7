/* module.c - the _core module: types, constants, region(), and exceptions raised from C. */
#include "ext.h"

#include <malloc.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static struct PyModuleDef core_module;

struct core_state *
core_state_of (PyTypeObject *type)
{
  PyObject *module = PyType_GetModuleByDef (type, &core_module);
  return module != NULL ? PyModule_GetState (module) : NULL;
}

/* Errors are made outside any arena: an arena that is full has no room for them, and CPython's type
 * cache keeps the names that they are looked up by. */
static PyObject *
errors_attribute (const char *name)
{
  PyObject *module = PyImport_ImportModule ("malloc_arena.errors");
  PyObject *attribute = module != NULL ? PyObject_GetAttrString (module, name) : NULL;
  Py_XDECREF (module);
  return attribute;
}

PyObject *
core_error (const char *class_name, const char *format, ...)
{
  malloc_arena_enter (NULL);
  va_list arguments;
  va_start (arguments, format);
  PyObject *message = PyUnicode_FromFormatV (format, arguments);
  va_end (arguments);
  PyObject *class = message != NULL ? errors_attribute (class_name) : NULL;
  if (class != NULL)
    PyErr_SetObject (class, message);
  Py_XDECREF (class);
  Py_XDECREF (message);
  malloc_arena_leave (NULL);
  return NULL;
}

PyObject *
core_unavailable (int error, unsigned kind)
{
  malloc_arena_enter (NULL);
  PyObject *make = errors_attribute ("unavailable");
  PyObject *exception = make != NULL ? PyObject_CallFunction (make, "iI", error, kind) : NULL;
  if (exception != NULL)
    PyErr_SetObject ((PyObject *)Py_TYPE (exception), exception);
  Py_XDECREF (exception);
  Py_XDECREF (make);
  malloc_arena_leave (NULL);
  return NULL;
}

PyObject *
core_exhausted (malloc_arena *handle, size_t requested, int in_scope)
{
  struct malloc_arena_stats stats = { .size = sizeof stats };
  malloc_arena_stats (handle, &stats);
  malloc_arena_enter (NULL);
  PyObject *make = errors_attribute ("exhausted");
  PyObject *message = NULL;
  if (make != NULL)
    message = PyObject_CallFunction (
        make, "snnnnnnnOO", malloc_arena_name (handle), (Py_ssize_t)stats.limit_bytes,
        (Py_ssize_t)stats.mapped_bytes, (Py_ssize_t)stats.live_bytes, (Py_ssize_t)stats.live_blocks,
        (Py_ssize_t)stats.locked_bytes, (Py_ssize_t)requested, (Py_ssize_t)ma_region.size,
        in_scope ? Py_True : Py_False, ma_requires_lock (handle) ? Py_True : Py_False);
  Py_XDECREF (make);
  malloc_arena_leave (NULL);
  return message;
}

static PyObject *
core_region (PyObject *Py_UNUSED (module), PyObject *Py_UNUSED (ignored))
{
  return Py_BuildValue ("KK", (unsigned long long)ma_region.base,
                        (unsigned long long)ma_region.size);
}

/* (the extents of all arenas as one bytes object, {handle: name}) */
static PyObject *
core_walk (PyObject *Py_UNUSED (module), PyObject *Py_UNUSED (ignored))
{
  struct malloc_arena_extent *extents = NULL;
  size_t room = 0;
  ptrdiff_t found;
  while ((found = malloc_arena_walk (NULL, extents, sizeof *extents, room)) > (ptrdiff_t)room)
    {
      /* What is asked for here may be in an arena itself. */
      room = (size_t)found + (size_t)found / 8 + 64;
      struct malloc_arena_extent *more = PyMem_RawRealloc (extents, room * sizeof *extents);
      if (more == NULL)
        {
          PyMem_RawFree (extents);
          return PyErr_NoMemory ();
        }
      extents = more;
    }
  PyObject *names = PyDict_New ();
  for (ptrdiff_t i = 0; names != NULL && i < found; i++)
    {
      if (extents[i].type != MALLOC_ARENA_EXTENT_ARENA)
        continue;
      PyObject *handle = PyLong_FromVoidPtr (extents[i].arena);
      PyObject *name
          = PyUnicode_DecodeUTF8 (extents[i].name, (Py_ssize_t)strlen (extents[i].name), "replace");
      if (handle == NULL || name == NULL || PyDict_SetItem (names, handle, name) == -1)
        Py_CLEAR (names);
      Py_XDECREF (handle);
      Py_XDECREF (name);
    }
  PyObject *data = NULL;
  if (names != NULL)
    data = PyBytes_FromStringAndSize ((const char *)extents, found * (Py_ssize_t)sizeof *extents);
  PyMem_RawFree (extents);
  PyObject *result = data != NULL ? PyTuple_Pack (2, data, names) : NULL;
  Py_XDECREF (data);
  Py_XDECREF (names);
  return result;
}

/* (gc.callbacks, function): calls FUNCTION while the list is empty. Here, as Python code may end at any call, by
 * a signal's handler; and without a list of its own, whose header CPython would keep when it is dropped. */
static PyObject *
core_without_callbacks (PyObject *Py_UNUSED (module), PyObject *args)
{
  PyObject *callbacks, *function;
  if (!PyArg_ParseTuple (args, "O!O", &PyList_Type, &callbacks, &function))
    return NULL;
  Py_ssize_t count = PyList_GET_SIZE (callbacks);
  PyObject **aside = PyMem_RawMalloc ((size_t)count * sizeof *aside);
  if (aside == NULL)
    return PyErr_NoMemory ();
  for (Py_ssize_t i = 0; i < count; i++)
    aside[i] = Py_NewRef (PyList_GET_ITEM (callbacks, i));
  PyObject *result = NULL;
  if (PyList_SetSlice (callbacks, 0, count, NULL) == 0)
    {
      result = PyObject_CallNoArgs (function);
      PyObject *error = result == NULL ? error_take () : NULL;
      for (Py_ssize_t i = 0; i < count; i++)
        if (PyList_Insert (callbacks, i, aside[i]) == -1)
          PyErr_WriteUnraisable (aside[i]);
      if (error != NULL)
        error_put (error);
    }
  for (Py_ssize_t i = 0; i < count; i++)
    Py_DECREF (aside[i]);
  PyMem_RawFree (aside);
  return result;
}

/* What runs in each thread of this interpreter. sys._current_frames() makes frame objects of other
 * interpreters' code as well, in this one's memory, where from 3.12 on each has its own. */
static PyObject *
core_frames (PyObject *Py_UNUSED (module), PyObject *Py_UNUSED (ignored))
{
  PyObject *frames = PyList_New (0);
  int collects = PyGC_Disable (); /* a finalizer would let a thread go that is looked at */
  for (PyThreadState *thread = PyInterpreterState_ThreadHead (PyInterpreterState_Get ());
       frames != NULL && thread != NULL; thread = PyThreadState_Next (thread))
    {
      PyObject *frame = (PyObject *)PyThreadState_GetFrame (thread);
      if (frame != NULL && PyList_Append (frames, frame) == -1)
        Py_CLEAR (frames);
      Py_XDECREF (frame);
    }
  if (collects)
    PyGC_Enable ();
  return frames;
}

/* What C libraries have freed lies, as they left it, where this thread's next requests of the size are served from.
 * These are made here, wiped and freed: glibc keeps 7 blocks of each size for the thread, up to 1,032 bytes; of what is
 * more it keeps the smallest as they are, and joins others to larger ones, which are cut up again as needed. */
enum
{
  FREED_SMALL = 136,
  FREED_MOST = 1032,
  FREED_LARGEST = 64 << 10, /* more is a mapping of its own soon, and gone when it is freed */
  FREED_STEP = 16,
  FREED_EACH = 64
};

static void
wipe_freed (size_t size, unsigned most)
{
  void *blocks[FREED_EACH];
  unsigned n = 0;
  for (; n < most && (blocks[n] = malloc (size)) != NULL; n++)
    ma_wipe (blocks[n], malloc_usable_size (blocks[n]));
  while (n > 0)
    free (blocks[--n]);
}

static PyObject *
core_wipe_freed (PyObject *Py_UNUSED (module), PyObject *Py_UNUSED (ignored))
{
  /* The largest first, as the smaller ones would cut these up. */
  for (size_t size = FREED_LARGEST; size > FREED_MOST; size /= 2)
    wipe_freed (size, 2);
  for (size_t size = FREED_MOST; size > FREED_SMALL; size -= FREED_STEP)
    wipe_freed (size, FREED_EACH / 4);
  for (size_t size = FREED_SMALL; size > FREED_STEP; size -= FREED_STEP)
    wipe_freed (size, FREED_EACH);
  ma_scrub_all (); /* a scrub at the end of a scope stops where frames leave a lot unwritten */
  Py_RETURN_NONE;
}

static PyObject *
core_stack_room (PyObject *Py_UNUSED (module), PyObject *Py_UNUSED (ignored))
{
  return PyLong_FromSize_t (ma_stack_room (__builtin_frame_address (0), SIZE_MAX));
}

static int
core_exec (PyObject *module)
{
  struct core_state *state = PyModule_GetState (module);
  state->arena_type = (PyTypeObject *)PyType_FromModuleAndSpec (module, &arena_spec, NULL);
  state->buffer_type = (PyTypeObject *)PyType_FromModuleAndSpec (module, &buffer_spec, NULL);
  state->scope_type = (PyTypeObject *)PyType_FromModuleAndSpec (module, &scope_spec, NULL);
  state->inherited_type = (PyTypeObject *)PyType_FromModuleAndSpec (module, &inherited_spec, NULL);
  state->run_type = (PyTypeObject *)PyType_FromModuleAndSpec (module, &run_spec, NULL);
  state->iterate_type = (PyTypeObject *)PyType_FromModuleAndSpec (module, &iterate_spec, NULL);
  if (state->arena_type == NULL || state->buffer_type == NULL || state->scope_type == NULL
      || state->inherited_type == NULL || state->run_type == NULL || state->iterate_type == NULL
      || PyModule_AddType (module, state->arena_type) == -1
      || PyModule_AddType (module, state->buffer_type) == -1
      || PyModule_AddType (module, state->scope_type) == -1
      || PyModule_AddType (module, state->run_type) == -1
      || PyModule_AddType (module, state->iterate_type) == -1
      || PyModule_AddIntMacro (module, HEAP_DEFAULT) == -1
      || PyModule_AddIntMacro (module, HEAP_SECURE) == -1
      || PyModule_AddIntMacro (module, HEAP_TAGGED) == -1
      || PyModule_AddIntMacro (module, HEAP_ISOLATED) == -1
      || PyModule_AddIntMacro (module, HEAP_SECRETMEM) == -1)
    return -1;
  PyObject *version = PyUnicode_FromFormat ("%d.%d.%d", MALLOC_ARENA_VERSION_MAJOR,
                                            MALLOC_ARENA_VERSION_MINOR, MALLOC_ARENA_VERSION_PATCH);
  int added = PyModule_AddObjectRef (module, "__version__", version);
  Py_XDECREF (version);
  if (added == -1)
    return -1;
  state->blocks_index = scope_blocks_index ();
  const char *always = getenv ("MALLOC_ARENA_SWEEP");
  if (always != NULL && strcmp (always, "1") == 0)
    scope_sweep_always ();
  /* "From start-up" cannot be earlier than this. */
  return ma_default_arena () != NULL ? pyhooks_install () : 0;
}

static int
core_traverse (PyObject *module, visitproc visit, void *arg)
{
  struct core_state *state = PyModule_GetState (module);
  Py_VISIT (state->arena_type);
  Py_VISIT (state->buffer_type);
  Py_VISIT (state->scope_type);
  Py_VISIT (state->inherited_type);
  Py_VISIT (state->run_type);
  Py_VISIT (state->iterate_type);
  return 0;
}

static int
core_clear (PyObject *module)
{
  struct core_state *state = PyModule_GetState (module);
  Py_CLEAR (state->arena_type);
  Py_CLEAR (state->buffer_type);
  Py_CLEAR (state->scope_type);
  Py_CLEAR (state->inherited_type);
  Py_CLEAR (state->run_type);
  Py_CLEAR (state->iterate_type);
  return 0;
}

static void
core_free (void *module)
{
  core_clear (module);
}

static PyMethodDef core_methods[] = {
  { "region", core_region, METH_NOARGS,
    PyDoc_STR ("region()\n--\n\n"
               "(base, size) of the address range that holds every arena; (0, 0) before the "
               "first.") },
  { "_outside", (PyCFunction)(void (*) (void))scope_outside, METH_FASTCALL | METH_KEYWORDS, NULL },
  { "_is_inside", scope_is_inside, METH_NOARGS, NULL },
  { "_inherit", scope_inherit, METH_O, NULL },
  { "_inherit_start", scope_inherit_start, METH_O, NULL },
  { "_follow_greenlets", scope_follow_greenlets, METH_O, NULL },
  { "_suspend", scope_suspend, METH_O, NULL },
  { "_resume", (PyCFunction)(void (*) (void))scope_resume, METH_FASTCALL, NULL },
  { "_equal", (PyCFunction)(void (*) (void))buffer_equal, METH_FASTCALL, NULL },
  { "_take_environment", buffer_of_environment, METH_VARARGS, NULL },
  { "_walk", core_walk, METH_NOARGS, NULL },
  { "_wipe_freed", core_wipe_freed, METH_NOARGS, NULL },
  { "_stack_room", core_stack_room, METH_NOARGS, NULL },
  { "_without_callbacks", core_without_callbacks, METH_VARARGS, NULL },
  { "_frames", core_frames, METH_NOARGS, NULL },
  { "_numpy_handler", pyhooks_numpy_handler, METH_O, NULL },
  { "_hook_numpy", pyhooks_hook_numpy, METH_O, NULL },
  { NULL, NULL, 0, NULL },
};

static PyModuleDef_Slot core_slots[] = {
  { Py_mod_exec, core_exec },
/* All static state here belongs to the process: the hooks, and the handles of shared arenas. */
#if PY_VERSION_HEX >= 0x030c0000
  { Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED },
#endif
#if PY_VERSION_HEX >= 0x030d0000
  { Py_mod_gil, Py_MOD_GIL_NOT_USED },
#endif
  { 0, NULL },
};

static struct PyModuleDef core_module = {
  PyModuleDef_HEAD_INIT,
  .m_name = "malloc_arena._core",
  .m_size = sizeof (struct core_state),
  .m_methods = core_methods,
  .m_slots = core_slots,
  .m_traverse = core_traverse,
  .m_clear = core_clear,
  .m_free = core_free,
};

PyMODINIT_FUNC PyInit__core (void);

PyMODINIT_FUNC
PyInit__core (void)
{
  return PyModuleDef_Init (&core_module);
}
