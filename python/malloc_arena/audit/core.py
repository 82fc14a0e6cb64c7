"""Memory that lies in a file: a core dump, or the raw bytes of some memory."""

from __future__ import annotations

import bisect
import contextlib
import errno
import mmap
import platform
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from .. import elf
from .process import CONTROL_BLOCK, STACK_POINTER, CannotLook
from .source import Mapping, Registers, Thread

_NT_PRSTATUS, _NT_FPREGSET, _NT_X86_XSTATE, _NT_FILE = 1, 2, 0x202, 0x46494C45
_PRSTATUS_PID, _PRSTATUS_REGISTERS = 32, 112  # in struct elf_prstatus of the 64-bit machines
_TCACHE = 0x291  # the first chunk of glibc's main heap, in use
_VECTOR = {"x86_64": _NT_X86_XSTATE}  # which has the other set in it
# As systemd-coredump and others keep cores: no search of these bytes can find anything.
_PACKED = {
    b"\x28\xb5\x2f\xfd": "zstd -d",
    b"\xfd7zXZ\0": "xz -d",
    b"\x1f\x8b\x08": "gzip -d",
    b"\x04\x22\x4d\x18": "lz4 -d",
    b"BZh": "bzip2 -d",
}


class Dump:
    """A file to be searched, from __enter__ to __exit__. One that is no ELF core is taken as raw
    bytes, and an address is then an offset in it. DAMAGE: why it may lack a part of the memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.registers: tuple[Registers, ...] = ()
        self.threads: tuple[Thread, ...] = ()
        self.unreadable: set[int] = set()
        self.damage = ""
        self._maps: list[Mapping] = []
        self._offsets: dict[int, int] = {}  # where the contents of a mapping are in the file
        self._contents: dict[int, int] = {}  # how much of it the file has
        self._starts: list[int] = []

    def __enter__(self) -> Self:
        try:
            self._file = self.path.open("rb")
        except OSError as error:
            raise CannotLook(f"{self.path}: {error.strerror}", "name a core file") from error
        try:
            self._data = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            self._file.close()
            raise CannotLook(f"{self.path}: {error}", "name a core file") from error
        for magic, tool in _PACKED.items():
            if self._data[: len(magic)] == magic:
                self.__exit__(None, None, None)
                raise CannotLook(
                    f"{self.path}: it is compressed", f"unpack it first ({tool}, coredumpctl dump)"
                )
        try:
            header = elf.read_header(self._file)
        except elf.NotElf as error:
            header = None
            if self._data[:6] == b"\x7fELF\x02\x01":
                self.damage = str(error.strerror)
        if header and header.kind == elf.ET_CORE:
            try:
                self._read_core(header)
            except elf.DAMAGE as error:
                self.__exit__(None, None, None)
                raise CannotLook(f"{self.path}: damaged ({error})", "name a core file") from error
        else:
            self._maps = [Mapping(0, len(self._data), "r", 0, "[dump]")]
            self._offsets[0] = 0
            self._contents[0] = len(self._data)
        self._starts = [mapping.start for mapping in self._maps]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._data.close()
        self._file.close()

    def _read_core(self, header: elf.Header) -> None:
        files: list[tuple[int, int, int, str]] = []
        for segment in header.segments:
            if segment.kind == elf.PT_NOTE:
                data = self._data[segment.offset : segment.offset + segment.file_size]
                self._read_notes(data, files)
        for segment in header.segments:
            if segment.kind != elf.PT_LOAD or not segment.memory_size:
                continue
            start, end = segment.address, segment.address + segment.memory_size
            size = min(segment.file_size, max(len(self._data) - segment.offset, 0))
            path, inode, offset = "", 0, 0
            for low, high, at, name in files:
                if low <= start < high:
                    path, inode, offset = name, 1, at + start - low
            head = self._data[segment.offset : segment.offset + 16] if size >= 16 else b""
            if not path and head == struct.pack("<QQ", 0, _TCACHE) and not self._has("[heap]"):
                path = "[heap]"
            elif self.threads and start <= self.threads[0].stack_pointer < end:
                path = path or "[stack]"
            flags = segment.flags
            permissions = "".join(
                letter if flags & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1))
            )
            self._maps.append(Mapping(start, end, permissions, inode, path, offset))
            self._offsets[start] = segment.offset
            self._contents[start] = size
            if size < segment.file_size:
                self.damage = "it is cut off, and memory is missing"
        # What was not written to the core, because a file has it.
        present = {mapping.start for mapping in self._maps}
        for low, high, at, name in files:
            if low not in present:
                self._maps.append(Mapping(low, high, "r--", 1, name, at))
                self._contents[low] = self._offsets[low] = 0
        self._maps.sort(key=lambda mapping: mapping.start)

    def _has(self, path: str) -> bool:
        return any(mapping.path == path for mapping in self._maps)

    def _read_notes(self, data: bytes, files: list[tuple[int, int, int, str]]) -> None:
        registers: list[Registers] = []
        threads: list[Thread] = []
        machine = platform.machine()
        for _, kind, note in elf.notes(data):
            if kind == _NT_PRSTATUS:
                (number,) = struct.unpack_from("<i", note, _PRSTATUS_PID)
                count = (len(note) - _PRSTATUS_REGISTERS) // 8
                words = struct.unpack_from(f"<{count}Q", note, _PRSTATUS_REGISTERS)
                registers.append(Registers(number, "general", note[_PRSTATUS_REGISTERS:]))
                block = words[CONTROL_BLOCK[machine]] if machine in CONTROL_BLOCK else 0
                threads.append(Thread(number, words[STACK_POINTER.get(machine, 19)], block))
            elif kind == _VECTOR.get(machine, _NT_FPREGSET) and threads:
                registers.append(Registers(threads[-1].number, "vector", note))
            elif kind == _NT_FILE:
                count, page = struct.unpack_from("<QQ", note)
                names = note[16 + count * 24 :].split(b"\0")
                for number in range(count):
                    low, high, at = struct.unpack_from("<QQQ", note, 16 + number * 24)
                    files.append((low, high, at * page, names[number].decode(errors="replace")))
        self.registers += tuple(registers)
        self.threads += tuple(threads)

    def maps(self) -> tuple[Mapping, ...]:
        return tuple(self._maps)

    def present(self, mapping: Mapping) -> Iterator[tuple[int, int]]:
        size = self._contents[mapping.start]
        if size:
            yield mapping.start, mapping.start + size

    def read(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        first = max(bisect.bisect_right(self._starts, start) - 1, 0)
        for mapping in self._maps[first : bisect.bisect_left(self._starts, end)]:
            low = max(start, mapping.start)
            high = min(end, mapping.start + self._contents[mapping.start])
            if low < high:
                at = self._offsets[mapping.start] - mapping.start
                yield low, self._data[at + low : at + high]
            low = max(low, mapping.start + self._contents[mapping.start])
            high = min(end, mapping.end)
            if low < high and mapping.inode:
                with contextlib.suppress(OSError), self.open(mapping) as file:
                    file.seek(mapping.offset + low - mapping.start)
                    yield low, file.read(high - low)

    def pieces(self, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        for start, end in spans:
            yield from self._whole(start, end)

    def _whole(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """read() with the pieces of mappings that touch joined: a run may lie across the seam."""
        joined, at = b"", start
        for address, data in self.read(start, end):
            if joined and address != at + len(joined):
                yield at, joined
                joined = b""
            if not joined:
                at = address
            joined += data
        if joined:
            yield at, joined

    def arguments(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return (0, 0), (0, 0)

    def open(self, mapping: Mapping) -> BinaryIO:
        path = Path(mapping.path)
        # A core may name anything: a device or a pipe would never end.
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path))
        return path.open("rb")
