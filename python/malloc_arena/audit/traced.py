"""Who allocated a block of malloc's, as src/trace/trace.c notes it in a program under --trace."""

from __future__ import annotations

import bisect
import contextlib
import struct
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from .. import elf
from .layout import symbol
from .scanner import Finding, Frame
from .source import Mapping, Source, fetch

NAME = "libmalloc_arena_trace.so"
_HEAD = struct.Struct("<IIIIQ")
_VERSION = 1


def library() -> Path:
    return Path(__file__).parent.parent / "lib" / NAME


def preload(existing: str) -> str:
    """The LD_PRELOAD value with the library last: what is there may compare malloc's owner."""
    path = str(library())
    if not library().is_file() or any(letter in path for letter in " :"):
        return existing
    return f"{existing} {path}".strip()


class Notes:
    """What is noted in a process."""

    def __init__(self, source: Source, maps: Iterable[Mapping]) -> None:
        self._source = source
        self._maps = tuple(maps)
        self._starts = [mapping.start for mapping in self._maps]
        self._functions: dict[str, elf.Functions | None] = {}
        self._now = time.monotonic()
        self._table = 0
        data = fetch(source, symbol(source, self._maps, "malloc_arena_trace", NAME), _HEAD.size)
        if len(data) == _HEAD.size:
            version, self._frames, self._ways, self._log, table = _HEAD.unpack(data)
            self._table = table if version == _VERSION else 0

    def explained(self, finding: Finding) -> Finding:
        """FINDING with its age, and with C's traceback if it is in a block of malloc's."""
        place = finding.place
        if not self._table or place.owner != "heap" or not place.block:
            return finding
        note = struct.Struct(f"<QQQQ{self._frames}Q")
        bucket = (place.block >> 4) * 0x9E3779B97F4A7C15 % (1 << 64) >> (64 - self._log)
        size = note.size * self._ways
        data = fetch(self._source, self._table + bucket * size, size)
        for block, _, born, died, *frames in note.iter_unpack(
            data[: len(data) // note.size * note.size]
        ):
            # The chunk that was freed may be in a larger one by now: told only of the same block.
            if block != place.block or bool(died) != (place.state == "freed"):
                continue
            age = max(self._now - born / 1e9, 0.0)
            found = tuple(frame for at in frames if at for frame in self._frame(at))
            return replace(finding, age=age, traceback=finding.traceback or found)
        return finding

    def _frame(self, address: int) -> tuple[Frame, ...]:
        """The object and the function that ADDRESS, behind a call, lies in."""
        mapping = self._maps[bisect.bisect_right(self._starts, address) - 1]
        if not mapping.start <= address < mapping.end or not mapping.inode:
            return ()
        if mapping.path.endswith(NAME):
            return ()
        if mapping.path not in self._functions:
            self._functions[mapping.path] = None
            with contextlib.suppress(OSError), self._source.open(mapping) as file:
                self._functions[mapping.path] = elf.Functions(file)
        functions = self._functions[mapping.path]
        base = next((m.start for m in self._maps if m.path == mapping.path and m.offset == 0), 0)
        name = functions.name(address - 1 - base) if functions else ""
        return (Frame(mapping.path, 0, name or f"+{address - base:#x}"),)
