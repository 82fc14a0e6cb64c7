/* streams.c - what was written to sys.stdout and sys.stderr lies in their buffers, which are older than
 * any arena, until something longer is: a line of a log, a traceback. Wiped at the end of a scope: of
 * the streams that were there when the process's first arena was made.
 *
 * Where a BufferedWriter has its buffer is not public. It is learned from one that is made for it: as
 * bytes are written and flushed, one word of the object counts them, and one points at them. Where that
 * is not as expected, no stream is touched.
 */
#include "ext.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

enum
{
  PROBE_SIZE = 517, /* of the buffer; no other word has it */
  WORDS_MOST = 64
};

/* Words of a BufferedWriter. */
static struct
{
  size_t buffer; /* where it is */
  size_t size;   /* how long */
  size_t end;    /* of what is not flushed, -1: nothing */
} layout;

/* Whether TEXT is at ADDRESS, which need not be one. */
static int
is_at (intptr_t address, const char *text, size_t size)
{
  char seen[16];
  int ends[2];
  if (size > sizeof seen || pipe2 (ends, O_CLOEXEC) == -1)
    return 0;
  int is = write (ends[1], (const void *)address, size) == (ssize_t)size
           && read (ends[0], seen, size) == (ssize_t)size && memcmp (seen, text, size) == 0;
  close (ends[0]);
  close (ends[1]);
  return is;
}

/* The only word for which the three states of the probe are A, B and C; 0 if there is none, or more. */
static size_t
find (intptr_t states[3][WORDS_MOST], size_t words, intptr_t a, intptr_t b, intptr_t c)
{
  size_t found = 0;
  for (size_t i = 1; i < words; i++)
    if (states[0][i] == a && states[1][i] == b && states[2][i] == c)
      {
        if (found != 0)
          return 0;
        found = i;
      }
  return found;
}

static int
learn_from (PyObject *writer)
{
  static const char *const texts[2] = { "probe", "ly" };
  intptr_t states[3][WORDS_MOST];
  size_t words = (size_t)Py_TYPE (writer)->tp_basicsize / sizeof (intptr_t);
  if (words > WORDS_MOST)
    return 0;
  for (int i = 0; i < 3; i++)
    {
      PyObject *done = i < 2 ? PyObject_CallMethod (writer, "write", "y", texts[i])
                             : PyObject_CallMethod (writer, "flush", NULL);
      if (done == NULL)
        return 0;
      Py_DECREF (done);
      memcpy (states[i], writer, words * sizeof (intptr_t));
    }
  layout.end = find (states, words, 5, 7, -1);
  layout.size = find (states, words, PROBE_SIZE, PROBE_SIZE, PROBE_SIZE);
  layout.buffer = 0;
  for (size_t i = 1; i < words; i++)
    if (states[0][i] == states[2][i] && is_at (states[0][i], "probely", 7))
      {
        if (layout.buffer != 0)
          return 0;
        layout.buffer = i;
      }
  return layout.end != 0 && layout.size != 0 && layout.buffer != 0;
}

static PyObject *writers[4]; /* kept; few, as every scope looks at them */
static PyInterpreterState *owner;

/* The writers of streams that are what they seem; no class of a program has a dot in its name. */
static void
collect (void)
{
  static const char *const names[] = { "stdout", "stderr", "__stdout__", "__stderr__" };
  size_t count = 0;
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
    {
      PyObject *text = PySys_GetObject (names[i]);
      if (text == NULL || strcmp (Py_TYPE (text)->tp_name, "_io.TextIOWrapper") != 0)
        continue;
      PyObject *writer = PyObject_GetAttrString (text, "buffer");
      if (writer != NULL && strcmp (Py_TYPE (writer)->tp_name, "_io.BufferedWriter") == 0
          && writer != writers[0] && writer != writers[1] && writer != writers[2])
        writers[count++] = writer;
      else
        Py_XDECREF (writer);
    }
}

void
streams_learn (void)
{
  static _Atomic int is_done;
  if (!HAS_HOOKS || atomic_exchange (&is_done, 1))
    return;
  malloc_arena_enter (NULL);
  PyObject *io = PyImport_ImportModule ("_io");
  PyObject *raw = io != NULL ? PyObject_CallMethod (io, "BytesIO", NULL) : NULL;
  PyObject *writer
      = raw != NULL ? PyObject_CallMethod (io, "BufferedWriter", "Oi", raw, PROBE_SIZE) : NULL;
  if (writer != NULL && learn_from (writer))
    collect ();
  owner = PyInterpreterState_Get ();
  PyErr_Clear ();
  Py_XDECREF (writer);
  Py_XDECREF (raw);
  Py_XDECREF (io);
  malloc_arena_leave (NULL);
}

/* As long as this thread has their interpreter's GIL, nobody is writing to them but whoever waits for it
 * in the middle of a flush: then something is not flushed. What is written after a flush begins where
 * the buffer does. */
void
streams_wipe (void)
{
  /* Stands where a buffer begins until something is written to it, which may begin with zeros. */
  static const char unused[64] = "nothing was written here since a scope of malloc_arena ended";
  if (PyInterpreterState_Get () != owner)
    return;
  for (size_t i = 0; i < sizeof writers / sizeof writers[0] && writers[i] != NULL; i++)
    {
      const intptr_t *words = (const intptr_t *)writers[i];
      char *buffer = (char *)words[layout.buffer];
      size_t size = (size_t)words[layout.size];
      if (words[layout.end] == -1 && buffer != NULL && size >= sizeof unused
          && memcmp (buffer, unused, sizeof unused) != 0)
        {
          ma_wipe (buffer, size);
          memcpy (buffer, unused, sizeof unused);
        }
    }
}
