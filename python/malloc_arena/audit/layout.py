"""The arenas of a process as seen from outside it, by the layout that its library describes.

What a library's structures look like is told by the library itself (walk.h, struct ma_layout): this
reads any build of it. A core file does not have them: they are left out of dumps.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from .. import elf
from ..snapshot import (
    FREE,
    LIVE,
    QUARANTINED,
    RETURNED,
    Arena,
    Heap,
    Large,
    Slab,
    Snapshot,
    flags_of,
    make_arena,
    program,
    with_kernel,
)
from .process import DELETED, CannotLook, Process
from .source import Mapping, Source, fetch, word

_VERSION = 2
# In the order of struct ma_layout, whose head is: version, number of arenas, and three pointers.
_HEAD = struct.Struct("<IIQQQ")
_FIELDS = (
    "sealed_base",
    "sealed_size",
    "sealed_units",
    "sealed_dump_refused",
    "arena_magic",
    "arena_kind",
    "arena_fork_policy",
    "arena_limit",
    "arena_name",
    "arena_mapped",
    "arena_locals",
    "arena_larges",
    "local_heaps",
    "local_next",
    "unit_size",
    "unit_sizes",
    "unit_slot",
    "unit_avail",
    "unit_kind",
    "unit_state",
    "unit_opened",
    "unit_away",
    "unit_locked",
    "unit_large",
    "unit_heap_next",
    "unit_heap_units",
    "unit_free",
    "unit_remote",
    "unit_is_block",
    "unit_block",
    "unit_block_size",
    "unit_pages",
    "unit_end",
    "unit_is_locked",
    "words",
)
_MAGIC = 0x616E6572614D614D
_NAME = 32
_DENSE = 2  # enum ma_unit_kind
_GUARDED, _DUMPED, _FORK_WIPE, _FORK_ABSENT, _SECRET = 2, 4, 8, 16, 32  # a unit's state
_LARGE_LIVE = 1
_FORK_KEEP, _FORK_REFUSE = 2, 3  # enum malloc_arena_fork
_LOCKED, _UNDUMPED, _WIPED, _KEPT, _IS_GUARDED, _SECRETMEM, _, _ISOLATED = (
    1 << number for number in range(8)
)
_REFUSED = 1 << 8
_HEAP_ISOLATED = 4
_MOST = 1 << 20  # of anything in a list: what a running process shows may not end


def symbol(
    source: Source, maps: Iterable[Mapping], name: str, library: str = "libmalloc_arena.so"
) -> int:
    """The address of what LIBRARY in the process exports as NAME; 0: nothing. CannotLook: its file
    was replaced while the process ran, and only root can still read it."""
    for mapping in maps:
        path = mapping.path.removesuffix(DELETED)
        if mapping.offset == 0 and path.endswith(f"/{library}"):
            try:
                with source.open(mapping) as file:
                    value = elf.symbol(file, name)
            except OSError as error:
                # A core file has no arena's memory, so that nothing is said of it.
                if path == mapping.path or not isinstance(source, Process):
                    continue
                raise CannotLook(
                    f"its {library} was replaced or removed while it ran",
                    "look as root, or restart it",
                ) from error
            if value is not None:
                return mapping.start + value
    return 0


def region(source: Source, maps: Iterable[Mapping]) -> tuple[int, int]:
    """(base, size) of the library's region in the process, (0, 0) where it has none."""
    data = fetch(source, symbol(source, maps, "ma_region"), 16)
    base, size = struct.unpack("<QQ", data) if len(data) == 16 else (0, 0)
    return base, size


def read(source: Source, maps: Iterable[Mapping], pid: int = 0, name: str = "") -> Snapshot:
    """Its arenas; without any where the process has none, or has no library. ValueError: it has one
    that is not understood. The process should stand still."""
    maps = tuple(maps)
    at = symbol(source, maps, "ma_layout")
    if not at:
        if symbol(source, maps, "ma_region"):
            raise ValueError("its libmalloc_arena.so is older than maps are")
        return Snapshot(pid, name, (0, 0), ())
    return _Reader(source, at).snapshot(pid, name)


def of(pid: int) -> Snapshot:
    """The arenas of process PID, which stands still meanwhile."""
    with Process(pid) as process:
        maps = process.maps()
        proc = Path("/proc", str(pid))
        words = proc.joinpath("cmdline").read_bytes().decode(errors="replace").split("\0")
        return with_kernel(read(process, maps, pid, program(words)), proc / "smaps")


