"""What this machine and a process can give to arenas: small named checks, each with its fix.

>>> report = doctor.examine()
>>> report.findings["memlock"].result
'ok'

Nothing is changed by looking. What only a try can tell is tried in a forked child.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import exposure, kernel, malloc, memory, program
from .finding import Check, Finding, Fix, Result
from .target import Target

__all__ = ["CHECKS", "Check", "Finding", "Fix", "Report", "Result", "Target", "examine"]

CHECKS = (
    Check("memlock", "how much memory may be locked", memory.memlock),
    Check("ipc-lock", "whether the lock limit counts at all", memory.ipc_lock),
    Check("receipt", "what a secure arena gets here", program.receipt),
    Check("malloc", "who owns malloc, free and the rest", malloc.look),
    Check("swap", "where memory that is not locked may go", exposure.swap),
    Check("hibernation", "whether all memory may be written to disk", exposure.hibernation),
    Check("core-dumps", "where a crash writes memory to", exposure.core_dumps),
    Check("ptrace", "who may read the process's memory", exposure.ptrace),
    Check("memfd-secret", "memory out of the kernel's own reach", kernel.memfd_secret),
    Check("guards", "guard markers", kernel.guards),
    Check("mte", "memory tags checked by the CPU", kernel.mte),
    Check("max-map-count", "room for more mappings", memory.max_map_count),
    Check("overcommit", "room for the reserved range", memory.overcommit),
    Check("at-secure", "whether the loader ignores LD_PRELOAD", program.at_secure),
    Check("pythonmalloc", "the allocator that CPython was started with", program.pythonmalloc),
    Check("free-threading", "whether scopes can be had at all", program.free_threading),
    Check("kernel", "the kernel's version", kernel.kernel),
    Check("glibc", "the C library", kernel.glibc),
)


@dataclass(frozen=True, slots=True)
class Report:
    pid: int
    program: str
    findings: dict[str, Finding]
    """By the check's name, in the order of CHECKS."""

    def count(self, result: Result) -> int:
        return sum(finding.result == result for finding in self.findings.values())

    @property
    def exit_code(self) -> int:
        """0 fine, 1 a finding, 3 none, but something could not be looked at."""
        if self.count("fail") or self.count("warn"):
            return 1
        return 3 if self.count("unknown") else 0


def examine(
    target: Target | None = None,
    names: Sequence[str] = (),
    advance: Callable[[str], None] = lambda _: None,
) -> Report:
    """The checks of those NAMES, or all. OSError: there is no such process, or none to see."""
    target = target or Target()
    where = target.status["Name"]
    findings = {}
    for check in CHECKS:
        if not names or check.name in names:
            advance(check.name)
            try:
                findings[check.name] = check.look(target)
            except OSError as error:
                findings[check.name] = _unseen(target, error)
    return Report(target.pid, where, findings)


def _unseen(target: Target, error: OSError) -> Finding:
    what = f"{error.filename}: " if error.filename else ""
    fixes: tuple[Fix, ...] = ()
    if isinstance(error, PermissionError) and not target.is_self:
        line = f"sudo malloc-arena doctor --pid {target.pid}"
        fixes = (Fix("as root, or as the process's own user", (line,)),)
    return Finding(
        "unknown", f"{what}{error.strerror or error}", "This could not be looked at.", fixes
    )
