"""Secrets from where they come in, straight into secure memory: no buffer of stdio, readline or an
object of Python lies in between.

Each function returns a SecretBuffer with the exact bytes, or, with ``as_str=True``, a str in the
arena, decoded as UTF-8 and without the line end at its end, if it has one. ``arena`` is an Arena of
one's own; the default is the process's secure one.
"""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

from . import _core
from .arena import Arena, get
from .errors import ArenaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Literal, overload

    StrPath = str | os.PathLike[str]
else:

    def overload(function):
        return function


__all__ = ["from_command", "from_env", "from_fd", "from_file", "prompt"]

_ROOM = 4096  # to start with; the longest line that a terminal gives


@overload
def prompt(
    text: str = ...,
    *,
    fd: int | None = ...,
    as_str: Literal[False] = ...,
    arena: Arena | None = ...,
) -> _core.SecretBuffer: ...
@overload
def prompt(  # noqa: F811
    text: str = ..., *, fd: int | None = ..., as_str: Literal[True], arena: Arena | None = ...
) -> str: ...
def prompt(  # noqa: F811
    text: str = "Password: ",
    *,
    fd: int | None = None,
    as_str: bool = False,
    arena: Arena | None = None,
) -> _core.SecretBuffer | str:
    """One line typed at the terminal, not shown. FD is a descriptor of a terminal; the default is
    the controlling one. The terminal is as it was before when this returns, or raises: EOFError at
    the end of input, KeyboardInterrupt at Ctrl-C, OSError without a terminal."""
    if fd is not None:
        return _finish(_ask(fd, text, arena), as_str, True, arena)
    with io.FileIO("/dev/tty", "r+") as terminal:
        return _finish(_ask(terminal.fileno(), text, arena), as_str, True, arena)


@overload
def from_file(
    path: StrPath, *, as_str: Literal[False] = ..., arena: Arena | None = ...
) -> _core.SecretBuffer: ...
@overload
def from_file(  # noqa: F811
    path: StrPath, *, as_str: Literal[True], arena: Arena | None = ...
) -> str: ...
def from_file(  # noqa: F811
    path: StrPath, *, as_str: bool = False, arena: Arena | None = None
) -> _core.SecretBuffer | str:
    """A file's contents. The kernel's page cache keeps them, and the disk."""
    # It has no buffer, and closes what it opened also where a signal's handler raises right then.
    with io.FileIO(os.fspath(path)) as file:
        return from_fd(file.fileno(), as_str=as_str, arena=arena)  # type: ignore[call-overload, no-any-return]


@overload
def from_fd(
    fd: int, *, as_str: Literal[False] = ..., arena: Arena | None = ...
) -> _core.SecretBuffer: ...
@overload
def from_fd(  # noqa: F811
    fd: int, *, as_str: Literal[True], arena: Arena | None = ...
) -> str: ...
def from_fd(  # noqa: F811
    fd: int, *, as_str: bool = False, arena: Arena | None = None
) -> _core.SecretBuffer | str:
    """Everything that can be read from a descriptor until its end, which is waited for also where
    the descriptor is non-blocking. It stays open."""
    return _finish(_read(fd, arena), as_str, False, arena)


@overload
def from_env(
    name: str, *, as_str: Literal[False] = ..., arena: Arena | None = ...
) -> _core.SecretBuffer: ...
@overload
def from_env(  # noqa: F811
    name: str, *, as_str: Literal[True], arena: Arena | None = ...
) -> str: ...
def from_env(  # noqa: F811
    name: str, *, as_str: bool = False, arena: Arena | None = None
) -> _core.SecretBuffer | str:
    """An environment variable, which is gone then: removed from os.environ and from the environment
    of C, and wiped where it was, also in what others see in /proc/PID/environ. KeyError if there is
    no such variable. Where the secret cannot be made of it, it is as it was. The parent process,
    and children started before, have their own copies."""

    def finish(buffer: _core.SecretBuffer) -> _core.SecretBuffer | str:
        return _finish(buffer, as_str, False, arena)

    start, end = _start_block()
    secret = _core._take_environment(os.fsencode(name), os.environb, arena, start, end, finish)
    if secret is None:
        raise KeyError(name)
    return secret


@overload
def from_command(
    command: Sequence[StrPath], *, as_str: Literal[False] = ..., arena: Arena | None = ...
) -> _core.SecretBuffer: ...
@overload
def from_command(  # noqa: F811
    command: Sequence[StrPath], *, as_str: Literal[True], arena: Arena | None = ...
) -> str: ...
def from_command(  # noqa: F811
    command: Sequence[StrPath], *, as_str: bool = False, arena: Arena | None = None
) -> _core.SecretBuffer | str:
    """What a command (a list of words, no shell) prints on its standard output. Its standard input
    and error are ours. subprocess.CalledProcessError, without the output, if it fails. In a scope
    the words are copied in its arena; every user of the machine can read them while it runs."""
    process: Any
    buffer = None
    subprocess = _core._outside(_subprocess)
    read, write = os.pipe()  # a Popen's own stdout is a buffered reader
    try:
        try:
            # In a scope, if there is one: the command's words may be secret, and are copied.
            process = subprocess.Popen(command, stdout=write)
        finally:
            os.close(write)
        with process:
            try:
                buffer = _read(read, arena)
                status = process.wait()
            except BaseException:
                process.kill()
                raise
        if status != 0:
            raise subprocess.CalledProcessError(status, command)
        return _finish(buffer, as_str, False, arena)
    except BaseException:
        if buffer is not None:
            buffer.close()
        raise
    finally:
        os.close(read)


