"""Finds the copies of a secret in a process or a dump and says whose memory they lie in."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .needles import Needle, needles
from .owner import Owners, Place
from .process import PAGE
from .source import Mapping, Source, fetch

_CHUNK = 1 << 16
_AROUND = 24  # bytes of the neighbourhood, on each side
_SHOWN = 3  # a run of the secret this long is masked in the neighbourhood


@dataclass(frozen=True, slots=True)
class Hit:
    """One maximal run of the secret."""

    address: int  # 0 in a register
    length: int  # in memory
    encoding: str
    whole: bool  # all of the secret, not a fragment
    owner: str  # arena, pymalloc, heap, stack, argv, environ, file, anonymous, register, dump
    mapping: str  # the mapping's path or [name]; of a register its set and thread


@dataclass(frozen=True, slots=True)
class Frame:
    """One line of the program; of C code the object, and the function as text."""

    file: str
    line: int  # 0: C
    text: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A hit, and what is known about the memory that it lies in."""

    hit: Hit
    place: Place
    before: str = ""  # what stands around it, without any of the secret
    after: str = ""
    traceback: tuple[Frame, ...] = ()  # who allocated the block, the innermost first
    age: float | None = None  # seconds since the block was allocated, if that is known


@dataclass(frozen=True, slots=True)
class Scan:
    """What one look at a process found."""

    findings: tuple[Finding, ...]
    scanned_bytes: int
    unreadable_bytes: int
    threads: int
    longest_pause: float = 0.0

    @property
    def hits(self) -> tuple[Hit, ...]:
        return tuple(finding.hit for finding in self.findings)

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
    """Looks for one secret, in as many processes as wanted.

    REMEMBER: processes of one program share most of their bytes; a chunk that was searched without
    a hit is not searched again, in whatever process it turns up.
    """

    def __init__(self, secret: bytes, *, remember: bool = True) -> None:
        self._needles = needles(secret)
        self._overlap = max(len(needle.pattern) for needle in self._needles) - 1
        self._sieve = _Sieve(self._needles)
        self._grams: list[dict[bytes, list[tuple[Needle, int]]]] = []
        for members in self._sieve.members:
            grams: dict[bytes, list[tuple[Needle, int]]] = {}
            for needle in members:
                for offset, gram in needle.grams():
                    grams.setdefault(gram, []).append((needle, offset))
            self._grams.append(grams)
        self._clean: set[bytes] | None = set() if remember else None
        self._shown = {
            needle.pattern[at : at + _SHOWN]
            for needle in self._needles
            for at in range(len(needle.pattern) - _SHOWN + 1)
        }

    def find(self, data: bytes) -> list[tuple[int, int, Needle]]:
        """The maximal runs in DATA as (begin, end, needle); of runs that overlap the longest."""
        return [(run.begin, run.end, run.needle) for run in _longest(self._runs(data))]

    def scan(self, source: Source, arena: tuple[int, int] | None = None) -> Scan:
        """Looks at all of SOURCE. ARENA is the (base, size) of its arenas' region, if the caller
        knows better than what the process itself says."""
        maps = source.maps()
        runs: dict[tuple[int, int], _Run] = {}
        spans = list(_joined(source, maps))
        for address, data in source.pieces(self._cut(spans)):
            digest = b""
            if self._clean is not None:
                digest = hashlib.blake2b(data, digest_size=16).digest()
                if digest in self._clean:
                    continue
            found = self._runs(data)
            if self._clean is not None and not found:
                self._clean.add(digest)
            for run in found:  # again where two chunks overlap
                run = _Run(address + run.begin, address + run.end, run.needle)
                runs.setdefault((run.begin, run.end), run)
        findings = self._findings(source, Owners(source, maps, arena), _longest(runs.values()))
        unreadable = len(source.unreadable) * PAGE
        present = sum(end - start for start, end in spans)
        pause = getattr(source, "longest_pause", 0.0)
        return Scan(
            tuple(findings), present - unreadable, unreadable, len(source.threads), float(pause)
        )

    def _findings(self, source: Source, owners: Owners, runs: Iterable[_Run]) -> Iterator[Finding]:
        for run in runs:
            place = owners.place(run.begin)
            hit = _hit(run, place.owner, owners.mapping(run.begin).path or "[anonymous]")
            yield Finding(hit, place, *self._around(source, run))
        for registers in source.registers:
            for run in _longest(self._runs(registers.data)):
                where = f"{registers.name} registers of thread {registers.thread}"
                hit = _hit(_Run(0, run.end - run.begin, run.needle), "register", where)
                yield Finding(hit, Place("register", "live"))

    def _around(self, source: Source, run: _Run) -> tuple[str, str]:
        """The text before and behind RUN, with every bit of the secret masked."""
        before = fetch(source, run.begin - _AROUND, _AROUND)
        if len(before) < _AROUND:
            before = b""
        after = fetch(source, run.end, _AROUND)
        return self._masked(before), self._masked(after)

    def _masked(self, data: bytes) -> str:
        shown = ["." if byte < 32 or byte > 126 else chr(byte) for byte in data]
        for at in range(len(data) - _SHOWN + 1):
            if data[at : at + _SHOWN] in self._shown and any(data[at : at + _SHOWN]):
                shown[at : at + _SHOWN] = "*" * _SHOWN
        return "".join(shown)

    def redacted(self, text: str) -> str:
        """TEXT without the secret: for a line of source that may have it as a literal."""
        data = bytearray(text.encode())
        for at, mark in enumerate(self._masked(bytes(data))):
            if mark == "*":
                data[at] = ord("*")
        return data.decode(errors="replace")

    def _cut(self, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        # Each chunk carries the start of what follows it, so that no run is cut by the seam.
        for start, end in spans:
            for address in range(start - start % _CHUNK, end, _CHUNK):
                yield max(address, start), min(address + _CHUNK + self._overlap, end)

    def _runs(self, data: bytes) -> list[_Run]:
        runs = []
        for group in self._sieve.groups(data):
            for gram, users in self._grams[group].items():
                at = data.find(gram)
                while at >= 0:
                    for needle, offset in users:
                        begin, end = _extend(data, at, needle.pattern, offset, len(gram))
                        low = offset - (at - begin)
                        if needle.units(low, low + end - begin) >= needle.fragment:
                            runs.append(_Run(begin, end, needle))
                    at = data.find(gram, at + 1)
        return runs


class _Sieve:
    """Tells fast which encodings cannot be in some bytes.

    What counts as a hit is a run of bytes that all belong to its encoding's alphabet. Each group of
    encodings has one bit; a byte becomes the bits of the groups that have it; and the bytes are one
    large number, whose shifts and ANDs find the runs of all groups at once. Zeros are left out, on
    both sides: most of memory is zeros, and wide text is narrow without them.
    """

    def __init__(self, needles: Iterable[Needle]) -> None:
        self.members: list[list[Needle]] = [[] for _ in range(8)]
        for needle in needles:
            self.members[_group(needle.encoding)].append(needle)
        table = [0] * 256
        self._lengths = []
        for group, members in enumerate(self.members):
            for byte in set().union(*(needle.pattern for needle in members)) - {0}:
                table[byte] |= 1 << group
            self._lengths.append(min(map(_shortest, members), default=0))
        self._table = bytes(table)
        self._grams = [
            {gram.replace(b"\0", b"") for needle in members for _, gram in needle.grams()}
            for members in self.members
        ]
        self._used = [group for group in range(8) if self.members[group]]
        self._least = min(self._lengths[group] for group in self._used)

    def groups(self, data: bytes) -> list[int]:
        """The groups that may be in DATA."""
        if self._least < 2:
            return self._used
        rest = data.translate(self._table, b"\0")
        runs = {1: int.from_bytes(rest, "little")}
        if not _run(runs, self._least):
            return []
        ones = int.from_bytes(b"\1" * len(rest), "little")
        found = [g for g in self._used if _run(runs, self._lengths[g]) & ones << g]
        # A row of dashes is such a run, too. The wide forms are one with the narrow here.
        bare = data.translate(None, b"\0") if found else b""
        return [group for group in found if any(gram in bare for gram in self._grams[group])]


def _group(encoding: str) -> int:
    """Encodings with much the same alphabet and length of fragments."""
    if encoding.startswith("base64"):
        return int(encoding[-1])
    return {"hex": 3, "HEX": 3, "decimal": 3, "url-quoted": 4, "int": 5, "int-le": 5}.get(
        encoding, 6 if encoding.startswith("int") else 7
    )


def _shortest(needle: Needle) -> int:
    """The length of the shortest run that counts, without zeros."""
    return min(
        length - needle.pattern.count(0, start, start + length)
        for start, length in needle.windows()
    )


def _run(runs: dict[int, int], length: int) -> int:
    """Where a run of LENGTH begins, for each bit; from the runs that are in RUNS already."""
    if length not in runs:
        half = max(known for known in (1, 2, 4, 8, 16, 32) if known < length)
        shorter = _run(runs, half)
        runs[length] = shorter & shorter >> 8 * (length - half)
    return runs[length]


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
    begins: list[int] = []
    for run in sorted(runs, key=order):
        at = bisect.bisect_right(begins, run.begin)
        if (at == 0 or kept[at - 1].end <= run.begin) and (
            at == len(kept) or run.end <= kept[at].begin
        ):
            begins.insert(at, run.begin)
            kept.insert(at, run)
    return kept


def _joined(source: Source, maps: Iterable[Mapping]) -> Iterator[tuple[int, int]]:
    """The runs of present pages, across the seams of mappings that touch."""
    start = end = 0
    for mapping in maps:
        for low, high in source.present(mapping):
            if low != end:
                if end:
                    yield start, end
                start = low
            end = high
    if end:
        yield start, end


def _hit(run: _Run, owner: str, mapping: str) -> Hit:
    whole = run.end - run.begin == len(run.needle.pattern)
    return Hit(run.begin, run.end - run.begin, run.needle.encoding, whole, owner, mapping)
