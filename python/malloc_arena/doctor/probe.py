"""Questions that only a try can answer, each tried in a forked child: a seccomp filter may answer a
system call with a signal, and whatever was locked or mapped is gone with the child."""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import resource
import select
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PAGE = mmap.PAGESIZE
_SECONDS = 20
_SYS_MEMFD_SECRET = 447  # of every architecture
_MADV_GUARD_INSTALL = 102
_PR_GET_DUMPABLE = 3
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the child says, or the signal that ended it."""

    value: Any = None
    signal: int = 0
    said: str = ""
    """On its standard error, before that signal."""

    @property
    def signal_name(self) -> str:
        return signal.Signals(self.signal).name if self.signal else ""


def in_child(question: Callable[[], Any]) -> Answer:
    """The question's answer, which JSON must be able to carry. OSError: there is none."""
    reader, writer = os.pipe()
    words = os.memfd_create("said")
    pid = os.fork()
    if pid == 0:
        try:
            # The child's end may be a signal: no core file for it, no handler of ours, no word.
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            for number in (signal.SIGSYS, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT):
                signal.signal(number, signal.SIG_DFL)
            os.dup2(words, 2)
            answer = json.dumps(question()).encode()
            while answer:
                answer = answer[os.write(writer, answer) :]
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    try:
        data = b""
        while select.select([reader], [], [], _SECONDS)[0]:
            part = os.read(reader, 1 << 16)
            if not part:
                break
            data += part
        else:
            # Under a filter that asks a supervisor, and the supervisor says nothing.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            raise TimeoutError(0, f"the kernel gave no answer in {_SECONDS} s")
    finally:
        os.close(reader)
        _, status = os.waitpid(pid, 0)
        said = os.pread(words, 1000, 0).decode(errors="replace").strip()
        os.close(words)
    if os.WIFSIGNALED(status):
        return Answer(signal=os.WTERMSIG(status), said=said)
    if status != 0:
        raise OSError(0, "the try itself went wrong")
    return Answer(json.loads(data))


def memfd_secret() -> tuple[str, int]:
    """The call that was refused, with its errno; ("", 0) if none was."""
    file = _libc.syscall(_SYS_MEMFD_SECRET, os.O_CLOEXEC)
    if file == -1:
        return "memfd_secret", ctypes.get_errno()
    try:
        os.ftruncate(file, PAGE)
        with mmap.mmap(file, PAGE) as memory:
            memory[0] = 1
    except OSError as error:
        return "mmap", error.errno or 0
    return "", 0


def guard() -> tuple[bool, int]:
    """Whether a guard marker keeps the kernel itself from reading, and the errno of its refusal."""
    memory = mmap.mmap(-1, 2 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + PAGE
    if _libc.madvise(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), _MADV_GUARD_INSTALL) == -1:
        return False, ctypes.get_errno()
    # An emulator may say yes and do nothing.
    _, writer = os.pipe()
    return _libc.write(writer, ctypes.c_void_p(page), ctypes.c_size_t(1)) == -1, 0


def dumpable() -> int:
    return int(_libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0))


def has_tags() -> bool:
    """Whether an arena gets memory tags here (arm64)."""
    from .. import HEAP_TAGGED, ArenaUnavailable, get

    try:
        return get(HEAP_TAGGED).receipt.tagged
    except ArenaUnavailable:
        return False


def receipt() -> dict[str, Any]:
    """What a secure arena with one small secret gets here."""
    from .. import HEAP_SECURE, Arena, ArenaUnavailable

    try:
        arena = Arena(HEAP_SECURE, name="doctor")
        with arena.buffer(32) as secret:
            secret[0] = 1
            given = arena.receipt
    except ArenaUnavailable as error:
        return {"reason": error.reason, "fix": error.fix}
    except MemoryError as error:
        return {"reason": str(error), "fix": ""}
    return {"text": str(given), "reasons": given.reasons}