class _Reader:
    def __init__(self, source: Source, at: int) -> None:
        self._source = source
        data = fetch(source, at, _HEAD.size + 4 * len(_FIELDS))
        if len(data) < _HEAD.size + 4 * len(_FIELDS):
            raise ValueError("the library's layout cannot be read")
        version, self._count, page_shift, self._sealed, self._table = _HEAD.unpack_from(data)
        if version != _VERSION:
            raise ValueError(f"its libmalloc_arena.so has layout {version}, not {_VERSION}")
        values = struct.unpack_from(f"<{len(_FIELDS)}I", data, _HEAD.size)
        self._at = dict(zip(_FIELDS, values, strict=True))
        self._page = 1 << (self._u32(page_shift) if page_shift else 12)
        self._unit = 16 * self._page
        self._dump_refused = self._u32(self._sealed + self._at["sealed_dump_refused"])
        self._region = (
            self._field(self._sealed, "sealed_base"),
            self._field(self._sealed, "sealed_size"),
        )
        self._units = self._field(self._sealed, "sealed_units")

    def _u32(self, address: int) -> int:
        return int.from_bytes(fetch(self._source, address, 4), "little")

    def _field(self, base: int, name: str) -> int:
        return word(self._source, base + self._at[name])

    def snapshot(self, pid: int, name: str) -> Snapshot:
        table = fetch(self._source, self._table, 8 * self._count)
        arenas = [
            self._arena(at)
            for (at,) in struct.iter_unpack("<Q", table[: len(table) // 8 * 8])
            if at and self._field(at, "arena_magic") == _MAGIC
        ]
        return Snapshot(pid, name, self._region, tuple(arenas))

    def _chain(self, first: int, following: str) -> Iterator[int]:
        for _ in range(_MOST):
            if not first:
                return
            yield first
            first = self._field(first, following)

    def _arena(self, at: int) -> Arena:
        kind = self._u32(at + self._at["arena_kind"])
        policy = self._u32(at + self._at["arena_fork_policy"])
        name = fetch(self._source, at + self._at["arena_name"], _NAME).partition(b"\0")[0]
        heaps = [
            self._heap(heap, kind, policy)
            for local in self._chain(self._field(at, "arena_locals"), "local_next")
            for heap in self._chain(self._field(local, "local_heaps"), "unit_heap_next")
        ]
        larges = [
            self._large(unit, kind, policy)
            for unit in self._chain(self._field(at, "arena_larges"), "unit_heap_next")
        ]
        return make_arena(
            name.decode(errors="replace"),
            kind,
            self._field(at, "arena_mapped"),
            self._field(at, "arena_limit"),
            heaps,
            larges,
        )

    def _flags(self, state: int, kind: int, policy: int) -> int:
        flags = _ISOLATED if kind & _HEAP_ISOLATED else 0
        if state & _SECRET or not (state & _DUMPED or self._dump_refused):
            flags |= _UNDUMPED
        if state & _SECRET:
            flags |= _SECRETMEM
        if policy == _FORK_KEEP:
            return flags | _KEPT
        if state & (_FORK_WIPE | _FORK_ABSENT):
            flags |= _WIPED | (_REFUSED if policy == _FORK_REFUSE else 0)
        return flags

    def _heap(self, first: int, kind: int, policy: int) -> Heap:
        size = self._at["unit_size"]
        units = min(self._u32(first + self._at["unit_heap_units"]), _MOST)
        data = fetch(self._source, first, units * size)
        slabs = []
        for at in range(0, len(data) // size * size, size):
            unit = data[at : at + size]
            if unit[self._at["unit_kind"]] == _DENSE:
                slabs.append(self._slab(first + at, unit, kind, policy))
        return Heap(self._start(first), units * self._unit, tuple(slabs))

    def _of(self, unit: bytes, name: str, size: int) -> int:
        at = self._at[name]
        return int.from_bytes(unit[at : at + size], "little")

    def _start(self, unit: int) -> int:
        """Where the pages are that UNIT tells of."""
        number = (unit - self._units) // int(self._at["unit_size"])
        return self._region[0] + number * self._unit

    def _slab(self, at: int, unit: bytes, kind: int, policy: int) -> Slab:
        slot = self._of(unit, "unit_slot", 2)
        avail, state = self._of(unit, "unit_avail", 2), self._of(unit, "unit_state", 1)
        opened, away = self._of(unit, "unit_opened", 1), self._of(unit, "unit_away", 2)
        locked = self._of(unit, "unit_locked", 2)
        free = self._of(unit, "unit_free", 8 * self._at["words"])
        remote = self._of(unit, "unit_remote", 8 * self._at["words"])
        sizes = fetch(self._source, self._of(unit, "unit_sizes", 8), 2 * avail)
        sizes = sizes.ljust(2 * avail, b"\0")
        is_block = self._of(unit, "unit_is_block", 1)
        states = []
        asked = []
        for number in range(avail):
            if free >> number & 1:
                states.append(FREE)
            elif away and away & self._pages(number * slot, slot):
                states.append(RETURNED)
            elif remote >> number & 1:
                states.append(QUARANTINED)
            else:
                states.append(LIVE)
                size = int.from_bytes(sizes[2 * number : 2 * number + 2], "little")
                asked.append(min(max(size - 1, 0), slot) if is_block else slot)
        flags = self._flags(state, kind, policy)
        guarded = bool(state & (_GUARDED | _SECRET))
        flags |= _IS_GUARDED if guarded else 0
        whole = (1 << opened) - 1
        flags |= _LOCKED if locked & whole == whole else 0
        return Slab(
            self._start(at),
            slot,
            opened * self._page,
            flags_of(flags),
            self._page if guarded else 0,
            "".join(states),
            tuple(asked),
        )

    def _pages(self, offset: int, size: int) -> int:
        first, last = offset // self._page, (offset + size - 1) // self._page
        return (2 << last) - (1 << first)

    def _large(self, at: int, kind: int, policy: int) -> Large:
        unit = fetch(self._source, at, self._at["unit_size"])
        end = self._of(unit, "unit_end", 8)
        pages = self._of(unit, "unit_pages", 8) * self._page
        flags = self._flags(self._of(unit, "unit_state", 1), kind, policy) | _IS_GUARDED
        flags |= _LOCKED if self._of(unit, "unit_is_locked", 4) else 0
        start = end - pages
        live = self._of(unit, "unit_large", 1) == _LARGE_LIVE
        return Large(
            start,
            pages,
            LIVE if live else FREE,
            flags_of(flags),
            start - self._start(at),
            self._page,
            self._of(unit, "unit_block", 8) if live else 0,
            self._of(unit, "unit_block_size", 8) if live else 0,
        )
