"""What is needed of the ELF format: the dynamic symbols of a file, the parts of a core file."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

PT_LOAD, PT_NOTE = 1, 4
ET_CORE = 4
_SHT_DYNSYM = 11


class NotElf(ValueError):
    """Not a 64-bit little-endian ELF file."""


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
class Header:
    """The head of a file."""

    kind: int
    segments: tuple[Segment, ...]
    sections: tuple[tuple[int, int, int, int], ...]  # kind, offset, size, link


def read_header(file: BinaryIO) -> Header:
    file.seek(0)
    head = file.read(64)
    if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
        raise NotElf("not a 64-bit little-endian ELF file")
    kind, _, _, _, phoff, shoff, _, _, phsize, phnum, shsize, shnum, _ = struct.unpack_from(
        "<HHIQQQIHHHHHH", head, 16
    )
    sections = []
    if shoff:
        file.seek(shoff)
        table = file.read(shsize * max(shnum, 1))
        if phnum == 0xFFFF:  # more than fit: the count is in the first section's sh_info
            (phnum,) = struct.unpack_from("<I", table, 44)
        for at in range(0, shsize * shnum, shsize):
            _, section, _, _, offset, size, link = struct.unpack_from("<IIQQQQI", table, at)
            sections.append((section, offset, size, link))
    file.seek(phoff)
    table = file.read(phsize * phnum)
    segments = []
    for at in range(0, len(table), phsize):
        part, flags, offset, address, _, in_file, in_memory = struct.unpack_from(
            "<IIQQQQQ", table, at
        )
        segments.append(Segment(part, flags, offset, address, in_file, in_memory))
    return Header(kind, tuple(segments), tuple(sections))


def symbol(file: BinaryIO, name: str) -> int | None:
    """The value of the dynamic symbol NAME, relative to where the file's start is mapped."""
    header = read_header(file)
    first = min((s.address - s.offset for s in header.segments if s.kind == PT_LOAD), default=0)
    for kind, offset, size, link in header.sections:
        if kind != _SHT_DYNSYM:
            continue
        file.seek(header.sections[link][1])
        names = file.read(header.sections[link][2])
        file.seek(offset)
        for entry, _, _, section, value, _ in struct.iter_unpack("<IBBHQQ", file.read(size)):
            end = names.index(b"\0", entry)
            if section and names[entry:end] == name.encode():
                return int(value) - first
    return None


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
