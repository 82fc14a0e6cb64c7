"""Runs a Python program and tells an auditor outside which lines allocated a block.

    python -X tracemalloc=25 agent.py DESCRIPTOR script.py|-m module|-c code [argument ...]

It runs inside the program that is audited: it imports nothing of this package, and the secret never
comes here. The auditor sends a line with a JSON list of block addresses and gets one with the
tracebacks. At the end of the program, after its own exit handlers, it says "end" and waits to be
told "go": until then the program's objects are still there.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import runpy
import socket
import sys
import threading
import types
from pathlib import Path


def _traceback(address: int) -> object:
    try:
        find = ctypes.pythonapi._PyTraceMalloc_GetTraceback
    except AttributeError:
        return None
    find.argtypes = (ctypes.c_uint, ctypes.c_size_t)
    find.restype = ctypes.py_object
    return find(0, address)


def _serve(channel: socket.socket, gone: threading.Event) -> None:
    with channel.makefile("rw", encoding="ascii") as lines:
        for line in lines:
            if line == "go\n":
                break
            lines.write(json.dumps([_traceback(address) for address in json.loads(line)]) + "\n")
            lines.flush()
    gone.set()


def _run_file(path: str) -> None:
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=__builtins__, __cached__=None)
    sys.modules["__main__"] = main
    sys.path[0] = str(Path(path).resolve().parent)
    with Path(path).open("rb") as file:
        code = compile(file.read(), path, "exec")
    exec(code, main.__dict__)


def _run_code(text: str) -> None:
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main
    sys.path[0] = ""
    exec(compile(text, "<string>", "exec"), main.__dict__)


def _main() -> None:
    descriptor, first, *rest = sys.argv[1:]
    channel = socket.socket(fileno=int(descriptor))
    os.set_inheritable(int(descriptor), False)
    gone = threading.Event()
    started = os.getpid()

    def end() -> None:
        if os.getpid() == started:  # not in a forked child
            channel.sendall(b"end\n")
            gone.wait()

    atexit.register(end)  # the first to be registered is the last to run
    threading.Thread(target=_serve, args=(channel, gone), daemon=True).start()
    try:
        if first == "-m":
            sys.argv = rest
            sys.path[0] = str(Path.cwd())
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif first == "-c":
            sys.argv = ["-c", *rest[1:]]
            _run_code(rest[0])
        else:
            sys.argv = [first, *rest]
            _run_file(first)
    except SystemExit:
        raise
    except BaseException as error:
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename in (__file__, runpy.__file__):
            trace = trace.tb_next  # the program's own lines, as without this agent
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        sys.exit(130 if isinstance(error, KeyboardInterrupt) else 1)


if __name__ == "__main__":
    _main()
