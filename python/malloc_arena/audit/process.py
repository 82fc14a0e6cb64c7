"""Another process, read from outside: its memory map, its present pages, its threads' registers."""

from __future__ import annotations

import array
import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import ArenaError

PAGE = os.sysconf("SC_PAGE_SIZE")

_PTRACE_DETACH = 17
_PTRACE_GETREGSET = 0x4204
_PTRACE_SEIZE = 0x4206
_PTRACE_INTERRUPT = 0x4207
_PTRACE_EVENT_STOP = 128
_WALL = 0x40000000
_NT_PRSTATUS = 1
# Register sets by machine: (name, note type). The first holds the stack pointer, at that word.
_REGSETS = {
    "x86_64": (("general", _NT_PRSTATUS), ("vector", 0x202)),  # NT_X86_XSTATE
    "aarch64": (("general", _NT_PRSTATUS), ("vector", 2)),  # NT_PRFPREG: v0-v31
}
_STACK_POINTER = {"x86_64": 19, "aarch64": 31}

_PRESENT_OR_SWAPPED = 3 << 62
_GUARD = 1 << 58  # since Linux 6.15; it has the swap bit as well, and no contents
_BATCH = 1 << 17  # pagemap entries read at once: 1 MiB


class CannotLook(ArenaError):
    """The process cannot be read from outside; `fix` says what would allow it."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason, fix)
        self.reason = reason
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.reason}: {self.fix}"


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps."""

    start: int
    end: int
    permissions: str
    inode: int
    path: str


@dataclass(frozen=True, slots=True)
class Registers:
    """One register set of one thread."""

    thread: int
    name: str
    data: bytes


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_ptrace.restype = ctypes.c_long


def _call(request: int, thread: int, data: int | None = None, address: int = 0) -> None:
    if _ptrace(request, thread, address, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Process:
    """A process with all its threads stopped, from __enter__ to __exit__.

    ptrace belongs to the thread that attached: use an instance in one thread only.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.registers: tuple[Registers, ...] = ()
        self.stack_pointers: tuple[int, ...] = ()
        self.unreadable: set[int] = set()  # pages that refused
        self._proc = Path("/proc", str(pid))
        self._stopped: dict[int, int] = {}  # thread: the signal that it was about to take
        self._memory = -1
        self._pagemap = -1

    def __enter__(self) -> Self:
        try:
            self._stop()
            self._memory = os.open(self._proc / "mem", os.O_RDONLY | os.O_CLOEXEC)
            self._pagemap = os.open(self._proc / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
            self._read_registers()
        except OSError as error:
            self._resume()
            raise CannotLook(
                f"process {self.pid} cannot be read: {os.strerror(error.errno or 0)}",
                "run as its owner or root, with CAP_SYS_PTRACE in a container, "
                "and see kernel.yama.ptrace_scope",
            ) from error
        except BaseException:
            self._resume()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._resume()

    def _stop(self) -> None:
        # A thread that is not stopped yet may start another: until a look finds no new one.
        while new := [
            thread
            for thread in (int(entry.name) for entry in self._proc.joinpath("task").iterdir())
            if thread not in self._stopped
        ]:
            for thread in new:
                try:
                    _call(_PTRACE_SEIZE, thread)
                except ProcessLookupError:
                    if thread == self.pid:
                        raise
                    continue
                self._stopped[thread] = 0
                _call(_PTRACE_INTERRUPT, thread)
                _, status = os.waitpid(thread, _WALL)
                if not os.WIFSTOPPED(status):
                    del self._stopped[thread]
                    if thread == self.pid:
                        raise ProcessLookupError(3, "it has ended")
                elif status >> 16 != _PTRACE_EVENT_STOP:
                    self._stopped[thread] = os.WSTOPSIG(status)

    def _resume(self) -> None:
        for thread, signal in self._stopped.items():
            with contextlib.suppress(ProcessLookupError):
                _call(_PTRACE_DETACH, thread, signal)
        self._stopped.clear()
        for descriptor in (self._memory, self._pagemap):
            if descriptor >= 0:
                os.close(descriptor)
        self._memory = self._pagemap = -1

    def _read_registers(self) -> None:
        machine = platform.machine()
        sets = _REGSETS.get(machine)
        if sets is None:
            raise CannotLook(
                f"the registers of a {machine} process cannot be read",
                "x86_64 and aarch64 are known",
            )
        found = []
        pointers = []
        buffer = ctypes.create_string_buffer(1 << 16)
        for thread in self._stopped:
            for name, note in sets:
                vector = _IoVec(ctypes.addressof(buffer), len(buffer))
                try:
                    _call(_PTRACE_GETREGSET, thread, ctypes.addressof(vector), note)
                except OSError:
                    # A CPU without XSAVE has the SSE registers in the plain set.
                    vector = _IoVec(ctypes.addressof(buffer), len(buffer))
                    _call(_PTRACE_GETREGSET, thread, ctypes.addressof(vector), 2)
                found.append(Registers(thread, name, buffer.raw[: vector.length]))
                if note == _NT_PRSTATUS:
                    words = array.array("Q", buffer.raw[: vector.length])
                    pointers.append(words[_STACK_POINTER[machine]])
        self.registers = tuple(found)
        self.stack_pointers = tuple(pointers)

    def maps(self) -> tuple[Mapping, ...]:
        """The readable mappings, in order of address."""
        found = []
        with self._proc.joinpath("maps").open() as lines:
            for line in lines:
                span, permissions, _, _, inode, *path = line.rstrip("\n").split(maxsplit=5)
                start, end = (int(bound, 16) for bound in span.split("-"))
                # The vsyscall page stands above the user's half: pread cannot take its address.
                if permissions[0] == "r" and end <= 1 << 63:
                    found.append(Mapping(start, end, permissions, int(inode), "".join(path)))
        return tuple(found)

    def present(self, mapping: Mapping) -> Iterator[tuple[int, int]]:
        """The runs of pages (start, end) of MAPPING that have contents, in memory or in swap."""
        run = None
        page = mapping.start
        while page < mapping.end:
            count = min(_BATCH, (mapping.end - page) // PAGE)
            entries = array.array("Q", os.pread(self._pagemap, count * 8, page // PAGE * 8))
            if not entries:
                break
            for entry in entries:
                if entry & _PRESENT_OR_SWAPPED and not entry & _GUARD:
                    run = page if run is None else run
                elif run is not None:
                    yield run, page
                    run = None
                page += PAGE
        if run is not None:
            yield run, page

    def read(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """The bytes from START to END as (address, bytes), without the pages that refuse."""
        while start < end:
            try:
                data = os.pread(self._memory, end - start, start)
            except OSError:
                data = b""
            if data:
                yield start, data
                start += len(data)
            else:
                # Device memory, memfd_secret, a guard: that page, and go on behind it.
                page = start - start % PAGE
                self.unreadable.add(page)
                start = page + PAGE
