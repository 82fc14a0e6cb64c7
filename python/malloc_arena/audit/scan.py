"""Finds the copies of a secret in another process and says whose memory they lie in."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .needles import Needle, needles
from .process import PAGE, Mapping, Process

_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Hit:
    """One maximal run of the secret."""

    address: int  # 0 in a register
    length: int  # in memory
    encoding: str
    whole: bool  # all of the secret, not a fragment
    owner: str  # arena, heap, stack, anonymous, file, register
    mapping: str  # the mapping's path or [name]; of a register its set and thread


@dataclass(frozen=True, slots=True)
class Scan:
    """What one look at a process found."""

    hits: tuple[Hit, ...]
    scanned_bytes: int
    unreadable_bytes: int
    threads: int

    def inside(self) -> tuple[Hit, ...]:
        return tuple(hit for hit in self.hits if hit.owner == "arena")

    def outside(self) -> tuple[Hit, ...]:
        return tuple(hit for hit in self.hits if hit.owner != "arena")


@dataclass(frozen=True, slots=True)
class _Run:
    begin: int
    end: int
    needle: Needle


class Scanner:
    """Looks for one secret, in as many processes as wanted."""

    def __init__(self, secret: bytes) -> None:
        self._needles = needles(secret)
        self._overlap = max(len(needle.pattern) for needle in self._needles) - 1
        self._grams: dict[bytes, list[tuple[Needle, int]]] = {}
        for needle in self._needles:
            for offset, gram in needle.grams():
                self._grams.setdefault(gram, []).append((needle, offset))
        # Most of memory is neither text nor the secret. Without the bytes that no pattern holds a
        # run stays a run (wide ASCII becomes plain), and the rest is searched three times as fast.
        probes = {
            gram
            for gram, users in self._grams.items()
            if not (secret.isascii() and users[0][0].encoding.startswith("utf"))
        }
        self._probes = tuple(probes)
        self._noise = bytes(set(range(256)).difference(*probes))
        # Processes of one program share most of their bytes. A chunk that was searched without a
        # hit need not be searched again, in whatever process it turns up.
        self._clean: set[bytes] = set()

    def find(self, data: bytes) -> list[tuple[int, int, Needle]]:
        """The maximal runs in DATA as (begin, end, needle); of runs that overlap the longest."""
        return [(run.begin, run.end, run.needle) for run in _longest(self._runs(data))]

    def scan(self, process: Process, arena: tuple[int, int] = (0, 0)) -> Scan:
        """Looks at all of PROCESS; ARENA is the (base, size) of its arenas' region."""
        maps = process.maps()
        starts = [mapping.start for mapping in maps]
        runs: dict[tuple[int, int], _Run] = {}
        spans = list(_joined(process, maps))
        for address, data in self._chunks(process, spans):
            digest = hashlib.blake2b(data, digest_size=16).digest()
            if digest in self._clean:
                continue
            found = [
                _Run(address + run.begin, address + run.end, run.needle) for run in self._runs(data)
            ]
            if not found:
                self._clean.add(digest)
            for run in found:  # again where two chunks overlap
                runs.setdefault((run.begin, run.end), run)
        hits = []
        for run in _longest(runs.values()):
            mapping = maps[bisect.bisect_right(starts, run.begin) - 1]
            owner = _owner(run.begin, mapping, arena, process.stack_pointers)
            hits.append(_hit(run, owner, mapping.path or "[anonymous]"))
        for registers in process.registers:
            for run in _longest(self._runs(registers.data)):
                where = f"{registers.name} registers of thread {registers.thread}"
                hits.append(_hit(_Run(0, run.end - run.begin, run.needle), "register", where))
        unreadable = len(process.unreadable) * PAGE
        present = sum(end - start for start, end in spans)
        return Scan(tuple(hits), present - unreadable, unreadable, len(process.stack_pointers))

    def _chunks(
        self, process: Process, spans: Iterable[tuple[int, int]]
    ) -> Iterator[tuple[int, bytes]]:
        # Each chunk carries the start of what follows it, so that no run is cut by the seam.
        for start, end in spans:
            for address in range(start - start % _CHUNK, end, _CHUNK):
                begin = max(address, start)
                yield from process.read(begin, min(address + _CHUNK + self._overlap, end))

    def _runs(self, data: bytes) -> list[_Run]:
        rest = data.translate(None, self._noise)
        if not any(gram in rest for gram in self._probes):
            return []
        runs = []
        for gram in self._grams:
            at = data.find(gram)
            while at >= 0:
                for needle, offset in self._grams[gram]:
                    begin, end = _extend(data, at, needle.pattern, offset, len(gram))
                    low = offset - (at - begin)
                    if needle.units(low, low + end - begin) >= needle.fragment:
                        runs.append(_Run(begin, end, needle))
                at = data.find(gram, at + 1)
        return runs


def _extend(data: bytes, at: int, pattern: bytes, offset: int, length: int) -> tuple[int, int]:
    """The maximal run of PATTERN around its bytes OFFSET to OFFSET + LENGTH, found AT."""
    begin, low = at, offset
    while begin and low and data[begin - 1] == pattern[low - 1]:
        begin, low = begin - 1, low - 1
    end, high = at + length, offset + length
    while end < len(data) and high < len(pattern) and data[end] == pattern[high]:
        end, high = end + 1, high + 1
    return begin, end


def _longest(runs: Iterable[_Run]) -> list[_Run]:
    # Between zeros UTF-16LE is UTF-16BE one byte on: of equals the one that lies aligned.
    def order(run: _Run) -> tuple[int, int]:
        return run.begin - run.end, run.begin % run.needle.starts[1]

    kept: list[_Run] = []
    for run in sorted(runs, key=order):
        if all(run.end <= other.begin or other.end <= run.begin for other in kept):
            kept.append(run)
    return sorted(kept, key=lambda run: run.begin)


def _joined(process: Process, maps: Iterable[Mapping]) -> Iterator[tuple[int, int]]:
    """The runs of present pages, across the seams of mappings that touch."""
    start = end = 0
    for mapping in maps:
        for low, high in process.present(mapping):
            if low != end:
                if end:
                    yield start, end
                start = low
            end = high
    if end:
        yield start, end


def _owner(
    address: int, mapping: Mapping, arena: tuple[int, int], stack_pointers: Iterable[int]
) -> str:
    base, size = arena
    if base <= address < base + size:
        return "arena"
    if mapping.path == "[heap]":
        return "heap"
    if any(mapping.start <= pointer < mapping.end for pointer in stack_pointers):
        return "stack"
    return "file" if mapping.inode else "anonymous"


def _hit(run: _Run, owner: str, mapping: str) -> Hit:
    whole = run.end - run.begin == len(run.needle.pattern)
    return Hit(run.begin, run.end - run.begin, run.needle.encoding, whole, owner, mapping)
