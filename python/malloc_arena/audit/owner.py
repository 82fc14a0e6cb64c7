"""Whose memory an address lies in: which allocator's block, live or freed, or which mapping.

Everything is told by the structures that the allocators themselves keep in memory, read from
outside: CPython's pool headers (3.10 to 3.13), glibc's chunk sizes, tcache and fast bins, the
region of this library. What they do not tell is left open ("" as the state), never guessed.
"""

from __future__ import annotations

import array
import bisect
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ..snapshot import LIVE, Snapshot
from . import layout
from .source import Mapping, Source, Thread, fetch, word

PAGE = 4096
_POOL_HEADER = 48
_POOLS = (1 << 14, 1 << 12)  # with and without CPython's radix tree
_THREAD_HEAP = 64 << 20  # glibc's HEAP_MAX_SIZE; such a heap starts at a multiple
_TCACHE = 0x290  # the chunk of tcache_perthread_struct, glibc 2.30 to 2.41: first in each arena
_TCACHE_ENTRIES = 0x90  # of its chunk: header, 64 counts of 2 bytes, then 64 list heads
_TCACHE_MAX = 0x410
_FAST_MAX = 0x80
_FAST_BINS = 16  # in glibc's struct malloc_state (2.27 on): 10 words
_TOP = 96
_BINS = 112
_STATE_SIZE = 0x898
_RED_ZONE = 128  # the x86-64 and aarch64 ABIs' room below the stack pointer


@dataclass(frozen=True, slots=True)
class Place:
    """Who has an address."""

    owner: str  # arena, pymalloc, heap, stack, argv, environ, file, anonymous, register, dump
    state: str = ""  # live, freed; "": it cannot be told
    what: str = ""  # type of the Python object that starts the block, or what else is known
    block: int = 0  # start of the block, as its allocator gave it out; 0: not known
    block_size: int = 0


@dataclass(slots=True)
class _Heap:
    """The chunks of one contiguous heap of glibc: starts, and whether each is in use."""

    starts: array.array[int]
    ends: int
    used: bytearray
    top: int


