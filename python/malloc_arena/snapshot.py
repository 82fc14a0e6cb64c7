"""What lies where in the arenas of a process at one moment.

    before = snapshot.take()           # this process
    ...
    after = snapshot.take()
    after.save("after.json")           # for `malloc-arena map after.json`
    print(snapshot.compare(before, after).changes)

Addresses, sizes and states only: a snapshot holds no byte of what is in the memory.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _core

SCHEMA = "malloc-arena/map/1"
COMPARED = "malloc-arena/map-compare/1"

# One letter for each slot. The last two are for two snapshots compared.
LIVE, FREE, QUARANTINED, RETURNED, NEW, GONE = "lfqrng"
STATES = {
    LIVE: "live",
    FREE: "free",
    QUARANTINED: "quarantined",
    RETURNED: "returned",
    NEW: "new",
    GONE: "gone",
}
# By bit number, as in malloc_arena.h.
FLAGS = (
    "locked",
    "undumped",
    "fork_wiped",
    "fork_kept",
    "guarded",
    "secretmem",
    "tagged",
    "isolated",
    "fork_refused",
)
_EXTENT = struct.Struct("@PNNPPIIII")
_ARENA, _HEAP, _SLAB, _LARGE, _SLOT, _GUARD = range(1, 7)
_LETTERS = " " + LIVE + FREE + QUARANTINED + RETURNED


@dataclass(frozen=True, slots=True)
class Slab:
    """A unit of one slot size."""

    address: int
    slot: int  # bytes of each
    opened: int  # bytes in use so far; the rest up to the guard is reserved
    flags: tuple[str, ...]
    guard: int  # bytes of the guard at its end
    states: str  # a letter for each slot
    sizes: tuple[int, ...]  # as asked for, of the live slots, in order

    @property
    def live(self) -> int:
        return len(self.sizes)

    def blocks(self) -> Iterator[tuple[int, str, int]]:
        """(address, state, size as asked for or 0) of each slot."""
        sizes = iter(self.sizes)
        for number, state in enumerate(self.states):
            size = next(sizes) if state in (LIVE, NEW, GONE) else 0
            yield self.address + number * self.slot, state, size


@dataclass(frozen=True, slots=True)
class Heap:
    """A stretch of address space that slabs are taken from."""

    address: int
    bytes: int
    slabs: tuple[Slab, ...]


@dataclass(frozen=True, slots=True)
class Large:
    """Pages for one block."""

    address: int
    bytes: int
    state: str  # a letter; FREE: kept for the next request of its size
    flags: tuple[str, ...]
    before: int  # bytes of guard before it
    guard: int  # and after it
    block: int = 0  # what malloc returned
    size: int = 0  # as asked for


@dataclass(frozen=True, slots=True)
class Arena:
    """One arena."""

    name: str
    kind: int
    flags: tuple[str, ...]  # what the kernel granted for all of its memory
    mapped: int
    limit: int  # 0: none
    heaps: tuple[Heap, ...]
    larges: tuple[Large, ...]
    kernel_locked: int | None = None  # of the mapped bytes, by the kernel's own flags
    kernel_undumped: int | None = None

    @property
    def slabs(self) -> Iterator[Slab]:
        return (slab for heap in self.heaps for slab in heap.slabs)

    @property
    def live_blocks(self) -> int:
        return sum(slab.live for slab in self.slabs) + sum(one.state == LIVE for one in self.larges)

    @property
    def live_bytes(self) -> int:
        large = sum(one.size for one in self.larges if one.state == LIVE)
        return sum(sum(slab.sizes) for slab in self.slabs) + large

    def ranges(self) -> Iterator[tuple[int, int]]:
        """(start, end) of its accessible memory."""
        for slab in self.slabs:
            yield slab.address, slab.address + slab.opened
        for large in self.larges:
            yield large.address, large.address + large.bytes


@dataclass(frozen=True, slots=True)
class Block:
    """What an address in an arena lies in."""

    arena: str
    state: str  # a letter; "": between slots, in a guard
    address: int = 0  # 0: not in a block
    size: int = 0  # as asked for, of one that lives; else what the slot has


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All arenas of a process."""

    pid: int
    program: str
    region: tuple[int, int]  # base and size of what is reserved
    arenas: tuple[Arena, ...]

    def find(self, address: int) -> Block | None:
        """What ADDRESS lies in; None if in no arena."""
        for arena in self.arenas:
            for slab in arena.slabs:
                offset = address - slab.address
                if 0 <= offset < slab.opened + slab.guard and offset // slab.slot < len(
                    slab.states
                ):
                    number = offset // slab.slot
                    state = slab.states[number]
                    live = slab.states[:number].count(LIVE)
                    size = slab.sizes[live] if state == LIVE else slab.slot
                    return Block(arena.name, state, slab.address + number * slab.slot, size)
            for large in arena.larges:
                if large.address - large.before <= address < large.address + large.bytes:
                    if large.state == LIVE:
                        return Block(arena.name, LIVE, large.block, large.size)
                    return Block(arena.name, large.state, large.address, large.bytes)
            for heap in arena.heaps:
                if heap.address <= address < heap.address + heap.bytes:
                    return Block(arena.name, "")
        return None

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **dataclasses.asdict(self)}

    def save(self, path: str | os.PathLike[str]) -> None:
        Path(path).write_text(json.dumps(self.to_json()))


