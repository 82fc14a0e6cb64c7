"""What audit reads of others' making, damaged: core files, ELF files, memory maps.

A reader may refuse what it is given in its own words; it may not fail in others, hang, or ask for
all memory. FUZZ_EXAMPLES says how many inputs each test tries."""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from malloc_arena import elf
from malloc_arena.audit import CannotLook, Dump, Process, Scanner

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
CORPUS = Path(__file__).with_name("corpus")
SECRET = b"a secret in a core file"

few = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def note(name: bytes, kind: int, data: bytes) -> bytes:
    padded = name + b"\0" * (-len(name) % 4)
    return (
        struct.pack("<III", len(name), len(data), kind) + padded + data + b"\0" * (-len(data) % 4)
    )


def core() -> bytes:
    """A small one, as the kernel writes them: a thread, a mapped file, two pieces of memory."""
    registers = struct.pack("<27Q", *range(27))
    status = bytes(32) + struct.pack("<i", 77) + bytes(76) + registers + bytes(8)
    files = struct.pack("<QQ", 1, 4096) + struct.pack("<QQQ", 0x7000, 0x9000, 0) + b"/bin/x\0"
    notes = note(b"CORE\0", 1, status) + note(b"LINUX\0", 0x202, bytes(832))
    notes += note(b"CORE\0", 0x46494C45, files)
    memory = [(0x1000, bytes(100) + SECRET + bytes(3973)), (0x7000, b"\x7fELF" + bytes(8188))]
    count = 1 + len(memory)
    at = 64 + 56 * count
    heads = struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(notes), 0, 4)
    body = notes
    for address, data in memory:
        heads += struct.pack("<IIQQQQQQ", 1, 6, at + len(body), address, 0, len(data), 8192, 4096)
        body += data
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, count, 64, 0, 0)
    return head + heads + body


CORE = core()
LIBRARY = Path(elf.__file__).parent / "lib" / "libmalloc_arena.so"
ELF = LIBRARY.read_bytes()
# The numbers that steer a reader are in the heads; damage there is worth most.
NUMBERS = st.sampled_from([0, 1, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 64) - 1])


Damage = tuple[list[tuple[str, int, int, int]], float]
# Places, as parts of the head, all heads, or all; how wide; the value. And how much is kept.
DAMAGE = st.tuples(
    st.lists(
        st.tuples(
            st.sampled_from(["first", "heads", "all"]),
            st.integers(0, 999),
            st.sampled_from([1, 2, 4, 8]),
            st.one_of(NUMBERS, st.integers(0, (1 << 64) - 1)),
        ),
        max_size=6,
    ),
    st.sampled_from([1.0, 1.0, 1.0, 0.001, 0.01, 0.2, 0.7]),
)


