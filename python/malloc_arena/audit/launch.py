"""A program that is started to be audited: looked at on request and in its very exit."""

from __future__ import annotations

import contextlib
import json
import linecache
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from . import agent, traced
from .process import (
    PTRACE_CONT,
    PTRACE_EVENT_EXIT,
    PTRACE_EVENT_STOP,
    PTRACE_LISTEN,
    PTRACE_O_TRACEEXIT,
    PTRACE_SEIZE,
    CannotLook,
    Process,
    ptrace,
)
from .scanner import Finding, Frame, Scan, Scanner

_WALL = 0x40000000
_FRAMES = 25  # kept of each traceback
_ASKED = 4096  # blocks whose traceback is asked for
_PATIENCE = 20.0  # seconds for the agent's answer
_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")


def under_agent(command: list[str], descriptor: int) -> list[str]:
    """COMMAND, which must run Python, with the agent in front of its program."""
    if command[0].endswith(".py"):
        command = [sys.executable, *command]
    if not Path(command[0]).name.startswith("python"):
        raise CannotLook(f"--trace cannot look into {command[0]}", "start it as: python app.py")
    at = 1
    while at < len(command) and command[at].startswith("-") and command[at] not in ("-m", "-c"):
        if command[at][:2] in ("-m", "-c"):
            raise CannotLook(f"--trace does not take {command[at]} apart", "put a space behind it")
        at += 2 if command[at] in _WITH_VALUE else 1
    if at >= len(command):
        raise CannotLook("--trace needs a program", "name a script, -m or -c")
    options = [f"-Xtracemalloc={_FRAMES}", agent.__file__, str(descriptor)]
    return [*command[:at], *options, *command[at:]]


