"""Checks of what the process may lock, map and commit."""

from __future__ import annotations

from .finding import Finding, Fix
from .target import CAP_IPC_LOCK, Limit, Target

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30
_ENOUGH = 8 * _MIB  # the kernel's default since 5.16: 150,000 small secrets
_ADVISED = 64 * _MIB
_FEW_MAPPINGS = 10_000
_LEAST_REGION = 64 * _MIB
_LEAST_ROOM = 96 * _MIB  # with what describes it


def size(n: int | None) -> str:
    """Bytes for a reader."""
    if n is None:
        return "unlimited"
    for unit, name in ((_GIB, "GiB"), (_MIB, "MiB"), (_KIB, "KiB")):
        if n >= unit:
            return f"{n / unit:.4g} {name}"
    return f"{n} bytes"


def _ignores_limit(target: Target) -> bool:
    # The kernel asks for the capability in the initial user namespace.
    return target.has_capability(CAP_IPC_LOCK) and not target.is_in_user_namespace()


def _is_enough(limit: Limit) -> bool:
    return limit.soft is None or limit.soft >= _ENOUGH


def memlock(target: Target) -> Finding:
    limit = target.limit("Max locked memory")
    used = target.kilobytes("VmLck")
    meaning = (
        "Memory that is not locked can be swapped to disk, where it stays. Locked memory counts "
        "against RLIMIT_MEMLOCK, and the default policy goes on unlocked where it is used up."
    )
    if _ignores_limit(target):
        return Finding(
            "ok", f"no limit: CAP_IPC_LOCK overrides the {size(limit.soft)} set", meaning
        )
    if limit.soft is None:
        return Finding("ok", "no limit", meaning)
    found = f"{size(limit.soft)} may be locked"
    if used:
        found += f", {size(used)} are"
    if _is_enough(limit) and limit.soft - used >= _MIB:
        return Finding("ok", found, meaning)
    if limit.soft == 0:
        found = "nothing may be locked: RLIMIT_MEMLOCK is 0"
    return Finding(
        "fail" if limit.soft == 0 else "warn", found, meaning, _raise_lock_limit(target, limit)
    )


def _raise_lock_limit(target: Target, limit: Limit) -> tuple[Fix, ...]:
    fixes = []
    within = limit.hard is None or limit.hard >= _ENOUGH
    soft = _ADVISED if limit.hard is None else min(limit.hard, _ADVISED)
    if target.is_self:
        if within:
            fixes.append(Fix("this shell", (f"ulimit -S -l {soft // _KIB}",)))
        else:
            line = f"sudo prlimit --pid $$ --memlock={_ADVISED}:{_ADVISED}"
            fixes.append(Fix("this shell", (line,)))
    else:
        line = f"prlimit --pid {target.pid} --memlock={soft}:"
        if not within:
            line = f"sudo prlimit --pid {target.pid} --memlock={_ADVISED}:{_ADVISED}"
        fixes.append(Fix("the running process", (line, "(for what it maps from now on)")))
    fixes.append(
        Fix(
            "logins, /etc/security/limits.d/memlock.conf",
            (f"*    - memlock {_ADVISED // _KIB}", f"root - memlock {_ADVISED // _KIB}"),
        )
    )
    fixes.append(
        Fix(_unit_file(target), ("[Service]", f"LimitMEMLOCK={_ADVISED // _MIB}M")),
    )
    fixes.append(Fix("Docker", (f"docker run --ulimit memlock={_ADVISED}:{_ADVISED} ...",)))
    fixes.append(
        Fix(
            "Kubernetes (it has no limits of its own: those of the node's runtime)",
            (
                "on the node: sudo systemctl edit containerd",
                "[Service]",
                f"LimitMEMLOCK={_ADVISED // _MIB}M",
                "then: sudo systemctl restart containerd, and start the pod again",
            ),
        )
    )
    return _own_first(target, fixes)


def _unit_file(target: Target) -> str:
    unit = target.home.removeprefix("systemd ") if target.home.startswith("systemd") else "UNIT"
    return f"systemd: sudo systemctl edit {unit}, then restart it"


def _own_first(target: Target, fixes: list[Fix]) -> tuple[Fix, ...]:
    """What the process was started by comes first."""
    word = target.home.split()[0]
    return tuple(sorted(fixes, key=lambda fix: not fix.where.startswith(word)))