def damaged(whole: bytes, heads: int, damage: Damage) -> bytes:
    data = bytearray(whole)
    changes, kept = damage
    for part, place, width, value in changes:
        end = {"first": 64, "heads": heads, "all": len(data)}[part] - 8
        at = end * place // 999
        data[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    return bytes(data[: int(len(data) * kept)])


@contextlib.contextmanager
def stored(data: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "file"
        path.write_bytes(data)
        yield path


def read_core(path: Path) -> int:
    """All that audit does with a core; how often the secret was found, -1 where it was refused."""
    try:
        with Dump(path) as dump:
            total = 0
            for mapping in dump.maps():
                for start, end in dump.present(mapping):
                    assert 0 <= end - start
                    total += sum(len(data) for _, data in dump.pieces([(start, end)]))
            assert total <= 64 * max(path.stat().st_size, 1 << 16)
            for thread in dump.threads:
                assert isinstance(thread.stack_pointer, int)
            return len(Scanner(SECRET).scan(dump).hits)
    except CannotLook:
        return -1


def test_the_core_is_one() -> None:
    with stored(CORE) as path:
        with Dump(path) as dump:
            assert [mapping.start for mapping in dump.maps()] == [0x1000, 0x7000]
            assert [thread.number for thread in dump.threads] == [77]
        assert read_core(path) > 0


@few
@given(DAMAGE)
def test_damaged_core(damage: Damage) -> None:
    with stored(damaged(CORE, 64 + 56 * 3 + 600, damage)) as path:
        read_core(path)


@few
@given(st.binary(max_size=300))
@example(b"")
@example(b"\x7fELF\x02\x01")
def test_no_core_at_all(data: bytes) -> None:
    with stored(data) as path:
        read_core(path)


@pytest.mark.parametrize("path", sorted(CORPUS.glob("core-*")), ids=lambda path: path.name)
def test_core_corpus(path: Path) -> None:
    read_core(path)


def test_a_core_cannot_have_devices_read() -> None:
    with Dump(CORPUS / "core-names-a-device") as dump:
        (mapping,) = [each for each in dump.maps() if each.inode]
        assert mapping.path == "/dev/zero"
        with pytest.raises(OSError, match="not a regular file"):
            dump.open(mapping)


@few
@given(DAMAGE)
def test_damaged_elf(damage: Damage) -> None:
    read_elf(damaged(ELF, len(ELF), damage))


def read_elf(data: bytes) -> None:
    with stored(data) as path, path.open("rb") as file:
        with contextlib.suppress(elf.NotElf):
            elf.symbol(file, "ma_region")
        with contextlib.suppress(elf.NotElf):
            elf.read(path, ["malloc", "free"])
        with contextlib.suppress(elf.NotElf):
            elf.Functions(file).name(1 << 12)


@pytest.mark.parametrize("path", sorted(CORPUS.glob("elf-*")), ids=lambda path: path.name)
def test_elf_corpus(path: Path) -> None:
    read_elf(path.read_bytes())


@few
@given(st.binary(max_size=200))
def test_notes(data: bytes) -> None:
    for name, kind, contents in elf.notes(data):
        assert isinstance(name, str)
        assert kind >= 0
        assert len(contents) <= len(data)


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0\n"), max_size=40)


@few
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1 << 50),
            st.integers(1, 1 << 30),
            st.sampled_from(["r--p", "rw-p", "rwxs", "---p", "-w-p"]),
            st.integers(0, 1 << 40),
            st.integers(0, 1 << 31),
            NAMES,
        ),
        max_size=8,
    )
)
@example([(4096, 4096, "r--p", 0, 5, "a name with  spaces (deleted)"), (8192, 1, "rw-p", 0, 0, "")])
def test_maps(lines: list[tuple[int, int, str, int, int, str]]) -> None:
    """As the kernel writes them, of files with any name: read as they were written."""
    process = Process(os.getpid())
    with tempfile.TemporaryDirectory() as directory:
        process._proc = Path(directory)
        text = "".join(
            f"{start:08x}-{start + size:08x} {mode} {offset:08x} 08:01 {inode} ".ljust(73)
            + name
            + "\n"
            for start, size, mode, offset, inode, name in lines
        )
        (Path(directory) / "maps").write_text(text, encoding="utf-8")
        found = process.maps()
    expected = [line for line in lines if line[2].startswith("r")]
    assert [(m.start, m.end - m.start, m.permissions, m.inode) for m in found] == [
        (start, size, mode, inode) for start, size, mode, _, inode, _ in expected
    ]
    for mapping, line in zip(found, expected, strict=True):
        assert mapping.offset == line[3]
        assert mapping.path == line[5].strip() or line[5] != line[5].strip()


def test_maps_of_a_file_with_any_name(tmp_path: Path) -> None:
    """Of a real process: names with blanks, line ends, bytes that are no text."""
    import mmap

    for name in (b"two  blanks", b"line\nend", b"no\xfftext", b" first", "\u20ac".encode()):
        path = os.fsencode(tmp_path) + b"/" + name
        with open(path, "wb+") as file:
            file.write(b"x" * 4096)
            file.flush()
            with mmap.mmap(file.fileno(), 4096):
                maps = Process(os.getpid()).maps()
                inode = os.fstat(file.fileno()).st_ino
                assert [m.end - m.start for m in maps if m.inode == inode] == [4096]
