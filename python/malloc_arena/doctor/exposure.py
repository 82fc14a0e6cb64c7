"""Checks of the ways on which memory leaves the process: swap, hibernation, core dumps, ptrace."""

from __future__ import annotations

import os
import re
from pathlib import Path

from . import probe
from .finding import Finding, Fix
from .target import Target

_UNDUMPABLE = Fix(
    "in the program, at its start",
    (
        "C:      prctl (PR_SET_DUMPABLE, 0);",
        "Python: ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE",
    ),
)


def _is_encrypted(block: Path) -> bool:
    """Whether a block device, as in /sys/dev/block, is dm-crypt, or made of nothing else."""
    try:
        if (block / "dm" / "uuid").read_text().startswith("CRYPT-"):
            return True
    except OSError:
        pass
    try:
        below = list((block / "slaves").iterdir())
    except OSError:
        return False
    return bool(below) and all(_is_encrypted(one) for one in below)


def _swap_kinds(target: Target) -> dict[str, str]:
    """Each active swap, with "memory", "encrypted", "plain" or "unseen" (from in here)."""
    kinds = {}
    for line in target.read("proc/swaps").splitlines()[1:]:
        name = line.split()[0].replace("\\040", " ")
        device = target.path(name)
        try:
            facts = device.stat()
        except OSError:
            kinds[name] = "unseen"
            continue
        number = facts.st_rdev or facts.st_dev
        block = target.path(f"sys/dev/block/{os.major(number)}:{os.minor(number)}")
        if re.fullmatch(r"/dev/zram\d+", name):
            backing = target.path(f"sys/block/{Path(name).name}/backing_dev")
            # With one, it writes out what it likes to.
            is_memory = not backing.exists() or backing.read_text().strip() == "none"
            kinds[name] = "memory" if is_memory else "plain"
        else:
            kinds[name] = "encrypted" if _is_encrypted(block) else "plain"
    return kinds


def _may_not_swap(target: Target) -> bool:
    """Whether a cgroup (version 2) that the process is in keeps it from swap."""
    for line in target.proc("cgroup").read_text(errors="surrogateescape").splitlines():
        if line.startswith("0::/"):
            group = Path(line[3:].strip())
            for level in (group, *group.parents):
                try:
                    most = target.read(f"sys/fs/cgroup{level}/memory.swap.max")
                except OSError:
                    continue
                if most == "0":
                    return True
    return False


def swap(target: Target) -> Finding:
    kinds = _swap_kinds(target)
    meaning = (
        "What is swapped out reaches the disk and stays there after the program's end. Locked "
        "memory is never swapped; copies outside an arena, and arenas that got no lock, are."
    )
    bad = [name for name, kind in kinds.items() if kind in ("plain", "unseen")]
    if not kinds:
        return Finding("ok", "none", meaning)
    if not bad:
        return Finding("ok", "; ".join(f"{n}: {k}" for n, k in kinds.items()), meaning)
    if _may_not_swap(target):
        return Finding("ok", "its control group may not swap (memory.swap.max is 0)", meaning)
    texts = {"plain": "not encrypted", "unseen": "not visible from here, so perhaps not encrypted"}
    found = "; ".join(f"{name} is {texts[kinds[name]]}" for name in bad)
    return Finding(
        "warn",
        found,
        meaning,
        (
            Fix("this service: sudo systemctl edit UNIT", ("[Service]", "MemorySwapMax=0")),
            Fix("Docker: both the same", ("docker run --memory=1g --memory-swap=1g ...",)),
            Fix(
                "the machine, without swap",
                ("sudo swapoff -a", "and take the swap lines out of /etc/fstab"),
            ),
            Fix(
                "the machine, with a partition for swap under a new random key at each boot",
                (
                    "/etc/crypttab:",
                    "cryptswap PARTITION /dev/urandom swap,cipher=aes-xts-plain64,size=512",
                    "/etc/fstab:",
                    "/dev/mapper/cryptswap none swap sw 0 0",
                ),
            ),
        ),
    )


def hibernation(target: Target) -> Finding:
    meaning = (
        "Hibernation writes all memory to the swap device, locked memory too. While memory of a "
        "HEAP_SECRETMEM arena exists, the kernel does not hibernate."
    )
    try:
        states = target.read("sys/power/state").split()
        disk = target.read("sys/power/disk")
    except FileNotFoundError:
        return Finding("ok", "this kernel does not hibernate", meaning)
    if "disk" not in states or "[disabled]" in disk:
        return Finding("ok", "this kernel does not hibernate", meaning)
    kinds = [kind for kind in _swap_kinds(target).values() if kind != "memory"]
    if not kinds:
        return Finding("ok", "possible, but there is no swap device to write to", meaning)
    if set(kinds) == {"encrypted"}:
        return Finding("ok", "to encrypted swap", meaning)
    return Finding(
        "warn",
        "possible, to swap that is not encrypted",
        meaning,
        (
            Fix("the kernel's command line", ("nohibernate",)),
            Fix("or", ("encrypt the swap device: malloc-arena doctor swap",)),
        ),
    )


