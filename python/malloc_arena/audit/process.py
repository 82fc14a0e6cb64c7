"""Another process, read from outside: its memory map, its present pages, its threads' registers."""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import math
import os
import platform
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from ..errors import ArenaError
from .source import Mapping, Registers, Thread

PAGE = os.sysconf("SC_PAGE_SIZE")
DELETED = " (deleted)"  # the kernel's mark behind the name of a file that is gone, or another now

PTRACE_CONT = 7
_PTRACE_DETACH = 17
_PTRACE_GETREGSET = 0x4204
PTRACE_SEIZE = 0x4206
_PTRACE_INTERRUPT = 0x4207
PTRACE_LISTEN = 0x4208
PTRACE_EVENT_EXIT = 6
PTRACE_EVENT_STOP = 128
PTRACE_O_TRACEEXIT = 1 << PTRACE_EVENT_EXIT
_WALL = 0x40000000
_NT_PRSTATUS = 1
# Register sets by machine: (name, note type). The first holds the stack pointer, at that word.
_REGSETS = {
    "x86_64": (("general", _NT_PRSTATUS), ("vector", 0x202)),  # NT_X86_XSTATE
    "aarch64": (("general", _NT_PRSTATUS), ("vector", 2)),  # NT_PRFPREG: v0-v31
}
STACK_POINTER = {"x86_64": 19, "aarch64": 31}
# The thread control block, which stands above the stack: fs_base, or a set of its own.
CONTROL_BLOCK = {"x86_64": 21}
_NT_ARM_TLS = 0x401

_PRESENT_OR_SWAPPED = 3 << 62
_GUARD = 1 << 58  # since Linux 6.15; it has the swap bit as well, and no contents
_PATIENCE = 3.0  # seconds for a thread to stop
_BATCH = 1 << 17  # pagemap entries read at once: 1 MiB
_SLICE = 1 << 25  # what is copied at most in one pause


