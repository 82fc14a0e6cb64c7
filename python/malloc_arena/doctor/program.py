"""Checks of the program: how it was started, which Python it is, and what an arena gets in it."""

from __future__ import annotations

import os
import re
import signal
import sysconfig

from .. import elf
from . import probe
from .finding import Finding, Fix
from .kernel import allow
from .memory import size
from .ownership import OURS
from .target import Mapped, Target

_AT_SECURE = 23
_DEBUG_LAYERS = ("debug", "malloc_debug", "pymalloc_debug", "mimalloc_debug")


def at_secure(target: Target) -> Finding:
    meaning = (
        "In a program that gains rights at its start (set-user-ID, file capabilities) the loader "
        "ignores LD_PRELOAD, and the library ignores MALLOC_ARENA_OPTIONS."
    )
    if not target.auxiliary(_AT_SECURE):
        return Finding("ok", "no: it was started with its user's own rights", meaning)
    return Finding(
        "warn",
        f"yes: {target.program} gains rights at its start",
        meaning,
        (
            Fix("set-user-ID: take it off", (f"sudo chmod u-s,g-s {target.program}",)),
            Fix(
                "file capabilities: take them off, and give the unit ambient ones",
                (
                    f"sudo setcap -r {target.program}",
                    "[Service]",
                    "AmbientCapabilities=CAP_...",
                ),
            ),
            Fix(
                "a program that must stay so: link the library instead of preloading it",
                ("cc program.c $(malloc-arena config --cflags --libs)",),
            ),
        ),
    )


def pythonmalloc(target: Target) -> Finding:
    meaning = (
        "Arenas wrap whatever allocator CPython was started with. With PYTHONMALLOC=malloc a block "
        "from before a scope that grows inside is wiped where it was; pymalloc does not say its "
        "size, and a debugging layer neither."
    )
    if not target.is_python():
        return Finding("ok", "not a Python program", meaning)
    value = target.environment.get("PYTHONMALLOC", "")
    if value not in _DEBUG_LAYERS and "PYTHONDEVMODE" not in target.environment:
        return Finding("ok", f"PYTHONMALLOC is {value or 'not set'}", meaning)
    set_here = target.environment
    names = [f"{n}={set_here[n]}" for n in ("PYTHONMALLOC", "PYTHONDEVMODE") if n in set_here]
    return Finding(
        "warn",
        f"{' and '.join(names)}: a debugging layer, and slow",
        meaning,
        (Fix("this shell", ("unset PYTHONMALLOC PYTHONDEVMODE",)),),
    )


def free_threading(target: Target) -> Finding:
    meaning = (
        "The collector of a free-threaded build does not see objects outside its own heaps, so "
        "that `with arena` raises ArenaUnavailable there. SecretBuffer works."
    )
    if not target.is_python():
        return Finding("ok", "not a Python program", meaning)
    if target.is_self:
        is_free = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    else:
        paths = [target.program, *(file.path for file in target.mapped)]
        is_free = any(re.search(r"/(lib)?python3\.\d+t(\.so[.\d]*)?$", path) for path in paths)
    if not is_free:
        return Finding("ok", "a build with the GIL", meaning)
    return Finding(
        "fail",
        "a free-threaded build of Python",
        meaning,
        (
            Fix("this shell, with a build that has the GIL", ("python3 -m venv .venv",)),
            Fix("or in the program", ("key = malloc_arena.SecretBuffer(32)",)),
        ),
    )


def receipt(target: Target) -> Finding:
    if not target.is_self:
        return _seen_from_outside(target)
    meaning = "What the kernel really gave to an arena of HEAP_SECURE with one small secret in it."
    answer = probe.in_child(probe.receipt)
    if answer.signal:
        ended = f"making an arena ended the process ({answer.signal_name})"
        if answer.signal != signal.SIGSYS:
            other = Fix("see", ("malloc-arena doctor overcommit memlock",))
            return Finding("fail", f"{ended}: {answer.said}", meaning, (other,))
        return Finding(
            "fail",
            ended,
            f"{meaning} A seccomp filter kills on a call that the library needs.",
            (
                Fix("systemd: allow", ("[Service]", "SystemCallFilter=@memlock madvise mprotect")),
                Fix("or", ("docker run --security-opt seccomp=profile.json ...",)),
            ),
        )
    given = answer.value
    if "reason" in given:
        fixes = (Fix("here", (given["fix"],)),) if given["fix"] else ()
        return Finding("fail", given["reason"], meaning, fixes)
    reasons = given["reasons"]
    details = {"receipt": given["text"]}
    if not reasons:
        yes = ", ".join(line[7:] for line in given["text"].splitlines()[1:])
        return Finding("ok", yes, meaning, details=details)
    found = "; ".join(f"not {name.replace('_', ' ')}: {why}" for name, why in reasons.items())
    if "mlock2" in reasons.get("locked", ""):
        return Finding("fail", found, meaning, allow("mlock2"), details)
    see = "memlock ipc-lock" if "locked" in reasons else "kernel guards"
    return Finding("fail", found, meaning, (Fix("see", (f"malloc-arena doctor {see}",)),), details)


def _seen_from_outside(target: Target) -> Finding:
    """Another process's arenas, by the flags that the kernel keeps of their mappings."""
    meaning = (
        "What the kernel's own flags say of the memory that the process's arenas hold. Memory of "
        "HEAP_DEFAULT arenas is not locked, by design."
    )
    ours = next((file for file in target.mapped if file.path.endswith("/" + OURS)), None)
    if ours is None:
        return Finding("ok", f"{OURS} is not loaded: the process has no arena", meaning)
    base, length = _region(target, ours)
    if not length:
        return Finding("ok", "the process has no arena yet", meaning)
    present = locked = excluded = resident = 0
    inside = False
    with target.proc("smaps").open(errors="surrogateescape", newline="\n") as lines:
        for line in lines:
            first, _, rest = line.partition(" ")
            if not first.endswith(":"):
                start = int(first.partition("-")[0], 16)
                inside = base <= start < base + length
                resident = 0
            elif inside and first in ("Rss:", "Swap:"):
                resident += int(rest.split()[0]) << 10
            elif inside and first == "VmFlags:":
                flags = rest.split()
                present += resident
                locked += resident if "lo" in flags else 0
                excluded += resident if "dd" in flags else 0
    found = f"{size(present)} held, {size(locked)} of it locked, {size(excluded)} left out of dumps"
    details = {"held": present, "locked": locked, "undumped": excluded}
    if present == locked == excluded:
        return Finding("ok", found, meaning, details=details)
    return Finding(
        "warn",
        found,
        meaning,
        (
            Fix("see", (f"malloc-arena doctor --pid {target.pid} memlock ipc-lock",)),
            Fix("in the program: what each arena got", ("print(vault.receipt)",)),
        ),
        details,
    )


def _region(target: Target, ours: Mapped) -> tuple[int, int]:
    """What its malloc_arena.region() would say."""
    value = elf.read(target.open_mapped(ours), ("ma_region",)).defines["ma_region"]
    memory = os.open(target.proc("mem"), os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(memory, 16, ours.start + value)
    finally:
        os.close(memory)
    return int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")
