"""What the scanner needs of a process, a core file or a dump."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol


@dataclass(frozen=True, slots=True)
class Mapping:
    """One mapping of readable memory."""

    start: int
    end: int
    permissions: str
    inode: int
    path: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Registers:
    """One register set of one thread."""

    thread: int
    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Thread:
    """Where a thread's stack is: from its stack pointer up to its thread control block."""

    number: int
    stack_pointer: int
    control_block: int  # 0: not known


class Source(Protocol):
    """Memory to look at."""

    @property
    def registers(self) -> tuple[Registers, ...]: ...
    @property
    def threads(self) -> tuple[Thread, ...]: ...
    @property
    def unreadable(self) -> set[int]: ...

    def maps(self) -> tuple[Mapping, ...]: ...

    def present(self, mapping: Mapping) -> Iterator[tuple[int, int]]:
        """The runs of pages (start, end) of MAPPING that have contents."""

    def read(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """The bytes from START to END as (address, bytes), without what cannot be read."""

    def pieces(self, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        """read() of each of SPANS."""

    def arguments(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(start, end) of the program's arguments and of its environment; zeros: not known."""

    def open(self, mapping: Mapping) -> BinaryIO:
        """The file behind MAPPING; OSError if it cannot be had."""


def fetch(source: Source, address: int, size: int) -> bytes:
    """SIZE bytes at ADDRESS, fewer where they cannot be read."""
    if not 0 < address < 1 << 63:
        return b""
    data = b""
    for at, piece in source.read(address, address + size):
        if at != address + len(data):
            break
        data += piece
    return data


def word(source: Source, address: int) -> int:
    """The 8-byte word at ADDRESS; 0 where there is none."""
    data = fetch(source, address, 8)
    return int.from_bytes(data, "little") if len(data) == 8 else 0
