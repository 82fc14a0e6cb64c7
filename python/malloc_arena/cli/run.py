"""Starts a program with the library in front of its malloc."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from .config import library


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
    they end, which takes as long as a full collection.
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
        environment = os.environ | {
            "LD_PRELOAD": preload(os.environ.get("LD_PRELOAD", ""), path),
            # In front, so that what the caller says counts.
            "MALLOC_ARENA_OPTIONS": f"inherit=on,{os.environ.get('MALLOC_ARENA_OPTIONS', '')}",
        }
        if options.sweep:
            environment["MALLOC_ARENA_SWEEP"] = "1"
        try:
            os.execvpe(command[0], command, environment)
        except (FileNotFoundError, ValueError):  # ValueError: an empty name
            return _refuse(f"{command[0]}: not found", 127)
        except OSError as error:
            return _refuse(f"{command[0]}: {error.strerror}", 126)


def _refuse(message: str, code: int) -> int:
    print(f"malloc-arena run: {message}", file=sys.stderr)
    return code
