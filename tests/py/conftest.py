"""What the tests share: a vault, and child processes that are looked at from outside."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import malloc_arena
from browser import browser as browser  # a fixture
from malloc_arena import audit
from promises import (
    evidence,
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_runtest_makereport,
    pytest_sessionfinish,
    pytest_terminal_summary,
)

# The table of promises, which pytest looks for here.
__all__ = [
    "evidence",
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_runtest_makereport",
    "pytest_sessionfinish",
    "pytest_terminal_summary",
]

# What every child begins with: show() gives the test a JSON value and waits until it has looked.
PRELUDE = """
import gc, json, os, sys
import malloc_arena
from malloc_arena import *

def show(**values):
    print(json.dumps(values | {"region": malloc_arena.region()}), flush=True)
    sys.stdin.readline()
"""

SECRET = b"cherry-violet-9317-anchor"
# make() for a child, from a key: no script and no pipe holds the secret in one piece.
MAKE = f"""
def make():
    return bytes(b ^ 0x5a for b in bytes.fromhex("{bytes(b ^ 0x5A for b in SECRET).hex()}"))
"""

# As `sub`, whatever this CPython calls it.
SUBINTERPRETERS = """
import importlib
for name in ("_interpreters", "_xxsubinterpreters"):
    try:
        sub = importlib.import_module(name)
        break
    except ImportError:
        pass
"""


@dataclass(frozen=True)
class Mapping:
    start: int
    end: int
    mode: str
    name: str
    flags: tuple[str, ...]


def mappings(pid: int | str) -> list[Mapping]:
    """The process's /proc/PID/smaps, with the kernel's flags."""
    found: list[Mapping] = []
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if first == "VmFlags:":
            last = found.pop()
            found.append(Mapping(last.start, last.end, last.mode, last.name, tuple(rest.split())))
        elif not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            fields = line.split(maxsplit=5)
            found.append(Mapping(start, end, fields[1], "".join(fields[5:]), ()))
    return found


PAGE = os.sysconf("SC_PAGE_SIZE")
_PRESENT_OR_SWAPPED = 3 << 62


def _used(pagemap: int, mapping: Mapping) -> Iterator[tuple[int, int]]:
    """The runs of pages of the mapping that have contents, or say so."""
    run = None
    for page in range(mapping.start, mapping.end, PAGE << 15):
        count = min(1 << 15, (mapping.end - page) // PAGE)
        entries = memoryview(os.pread(pagemap, count * 8, page // PAGE * 8)).cast("Q")
        for at, entry in enumerate(entries):
            if entry & _PRESENT_OR_SWAPPED:
                run = page + at * PAGE if run is None else run
            elif run is not None:
                yield run, page + at * PAGE
                run = None
    if run is not None:
        yield run, mapping.end


def copies(pid: int, needle: bytes) -> list[int]:
    """Where NEEDLE is in the process's memory, all of it that another process can read."""
    found: set[int] = set()
    with (
        open(f"/proc/{pid}/mem", "rb", buffering=0) as memory,
        open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap,
    ):
        for mapping in mappings(pid):
            if mapping.name in ("[vvar]", "[vvar_vclock]", "[vsyscall]"):
                continue
            for start, end in _used(pagemap.fileno(), mapping):
                while start < end:
                    try:
                        data = os.pread(memory.fileno(), min(1 << 24, end - start), start)
                    except OSError:  # a guard, memfd_secret: go on behind that page
                        data = b""
                    at = data.find(needle)
                    while at != -1:
                        found.add(start + at)
                        at = data.find(needle, at + 1)
                    if len(data) == 1 << 24:
                        start += len(data) - len(needle)
                    else:
                        start += len(data) if data else PAGE
    return sorted(found)


