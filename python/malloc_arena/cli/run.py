"""Starts a program with the library in front of its malloc."""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import stat
import struct
import sys
from pathlib import Path

from .config import library

_PT_INTERP = 3  # the segment that names the loader


def preload(existing: str, path: str) -> str:
    """The LD_PRELOAD value with PATH behind what is EXISTING, once."""
    present = existing.replace(":", " ").split()
    return " ".join(present if path in present else [*present, path])


class Run:
    """Start a program with the library preloaded; the exit code is the program's own.

      malloc-arena run script.py arguments
      malloc-arena run [--sweep] -- program arguments

    While a scope is open, the memory of C libraries (OpenSSL, SQLite, stdio, Rust)
    then goes into the arena as well, and so do the threads that they start. A
    Python script runs with this Python. What LD_PRELOAD names already stays in
    front. With --sweep, Python's scopes also empty the interpreter's caches when
    they end, which takes as long as a full collection. A program into which
    nothing can be preloaded, static or with more rights than its caller, is
    named on standard error, and started; so is another malloc that LD_PRELOAD
    names, as the library behind it gets nothing from C libraries.
    """

    name = "run"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.usage = "malloc-arena run [-h] [--sweep] [--] program ..."
        parser.add_argument("--sweep", action="store_true", help="sweep at the end of each scope")
        parser.add_argument("command", nargs=argparse.REMAINDER, metavar="program ...")

    def __call__(self, options: argparse.Namespace) -> int:
        command = options.command
        if command[:1] == ["--"]:
            command = command[1:]
        if not command:
            options.parser.error("no program to run")
        if command[0].endswith(".py") and Path(command[0]).is_file():
            command = [sys.executable, *command]
        path = str(library())
        if any(separator in path for separator in " :"):
            # The loader splits the variable at both and knows no escape.
            return _refuse(f"LD_PRELOAD cannot name {path!r}: it has a space or a colon", 3)
        if not library().is_file():
            return _refuse(
                f"{path} is missing: install the package again (pip install -e leaves it out)", 3
            )
        existing = os.environ.get("LD_PRELOAD", "")
        environment = os.environ | {
            "LD_PRELOAD": preload(existing, path),
            # In front, so that what the caller says counts.
            "MALLOC_ARENA_OPTIONS": f"inherit=on,{os.environ.get('MALLOC_ARENA_OPTIONS', '')}",
        }
        if options.sweep:
            environment["MALLOC_ARENA_SWEEP"] = "1"
        reason = _unreached(command[0])
        if reason:
            _say(f"{command[0]}: {reason}, so that nothing of it will be in an arena")
        elif other := _in_front(existing):
            _say(
                f"the malloc of {other}, which LD_PRELOAD names, is in front, so that nothing that "
                f"C libraries allocate will be in an arena: LD_PRELOAD='{path} {existing}' has both"
            )
        try:
            os.execvpe(command[0], command, environment)
        except (FileNotFoundError, ValueError):  # ValueError: an empty name
            return _refuse(f"{command[0]}: not found", 127)
        except OSError as error:
            return _refuse(f"{command[0]}: {error.strerror}", 126)


class _Symbol(ctypes.Structure):
    """The Dl_info of dladdr(3)."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _in_front(existing: str) -> str:
    """Of the libraries EXISTING that are preloaded into this process, and so into the program, the
    one whose malloc the loader took; empty if that is none of them, or the arena library."""
    names = existing.replace(":", " ").split()
    if not names:
        return ""
    program = ctypes.CDLL(None)
    found = _Symbol()
    program.dladdr(ctypes.cast(program.malloc, ctypes.c_void_p), ctypes.byref(found))
    owner = Path(os.fsdecode(found.file or b"")).name
    if owner == library().name:
        return ""
    return next((name for name in names if Path(name).name == owner), "")


def _unreached(program: str) -> str:
    """Why the loader preloads nothing into PROGRAM; empty if it does, as far as can be seen."""
    path = Path(shutil.which(program) or "")
    try:
        with path.open("rb") as file:
            head = file.read(64)
            found = os.fstat(file.fileno())
            if (
                head[:6] != b"\x7fELF\x02\x01"
            ):  # a script, too: what it names is started without a look
                return ""
            # By hand: the module that reads such files takes as long to import as all the rest.
            (at,) = struct.unpack_from("<Q", head, 32)
            size, count = struct.unpack_from("<HH", head, 54)
            file.seek(at)
            table = file.read(size * count)
            kinds = [struct.unpack_from("<I", table, size * i)[0] for i in range(count)]
    except (OSError, struct.error):
        return ""
    if _PT_INTERP not in kinds:
        return "it is a static program"
    if (found.st_mode & stat.S_ISUID and found.st_uid != os.geteuid()) or (
        found.st_mode & stat.S_ISGID and found.st_gid != os.getegid()
    ):
        return "it runs with the rights of its owner (set-uid), and the loader ignores LD_PRELOAD"
    if os.getuid() != 0 and _has_capabilities(path):
        return "its file gives it capabilities, and the loader ignores LD_PRELOAD"
    return ""


def _has_capabilities(path: Path) -> bool:
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False


def _say(message: str) -> None:
    print(f"malloc-arena run: {message}", file=sys.stderr)


def _refuse(message: str, code: int) -> int:
    _say(message)
    return code
