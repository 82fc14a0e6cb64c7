"""What is needed of a 64-bit little-endian ELF file: what it exports and calls, the names of its
functions, the parts of a core file."""

from __future__ import annotations

import bisect
import contextlib
import os
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

PT_LOAD, PT_NOTE = 1, 4
ET_CORE = 4
_PT_DYNAMIC, _PT_INTERP = 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SONAME, _DT_SYMBOLIC = 1, 5, 6, 10, 14, 16
_DT_FLAGS, _DF_SYMBOLIC = 30, 2
_SHT_SYMTAB, _SHT_DYNSYM = 2, 11
_GLOBAL, _WEAK, _UNIQUE = 1, 2, 10
_FUNCTION, _IFUNC = 2, 10
_DYNAMIC = struct.Struct("<qQ")
_SYMBOL = struct.Struct("<IBBHQQ")


class NotElf(OSError):
    """Not a file that this machine's loader could have loaded, or a damaged one."""


# What reading of damaged numbers ends in.
DAMAGE = (struct.error, IndexError, ValueError, OverflowError, OSError)


@contextlib.contextmanager
def _reading(file: BinaryIO) -> Iterator[None]:
    try:
        yield
    except NotElf:
        raise
    except DAMAGE as error:
        raise NotElf(8, f"a damaged ELF file: {error}", _name(file)) from error


@dataclass(frozen=True, slots=True)
class Segment:
    """One program header."""

    kind: int
    flags: int
    offset: int
    address: int
    file_size: int
    memory_size: int


@dataclass(frozen=True, slots=True)
class Section:
    """One section header."""

    kind: int
    offset: int
    size: int
    link: int


@dataclass(frozen=True, slots=True)
class Header:
    """The head of a file."""

    kind: int
    segments: tuple[Segment, ...]
    sections: tuple[Section, ...]

    @property
    def base(self) -> int:
        """The address of the file's first byte."""
        return min((s.address - s.offset for s in self.segments if s.kind == PT_LOAD), default=0)


@dataclass(frozen=True, slots=True)
class Elf:
    """A file's place in symbol search."""

    soname: str
    needed: tuple[str, ...]
    has_interpreter: bool
    """A program that the loader starts; without it, one is static."""
    is_symbolic: bool
    """Its own definitions come first for its own calls."""
    defines: dict[str, int]
    """Of the names asked for, those it exports, with their values."""
    calls: frozenset[str]
    """Of the names asked for, those it takes from elsewhere."""


def read_header(file: BinaryIO) -> Header:
    head = _at(file, 0, 64)
    if head[:4] != b"\x7fELF":
        raise NotElf(8, "not an ELF file", _name(file))
    if len(head) < 64 or head[4:6] != b"\x02\x01":
        raise NotElf(8, "not a 64-bit little-endian ELF file", _name(file))
    kind, _, _, _, phoff, shoff, _, _, phsize, phnum, shsize, shnum, _ = struct.unpack_from(
        "<HHIQQQIHHHHHH", head, 16
    )
    with _reading(file):
        sections = []
        if shoff:
            table = _at(file, shoff, shsize * max(shnum, 1))
            if phnum == 0xFFFF:  # more than fit: the count is in the first section's sh_info
                (phnum,) = struct.unpack_from("<I", table, 44)
            for at in range(0, shsize * shnum, shsize):
                _, section, _, _, offset, size, link = struct.unpack_from("<IIQQQQI", table, at)
                sections.append(Section(section, offset, size, link))
        segments = []
        table = _at(file, phoff, phsize * phnum)
        for at in range(0, phsize * phnum, phsize):
            part, flags, offset, address, _, in_file, in_memory = struct.unpack_from(
                "<IIQQQQQ", table, at
            )
            segments.append(Segment(part, flags, offset, address, in_file, in_memory))
    return Header(kind, tuple(segments), tuple(sections))


def read(path: Path, names: Collection[str]) -> Elf:
    """The file's place in symbol search, for NAMES."""
    with path.open("rb") as file:
        return _read(file, read_header(file), names)


def symbol(file: BinaryIO, name: str) -> int | None:
    """The value of what FILE exports as NAME, relative to where the file's start is mapped."""
    header = read_header(file)
    value = _read(file, header, (name,)).defines.get(name)
    return None if value is None else value - header.base