class Program:
    """A program under audit. run() yields one Scan per look, with what caused it."""

    def __init__(
        self,
        command: list[str],
        scanner: Scanner,
        *,
        environment: Mapping[str, str],
        every: float = 0,
        max_pause: float = 0.1,
        trace: bool = False,
    ) -> None:
        self._scanner = scanner
        self._every = every
        self._max_pause = max_pause
        self._trace = trace
        self._channel: socket.socket | None = None
        self._inbox = b""
        self._exiting = False  # it stands in its exit
        self.status = 0  # as of waitpid, once it has ended
        self.has_others = False  # it started processes, which are not searched
        theirs: socket.socket | None = None
        if trace:
            self._channel, theirs = socket.socketpair()
            command = under_agent(command, theirs.fileno())
            preload = traced.preload(environment.get("LD_PRELOAD", ""))
            environment = {**environment, "LD_PRELOAD": preload}
        self.pid = self._start(command, environment, theirs)
        if theirs:
            theirs.close()

    def _start(
        self, command: list[str], environment: Mapping[str, str], kept: socket.socket | None
    ) -> int:
        # The child waits until it is traced, so that even a program that ends at once is seen.
        go_read, go_write = os.pipe()
        failed_read, failed_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(go_write)
                os.read(go_read, 1)
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it
                if kept:
                    kept.set_inheritable(True)
                os.execvpe(command[0], command, environment)
            except (OSError, ValueError) as error:  # ValueError: an empty name
                os.write(failed_write, str(getattr(error, "strerror", error)).encode())
            finally:
                # The parent waits for its end, and the exit for the parent.
                os.close(failed_write)
                os._exit(127)
        os.close(go_read)
        os.close(failed_write)
        try:
            ptrace(PTRACE_SEIZE, pid, PTRACE_O_TRACEEXIT)
        except OSError as error:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, _WALL)
            raise CannotLook(
                f"{command[0]} cannot be traced: {error.strerror}", "allow ptrace in this container"
            ) from error
        finally:
            os.close(go_write)
        reason = os.read(failed_read, 1024)  # ends with the exec
        os.close(failed_read)
        if reason:
            while not os.WIFEXITED(os.waitpid(pid, _WALL)[1]):
                ptrace(PTRACE_CONT, pid)
            raise CannotLook(f"{command[0]}: {reason.decode()}", "name a program that is there")
        return pid

    def run(self) -> Iterator[tuple[str, Scan]]:
        """Until the program ends: (why, what was found), and last of all "exit". In the main
        thread only, because it takes signals."""
        wakeup, written = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # An interrupt from the terminal goes to the program as well: it is the program's to end.
        handled = (signal.SIGCHLD, signal.SIGUSR1, signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, lambda *_: None) for number in handled}
        descriptor = signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        try:
            yield from self._loop(wakeup)
        finally:
            signal.set_wakeup_fd(descriptor)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(wakeup)
            os.close(written)
            if self._channel:
                self._channel.close()

    def _loop(self, wakeup: int) -> Iterator[tuple[str, Scan]]:
        due = time.monotonic() + self._every if self._every else 0.0
        seen = False  # the last look has been had
        while True:
            self._pump()
            if self._exiting:
                self.has_others = self._started_others()
                if not seen:
                    seen = True
                    yield "exit", self._look(None)
                self._exiting = False
                ptrace(PTRACE_CONT, self.pid)
                continue
            if self.pid < 0:
                return
            watched: list[int | socket.socket] = [wakeup]
            watched += [self._channel] if self._channel else []
            timeout = max(due - time.monotonic(), 0) if due else None
            ready, _, _ = select.select(watched, [], [], timeout)
            signals = os.read(wakeup, 256) if wakeup in ready else b""
            if signal.SIGTERM in signals:
                os.kill(self.pid, signal.SIGTERM)
            if self._channel in ready and self._receive() == b"end" and not seen:
                seen = True
                yield "exit", self._look(None)
                self._send(b"go")
            if signal.SIGUSR1 in signals and not seen:
                yield "signal", self._look(self._max_pause)
            if due and time.monotonic() >= due:
                if not seen:
                    yield "interval", self._look(self._max_pause)
                due = time.monotonic() + self._every

    def _started_others(self) -> bool:
        """Whether it has children, or has waited for some: these had page faults."""
        proc = Path(f"/proc/{self.pid}")
        try:
            fields = (proc / "stat").read_text(errors="replace").rpartition(") ")[2].split()
            lists = [(task / "children").read_text() for task in (proc / "task").iterdir()]
        except OSError:  # a kernel without these lists
            return False
        return int(fields[8]) > 0 or any(lists)

    def _pump(self) -> None:
        """Handles what the program's main thread stopped for, until it runs or is in its exit."""
        while not self._exiting:
            pid, status = os.waitpid(self.pid, _WALL | os.WNOHANG)
            if pid == 0:
                return
            if not os.WIFSTOPPED(status):
                self.status = status
                self.pid = -1
                return
            event, number = status >> 16, os.WSTOPSIG(status)
            if event == PTRACE_EVENT_EXIT:
                self._exiting = True
            elif event == PTRACE_EVENT_STOP and number != signal.SIGTRAP:
                ptrace(PTRACE_LISTEN, self.pid)
            else:
                ptrace(PTRACE_CONT, self.pid, 0 if event else number)

    def _look(self, max_pause: float | None) -> Scan:
        with Process(self.pid, max_pause, traced=True, exiting=self._exiting) as process:
            scan = self._scanner.scan(process)
            if self._trace:
                notes = traced.Notes(process, process.maps())
                findings = tuple(notes.explained(one) for one in scan.findings)
                scan = replace(scan, findings=findings)
        self._exiting = process.exiting
        return scan if self._exiting or not self._channel else self._with_tracebacks(scan)

    def _with_tracebacks(self, scan: Scan) -> Scan:
        blocks = sorted({one.place.block for one in scan.findings if one.place.block})[:_ASKED]
        self._send(json.dumps(blocks).encode())
        answer = self._receive()
        if not answer.startswith(b"["):
            return scan
        found = dict(zip(blocks, json.loads(answer), strict=True))
        findings = [
            replace(one, traceback=self._frames(found[one.place.block]))
            if found.get(one.place.block) and self._is_there(one)
            else one
            for one in scan.findings
        ]
        return replace(scan, findings=tuple(findings))

    def _is_there(self, finding: Finding) -> bool:
        """Whether the block still holds what was found. If not, the program has used it for
        something else since, and the traceback is of that."""
        hit = finding.hit
        try:
            with Path(f"/proc/{self.pid}/mem").open("rb", buffering=0) as memory:
                return bool(self._scanner.find(os.pread(memory.fileno(), hit.length, hit.address)))
        except OSError:
            return False

    def _frames(self, lines: Iterable[tuple[str, int]]) -> tuple[Frame, ...]:
        return tuple(
            Frame(file, line, self._scanner.redacted(linecache.getline(file, line).strip()))
            for file, line in lines
            if file != agent.__file__ and not file.startswith("<frozen ")
        )

    def _send(self, line: bytes) -> None:
        if self._channel:
            with contextlib.suppress(OSError):  # it ended
                self._channel.sendall(line + b"\n")

    def _receive(self) -> bytes:
        """A line from the agent; b"" if none comes. The program runs on meanwhile."""
        until = time.monotonic() + _PATIENCE
        while self._channel and b"\n" not in self._inbox and time.monotonic() < until:
            if select.select([self._channel], [], [], 0.02)[0]:
                try:
                    data = self._channel.recv(1 << 16)
                except OSError:
                    data = b""
                if not data:
                    self._channel.close()
                    self._channel = None
                    break
                self._inbox += data
            self._pump()
            if self.pid < 0 or self._exiting:
                break
        line, _, self._inbox = self._inbox.partition(b"\n")
        return line
