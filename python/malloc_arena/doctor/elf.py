"""The dynamic symbols of a 64-bit little-endian ELF file: what it exports, and what it calls."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SONAME, _DT_SYMBOLIC = 1, 5, 6, 10, 14, 16
_DT_FLAGS, _DF_SYMBOLIC = 30, 2
_SHT_DYNSYM = 11
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_DYNAMIC = struct.Struct("<qQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_GLOBAL, _WEAK, _UNIQUE = 1, 2, 10


class NotElf(OSError):
    """Not a file that this machine's loader could have loaded, or a damaged one."""


@dataclass(frozen=True, slots=True)
class Elf:
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


def read(path: Path, names: Collection[str]) -> Elf:
    """The file's place in symbol search, for NAMES."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < 64:
            raise NotElf(8, "too short for an ELF file", str(path))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:4] != b"\x7fELF":
                raise NotElf(8, "not an ELF file", str(path))
            if data[4:6] != b"\x02\x01":
                raise NotElf(8, "not a 64-bit little-endian ELF file", str(path))
            try:
                return _parse(data, names)
            except (struct.error, IndexError, UnicodeDecodeError, ValueError) as error:
                raise NotElf(8, f"a damaged ELF file: {error}", str(path)) from error


def _parse(data: mmap.mmap, names: Collection[str]) -> Elf:
    phoff, shoff = struct.unpack_from("<QQ", data, 32)
    phentsize, phnum, shentsize, shnum = struct.unpack_from("<HHHH", data, 54)
    segments = [_PROGRAM_HEADER.unpack_from(data, phoff + i * phentsize) for i in range(phnum)]
    loads = [(s[3], s[2], s[5]) for s in segments if s[0] == _PT_LOAD]  # address, offset, size

    def offset_of(address: int) -> int:
        for start, offset, size in loads:
            if start <= address < start + size:
                return int(address - start + offset)
        raise ValueError(f"no segment has address {address:#x}")

    tags: dict[int, list[int]] = {}
    for kind, _, offset, _, _, size, _, _ in segments:
        if kind == _PT_DYNAMIC:
            if offset + size > len(data):
                raise ValueError("it ends before its dynamic section")
            for tag, value in _DYNAMIC.iter_unpack(data[offset : offset + size // 16 * 16]):
                if tag == 0:
                    break
                tags.setdefault(tag, []).append(value)
    has_interpreter = any(segment[0] == _PT_INTERP for segment in segments)
    if _DT_SYMTAB not in tags or _DT_STRTAB not in tags:
        return Elf("", (), has_interpreter, False, {}, frozenset())

    strings_at = offset_of(tags[_DT_STRTAB][0])
    strings = data[strings_at : strings_at + tags[_DT_STRSZ][0]]

    def string(at: int) -> str:
        return os.fsdecode(strings[at : strings.index(b"\0", at)])

    sections = [_SECTION_HEADER.unpack_from(data, shoff + i * shentsize) for i in range(shnum)]
    symbols_at = offset_of(tags[_DT_SYMTAB][0])
    # No tag says how many symbols there are. Without sections: the strings follow the symbols.
    size = next((s[5] for s in sections if s[1] == _SHT_DYNSYM), strings_at - symbols_at)
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
    table = data[symbols_at : symbols_at + size // _SYMBOL.size * _SYMBOL.size]
    for name_at, info, _, section, value, _ in _SYMBOL.iter_unpack(table) if wanted else ():
        if name_at not in wanted:
            continue
        if section == 0:
            calls.add(wanted[name_at])
        elif info >> 4 in (_GLOBAL, _WEAK, _UNIQUE):
            defines[wanted[name_at]] = value
    symbolic = _DT_SYMBOLIC in tags or bool(tags.get(_DT_FLAGS, [0])[0] & _DF_SYMBOLIC)
    return Elf(
        soname=string(tags[_DT_SONAME][0]) if _DT_SONAME in tags else "",
        needed=tuple(string(at) for at in tags.get(_DT_NEEDED, ())),
        has_interpreter=has_interpreter,
        is_symbolic=symbolic,
        defines=defines,
        calls=frozenset(calls),
    )
