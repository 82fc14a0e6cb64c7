"""The process that is looked at, and its machine, as /proc and /sys show them. Read only."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import INITIAL_USER_NAMESPACE

CAP_IPC_LOCK = 14
CAP_SYS_PTRACE = 19

_AT_NULL = 0
_DELETED = " (deleted)"  # the kernel's mark


@dataclass(frozen=True, slots=True)
class Limit:
    """A resource limit; None: unlimited."""

    soft: int | None
    hard: int | None


@dataclass(frozen=True, slots=True)
class Mapped:
    """A file that the process has mapped to run code from."""

    path: str
    start: int
    """Where its first byte is, or would be."""
    span: str
    """The addresses of its code, as /proc names them."""
    is_deleted: bool
    """Removed or replaced since."""


class Target:
    """A process, this one if no PID is given. ROOT stands for "/": the checks read nothing that is
    not below it."""

    def __init__(self, pid: int | None = None, root: Path = Path("/")) -> None:
        self.is_self = pid is None
        self.pid = os.getpid() if pid is None else pid
        self._root = root

    def path(self, name: str) -> Path:
        return self._root / name.lstrip("/")

    def proc(self, name: str) -> Path:
        return self.path(f"proc/{self.pid}/{name}")

    def read(self, name: str) -> str:
        return self.path(name).read_text(errors="surrogateescape").strip()

    def sysctl(self, name: str) -> int | None:
        """None where this kernel has no such setting."""
        try:
            return int(self.read("proc/sys/" + name.replace(".", "/")))
        except FileNotFoundError:
            return None

    @functools.cached_property
    def status(self) -> dict[str, str]:
        # The name may have any bytes but a line end: the kernel cuts it off in a letter, too.
        lines = self.proc("status").read_text(errors="surrogateescape").split("\n")
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    def kilobytes(self, field: str) -> int:
        """A field of the status that is a size, in bytes."""
        return int(self.status.get(field, "0 kB").split()[0]) << 10

    @property
    def user(self) -> int:
        return int(self.status["Uid"].split()[1])

    @property
    def is_filtered(self) -> bool:
        """Whether a seccomp filter stands between it and the kernel."""
        return self.status.get("Seccomp", "0") != "0"

    def has_capability(self, number: int) -> bool:
        return bool(int(self.status["CapEff"], 16) >> number & 1)

    def is_in_user_namespace(self) -> bool:
        """Whether its capabilities are those of a user namespace (a rootless container), which
        count for less."""
        return str(self.proc("ns/user").readlink()) != INITIAL_USER_NAMESPACE

    def limit(self, name: str) -> Limit:
        """By its name in /proc/PID/limits, as "Max locked memory"."""
        for line in self.proc("limits").read_text().splitlines():
            if line.startswith(name):
                soft, hard = (
                    None if word == "unlimited" else int(word)
                    for word in line[len(name) :].split()[:2]
                )
                return Limit(soft, hard)
        raise OSError(0, f"no line {name!r}", str(self.proc("limits")))

    @functools.cached_property
    def environment(self) -> dict[str, str]:
        """As the process was started with; what it has set since then is not there."""
        words = os.fsdecode(self.proc("environ").read_bytes()).split("\0")
        return {key: value for key, _, value in (word.partition("=") for word in words) if key}

    def auxiliary(self, key: int) -> int:
        """An entry of what the kernel told the loader, 0 if it said nothing."""
        data = memoryview(self.proc("auxv").read_bytes()).cast("Q")
        for i in range(0, len(data) - 1, 2):
            if data[i] == _AT_NULL:
                break
            if data[i] == key:
                return data[i + 1]
        return 0

    @functools.cached_property
    def program(self) -> str:
        """The path of its executable."""
        return str(self.proc("exe").readlink()).removesuffix(_DELETED)

    @functools.cached_property
    def mapped(self) -> tuple[Mapped, ...]:
        """The files it runs code from, in order of address."""
        starts: dict[str, int] = {}
        found: dict[str, Mapped] = {}
        # A file's name may have any bytes: the kernel escapes the line end, and nothing else.
        for line in os.fsdecode(self.proc("maps").read_bytes()).split("\n")[:-1]:
            span, mode, offset, _, _, *rest = line.split(maxsplit=5)
            if not rest or not rest[0].startswith("/"):
                continue
            path = rest[0].removesuffix(_DELETED)
            start = int(span.partition("-")[0], 16) - int(offset, 16)
            starts.setdefault(path, start)
            if "x" in mode and path not in found:
                found[path] = Mapped(path, starts[path], span, path != rest[0])
        if not found:
            raise ProcessLookupError(3, "it has no memory: it has ended, or is the kernel's")
        return tuple(found.values())

    def open_mapped(self, file: Mapped) -> Path:
        """Where that file can be opened from here: in the process's own view of the file system,
        and as the file that it mapped, not one that has replaced it since."""
        if file.is_deleted:
            return self.proc("map_files") / file.span  # for root only
        return self.proc("root") / file.path.lstrip("/")

    def kernel(self) -> tuple[int, int]:
        major, minor = self.read("proc/sys/kernel/osrelease").split(".")[:2]
        return int(major), int("".join(c for c in minor if c.isdigit()) or 0)

    def is_python(self) -> bool:
        names = [os.path.basename(file.path) for file in self.mapped]  # noqa: PTH119 (strings)
        return any(name.startswith(("python", "libpython")) for name in names)

    @functools.cached_property
    def home(self) -> str:
        """What started it and so gives it its limits: "systemd UNIT", "Kubernetes", "Docker", or
        "shell"."""
        groups = self.proc("cgroup").read_text(errors="surrogateescape")
        if "kubepods" in groups:
            return "Kubernetes"
        if "docker" in groups or (self.is_self and self.path(".dockerenv").exists()):
            return "Docker"
        for line in groups.splitlines():
            parts = line.split(":", 2)[2].split("/")
            units = [part for part in parts if part.endswith(".service")]
            # Under user@1000.service is a session, which has its limits from PAM.
            if units and not units[0].startswith("user@"):
                return f"systemd {units[-1]}"
        return "shell"