class Child:
    """A Python process that runs a script and stops at each show()."""

    def __init__(self, script: str, *options: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *options, "-c", PRELUDE + textwrap.dedent(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A smaller region has smaller tables, for copies() to read.
            env=os.environ | {"MALLOC_ARENA_OPTIONS": "region_size=256M"} | environment,
        )
        self.pid = self.process.pid
        self.region = (0, 0)

    def shown(self) -> dict[str, Any]:
        """What the script shows next."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=60)
        values: dict[str, Any] = json.loads(line)
        self.region = values["region"]
        return values

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def ends(self) -> str:
        """Lets the script run to its end, which must be a good one; what it still printed."""
        with contextlib.suppress(BrokenPipeError):
            self.go_on()
        out, err = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, (self.process.returncode, out, err)
        return out

    def owns(self, address: int) -> bool:
        return 0 <= address - self.region[0] < self.region[1]

    def copies(self, needle: bytes, pid: int | None = None) -> list[int]:
        """Where NEEDLE is in the process's memory, all of it that can be read."""
        return copies(pid or self.pid, needle)

    def close(self) -> None:
        end(self.process)


def end(process: subprocess.Popen[str]) -> None:
    """Whatever it does. Its pipes are not read to their ends: children of it may hold them."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(BrokenPipeError):
            if pipe is not None:
                pipe.close()


def has_tags() -> bool:
    """Whether the CPU and the kernel have memory tags (arm64)."""
    with Path("/proc/self/auxv").open("rb") as file:
        vector = dict(struct.iter_unpack("QQ", file.read()))
    return os.uname().machine == "aarch64" and bool(vector.get(26, 0) >> 18 & 1)


def is_emulated() -> bool:
    """Whether a user-mode emulator stands for the kernel: it takes any advice (madvise), and does
    nothing, so that memory is neither left out of dumps nor wiped in forked children."""
    return ctypes.CDLL(None).madvise(None, ctypes.c_size_t(0), -1) == 0


on_a_kernel = pytest.mark.skipif(
    is_emulated(), reason="the emulator of this kernel ignores what it is told of memory (madvise)"
)
with_a_stack = pytest.mark.skipif(
    is_emulated(), reason="what the kernel calls [stack] is the emulator's own"
)
with_an_environment = pytest.mark.skipif(
    is_emulated(), reason="the emulator has the environment that it was started with, too"
)


def hits(process: Child) -> tuple[audit.Hit, ...]:
    """Where SECRET is, or a part of it, in the stopped process. Emulators have no ptrace: there the
    whole secret counts, and registers are not seen."""
    if is_emulated():
        return tuple(
            audit.Hit(at, len(SECRET), "text", True, "arena" if process.owns(at) else "", "")
            for at in process.copies(SECRET)
        )
    with audit.Process(process.pid) as stopped:
        return audit.Scanner(SECRET).scan(stopped, process.region).hits


def memory(address: int, size: int) -> bytes:
    """What this process's memory holds there, without a fault."""
    with Path("/proc/self/mem").open("rb", buffering=0) as file:
        return os.pread(file.fileno(), size, address)


def wiped(address: int, size: int) -> bool:
    """Zeros, or gone."""
    with contextlib.suppress(OSError):
        return not any(memory(address, size))
    return True


def empty(arena: malloc_arena.Arena) -> bool:
    """Whether nothing is left in it but a few headers of lists and the like (no contents), which
    CPython's free lists have handed on to objects from outside."""
    gc.collect()
    stats = arena.stats()
    return stats.live_blocks <= 8 and stats.live_bytes <= 64 * stats.live_blocks


@pytest.fixture(autouse=True)
def unwatched() -> Iterator[None]:
    """Once Hypothesis has run it measures collections, and keeps the floats that it makes in them:
    of a collection in a scope they would stay in the arena, which could then not be closed."""
    watching = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks[:] = watching + gc.callbacks


@pytest.fixture
def child() -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def start(script: str, *options: str, **environment: str) -> Child:
        children.append(Child(script, *options, **environment))
        return children[-1]

    yield start
    for started in children:
        started.close()


@pytest.fixture
def vault() -> malloc_arena.Arena:
    return malloc_arena.get(malloc_arena.HEAP_SECURE)


@pytest.fixture
def own() -> Iterator[malloc_arena.Arena]:
    """An arena of the test's own."""
    gc.collect()
    arena = malloc_arena.Arena(malloc_arena.HEAP_SECURE, name="own")
    yield arena
    gc.collect()
    with contextlib.suppress(malloc_arena.ArenaError):  # not empty, see empty()
        arena.close()
