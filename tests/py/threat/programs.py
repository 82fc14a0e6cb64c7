"""The C program of the stories, and what can be seen of a program from outside."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import copies, end, mappings
from malloc_arena.cli.config import Config

# As the program and the scripts make it; neither has it in one piece.
SECRET = bytes(b ^ 0x5A for b in b"9%((19.z52)(9z85..9?6")
NEEDLE = SECRET[:16]  # the smallest block of the stories


def build(directory: Path) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler (package build-essential)")
    values = Config().values()
    binary = directory / "program"
    source = Path(__file__).with_name("program.c")
    command = [compiler, "-O1", "-fno-builtin", "-w", "-pthread", *values["cflags"], str(source)]
    subprocess.run([*command, "-o", str(binary), *values["libs"]], check=True)
    return binary


def need_kernel_dumps() -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith("|") or "/" in pattern or not pattern.startswith("core"):
        pytest.skip(f"core dumps do not stay in the current directory: core_pattern is {pattern!r}")
    if resource.getrlimit(resource.RLIMIT_CORE)[1] != resource.RLIM_INFINITY:
        pytest.skip("core dumps are limited here (ulimit -H -c)")


def kernel_dump(directory: Path) -> bytes:
    """The core that a process has just left there."""
    (dump,) = directory.glob("core*")
    data = dump.read_bytes()
    dump.unlink()
    assert len(data) > 100_000
    return data


def gcore(pid: int, directory: Path, *options: str) -> bytes:
    """The core that the debugger writes of a running process."""
    if shutil.which("gcore") is None:
        pytest.skip("gcore (package gdb) is not installed")
    done = subprocess.run(
        ["gcore", *options, "-o", str(directory / "dump"), str(pid)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    dump = directory / f"dump.{pid}"
    if not dump.exists() and "ptrace" in done.stderr:
        pytest.skip(f"no other process may be traced here: {done.stderr.strip()}")
    assert dump.exists(), done
    data = dump.read_bytes()
    dump.unlink()
    return data


class Story:
    """One run of the program, stopped at each of its stops."""

    def __init__(
        self,
        binary: Path,
        kind: str,
        *story: str,
        cwd: Path | None = None,
        group: Path | None = None,
    ) -> None:
        self.kind = kind
        command = [str(binary), kind, *story]
        if group is not None:  # from the first page on
            command = [
                "sh",
                "-c",
                'echo $$ >"$0"; exec "$@"',
                str(group / "cgroup.procs"),
                *command,
            ]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            # glibc fills freed memory with a byte when it is told to: the control would not leak.
            env={k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
            | {"MALLOC_ARENA_OPTIONS": "region_size=1G"},
        )
        self.pid = self.process.pid

    def __enter__(self) -> Story:
        return self

    def __exit__(self, *unused: object) -> None:
        end(self.process)

    def said(self, what: str) -> int:
        """The number that the program says with WHAT."""
        assert self.process.stdout is not None
        word, _, number = self.process.stdout.readline().partition(" ")
        if word == "errno":
            pytest.skip(f"arena of kind {self.kind}: {os.strerror(int(number))}")
        assert word == what, (word, number, self.process.communicate(timeout=60))
        return int(number)

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def ends(self) -> tuple[int, str, str]:
        out, err = self.process.communicate("\n", timeout=120)
        return self.process.returncode, out, err

    def copies(self, pid: int | None = None, stack: bool = True) -> int:
        """How often the secret is in the memory of it, or of its child; without STACK not on the
        stack, where registers of a copy may be saved."""
        pid = pid or self.pid
        stacks = [each for each in mappings(pid) if each.name == "[stack]" and not stack]
        return sum(
            not any(each.start <= at < each.end for each in stacks) for at in copies(pid, NEEDLE)
        )


# ---- how another process reads 32 bytes: None where the kernel refuses ----


def by_mem(pid: int, address: int, size: int) -> bytes | None:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        try:
            return os.pread(memory.fileno(), size, address)
        except OSError:
            return None


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)


def by_call(pid: int, address: int, size: int) -> bytes | None:
    buffer = ctypes.create_string_buffer(size)
    here = _IoVec(ctypes.addressof(buffer), size)
    there = _IoVec(address, size)
    got = _libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    return buffer.raw if got == size else None


def by_debugger(pid: int, address: int, size: int) -> bytes | None:
    attach, peek, detach = 16, 2, 17
    _libc.ptrace.restype = ctypes.c_long
    _libc.ptrace.argtypes = [ctypes.c_long] * 4
    if _libc.ptrace(attach, pid, 0, 0) != 0:
        pytest.skip("no process may be traced here")
    os.waitpid(pid, 0)
    words = []
    for at in range(0, size, 8):
        ctypes.set_errno(0)
        word = _libc.ptrace(peek, pid, address + at, 0)
        if ctypes.get_errno():
            break
        words.append(word.to_bytes(8, "little", signed=True))
    _libc.ptrace(detach, pid, 0, 0)
    return b"".join(words) if len(words) * 8 == size else None


WAYS = {"mem": by_mem, "process_vm_readv": by_call, "ptrace": by_debugger}


def files_with(pid: int, needle: bytes) -> int:
    """How many descriptors of the process lead to it."""
    found = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if entry.readlink().name.startswith(("memfd:", "secretmem")):
            found += needle in entry.read_bytes()
    return found
