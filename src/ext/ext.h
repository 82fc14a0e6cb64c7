/* ext.h - what the files of the _core extension share.
 *
 * module.c   the module: constants, region(), errors of the package raised from C
 * arena.c    Arena: one handle of the library
 * scope.c    the scopes of a thread, in which an arena is active
 * with.c     Scope: such a stretch with sweeps before and after
 * steps.c    _Run and _Iterate: scopes around the steps of a coroutine or generator
 * streams.c  what scopes leave in the buffers of sys.stdout and sys.stderr
 * buffer.c   SecretBuffer, and other places that secrets lie in: values compared, the environment
 * pyhooks.c  the hooks on CPython's allocator domains, numpy's and bytearray; static, process-wide, no Python
 *            state
 */
#ifndef MA_EXT_H
#define MA_EXT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "malloc_arena.h"
#include "runtime.h"

#define likely(x) __builtin_expect (!!(x), 1)
#define unlikely(x) __builtin_expect (!!(x), 0)

/* Without a GIL there are no hooks, and so no scopes: the collector finds objects by walking heaps of
 * its own, and would never see a cycle in an arena. */
#ifdef Py_GIL_DISABLED
#define HAS_HOOKS 0
#else
#define HAS_HOOKS 1
#endif

struct arena_object
{
  PyObject ob_base;
  malloc_arena *handle; /* NULL: closed */
  unsigned kind;
  int is_shared; /* of get(): the process's, never deleted */
  PyObject *name;
  PyObject *weakrefs;
};

struct core_state
{
  PyTypeObject *arena_type;
  PyTypeObject *buffer_type;
  PyTypeObject *scope_type;
  PyTypeObject *inherited_type;
  PyTypeObject *run_type;
  PyTypeObject *iterate_type;
  Py_ssize_t blocks_index; /* of what scope_check_frame() keeps with code objects */
  int is_following;        /* threads of this interpreter inherit scopes */
};

extern PyType_Spec arena_spec;
extern PyType_Spec buffer_spec;
extern PyType_Spec scope_spec;
extern PyType_Spec inherited_spec;
extern PyType_Spec run_spec;
extern PyType_Spec iterate_spec;
struct core_state *core_state_of (PyTypeObject *type);

/* Functions of the module. */
PyObject *scope_outside (PyObject *module, PyObject *const *args, Py_ssize_t count,
                         PyObject *names);
PyObject *scope_is_inside (PyObject *module, PyObject *ignored);
PyObject *scope_inherit (PyObject *module, PyObject *function);
PyObject *scope_inherit_start (PyObject *module, PyObject *function);
/* FOLLOW is called in each thread that opens a scope, once, before. */
PyObject *scope_follow_greenlets (PyObject *module, PyObject *follow);
/* Leaves all scopes of the thread, and returns what _resume (it, False) enters again; with True only the
 * innermost one, for the life of who goes on. ENDS: their greenlet does. */
PyObject *scope_suspend (PyObject *module, PyObject *ends);
PyObject *scope_resume (PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *buffer_equal (PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *buffer_of_environment (PyObject *module, PyObject *args);
PyObject *pyhooks_numpy_handler (PyObject *module, PyObject *capsule);
PyObject *pyhooks_hook_numpy (PyObject *module, PyObject *address);

/* Methods of Arena: __enter__, __exit__, call. */
PyObject *scope_enter (PyObject *arena, PyObject *ignored);
PyObject *scope_exit (PyObject *arena, PyObject *const *args, Py_ssize_t count);
PyObject *scope_call (PyObject *arena, PyObject *const *args, Py_ssize_t count, PyObject *names);

/* The two parts of __enter__, of an Arena or a Scope. The check calls Python code, the other does not once the
 * arena is active. 0, or -1 with an exception; the arena, or NULL with one. */
int scope_check_frame (PyObject *self);
Py_ssize_t scope_blocks_index (void); /* core_state's blocks_index; -1: none is left */
PyObject *scope_open (PyObject *arena);

/* 0, or -1 with an exception. */
int arena_check_open (struct arena_object *arena);

/* A scope around one call from C. scope_begin() returns 0, or -1 with an exception, and then there is
 * nothing to end. MAY_BE_FULL: what was begun in the arena goes on there also without room, and meets the
 * MemoryError itself; what has not begun is refused. scope_end() takes over what the call returned, with
 * its exception where that is NULL, and returns what the caller should. */
struct scope
{
  malloc_arena *handle; /* NULL: none is active */
  unsigned depth, floor;
};
int scope_begin (struct arena_object *arena, struct scope *scope, int may_be_full);
/* NULL: with none active. */
int scope_begin_in (malloc_arena *handle, struct scope *scope, int may_be_full);
PyObject *scope_end (const struct scope *scope, PyObject *result);
/* The pending exception, normalized, or NULL; and back. */
PyObject *error_take (void);
void error_put (PyObject *error);

/* Wipes what has been written and flushed, once streams_learn() knows how; no exception. */
void streams_learn (void);
void streams_wipe (void);

/* Each outermost scope sweeps from now on. */
void scope_sweep_always (void);

/* Sets an exception of malloc_arena.errors with a message. Returns NULL. */
PyObject *core_error (const char *class_name, const char *format, ...);
/* ArenaUnavailable for an arena of KIND that the library refused with ERROR. Returns NULL. */
PyObject *core_unavailable (int error, unsigned kind);
/* Why HANDLE does not give REQUESTED bytes (0: not known how many) to a scope, or to others, as a MemoryError's
 * message; NULL with an exception. */
PyObject *core_exhausted (malloc_arena *handle, size_t requested, int in_scope);

/* What malloc_arena.receipt.make_receipt takes after the kind, of an arena; NULL with an exception. */
PyObject *core_receipt (malloc_arena *handle);

/* Installs the hooks if they are not. 0, or -1 with an exception. */
int pyhooks_install (void);
/* Before a scope: hooks what is needed from the first object on. */
void pyhooks_complete (void);
/* Whether an allocation of each domain arrives in the arena that is active now. */
enum pyhooks_probe
{
  PYHOOKS_HOLD,
  PYHOOKS_LOST,
  PYHOOKS_REFUSED /* the arena gives no more memory */
};
enum pyhooks_probe pyhooks_probe (void);

#endif
