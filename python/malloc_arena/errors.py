"""Exceptions of this package, and what they say: the reason and the fix."""

from __future__ import annotations

import errno as _errno


class ArenaError(Exception):
    """The base of this package's exceptions."""


class ArenaUnavailable(ArenaError):
    """An arena of that kind cannot be had here."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason, fix)
        self.reason = reason
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.reason}. {self.fix}"


class HooksLost(ArenaError):
    """Another tool has taken this package's hooks out of CPython's allocators."""


_KINDS = {1: "HEAP_SECURE", 2: "HEAP_TAGGED", 4: "HEAP_ISOLATED", 8: "HEAP_SECRETMEM"}


def kind_name(kind: int) -> str:
    """``HEAP_SECURE | HEAP_ISOLATED`` for its number."""
    flags = [name for flag, name in _KINDS.items() if kind & flag]
    if kind & ~sum(_KINDS):
        flags.append(hex(kind & ~sum(_KINDS)))
    return " | ".join(flags) or "HEAP_DEFAULT"


def lock_limit() -> str:
    """RLIMIT_MEMLOCK as a text."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return "unlimited" if limit == resource.RLIM_INFINITY else f"{limit} bytes"


def is_lock_denied(error: int) -> bool:
    """Whether a lock was refused with ERROR for another reason than the limit: the kernel itself
    says EPERM only of a limit of 0."""
    import resource

    has_limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != 0
    return error == _errno.ENOSYS or (error == _errno.EPERM and has_limit)


INITIAL_USER_NAMESPACE = "user:[4026531837]"  # PROC_USER_INIT_INO of the kernel

_RAISE_LOCK_LIMIT = (
    "Raise RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK= of a systemd unit, docker run --ulimit "
    "memlock=)"
)


def unavailable(error: int, kind: int) -> ArenaUnavailable:
    """What the library's refusal of an arena of that kind with that errno means. 0 stands for an
    interpreter that cannot have scopes."""
    name = kind_name(kind)
    if error == 0:
        return ArenaUnavailable(
            "this is a free-threaded build of Python, whose collector does not see objects outside "
            "its own heaps",
            "Use a build with the GIL, or SecretBuffer, which works here",
        )
    if error == _errno.ENOTSUP and kind & 2:
        return _untagged(name)
    if error == _errno.ENOTSUP and kind & 8:
        return ArenaUnavailable(
            f"{name} needs memfd_secret(2), which this kernel does not offer to this process",
            "Boot with secretmem.enable=1 (before Linux 6.5), allow memfd_secret in the seccomp "
            "filter, or use HEAP_SECURE",
        )
    if error == _errno.EPERM and _may_lock(0, 0):
        calls, checks = "mlock2", "receipt"
        if kind & 8:
            calls, checks = "mlock2 and memfd_secret", "receipt memfd-secret"
        return ArenaUnavailable(
            f"locked memory for {name} is refused, though the lock limit ({lock_limit()}) is not "
            'met, and the lock policy is "require"',
            f"Allow {calls} in the seccomp filter (SystemCallFilter=@memlock of a systemd unit, "
            f"docker run --security-opt seccomp=; see malloc-arena doctor {checks}), or use "
            'lock="prefer"',
        )
    if error in (_errno.EPERM, _errno.EAGAIN):
        return ArenaUnavailable(
            f"the kernel refuses to lock memory for {name} (RLIMIT_MEMLOCK is {lock_limit()}) and "
            'the lock policy is "require"',
            f'{_RAISE_LOCK_LIMIT}, or use lock="prefer"',
        )
    if error == _errno.ENOMEM:
        return ArenaUnavailable(
            f"there is no memory or address space for an arena of {name}",
            "Raise RLIMIT_AS (ulimit -v), RLIMIT_MEMLOCK (ulimit -l) or the memory limit of the "
            "container, or close arenas that are not used",
        )
    if error == _errno.ENOSPC:
        return ArenaUnavailable(
            f"there is no place for an arena of {name}: the process has 256, and that is the most",
            "Close arenas that are not used (close()); those whose objects are gone end by "
            "themselves, once nothing is alive in them",
        )
    if error == _errno.EINVAL:
        import resource

        page = resource.getpagesize()
        return ArenaUnavailable(
            f"{name} with these options is not something an arena can be",
            "Combine HEAP_ISOLATED and HEAP_SECRETMEM with HEAP_SECURE; heap_size is 64 KiB to "
            f"64 MiB; isolate_threshold is 16 to 16384; a limit is at least a page, {page} bytes",
        )
    import os

    return ArenaUnavailable(
        f"{name} cannot be had here: {os.strerror(error)}", "Ask malloc-arena doctor"
    )


