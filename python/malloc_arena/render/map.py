"""The arenas of a process as text: a line for each slab, a letter for each slot."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from ..errors import kind_name
from ..snapshot import (
    FREE,
    GONE,
    LIVE,
    NEW,
    QUARANTINED,
    RETURNED,
    STATES,
    Arena,
    Change,
    Comparison,
    Large,
    Slab,
    Snapshot,
)

if TYPE_CHECKING:
    from rich.text import Text

_MARKS = {LIVE: "#", FREE: ".", QUARANTINED: "q", RETURNED: "-", NEW: "n", GONE: "x"}
_STYLES = {
    "#": "bold green",
    "+": "green",
    ".": "dim",
    "q": "yellow",
    "-": "blue",
    "n": "bold cyan",
    "x": "bold red",
    "|": "magenta",
}
_SLABS = 24  # of one arena that are shown one by one
_LARGES = 12

WORDS = {
    "locked": "locked",
    "undumped": "not dumped",
    "fork_wiped": "wiped at fork",
    "fork_kept": "kept at fork",
    "guarded": "guards",
    "secretmem": "secretmem",
    "tagged": "tagged",
    "isolated": "isolated",
    "fork_refused": "absent at fork",
}


def as_text(found: Snapshot, width: int = 80, *, in_full: bool = False) -> Text:
    """A picture that needs neither colour nor more than 80 columns; every slab if IN FULL."""
    from rich.text import Text

    text = Text()
    _head(text, found, width)
    for arena in found.arenas:
        _arena(text, arena, width, in_full)
    if found.arenas:
        _legend(text, found)
    return text


def compared(found: Comparison, width: int = 80, *, in_full: bool = False) -> Text:
    from rich.text import Text

    text = Text()
    _head(text, found.both, width)
    for arena, change in zip(found.both.arenas, found.changes, strict=True):
        _title(text, arena)
        for line in changes(change):
            text.append(f"  {line}\n")
        _contents(text, arena, width, in_full)
    if found.changes:
        _legend(text, found.both)
    return text


def changes(change: Change) -> list[str]:
    """What a comparison says of one arena, a line each."""
    by_size = sorted(change.new_sizes.items(), key=lambda one: -one[1])[:3]
    detail = ", ".join(
        f"{count} large" if size == "large" else f"{count} of {size} bytes"
        for size, count in by_size
    )
    lines = [f"blocks: {change.new} new, {change.gone} gone, {change.kept} kept"]
    if detail:
        lines.append(f"new:    {detail}")
    before, after = change.live_bytes
    lines.append(f"live:   {_size(before)} -> {_size(after)} ({after - before:+,} bytes)")
    before, after = change.mapped
    slabs = f"{change.new_slabs} slabs opened, {change.gone_slabs} given back"
    lines.append(f"mapped: {_size(before)} -> {_size(after)}; {slabs}")
    return lines


def _head(text: Text, found: Snapshot, width: int) -> None:
    line = f"process {found.pid}  {found.program}"
    text.append((line if len(line) <= width else line[: width - 3] + "...") + "\n", "bold")
    if not found.arenas:
        text.append("no arena has been made in it\n")


def _title(text: Text, arena: Arena) -> None:
    text.append("\n")
    text.append(f'arena "{arena.name}"', "bold")
    text.append(f"  {kind_name(arena.kind)}\n")


def _arena(text: Text, arena: Arena, width: int, in_full: bool) -> None:
    _title(text, arena)
    words = [WORDS[flag] for flag in arena.flags]
    text.append(f"  {', '.join(words) or 'nothing granted for all of its memory'}\n")
    limit = f" of {_size(arena.limit)} at most" if arena.limit else ""
    blocks = f"{arena.live_blocks:,} block{'s' * (arena.live_blocks != 1)}"
    text.append(
        f"  {blocks}, {_size(arena.live_bytes)} live in {_size(arena.mapped)} mapped{limit}\n"
    )
    if arena.kernel_locked is not None and arena.kernel_undumped is not None:
        text.append("  by the kernel's flags: ")
        for kernel, word, flag, end in (
            (arena.kernel_locked, "locked", "locked", ", "),
            (arena.kernel_undumped, "not dumped", "undumped", "\n"),
        ):
            less = flag in arena.flags and kernel < arena.mapped
            text.append(f"{_size(kernel)} {word}", "bold red" if less else "")
            text.append(" (LESS THAN IT SAYS)" if less else "")
            text.append(end)
    _contents(text, arena, width, in_full)


def _contents(text: Text, arena: Arena, width: int, in_full: bool) -> None:
    slabs = list(arena.slabs)
    for heap in arena.heaps:
        text.append(f"  heap {heap.address:#x}, {_size(heap.bytes)}\n")
        if in_full or len(slabs) <= _SLABS:
            for slab in heap.slabs:
                _slab(text, arena, slab, width)
        else:
            _sizes(text, heap.slabs, width)
    larges = sorted(arena.larges, key=lambda one: -one.bytes)
    shown = larges if in_full else larges[:_LARGES]
    for large in sorted(shown, key=lambda one: one.address):
        _large(text, arena, large)
    if rest := larges[len(shown) :]:
        size = sum(one.bytes for one in rest)
        text.append(f"  and {len(rest)} smaller large ranges, {_size(size)}\n")


def _slab(text: Text, arena: Arena, slab: Slab, width: int) -> None:
    text.append(f"  {slab.address:#x} {slab.slot:>5} B ")
    guard = "|" if slab.guard else " "
    full = slab.opened // slab.slot
    tail = f" {_count(slab.states)}/{full}{_missing(arena, slab.flags)}"
    room = width - len(f"  {slab.address:#x} {slab.slot:>5} B ") - len(tail) - 1
    _strip(text, _grouped(slab.states, max(room, 8), _mark) + guard)
    text.append(f"{tail}\n")


def _count(states: str) -> str:
    live = sum(states.count(state) for state in (LIVE, NEW))
    gone = states.count(GONE)
    return f"{live}-{gone}" if gone else str(live)


def _missing(arena: Arena, flags: Sequence[str]) -> str:
    """What the kernel refused for this memory though the arena has it elsewhere or should."""
    missing = []
    if arena.kind & 1 and "locked" not in flags:
        missing.append("NOT LOCKED")
    if arena.kind & 1 and "undumped" not in flags:
        missing.append("DUMPED")
    return "".join(f" {word}" for word in missing)


def _mark(states: str) -> str:
    """One mark for some slots."""
    kinds = set(states)
    for state in (GONE, NEW, QUARANTINED):
        if state in kinds:
            return _MARKS[state]
    if len(kinds) == 1:
        return _MARKS[kinds.pop()]
    return "+" if LIVE in kinds else _MARKS[FREE]


def _grouped(states: str, room: int, mark: Callable[[str], str]) -> str:
    each = -(-len(states) // room) if states else 1
    return "".join(mark(states[at : at + each]) for at in range(0, len(states), each))


def _sizes(text: Text, slabs: Iterable[Slab], width: int) -> None:
    """Slabs by the size of their slots, one mark for each slab."""
    by_size: dict[int, list[Slab]] = collections.defaultdict(list)
    for slab in slabs:
        by_size[slab.slot].append(slab)
    for size, group in sorted(by_size.items()):
        live = sum(slab.live for slab in group)
        full = sum(len(slab.states) for slab in group)
        head = f"  {len(group):>6,} slabs of {size:>5} B "
        tail = f" {live:,}/{full:,}"
        text.append(head)
        marks = [_fill(slab) for slab in group]
        room = max(width - len(head) - len(tail), 8)
        each = -(-len(marks) // room)
        _strip(text, "".join(max(marks[at : at + each]) for at in range(0, len(marks), each)))
        text.append(f"{tail}\n")


def _fill(slab: Slab) -> str:
    """How full: "." empty, 1 to 9 tenths, "#" full; "n", "x": something in it is new or gone."""
    for state in (GONE, NEW):
        if state in slab.states:
            return _MARKS[state]
    if not slab.live:
        return "."
    if slab.live == len(slab.states):
        return "#"
    return str(max(min(slab.live * 10 // len(slab.states), 9), 1))


def _large(text: Text, arena: Arena, large: Large) -> None:
    text.append(f"  {large.address:#x} large   ")
    _strip(text, ("|" if large.before else "") + _MARKS[large.state] + "|")
    what = f"{large.size:,} bytes" if large.size or large.block else "kept for the next one"
    word = "" if large.state == LIVE else f" {STATES[large.state]},"
    text.append(f"{word} {what}, {_size(large.bytes)}{_missing(arena, large.flags)}\n")


def _strip(text: Text, marks: str) -> None:
    for mark in marks:
        text.append(mark, _STYLES.get(mark, "green" if mark.isdigit() else ""))


def _legend(text: Text, found: Snapshot) -> None:
    used = set()
    for arena in found.arenas:
        for slab in arena.slabs:
            used |= set(slab.states)
        used |= {large.state for large in arena.larges}
    text.append("\n")
    for state, word in STATES.items():
        if state in used or state in (LIVE, FREE):
            _strip(text, _MARKS[state])
            text.append(f" {word}  ")
    _strip(text, "+")
    text.append(" some live  ")
    _strip(text, "|")
    text.append(" guard\n")
    if any(len(list(arena.slabs)) > _SLABS for arena in found.arenas):
        text.append("1-9 tenths of a slab live\n")


def _size(size: int) -> str:
    value = float(size)
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