def _is_dumpable(target: Target) -> bool:
    if target.is_self:
        return probe.dumpable() == 1
    # What is not dumpable has its files in /proc owned by root.
    return target.proc("").stat().st_uid == target.user


def core_dumps(target: Target) -> Finding:
    pattern = target.read("proc/sys/kernel/core_pattern")
    limit = target.limit("Max core file size")
    meaning = (
        "A crash writes the process's memory to a file, or to a program that keeps it. Memory of "
        "secure arenas is left out; copies elsewhere are not."
    )
    if target.sysctl("fs.suid_dumpable") == 1:
        return Finding(
            "warn",
            "fs.suid_dumpable is 1: programs that change user are dumped as any other",
            meaning,
            (Fix("as root", ("sysctl -w fs.suid_dumpable=0",)),),
        )
    if not _is_dumpable(target):
        return Finding("ok", "none: the process is not dumpable", meaning)
    handler = Path(pattern[1:].split()[0]).name if pattern[1:].split() else ""
    unit = Fix("systemd: sudo systemctl edit UNIT", ("[Service]", "LimitCORE=0"))
    if not pattern.startswith(("|", "@")):
        if limit.soft == 0 or not pattern:
            return Finding("ok", "none: the limit of core files is 0", meaning)
        where = "this shell", "ulimit -S -c 0"
        if not target.is_self:
            where = "the running process", f"prlimit --pid {target.pid} --core=0:"
        return Finding(
            "warn",
            f'to files named "{pattern}"',
            meaning,
            (Fix(where[0], (where[1],)), unit, _UNDUMPABLE),
        )
    # The kernel takes no notice of the limit when it writes to a program, but for the value 1.
    honours = handler == "systemd-coredump"
    if limit.soft == 1 or handler in ("false", "true") or (honours and limit.soft == 0):
        return Finding("ok", f"none: they would go to {pattern}", meaning)
    line = f"prlimit --pid {'$$' if target.is_self else target.pid} "
    line += "--core=0:" if honours else "--core=1:"
    if limit.hard == 0:  # a limit of 1 is above it
        line = f"sudo {line}1"
    fixes = [Fix("this shell" if target.is_self else "the running process", (line,))]
    if honours:
        fixes += [
            unit,
            Fix("the machine: /etc/systemd/coredump.conf", ("[Coredump]", "Storage=none")),
        ]
    else:
        fixes.append(Fix("the machine, as root", ("sysctl -w kernel.core_pattern='|/bin/false'",)))
    return Finding("warn", f"each goes to {pattern}", meaning, (*fixes, _UNDUMPABLE))


def ptrace(target: Target) -> Finding:
    meaning = (
        "A process that may ptrace this one reads all its memory, locked or not; only "
        "HEAP_SECRETMEM is out of its reach. Nothing keeps a capable root out."
    )
    scope = target.sysctl("kernel.yama.ptrace_scope")
    if scope == 3:
        return Finding("ok", "nobody: kernel.yama.ptrace_scope is 3", meaning)
    if not _is_dumpable(target):
        return Finding("ok", "root alone: the process is not dumpable", meaning)
    if target.user == 0:
        return Finding(
            "warn",
            "every process of root, as it runs as root itself",
            meaning,
            (
                Fix("a user of its own, systemd", ("[Service]", "DynamicUser=yes")),
                Fix("Docker", ("docker run --user 10001:10001 ...",)),
                Fix("Kubernetes", ("securityContext:", "  runAsUser: 10001")),
            ),
        )
    if scope in (1, 2):
        who = "its own ancestors" if scope == 1 else "processes with CAP_SYS_PTRACE"
        return Finding("ok", f"{who}: kernel.yama.ptrace_scope is {scope}", meaning)
    if scope is None:
        return Finding(
            "warn", "every process of the same user (no Yama here)", meaning, (_UNDUMPABLE,)
        )
    return Finding(
        "warn",
        "every process of the same user: kernel.yama.ptrace_scope is 0",
        meaning,
        (
            Fix("now, as root", ("sysctl -w kernel.yama.ptrace_scope=1",)),
            Fix("for good: /etc/sysctl.d/90-ptrace.conf", ("kernel.yama.ptrace_scope = 1",)),
            _UNDUMPABLE,
        ),
    )