class Functions:
    """Names of the functions of a file, by addresses relative to where its start is mapped."""

    def __init__(self, file: BinaryIO) -> None:
        header = read_header(file)
        found: dict[int, tuple[int, bytes]] = {}
        with _reading(file):
            # What a linker keeps of all functions, if it was not stripped; else what is exported.
            for kind in (_SHT_DYNSYM, _SHT_SYMTAB):
                for section in header.sections:
                    if section.kind != kind or section.link >= len(header.sections):
                        continue
                    link = header.sections[section.link]
                    strings = _at(file, link.offset, link.size)
                    table = _at(file, section.offset, section.size // _SYMBOL.size * _SYMBOL.size)
                    for name, info, _, where, value, size in _SYMBOL.iter_unpack(table):
                        if where and info & 15 in (_FUNCTION, _IFUNC):
                            end = strings.find(b"\0", name)
                            found[value - header.base] = size, strings[name:end]
        self._starts = sorted(found)
        self._found = found

    def name(self, address: int) -> str:
        """The function that ADDRESS lies in; "" if no symbol says."""
        number = bisect.bisect_right(self._starts, address) - 1
        if number < 0:
            return ""
        start = self._starts[number]
        size, name = self._found[start]
        return name.decode(errors="replace") if address < start + max(size, 1) else ""


def notes(data: bytes) -> Iterator[tuple[str, int, bytes]]:
    """(name, type, contents) of each note of a PT_NOTE segment."""
    at = 0
    while at + 12 <= len(data):
        name_size, size, kind = struct.unpack_from("<III", data, at)
        at += 12
        name = data[at : at + name_size].rstrip(b"\0").decode(errors="replace")
        at += -(-name_size // 4) * 4
        yield name, kind, data[at : at + size]
        at += -(-size // 4) * 4


def _name(file: BinaryIO) -> str:
    return str(getattr(file, "name", ""))


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(min(size, os.fstat(file.fileno()).st_size))  # a damaged size is any number


def _read(file: BinaryIO, header: Header, names: Collection[str]) -> Elf:
    with _reading(file):
        return _parse(file, header, names)


def _parse(file: BinaryIO, header: Header, names: Collection[str]) -> Elf:
    def offset_of(address: int) -> int:
        for s in header.segments:
            if s.kind == PT_LOAD and s.address <= address < s.address + s.file_size:
                return address - s.address + s.offset
        raise ValueError(f"no segment has address {address:#x}")

    tags: dict[int, list[int]] = {}
    for segment in header.segments:
        if segment.kind == _PT_DYNAMIC:
            data = _at(file, segment.offset, segment.file_size)
            if len(data) != segment.file_size:
                raise ValueError("it ends before its dynamic section")
            for tag, value in _DYNAMIC.iter_unpack(data[: len(data) // 16 * 16]):
                if tag == 0:
                    break
                tags.setdefault(tag, []).append(value)
    has_interpreter = any(segment.kind == _PT_INTERP for segment in header.segments)
    if _DT_SYMTAB not in tags or _DT_STRTAB not in tags:
        return Elf("", (), has_interpreter, False, {}, frozenset())

    strings_at = offset_of(tags[_DT_STRTAB][0])
    strings = _at(file, strings_at, tags[_DT_STRSZ][0])

    def string(at: int) -> str:
        return os.fsdecode(strings[at : strings.index(b"\0", at)])

    symbols_at = offset_of(tags[_DT_SYMTAB][0])
    # No tag says how many symbols there are. Without sections: the strings follow the symbols.
    size = next((s.size for s in header.sections if s.kind == _SHT_DYNSYM), strings_at - symbols_at)
    if size < 0:
        raise ValueError("no size of the symbol table")

    # Names share their ends (xmalloc has malloc in it), so that one may start anywhere.
    wanted: dict[int, str] = {}
    for name in names:
        end = name.encode() + b"\0"
        at = strings.find(end)
        while at != -1:
            wanted[at] = name
            at = strings.find(end, at + 1)
    defines: dict[str, int] = {}
    calls: set[str] = set()
    table = _at(file, symbols_at, size // _SYMBOL.size * _SYMBOL.size) if wanted else b""
    for name_at, info, _, section, value, _ in _SYMBOL.iter_unpack(table):
        if name_at not in wanted:
            continue
        if section == 0:
            calls.add(wanted[name_at])
        elif info >> 4 in (_GLOBAL, _WEAK, _UNIQUE):
            defines[wanted[name_at]] = value
    return Elf(
        soname=string(tags[_DT_SONAME][0]) if _DT_SONAME in tags else "",
        needed=tuple(string(at) for at in tags.get(_DT_NEEDED, ())),
        has_interpreter=has_interpreter,
        is_symbolic=_DT_SYMBOLIC in tags or bool(tags.get(_DT_FLAGS, [0])[0] & _DF_SYMBOLIC),
        defines=defines,
        calls=frozenset(calls),
    )