def take() -> Snapshot:
    """Of this process: exact where no other thread allocates meanwhile, see malloc_arena_walk."""
    return _core._outside(_take)


def _take() -> Snapshot:
    data, names = _core._walk()
    arenas = tuple(_arenas(_EXTENT.iter_unpack(data), names))
    found = Snapshot(os.getpid(), program(sys.orig_argv), _core.region(), arenas)
    return with_kernel(found, Path("/proc/self/smaps"))


def program(argv: Iterable[str]) -> str:
    """A program's name, and its script's. No other argument, any may be a secret."""
    names = [Path(word).name for word in argv]
    shown = names[:1] + [name for name in names[1:2] if name.endswith(".py")]
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(shown))


def load(path: str | os.PathLike[str]) -> Snapshot:
    """One that was saved; ValueError if the file is none."""
    try:
        data = json.loads(Path(path).read_text())
        if data.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        return Snapshot(
            int(data["pid"]),
            str(data["program"]),
            (int(data["region"][0]), int(data["region"][1])),
            tuple(_arena(one) for one in data["arenas"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)} is no snapshot of malloc-arena map") from error


def _arena(data: dict[str, Any]) -> Arena:
    heaps = tuple(
        Heap(one["address"], one["bytes"], tuple(Slab(**_tuples(slab)) for slab in one["slabs"]))
        for one in data.pop("heaps")
    )
    larges = tuple(Large(**_tuples(one)) for one in data.pop("larges"))
    return Arena(heaps=heaps, larges=larges, **_tuples(data))


def _tuples(data: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def make_arena(
    name: str, kind: int, mapped: int, limit: int, heaps: Iterable[Heap], larges: Iterable[Large]
) -> Arena:
    """In order of address; with the flags that all of its memory has."""
    heaps = tuple(sorted(heaps, key=_address))
    larges = tuple(sorted(larges, key=_address))
    every = [set(slab.flags) for heap in heaps for slab in heap.slabs]
    every += [set(large.flags) for large in larges]
    common = set.intersection(*every) if every else set()
    flags = tuple(flag for flag in FLAGS if flag in common)
    return Arena(name, kind, flags, mapped, limit, heaps, larges)


def flags_of(bits: int) -> tuple[str, ...]:
    names = (name for number, name in enumerate(FLAGS) if bits >> number & 1)
    # In C what is not in a child counts as wiped there.
    wiped = "fork_wiped" if bits >> FLAGS.index("fork_refused") & 1 else ""
    return tuple(name for name in names if name != wiped)


def _arenas(extents: Iterable[tuple[int, ...]], names: dict[int, str]) -> Iterator[Arena]:
    """The tree of what the walk gives flat."""
    heads: tuple[int, ...] | None = None
    heaps: list[tuple[int, int, list[list[Any]]]] = []
    larges: list[list[Any]] = []
    last: list[Any] = []

    def arena() -> Arena:
        assert heads
        return make_arena(
            names[heads[3]],
            heads[8],
            heads[1],
            heads[2],
            (Heap(at, size, tuple(map(_slab, slabs))) for at, size, slabs in heaps),
            (Large(*one) for one in larges),
        )

    for extent in extents:
        address, size, block, _, _, kind, state, flags, _ = extent
        if kind == _ARENA:
            if heads:
                yield arena()
            heads, heaps, larges = extent, [], []
        elif kind == _HEAP:
            heaps.append((address, size, []))
        elif kind == _SLAB:
            last = [address, block, size, flags_of(flags), 0, [], []]
            heaps[-1][2].append(last)
        elif kind == _LARGE:
            last = [address, size, _LETTERS[state], flags_of(flags), 0, 0]
            larges.append(last)
        elif kind == _SLOT and len(last) == 7:
            last[5].append(_LETTERS[state])
            if _LETTERS[state] == LIVE:
                last[6].append(block)
        elif kind == _SLOT:
            last += [address, block]
        elif kind == _GUARD:
            last[4 if len(last) == 7 or address < last[0] else 5] = size
    if heads:
        yield arena()


def _slab(parts: list[Any]) -> Slab:
    address, slot, opened, flags, guard, states, sizes = parts
    return Slab(address, slot, opened, flags, guard, "".join(states), tuple(sizes))


def _address(one: Slab | Large | Heap) -> int:
    return one.address


def with_kernel(found: Snapshot, smaps: Path) -> Snapshot:
    """FOUND with what the kernel itself says of that memory; as it is if SMAPS cannot be read."""
    base, size = found.region
    try:
        mappings = list(_mappings(smaps, base, base + size))
    except OSError:
        return found
    starts = [start for start, _, _ in mappings]

    def sum_of(arena: Arena, flag: str) -> int:
        total = 0
        for low, high in arena.ranges():
            number = max(bisect.bisect_right(starts, low) - 1, 0)
            while number < len(mappings) and mappings[number][0] < high:
                start, end, flags = mappings[number]
                if flag in flags:
                    total += max(min(end, high) - max(start, low), 0)
                number += 1
        return total

    arenas = tuple(
        dataclasses.replace(
            arena, kernel_locked=sum_of(arena, "lo"), kernel_undumped=sum_of(arena, "dd")
        )
        for arena in found.arenas
    )
    return dataclasses.replace(found, arenas=arenas)


def _mappings(smaps: Path, low: int, high: int) -> Iterator[tuple[int, int, set[str]]]:
    start = end = 0
    name = ""
    # A file's name may have any bytes: the kernel escapes the line end, and nothing else.
    with smaps.open(encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for line in lines:
            first, _, rest = line.partition(" ")
            if first == "VmFlags:":
                if low <= start < high:
                    flags = set(rest.split())
                    # Secret memory is locked by nature, and has no flag for it.
                    yield start, end, flags | {"lo", "dd"} if "secretmem" in name else flags
            elif not first.endswith(":"):
                start, end = (int(bound, 16) for bound in first.split("-"))
                name = rest


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one arena between two snapshots."""

    name: str
    live_blocks: tuple[int, int]  # before, after
    live_bytes: tuple[int, int]
    mapped: tuple[int, int]
    new: int  # blocks that live now and did not
    gone: int
    kept: int
    new_slabs: int
    gone_slabs: int
    new_sizes: dict[str, int]  # how many new blocks of a slot's size, "large" for the rest


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two snapshots as one picture: each slot that was live or is now, as kept, new or gone."""

    before: Snapshot
    after: Snapshot
    both: Snapshot
    changes: tuple[Change, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": COMPARED,
            "changes": [dataclasses.asdict(change) for change in self.changes],
            "map": dataclasses.asdict(self.both),
        }


def compare(before: Snapshot, after: Snapshot) -> Comparison:
    """What is new and what is gone. A slot that was freed and given to a block of the same size
    meanwhile counts as kept."""
    pairs = _pairs(before.arenas, after.arenas)
    merged = [_merge(old, new) for old, new in pairs]
    return Comparison(
        before,
        after,
        dataclasses.replace(after, arenas=tuple(one for one, _ in merged)),
        tuple(change for _, change in merged),
    )


def _pairs(
    before: tuple[Arena, ...], after: tuple[Arena, ...]
) -> list[tuple[Arena | None, Arena | None]]:
    """The same arenas of both: of several with one name and kind the first with the first."""
    left = list(before)
    pairs: list[tuple[Arena | None, Arena | None]] = []
    for new in after:
        old = next((one for one in left if (one.name, one.kind) == (new.name, new.kind)), None)
        if old is not None:
            left.remove(old)
        pairs.append((old, new))
    return pairs + [(old, None) for old in left]


def _merge(old: Arena | None, new: Arena | None) -> tuple[Arena, Change]:
    some = new or old
    assert some
    none = dataclasses.replace(some, heaps=(), larges=(), mapped=0, kernel_locked=None)
    old, new = old or none, new or none
    heaps: dict[tuple[int, int], list[Slab]] = {}
    sizes: dict[str, int] = {}
    olds = {slab.address: slab for slab in old.slabs}
    news = {slab.address: slab for slab in new.slabs}
    for arena, others in ((new, olds), (old, {})):
        for heap in arena.heaps:
            merged = heaps.setdefault((heap.address, heap.bytes), [])
            for slab in heap.slabs:
                if arena is new:
                    merged.append(_merge_slabs(others.get(slab.address), slab))
                elif slab.address not in news:
                    merged.append(_merge_slabs(slab, None))
    kept = 0
    for slabs in heaps.values():
        for slab in slabs:
            kept += slab.states.count(LIVE)
            if number := slab.states.count(NEW):
                sizes[str(slab.slot)] = sizes.get(str(slab.slot), 0) + number
    larges = tuple(_merge_larges(old.larges, new.larges))
    kept += sum(large.state == LIVE for large in larges)
    if number := sum(large.state == NEW for large in larges):
        sizes["large"] = number
    both = dataclasses.replace(
        some,
        heaps=tuple(
            Heap(address, size, tuple(sorted(slabs, key=_address)))
            for (address, size), slabs in sorted(heaps.items())
        ),
        larges=larges,
    )
    change = Change(
        some.name,
        (old.live_blocks, new.live_blocks),
        (old.live_bytes, new.live_bytes),
        (old.mapped, new.mapped),
        new.live_blocks - kept,
        old.live_blocks - kept,
        kept,
        len(news.keys() - olds.keys()),
        len(olds.keys() - news.keys()),
        sizes,
    )
    return both, change


def _merge_slabs(old: Slab | None, new: Slab | None) -> Slab:
    some = new or old
    assert some
    if old and new and old.slot != new.slot:
        old = None  # another slab in the same place: what it held is gone, which NEW tells
    before = {at: (state, size) for at, state, size in old.blocks()} if old else {}
    after = {at: (state, size) for at, state, size in new.blocks()} if new else {}
    states = []
    sizes = []
    for number in range(max(len(before), len(after))):
        at = some.address + number * some.slot
        was, was_size = before.get(at, (FREE, 0))
        now, now_size = after.get(at, (FREE, 0))
        if now == LIVE:
            states.append(LIVE if (was, was_size) == (now, now_size) else NEW)
            sizes.append(now_size)
        elif was == LIVE:
            states.append(GONE)
            sizes.append(was_size)
        else:
            states.append(now)
    return dataclasses.replace(some, states="".join(states), sizes=tuple(sizes))


def _merge_larges(before: tuple[Large, ...], after: tuple[Large, ...]) -> Iterator[Large]:
    olds = {one.block: one for one in before if one.state == LIVE}
    for one in after:
        if one.state != LIVE:
            yield one
            continue
        old = olds.pop(one.block, None)
        yield one if old and old.size == one.size else dataclasses.replace(one, state=NEW)
    taken = {one.address for one in after}
    for old in olds.values():
        if old.address not in taken:
            yield dataclasses.replace(old, state=GONE)