def _untagged(name: str) -> ArenaUnavailable:
    import os
    import struct

    machine = os.uname().machine
    features = 0
    if machine == "aarch64":
        with open("/proc/self/auxv", "rb") as file:  # noqa: PTH123  pathlib is not loaded yet
            features = dict(struct.iter_unpack("QQ", file.read())).get(26, 0)  # AT_HWCAP2
    if features >> 18 & 1:
        return ArenaUnavailable(
            f"{name} needs memory tags (MTE), which this {machine} CPU has and the kernel refuses "
            "to this thread",
            "Set abi.tagged_addr_disabled=0 (sysctl), allow prctl(PR_SET_TAGGED_ADDR_CTRL) in the "
            "seccomp filter, or use HEAP_SECURE",
        )
    return ArenaUnavailable(
        f"{name} needs memory tags (MTE), which this {machine} CPU or its kernel has not",
        "Run on an arm64 CPU with MTE and a kernel with CONFIG_ARM64_MTE, or use HEAP_SECURE",
    )


def exhausted(
    name: str,
    limit: int,
    held: int,
    live: int,
    blocks: int,
    locked: int,
    requested: int,
    region: int,
    in_scope: bool,
    is_strict: bool,
) -> str:
    """Why an arena gives no more memory. REQUESTED is 0 where it is not known; REGION are all
    arenas' addresses. IN_SCOPE: a part of the limit is kept back. IS_STRICT: lock="require"."""
    state = f"now it holds {held} bytes ({locked} locked), {live} of them in {blocks} live blocks"
    if requested:
        state = f"{requested} more were asked for, and {state}"
    or_less = "or drop what is still alive in it" if blocks else "or ask for less at once"
    back = " (a scope keeps a sixteenth of it back, for tracebacks)" if in_scope else ""
    if limit and requested > limit:
        return (
            f'arena "{name}" has a limit of {limit} bytes, and {requested} were asked for at once. '
            f"Raise limit={back}"
        )
    if limit:
        full = f'arena "{name}" is at its limit of {limit} bytes'
        return f"{full}: {state}. Raise limit={back}, {or_less}"
    if requested >= region:
        return (
            f'arena "{name}" cannot give {requested} bytes: all arenas together have {region} '
            f"bytes of address space. {_raise_region(requested)}"
        )
    reason = f'arena "{name}" gets no more memory from the kernel: {state}'
    used, most = _mappings()
    if most and used > most * 0.99:
        return (
            f"{reason}; the process has {used} mappings, and vm.max_map_count is {most}. Raise it "
            f"(sysctl -w vm.max_map_count={2 * most})"
        )
    if not is_strict or _may_lock(locked, requested):
        return (
            f"{reason}. Raise {_limits()} or the memory limit of the container, "
            f"{or_less}. A single block of more than {region} bytes needs more address space: "
            f"{_raise_region(region)}"
        )
    return f'{reason}; RLIMIT_MEMLOCK is {lock_limit()}. {_RAISE_LOCK_LIMIT}, or use lock="prefer"'


def _limits() -> str:
    """The limits of this process that may have been met."""
    import resource

    if resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY:
        return "RLIMIT_AS (ulimit -v), RLIMIT_DATA (ulimit -d)"
    return "RLIMIT_AS (ulimit -v)"


def _raise_region(least: int) -> str:
    """How there is room for more than so many bytes."""
    import resource

    if least >= 1 << 40:
        return "There can be no more than 1T"
    gigabytes = 1 << (least + least // 8 >> 30).bit_length()
    how = f"start the program with MALLOC_ARENA_OPTIONS=region_size={min(gigabytes, 1024)}G"
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return f"Raise RLIMIT_AS (ulimit -v), and {how}"
    return how[0].upper() + how[1:]


def _mappings() -> tuple[int, int]:
    """This process's mappings, and how many the kernel lets it have (0 where that is not known)."""
    try:
        with open("/proc/self/maps", "rb") as maps:  # noqa: PTH123  pathlib is not loaded yet
            used = sum(1 for _ in maps)
        with open("/proc/sys/vm/max_map_count", "rb") as most:  # noqa: PTH123
            return used, int(most.read())
    except OSError:
        return 0, 0


def _may_lock(locked: int, requested: int) -> bool:
    """Whether the kernel would have locked so much more, or a large heap's worth. LOCKED is what
    is locked at least: the limit is the whole process's."""
    import os
    import resource

    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    may_exceed = False
    try:
        with open("/proc/self/status", "rb") as status:  # noqa: PTH123
            fields = dict(line.split(b":", 1) for line in status if b":" in line)
        locked = max(locked, int(fields[b"VmLck"].split()[0]) << 10)
        # CAP_IPC_LOCK, which counts in the machine's own user namespace only.
        may_exceed = bool(int(fields[b"CapEff"], 16) >> 14 & 1) and (
            os.readlink("/proc/self/ns/user") == INITIAL_USER_NAMESPACE  # noqa: PTH115
        )
    except (OSError, KeyError):
        pass
    is_within = locked + max(requested, 1 << 20) < limit
    return limit == resource.RLIM_INFINITY or is_within or may_exceed
