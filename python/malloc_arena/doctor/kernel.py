"""Checks of what this kernel, CPU and C library offer to the process."""

from __future__ import annotations

import errno
import os
import platform
import re

from . import probe
from .finding import Finding, Fix
from .target import Target

_AT_HWCAP2 = 26
_HWCAP2_MTE = 1 << 18

# What comes with which version, and what it means to be without.
_FEATURES = (
    ((4, 14), "a forked child keeps what it should find wiped (MADV_WIPEONFORK)"),
    ((5, 14), "HEAP_SECRETMEM (memfd_secret)"),
    ((5, 18), "locked pages are given back in two steps (MADV_DONTNEED_LOCKED)"),
    ((6, 13), "each guard page costs a mapping (MADV_GUARD_INSTALL)"),
)


def _cannot_try(target: Target, what: str) -> Finding | None:
    """A try is made here, and says something about another process only if no filter stands between
    either and the kernel."""
    own = Target()
    if target.is_self or not (target.is_filtered or own.is_filtered):
        return None
    whose = "the process" if target.is_filtered else "this doctor"
    return Finding(
        "unknown",
        f"{whose} has a seccomp filter, which nobody can read from outside",
        "Whether the call is allowed shows only when it is tried under the same filter.",
        (
            Fix("in a container", (f"docker exec CONTAINER malloc-arena doctor {what}",)),
            Fix("in a unit", (f"ExecStartPre=/path/to/malloc-arena doctor {what}",)),
        ),
    )


def allow(call: str) -> tuple[Fix, ...]:
    """How a filter on system calls lets CALL through."""
    return (
        Fix(
            "systemd, behind the SystemCallFilter= of the unit that lists what is allowed",
            ("[Service]", f"SystemCallFilter={call}"),
        ),
        Fix(
            f'Docker, with "{call}" among the "names" that the profile allows',
            ("docker run --security-opt seccomp=profile.json ...",),
        ),
        Fix(
            "Kubernetes, with the same profile on the node",
            (
                "securityContext:",
                "  seccompProfile:",
                "    type: Localhost",
                "    localhostProfile: profile.json",
            ),
        ),
    )


def memfd_secret(target: Target) -> Finding:
    meaning = (
        "HEAP_SECRETMEM keeps memory out of reach of ptrace and of the kernel itself; other kinds "
        "do not need it."
    )
    cannot = _cannot_try(target, "memfd-secret")
    if cannot is not None:
        return cannot
    answer = probe.in_child(probe.memfd_secret)
    if answer.signal:
        return Finding(
            "fail",
            f"a seccomp filter ends the process ({answer.signal_name})",
            f"{meaning} Here a program that asks for it is killed.",
            allow("memfd_secret"),
        )
    call, error = answer.value
    if not error:
        return Finding("ok", "memfd_secret works", meaning)
    said = f"{call} is refused: {os.strerror(error)}"
    if call == "mmap":
        return Finding(
            "warn",
            f"{said}, over the lock limit",
            meaning,
            (Fix("here", ("raise the limit: malloc-arena doctor memlock",)),),
        )
    version = target.kernel()
    line = target.read("proc/cmdline").split()
    fixes: tuple[Fix, ...]
    if error == errno.ENOSYS and version < (5, 14):
        fixes = (Fix("the kernel", ("Linux 5.14 or later",)),)
    elif error == errno.ENOSYS and version < (6, 5) and "secretmem.enable=1" not in line:
        fixes = (Fix("the kernel's command line", ("secretmem.enable=1",)),)
    elif any(re.fullmatch(r"secretmem\.enable=[0nNfF]\w*", word) for word in line):
        fixes = (Fix("the kernel's command line, instead of =0", ("secretmem.enable=1",)),)
    elif Target().is_filtered:
        said = f"a seccomp filter denies memfd_secret: {os.strerror(error)}"
        fixes = allow("memfd_secret")
    else:
        text = "one with CONFIG_SECRETMEM=y"
        if platform.machine() == "aarch64":
            text += ", and rodata=full on its command line"
        fixes = (Fix("the kernel", (text,)),)
    return Finding("warn", said, meaning, fixes)