def ipc_lock(target: Target) -> Finding:
    limit = target.limit("Max locked memory")
    meaning = (
        "With CAP_IPC_LOCK the lock limit does not count. The kernel asks for it in the machine's "
        "own user namespace: root in a rootless container does not have it."
    )
    if _ignores_limit(target):
        return Finding("ok", "CAP_IPC_LOCK is held", meaning)
    if target.has_capability(CAP_IPC_LOCK):
        found = "CAP_IPC_LOCK is held in a user namespace only, where it does not count"
    else:
        found = "CAP_IPC_LOCK is not held"
    if _is_enough(limit):
        return Finding("ok", f"{found}, nor needed: the limit is {size(limit.soft)}", meaning)
    fixes = [
        Fix(
            "one program, as root (not by setcap: the loader then ignores LD_PRELOAD)",
            (
                "setpriv --reuid=USER --regid=GROUP --init-groups \\",
                "  --inh-caps=+ipc_lock --ambient-caps=+ipc_lock -- program ...",
            ),
        ),
        Fix(_unit_file(target), ("[Service]", "AmbientCapabilities=CAP_IPC_LOCK")),
        Fix("Docker, for root in the container", ("docker run --cap-add IPC_LOCK ...",)),
        Fix(
            "Kubernetes, for root in the container",
            ("securityContext:", "  capabilities:", '    add: ["IPC_LOCK"]'),
        ),
    ]
    if target.is_in_user_namespace():
        fixes = [Fix("here", ("raise the limit instead: malloc-arena doctor memlock",))]
    return Finding(
        "warn", f"{found}, and the limit is {size(limit.soft)}", meaning, _own_first(target, fixes)
    )


def max_map_count(target: Target) -> Finding:
    most = target.sysctl("vm.max_map_count")
    with target.proc("maps").open("rb") as lines:
        used = sum(1 for _ in lines)
    meaning = (
        "Without guard markers (before Linux 6.13) each guard page splits a mapping, and so does "
        "each change of protection. At the limit mmap, mprotect and even munmap fail."
    )
    if most is None:
        return Finding("ok", "this kernel has no such limit", meaning)
    found = f"{used} mappings of {most}"
    if most - used >= _FEW_MAPPINGS:
        return Finding("ok", found, meaning)
    more = max(262_144, 2 * used)
    return Finding(
        "warn",
        found,
        meaning,
        (
            Fix("now, as root", (f"sysctl -w vm.max_map_count={more}",)),
            Fix("for good: /etc/sysctl.d/90-maps.conf", (f"vm.max_map_count = {more}",)),
        ),
    )


def overcommit(target: Target) -> Finding:
    meaning = (
        "Arenas lie in one reserved range, which needs address space, not memory; where there is "
        f"less they take less, down to {size(_LEAST_REGION)}. Under strict overcommit what they "
        "open counts in full."
    )
    limit = target.limit("Max address space")
    if limit.soft is not None:
        left = max(0, limit.soft - target.kilobytes("VmSize"))
        found = f"address space is limited to {size(limit.soft)}, {size(left)} are left"
        if left < _LEAST_ROOM:
            line = "ulimit -v unlimited"
            if limit.hard is not None:
                line = "sudo prlimit --pid $$ --as=unlimited"
            if not target.is_self:
                line = f"sudo prlimit --pid {target.pid} --as=unlimited"
            return Finding(
                "fail",
                found,
                meaning,
                (
                    Fix("this shell" if target.is_self else "the running process", (line,)),
                    Fix(_unit_file(target), ("[Service]", "LimitAS=infinity")),
                ),
            )
        return Finding("ok", found, meaning)
    mode = target.sysctl("vm.overcommit_memory")
    if mode != 2:
        return Finding("ok", f"vm.overcommit_memory is {mode}: reserving is free", meaning)
    facts = dict(line.split(":") for line in target.read("proc/meminfo").splitlines())
    left = (int(facts["CommitLimit"].split()[0]) - int(facts["Committed_AS"].split()[0])) * _KIB
    found = f"strict: {size(max(0, left))} of the machine's memory are not yet promised"
    if left >= _GIB:
        return Finding("ok", found, meaning)
    return Finding(
        "warn",
        found,
        meaning,
        (
            Fix("now, as root", ("sysctl -w vm.overcommit_memory=0",)),
            Fix("for good: /etc/sysctl.d/90-overcommit.conf", ("vm.overcommit_memory = 0",)),
        ),
    )