def _subprocess() -> Any:
    import subprocess

    return subprocess


def _read(fd: int, arena: Arena | None, *, line: bool = False) -> _core.SecretBuffer:
    """Until the end of FD, or its first line."""
    # One byte more than a file has: the end is seen without growing.
    size = max(os.fstat(fd).st_size + 1, _ROOM)
    buffer = _core.SecretBuffer(size, arena)
    try:
        length = 0
        while True:
            if length == size:
                size *= 2
                buffer = _resized(buffer, size, length, arena)
            with memoryview(buffer) as view, view[length:] as rest:
                try:
                    count = os.readv(fd, [rest])
                except BlockingIOError:
                    # What has been read would be lost to the caller.
                    _core._outside(_wait, fd)
                    continue
            length += count
            if count == 0 or (line and buffer[length - 1] == 0x0A):
                return _resized(buffer, length, length, arena)
    except BaseException:
        buffer.close()
        raise


def _wait(fd: int) -> None:
    import select

    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll()


def _resized(
    buffer: _core.SecretBuffer, size: int, length: int, arena: Arena | None
) -> _core.SecretBuffer:
    resized = _core.SecretBuffer(size, arena)
    with memoryview(resized) as to, memoryview(buffer) as whence:
        to[:length] = whence[:length]
    buffer.close()
    return resized


def _ask(fd: int, text: str, arena: Arena | None) -> _core.SecretBuffer:
    import termios

    if not os.isatty(fd):
        raise OSError(errno.ENOTTY, "not a terminal: use from_fd() for pipes and files")
    try:
        buffer = _ask_unseen(fd, text, arena)
    except termios.error as error:  # which is no OSError: the terminal is gone
        raise OSError(*error.args) from None
    if len(buffer) == 0:
        raise EOFError("the terminal gave nothing")
    return _without_line_end(buffer, arena)


def _ask_unseen(fd: int, text: str, arena: Arena | None) -> _core.SecretBuffer:
    import termios

    shown = termios.tcgetattr(fd)
    hidden = shown[:]
    # By lines that Enter ends, with Ctrl-C and Ctrl-D, also where the program has the terminal raw.
    hidden[0] = hidden[0] & ~(termios.IGNCR | termios.INLCR) | termios.ICRNL
    hidden[3] = hidden[3] & ~termios.ECHO | termios.ICANON | termios.ISIG
    buffer = None
    try:
        # What was typed before the question is dropped: it was shown.
        termios.tcsetattr(fd, termios.TCSAFLUSH, hidden)
        os.write(fd, text.encode())
        buffer = _read(fd, arena, line=True)
    finally:
        try:
            termios.tcsetattr(fd, termios.TCSADRAIN, shown)
            os.write(fd, b"\n")
        except (OSError, termios.error):
            if buffer is not None:
                buffer.close()
                raise
            # Else what went wrong before is what is told.
    return buffer


def _without_line_end(buffer: _core.SecretBuffer, arena: Arena | None) -> _core.SecretBuffer:
    length = _length_without_line_end(buffer)
    return buffer if length == len(buffer) else _resized(buffer, length, length, arena)


def _length_without_line_end(buffer: _core.SecretBuffer) -> int:
    length = len(buffer)
    if length and buffer[length - 1] == 0x0A:
        length -= 1
        if length and buffer[length - 1] == 0x0D:
            length -= 1
    return length


def _finish(
    buffer: _core.SecretBuffer, as_str: bool, is_line: bool, arena: Arena | None
) -> _core.SecretBuffer | str:
    if not as_str:
        return buffer
    length = len(buffer) if is_line else _length_without_line_end(buffer)
    with buffer:
        text = (arena or get(_core.HEAP_SECURE)).call(_decode, buffer, length)
    if isinstance(text, int):
        # Not the UnicodeDecodeError, which has a copy of all that it failed at.
        raise ArenaError(f"the secret is not UTF-8: byte {text} of {length}")
    return text


def _decode(buffer: _core.SecretBuffer, length: int) -> str | int:
    with memoryview(buffer) as view, view[:length] as part:
        try:
            return str(part, "utf-8")
        except UnicodeDecodeError as error:
            return error.start


def _start_block() -> tuple[int, int]:
    """Where the environment is that the process was started with; (0, 0) where /proc is missing."""
    try:
        # The program's name, in parentheses, may have anything in it.
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[47]), int(fields[48])
    except (OSError, IndexError, ValueError):
        return 0, 0