def guards(target: Target) -> Finding:
    meaning = (
        "Guard pages stop reads and writes past the end of a heap. A guard marker is one at no "
        "cost; without it a protected page is, which splits the mapping (see max-map-count)."
    )
    cannot = _cannot_try(target, "guards")
    if cannot is not None:
        return cannot
    answer = probe.in_child(probe.guard)
    if answer.signal:
        return Finding(
            "fail",
            f"a seccomp filter ends the process at madvise ({answer.signal_name})",
            f"{meaning} The library calls madvise: here it is killed.",
            allow("madvise"),
        )
    works, error = answer.value
    if works:
        return Finding("ok", "guard markers work", meaning)
    if error == 0:
        return Finding(
            "warn",
            "the kernel takes guard markers and ignores them",
            f"{meaning} An emulator does that: nothing guards here.",
            (Fix("the program", ("run it on a real kernel: qemu-user has no guard markers",)),),
        )
    # Nothing is lost but mappings.
    why = "a seccomp filter" if error != errno.EINVAL else "Linux 6.13 has markers"
    return Finding("ok", f"by protection instead of markers: {os.strerror(error)} ({why})", meaning)


def mte(target: Target) -> Finding:
    meaning = "HEAP_TAGGED has the CPU check every access. No other kind needs it."
    machine = platform.machine()
    if machine != "aarch64":
        return Finding("ok", f"not on {machine}: HEAP_TAGGED cannot be had", meaning)
    if not target.auxiliary(_AT_HWCAP2) & _HWCAP2_MTE:
        return Finding("ok", "not in this CPU or kernel: HEAP_TAGGED cannot be had", meaning)
    answer = probe.in_child(probe.has_tags)
    if answer.value:
        return Finding("ok", "the CPU has tags, and the kernel offers them", meaning)
    return Finding(
        "warn",
        "the CPU has tags, but the kernel refuses them to this process",
        meaning,
        (Fix("as root", ("sysctl -w abi.tagged_addr_disabled=0",)),),
    )


def kernel(target: Target) -> Finding:
    version = target.kernel()
    release = target.read("proc/sys/kernel/osrelease")
    lacks = [f"{text}, from {a}.{b}" for (a, b), text in _FEATURES if version < (a, b)]
    meaning = "The library asks the kernel for each property, and does with less where it must."
    if not lacks:
        return Finding("ok", f"Linux {release} has all that is asked for", meaning)
    found = f"Linux {release}; without: {'; '.join(lacks)}"
    if version < _FEATURES[0][0]:
        fix = Fix("the machine", ("Linux 4.14 or later",))
        return Finding("fail", found, f"{meaning} This one is too old for the fork policy.", (fix,))
    return Finding("ok", found, meaning)


def glibc(target: Target) -> Finding:
    meaning = "The library extends glibc's malloc. Another C library has other rules."
    for file in target.mapped:
        name = file.path.rpartition("/")[2]
        if name.startswith(("ld-musl-", "libc.musl-")):
            return Finding(
                "fail",
                f"musl ({file.path})",
                meaning,
                (Fix("the program", ("build it for glibc: in a container, not from Alpine",)),),
            )
        if re.fullmatch(r"libc(-2\.\d+)?\.so(\.6)?", name):
            text = target.open_mapped(file).read_bytes()
            version = re.search(rb"GNU C Library [^\n\0]* version (\d+\.\d+)", text)
            if version:
                return Finding("ok", f"glibc {version[1].decode()}", meaning)
    return Finding(
        "fail",
        "no C library is loaded: a static program",
        f"{meaning} Nothing can be preloaded into a static program.",
        (Fix("the program", ("link it dynamically",)),),
    )
