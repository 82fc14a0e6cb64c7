"""What was obtained, and what is alive: frozen records of an arena at one moment."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import Literal

from .errors import is_lock_denied, kind_name, lock_limit

# By bit number, as in malloc_arena.h.
_PROPERTIES = (
    "locked",
    "dump_excluded",
    "fork",  # wiped in the child
    "fork",  # kept for the child
    "guards",
    "secretmem",
    "tagged",
    "isolated",
)
_WIPED, _KEPT, _REFUSED = 1 << 2, 1 << 3, 1 << 8

_TEXTS = {
    "locked": "locked, never swapped",
    "dump_excluded": "left out of core dumps",
    "guards": "guard pages",
    "secretmem": "outside the kernel's direct map",
    "tagged": "checked by the CPU's memory tags",
    "isolated": "every allocation a mapping of its own",
}
_FORKS = {
    "wipe": "a forked child finds zeros",
    "refuse": "a forked child has none of it, and a touch faults",
    "keep": "a forked child has its own copy, protected in the same way",
    "copy": "a forked child has an unprotected copy",
}


@dataclass(frozen=True, slots=True)
class Receipt:
    """The protection that the kernel really gives to all memory an arena holds now."""

    kind: int
    """``HEAP_`` flags."""
    requested: tuple[str, ...]
    """The names, among those below, of what was asked for."""
    locked: bool
    dump_excluded: bool
    fork: Literal["wipe", "keep", "refuse", "copy"]
    """What a forked child finds: zeros, a protected copy, nothing (a touch faults), or an ordinary
    copy."""
    guards: bool
    secretmem: bool
    tagged: bool
    isolated: bool
    mapped_bytes: int
    locked_bytes: int
    reasons: dict[str, str] = field(default_factory=dict)
    """Why something requested was not obtained, by its name."""

    @property
    def complete(self) -> bool:
        """Whether everything requested was obtained."""
        return not self.reasons

    def __str__(self) -> str:
        lines = [f"{kind_name(self.kind)}: {self.mapped_bytes} bytes, {self.locked_bytes} locked"]
        for name in self.requested:
            text = _FORKS[self.fork] if name == "fork" else _TEXTS[name]
            if name in self.reasons:
                lines.append(f"  no   {_TEXTS.get(name, text)}: {self.reasons[name]}")
            else:
                lines.append(f"  yes  {text}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class SizeClass:
    """Blocks of about one size."""

    slot_bytes: int
    """Room of one block. 0: blocks with pages of their own."""
    live_blocks: int
    live_bytes: int
    mapped_bytes: int
    """Held for them, unused slots and pages that wait for their next use included."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What an arena holds."""

    live_blocks: int
    live_bytes: int
    """As requested by the callers."""
    peak_bytes: int  # an upper bound: small blocks' most plus large ones', maybe at different times
    limit_bytes: int
    """0: no limit."""
    mapped_bytes: int
    locked_bytes: int
    classes: tuple[SizeClass, ...] = field(default=(), compare=False, repr=False)
    """The size classes that hold memory, by slot_bytes; blocks with pages of their own last."""


def make_stats(
    blocks: int,
    live: int,
    peak: int,
    limit: int,
    mapped: int,
    locked: int,
    classes: tuple[tuple[int, int, int, int], ...],
) -> Stats:
    """Stats from what the C library counts."""
    by_class = tuple(SizeClass(*one) for one in classes)
    return Stats(blocks, live, peak, limit, mapped, locked, by_class)


def _reason(name: str, error: int) -> str:
    if name == "locked" and is_lock_denied(error):
        return f"{os.strerror(error)}; a filter on system calls (seccomp) denies mlock2"
    if name == "locked" and error in (errno.ENOMEM, errno.EPERM, errno.EAGAIN):
        return f"{os.strerror(error)}; RLIMIT_MEMLOCK (ulimit -l) is {lock_limit()}"
    return os.strerror(error) if error else "not given by this kernel"


def _fork(obtained: int) -> Literal["wipe", "keep", "refuse", "copy"]:
    if obtained & _REFUSED:
        return "refuse"
    return "wipe" if obtained & _WIPED else "keep" if obtained & _KEPT else "copy"


def make_receipt(
    kind: int, requested: int, obtained: int, reasons: tuple[int, ...], mapped: int, locked: int
) -> Receipt:
    """A receipt from what the C library says, in its bits."""
    names: list[str] = []
    refused: dict[str, str] = {}
    for number, name in enumerate(_PROPERTIES):
        if requested >> number & 1:
            names.append(name)
            if not obtained >> number & 1:
                refused[name] = _reason(name, reasons[number])

    def has(name: str) -> bool:
        return bool(obtained >> _PROPERTIES.index(name) & 1)

    return Receipt(
        kind=kind,
        requested=tuple(names),
        locked=has("locked"),
        dump_excluded=has("dump_excluded"),
        fork=_fork(obtained),
        guards=has("guards"),
        secretmem=has("secretmem"),
        tagged=has("tagged"),
        isolated=has("isolated"),
        mapped_bytes=mapped,
        locked_bytes=locked,
        reasons=refused,
    )