class CannotLook(ArenaError):
    """The process cannot be read from outside; `fix` says what would allow it."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason, fix)
        self.reason = reason
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.reason}: {self.fix}"


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_ptrace.restype = ctypes.c_long


def ptrace(request: int, thread: int, data: int | None = None, address: int = 0) -> None:
    if _ptrace(request, thread, address, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Process:
    """A process that is looked at, from __enter__ to __exit__.

    Without MAX_PAUSE all its threads are stopped for all that time. With it they run, and are
    stopped again and again while a piece of memory is copied, each time for at most so many
    seconds. TRACED: the caller has its main thread seized already, and goes on to hold it; EXITING:
    that thread stands in its exit.

    ptrace belongs to the thread that attached: use an instance in one thread only.
    """

    def __init__(
        self,
        pid: int,
        max_pause: float | None = None,
        *,
        traced: bool = False,
        exiting: bool = False,
    ) -> None:
        self.pid = pid
        self.registers: tuple[Registers, ...] = ()
        self.threads: tuple[Thread, ...] = ()
        self.unreadable: set[int] = set()  # pages that refused
        self.longest_pause = 0.0
        self.exiting = exiting
        self._max_pause = max_pause
        self._traced = traced
        self._proc = Path("/proc", str(pid))
        # Thread: the signal that it was about to take. Since when they stand.
        self._stopped: dict[int, int] = {}
        self._since = 0.0
        self._listening = False  # the traced thread is in a group stop, which must last
        self._memory = -1
        self._pagemap = -1

    @property
    def stack_pointers(self) -> tuple[int, ...]:
        return tuple(thread.stack_pointer for thread in self.threads)

    def __enter__(self) -> Self:
        try:
            self._stop()
            self._memory = os.open(self._proc / "mem", os.O_RDONLY | os.O_CLOEXEC)
            self._pagemap = os.open(self._proc / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
            self._read_registers()
            if self._max_pause is not None:
                self._resume()
        except OSError as error:
            self._close()
            if error.errno == errno.ESRCH or not self._proc.exists():
                raise CannotLook(
                    f"there is no process {self.pid}",
                    "it has ended, or /proc does not show it (another PID namespace, hidepid=)",
                ) from error
            raise CannotLook(
                f"process {self.pid} cannot be read: {os.strerror(error.errno or 0)}",
                self._obstacle()
                or "run as its owner or root, with CAP_SYS_PTRACE in a container, "
                "and see kernel.yama.ptrace_scope",
            ) from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def _obstacle(self) -> str:
        """What no right to trace would help against; "" if it is none of these."""
        if self.pid == os.getpid():
            return "it is this one, and nobody can trace itself"
        try:
            lines = (self._proc / "status").read_text(errors="replace").split("\n")
        except OSError:
            return ""
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        if "VmSize" not in status:
            return "it has no memory: it has ended, or is the kernel's"
        tracer = status.get("TracerPid", "0").strip()
        return f"process {tracer} traces it already (a debugger, strace)" if tracer != "0" else ""

    def _close(self) -> None:
        self._resume()
        for descriptor in (self._memory, self._pagemap):
            if descriptor >= 0:
                os.close(descriptor)
        self._memory = self._pagemap = -1

    def _stop(self) -> None:
        self._since = time.monotonic()
        if self.exiting:
            # The others have been killed and do not run any more.
            self._stopped[self.pid] = 0
            return
        # A thread that is not stopped yet may start another: until a look finds no new one.
        while new := [
            thread
            for thread in (int(entry.name) for entry in self._proc.joinpath("task").iterdir())
            if thread not in self._stopped
        ]:
            for thread in new:
                try:
                    if not (self._traced and thread == self.pid):
                        ptrace(PTRACE_SEIZE, thread)
                except ProcessLookupError:
                    if thread == self.pid:
                        raise
                    continue
                self._stopped[thread] = 0
                ptrace(_PTRACE_INTERRUPT, thread)
                status = self._stop_of(thread)
                if not os.WIFSTOPPED(status):
                    del self._stopped[thread]
                    if thread == self.pid:
                        raise ProcessLookupError(3, "it has ended")
                elif thread == self.pid and status >> 16 == PTRACE_EVENT_EXIT:
                    self.exiting = True
                elif status >> 16 != PTRACE_EVENT_STOP:
                    self._stopped[thread] = os.WSTOPSIG(status)
                elif thread == self.pid:
                    self._listening = os.WSTOPSIG(status) != 5  # SIGTRAP: by our interrupt

    def _stop_of(self, thread: int) -> int:
        """What waitpid says of THREAD once it stands, which is at once, but for one in a call that
        nothing interrupts: the others stand meanwhile, and must not for ever. Those of a program
        that was started here do: who gives up stays the thread's tracer."""
        patience = math.inf if self._traced else _PATIENCE
        begun = time.monotonic()
        while True:
            pid, status = os.waitpid(thread, _WALL | os.WNOHANG)
            if pid:
                return status
            waited = time.monotonic() - begun
            if waited >= patience:
                raise CannotLook(
                    f"process {self.pid} cannot be stopped: its thread {thread} is in a call of "
                    "the kernel that is not interrupted",
                    "try again later; a container that is paused must go on first, and a vfork "
                    "waits for the program that it started",
                )
            # Most need no more than some microseconds.
            time.sleep(0 if waited < 0.002 else 0.001)

    def _resume(self) -> None:
        for thread, signal in self._stopped.items():
            with contextlib.suppress(ProcessLookupError):
                if not (self._traced and thread == self.pid):
                    ptrace(_PTRACE_DETACH, thread, signal)
                elif not self.exiting:
                    ptrace(PTRACE_LISTEN if self._listening else PTRACE_CONT, thread, signal)
        if self._stopped:
            self.longest_pause = max(self.longest_pause, time.monotonic() - self._since)
        self._stopped.clear()

    def _regset(self, thread: int, note: int, buffer: ctypes.Array[ctypes.c_char]) -> bytes:
        vector = _IoVec(ctypes.addressof(buffer), len(buffer))
        ptrace(_PTRACE_GETREGSET, thread, ctypes.addressof(vector), note)
        return buffer.raw[: vector.length]

    def _read_registers(self) -> None:
        machine = platform.machine()
        sets = _REGSETS.get(machine)
        if sets is None:
            raise CannotLook(
                f"the registers of a {machine} process cannot be read",
                "x86_64 and aarch64 are known",
            )
        found = []
        threads = []
        buffer = ctypes.create_string_buffer(1 << 16)
        for thread in self._stopped:
            for name, note in sets:
                try:
                    data = self._regset(thread, note, buffer)
                except OSError:
                    # A CPU without XSAVE has the SSE registers in the plain set.
                    data = self._regset(thread, 2, buffer)
                if len(data) % 8:
                    raise CannotLook(
                        f"process {self.pid} is a 32-bit program", "64-bit ones are known"
                    )
                found.append(Registers(thread, name, data))
                if note == _NT_PRSTATUS:
                    words = array.array("Q", data)
                    if machine in CONTROL_BLOCK:
                        block = words[CONTROL_BLOCK[machine]]
                    else:
                        tls = self._regset(thread, _NT_ARM_TLS, buffer)
                        block = int.from_bytes(tls[:8], "little")
                    threads.append(Thread(thread, words[STACK_POINTER[machine]], block))
        self.registers = tuple(found)
        self.threads = tuple(threads)

    def maps(self) -> tuple[Mapping, ...]:
        """The readable mappings, in order of address."""
        found = []
        # A file's name may have any bytes: the kernel escapes the line end, and nothing else.
        with self._proc.joinpath("maps").open(
            encoding="utf-8", errors="surrogateescape", newline="\n"
        ) as lines:
            for line in lines:
                span, permissions, offset, _, inode, *path = line.rstrip("\n").split(" ", 5)
                start, end = (int(bound, 16) for bound in span.split("-"))
                # The vsyscall page stands above the user's half: pread cannot take its address.
                if permissions[0] == "r" and end <= 1 << 63:
                    name = "".join(path).lstrip(" ")
                    found.append(
                        Mapping(start, end, permissions, int(inode), name, int(offset, 16))
                    )
        return tuple(found)

    def arguments(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(start, end) of the arguments and of the environment that it was started with."""
        # The name may have any bytes: the kernel cuts it off in a letter, too.
        fields = self._proc.joinpath("stat").read_text(errors="replace").rpartition(") ")[2].split()
        argv, argv_end, environ, environ_end = (int(field) for field in fields[45:49])
        return (argv, argv_end), (environ, environ_end)

    def open(self, mapping: Mapping) -> BinaryIO:
        """The file behind MAPPING, as the process sees it."""
        if mapping.path.endswith(DELETED):
            # No name leads to it any more, and this link for a capable root only.
            return (self._proc / "map_files" / f"{mapping.start:x}-{mapping.end:x}").open("rb")
        return Path(f"{self._proc}/root{mapping.path}").open("rb")

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

    def pieces(self, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        """The bytes of each of SPANS, in pauses that keep to the limit."""
        if self._max_pause is None:
            for start, end in spans:
                yield from self.read(start, end)
            return
        rest = iter(spans)
        span: tuple[int, int] | None = next(rest, None)
        while span is not None:
            batch: list[tuple[int, bytes]] = []
            size = 0
            try:
                self._stop()
                # Half of the time is for letting go of the threads, and for a busy machine.
                until = self._since + self._max_pause / 2
                while span is not None:
                    for piece in self.read(*span):
                        batch.append(piece)
                        size += len(piece[1])
                    span = next(rest, None)
                    if size >= _SLICE or time.monotonic() >= until:
                        break
            except OSError as error:
                raise CannotLook(
                    f"process {self.pid} ended during the search", "look earlier, or at its exit"
                ) from error
            finally:
                self._resume()
            yield from batch