class Owners:
    """Answers for one source; it reads what it needs of it."""

    def __init__(
        self, source: Source, maps: tuple[Mapping, ...], arena: tuple[int, int] | None = None
    ) -> None:
        self._source = source
        self._maps = maps
        self._starts = [mapping.start for mapping in maps]
        self._arena = layout.region(source, maps) if arena is None else arena
        self._arenas: Snapshot | None = None  # once one is asked for
        self._argv, self._environ = source.arguments()
        self._heaps: dict[int, _Heap | None] = {}
        self._key: int | None = None
        self._tcache_empty = False
        self._types: dict[int, str] = {}
        self._fast: list[set[int] | None] = []  # of one element, once it was looked for
        self._mapped: dict[int, tuple[list[int], list[int]]] = {}

    def mapping(self, address: int) -> Mapping:
        return self._maps[bisect.bisect_right(self._starts, address) - 1]

    def place(self, address: int) -> Place:
        base, size = self._arena
        if base <= address < base + size:
            return self._in_arena(address)
        for name, (start, end) in (("argv", self._argv), ("environ", self._environ)):
            if start <= address < end:
                return Place(name)
        mapping = self.mapping(address)
        if mapping.path == "[dump]":
            return Place("dump")
        if mapping.inode:
            return Place("file")
        if mapping.path == "[heap]":
            return self._in_heap(address, mapping.start, mapping.end)
        for thread in self._source.threads:
            if place := _on_stack(address, mapping, thread):
                return place
        if place := self._in_thread_heap(address, mapping) or self._in_pool(address, mapping):
            return place
        if place := self._in_mapped_chunk(address, mapping):
            return place
        if mapping.path == "[stack]":
            return Place("stack")
        before = bisect.bisect_left(self._starts, mapping.start) - 1
        if before >= 0 and not mapping.path:
            other = self._maps[before]
            if other.inode and other.end == mapping.start and "w" in other.permissions:
                return Place("file", what=f"zero-initialised data of {other.path}")
        return Place("anonymous")

    # this library

    def _in_arena(self, address: int) -> Place:
        if self._arenas is None:
            try:
                self._arenas = layout.read(self._source, self._maps)
            except ValueError:  # another version of the library
                self._arenas = Snapshot(0, "", (0, 0), ())
        found = self._arenas.find(address)
        if found is None:
            return Place("arena")
        state = "live" if found.state == LIVE else "freed"
        what = f'arena "{found.arena}"'
        kind = self._type(found.address, address) if found.address else ""
        return Place(
            "arena", state, f"{kind} in {what}" if kind else what, found.address, found.size
        )

    # CPython

    def _in_pool(self, address: int, mapping: Mapping) -> Place | None:
        for pool_size in _POOLS:
            pool = address - address % pool_size
            if pool < mapping.start or pool + pool_size > mapping.end:
                continue
            header = fetch(self._source, pool, _POOL_HEADER)
            if len(header) < _POOL_HEADER:
                continue
            count, free, _, _, _, index, fresh, last = struct.unpack("<QQQQIIII", header)
            size = (index + 1) * 16
            if (
                index >= 32
                or last != pool_size - size
                or not _POOL_HEADER + size <= fresh <= last + size
                or count > (pool_size - _POOL_HEADER) // size
                or not (free == 0 or pool < free < pool + pool_size)
            ):
                continue
            number = (address - pool - _POOL_HEADER) // size
            block = pool + _POOL_HEADER + number * size
            if number < 0 or block + size > pool + pool_size:
                return Place("pymalloc", "freed", "pool's edge")
            freed = (
                count == 0
                or block >= pool + fresh
                or block in self._free_list(pool, pool + pool_size, free)
            )
            state = "freed" if freed else "live"
            return Place("pymalloc", state, self._type(block, address), block, size)
        return None

    def _free_list(self, pool: int, end: int, block: int) -> set[int]:
        found: set[int] = set()
        while pool < block < end and block not in found:
            found.add(block)
            block = word(self._source, block)
        return found

    def _type(self, block: int, address: int) -> str:
        """The type of the Python object in the block, if one starts it in front of ADDRESS."""
        # In front of the object may stand: nothing, the collector's header (2 words), and before
        # that the pointers to its dict and weak references (2 words).
        for before in (0, 16, 32):
            if block + before + 16 > address:
                break
            name = self._type_name(word(self._source, block + before + 8))
            if name:
                return name
        return ""

    def _type_name(self, address: int) -> str:
        if address % 8 or not 0 < address < 1 << 47:
            return ""
        if address not in self._types:
            name = ""
            head = fetch(self._source, address, 32)
            if len(head) == 32:
                _, kind, _, text = struct.unpack("<QQQQ", head)
                meta = word(self._source, kind + 8) if kind else 0
                if meta and word(self._source, meta + 8) == meta:  # type's type is type
                    raw = fetch(self._source, text, 100).partition(b"\0")[0]
                    if re.fullmatch(rb"[A-Za-z_][\w.]*", raw):
                        name = raw.decode()
            self._types[address] = name
        return self._types[address]

    # glibc

    def _in_heap(self, address: int, start: int, end: int, first: int = 0) -> Place:
        if start not in self._heaps:
            self._heaps[start] = self._walk(first or start, end, first - start)
        heap = self._heaps[start]
        if heap is None or not heap.starts or not heap.starts[0] <= address:
            return Place("heap")
        if address >= heap.top + 16:
            return Place("heap", "freed", "unused end of the heap")
        number = bisect.bisect_right(heap.starts, address) - 1
        chunk = heap.starts[number]
        after = heap.starts[number + 1] if number + 1 < len(heap.starts) else heap.ends
        # A block may use the first word of the chunk behind it; so an address in a header belongs
        # to the block before.
        if address < chunk + 8 and number:
            number, chunk, after = number - 1, heap.starts[number - 1], chunk
        return self._chunk(address, chunk, after - chunk, bool(heap.used[number]))

    def _chunk(self, address: int, chunk: int, size: int, used: bool) -> Place:
        state = "live" if used else "freed"
        if used and size <= _TCACHE_MAX:
            # Freed blocks that are cached for their size look like live ones in the chunk headers.
            key = self._tcache_key()
            if not key and not self._tcache_empty:
                state = ""
            elif key and word(self._source, chunk + 24) == key:
                state = "freed"
            elif size <= _FAST_MAX:
                fast = self._fast_chunks()
                state = "" if fast is None else "freed" if chunk in fast else "live"
        return Place("heap", state, self._type(chunk + 16, address), chunk + 16, size - 8)

    def _walk(self, first: int, end: int, prefix: int) -> _Heap | None:
        """The chunks from FIRST; None if they do not fit together."""
        starts = array.array("Q")
        used = bytearray()
        window, data = first, b""
        at = first
        while at + 16 <= end:
            if not window <= at <= window + len(data) - 16:
                window, data = at, fetch(self._source, at, min(1 << 18, end - at))
                if len(data) < 16:
                    break
            (field,) = struct.unpack_from("<Q", data, at - window + 8)
            size = field & ~7
            if size < 16 or size % 16 or at + size > end:
                return None
            if starts:
                used.append(field & 1)
            starts.append(at)
            at += size
        if len(starts) < 2:
            return None
        used.append(0)  # the last chunk is the top: what has not been given out
        return _Heap(starts, at, used, starts[-1])

    def _in_thread_heap(self, address: int, mapping: Mapping) -> Place | None:
        start = address - address % _THREAD_HEAP
        if not mapping.start <= start:
            return None
        state = word(self._source, start)  # heap_info.ar_ptr
        owner = state - state % _THREAD_HEAP
        header = state - owner
        if not state or header not in (0x20, 0x30) or state % 16:
            return None
        if owner == start:
            first = start + -(-(header + _STATE_SIZE) // 16) * 16
        elif word(self._source, owner) == state:
            first = start + header
        else:
            return None
        size = word(self._source, start + 16)  # heap_info.size
        if not PAGE <= size <= _THREAD_HEAP or address >= start + size:
            return None
        return self._in_heap(address, start, start + size, first)

    def _in_mapped_chunk(self, address: int, mapping: Mapping) -> Place | None:
        """A block of its own pages: the size stands at the start of a page, with the flag 2."""
        if mapping.path:
            return None
        if mapping.start not in self._mapped:
            found = list(self._mapped_chunks(mapping))
            self._mapped[mapping.start] = [one[0] for one in found], [one[1] for one in found]
        starts, ends = self._mapped[mapping.start]
        number = bisect.bisect_right(starts, address) - 1
        if number < 0 or address >= ends[number]:
            return None
        block = starts[number] + 16
        return Place("heap", "live", self._type(block, address), block, ends[number] - block)

    def _mapped_chunks(self, mapping: Mapping) -> Iterator[tuple[int, int]]:
        behind = mapping.start
        for start, end in self._source.present(mapping):
            page = max(start, behind)
            while page < end:
                head = fetch(self._source, page, 16).ljust(16, b"\0")
                before, field = struct.unpack("<QQ", head)
                size = field & ~7
                if before == 0 and field & 7 == 2 and size and size % PAGE == 0:
                    behind = page + size
                    if behind <= mapping.end:
                        yield page, behind
                        page = behind
                        continue
                page += PAGE

    def _tcache_key(self) -> int:
        """The mark that glibc 2.34 and later leaves in every block of a tcache; 0: not found."""
        if self._key is None:
            self._key = 0
            for mapping in self._maps:
                if mapping.path != "[heap]":
                    continue
                if word(self._source, mapping.start + 8) & ~7 != _TCACHE:
                    break
                lists = fetch(self._source, mapping.start + _TCACHE_ENTRIES, 64 * 8)
                # No other thread, nothing in this one's: no block at all is cached.
                alone = len(self._source.threads) == 1
                self._tcache_empty = alone and len(lists) == 512 and not any(lists)
                for (entry,) in struct.iter_unpack("<Q", lists[: len(lists) // 8 * 8]):
                    if mapping.start < entry < mapping.end and not entry % 16:
                        self._key = word(self._source, entry + 8)
                        break
                break
        return self._key

    def _fast_chunks(self) -> set[int] | None:
        """Every chunk in a fast bin; None if the bins were not found."""
        if not self._fast:
            self._fast.append(self._find_fast_chunks())
        return self._fast[0]

    def _find_fast_chunks(self) -> set[int] | None:
        states = list(self._main_state())
        if not states:
            return None
        found: set[int] = set()
        state = first = states[0]
        for _ in range(4096):  # the arenas are a ring
            bins = fetch(self._source, state + _FAST_BINS, 80)
            for (chunk,) in struct.iter_unpack("<Q", bins[: len(bins) // 8 * 8]):
                while chunk and chunk % 16 == 0 and chunk not in found:
                    found.add(chunk)
                    chunk = word(self._source, chunk + 16) ^ (chunk + 16 >> 12)
            state = word(self._source, state + 2160)  # next
            if not state or state == first:
                break
        return found

    def _main_state(self) -> Iterator[int]:
        """glibc's main_arena: it holds the top of [heap], and its empty bins name themselves."""
        heap = next((m for m in self._maps if m.path == "[heap]"), None)
        if heap is None:
            return
        if heap.start not in self._heaps:
            self._in_heap(heap.start, heap.start, heap.end)
        walked = self._heaps[heap.start]
        if walked is None:
            return
        needle = walked.top.to_bytes(8, "little")
        for mapping in self._maps:
            if not re.search(r"/libc[.-][^/]*$", mapping.path) or "w" not in mapping.permissions:
                continue
            data = fetch(self._source, mapping.start, mapping.end - mapping.start)
            at = data.find(needle)
            while at >= 0:
                state = mapping.start + at - _TOP
                bins = fetch(self._source, state + _BINS, 2032)
                own = sum(
                    pointer == state + _TOP + number // 2 * 16
                    for number, (pointer,) in enumerate(
                        struct.iter_unpack("<Q", bins[: len(bins) // 8 * 8])
                    )
                )
                if own > 20:
                    yield state
                at = data.find(needle, at + 1)


def _on_stack(address: int, mapping: Mapping, thread: Thread) -> Place | None:
    if not mapping.start <= thread.stack_pointer < mapping.end:
        return None
    # Above the control block another mapping may have been joined to this one. The main thread's
    # control block is elsewhere.
    above = thread.control_block
    if thread.stack_pointer < above < mapping.end and address >= above + PAGE:
        return None
    live = address >= thread.stack_pointer - _RED_ZONE
    return Place("stack", "live" if live else "freed", f"thread {thread.number}")
