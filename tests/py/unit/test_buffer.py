"""SecretBuffer: filled in place, compared in constant time, wiped, and never copied."""

from __future__ import annotations

import copy
import ctypes
import gc
import hashlib
import io
import math
import os
import pickle
import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import malloc_arena
from conftest import MAKE, SECRET, Child, memory, on_a_kernel, wiped
from malloc_arena import HEAP_DEFAULT, HEAP_SECURE, Arena, ArenaError, Secret, SecretBuffer


def test_buffer_protocol() -> None:
    with SecretBuffer(32) as key:
        assert len(key) == 32
        assert bytes(key) == bytes(32)
        assert io.BytesIO(b"0123456789").readinto(key) == 10
        key[10:12] = b"ab"
        key[31] = 255
        assert key[0] == ord("0")
        assert key[-1] == 255
        assert bytes(key[8:12]) == b"89ab"
        assert isinstance(key[8:12], memoryview)
        assert hashlib.sha256(key).digest() == hashlib.sha256(bytes(key)).digest()
        with pytest.raises(IndexError):
            key[32]
        with pytest.raises(ValueError, match="different structures"):
            key[0:4] = b"longer than four"
        with pytest.raises(TypeError):
            del key[0]  # type: ignore[attr-defined]


def test_it_lies_in_secure_memory() -> None:
    with SecretBuffer(32) as key:
        base, size = malloc_arena.region()
        assert key.address is not None
        assert base <= key.address < base + size


def test_close_wipes(vault: Arena, own: Arena) -> None:
    plain = Arena(HEAP_DEFAULT)
    for key in (SecretBuffer(100), vault.buffer(100), own.buffer(100), plain.buffer(100)):
        assert key.address is not None
        key[:] = b"correct horse battery staple........" * 2 + bytes(range(1, 29))
        address = key.address
        assert b"battery staple" in memory(address, 100)
        key.close()
        key.close()
        assert wiped(address, 100)
        assert key.closed
        assert key.address is None
        assert len(key) == 0
        with pytest.raises(ValueError, match="closed"):
            memoryview(key)
        with pytest.raises(ValueError, match="closed"), key:
            pass


def test_the_last_reference_wipes() -> None:
    key = SecretBuffer(64)
    assert key.address is not None
    address = key.address
    key[:] = b"k" * 64
    cycle: list[Any] = [key]
    cycle.append(cycle)
    gone = weakref.ref(key)
    del key, cycle
    gc.collect()
    assert gone() is None
    assert wiped(address, 64)


def test_close_with_views() -> None:
    key = SecretBuffer(8)
    view = memoryview(key)
    part = view[2:4]
    with pytest.raises(BufferError, match="2 views"), key:
        assert key[:] is not None
        other = memoryview(key)
        view.release()
        del view
    part.release()
    other.release()
    key.close()
    assert key.closed


def test_a_view_keeps_the_bytes() -> None:
    key = SecretBuffer(8)
    key[:] = b"12345678"
    view = memoryview(key)
    del key
    gc.collect()
    assert bytes(view) == b"12345678"


def test_no_text_hash_copy_or_pickle() -> None:
    key = SecretBuffer(21)
    key[:] = b"correct horse battery"
    assert repr(key) == str(key) == f"{key}" == "<SecretBuffer of 21 bytes>"
    refusals: list[Callable[[Any], Any]] = [hash, copy.copy, copy.deepcopy]
    refusals += [
        lambda key, protocol=protocol: pickle.dumps(key, protocol)  # type: ignore[misc]
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    ]
    for refused in refusals:
        with pytest.raises(TypeError):
            refused(key)
    with pytest.raises(TypeError):
        type("Sub", (SecretBuffer,), {})
    with pytest.raises(TypeError):
        SecretBuffer.extra = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", [int, float, "%d".__mod__, "%f".__mod__, math.floor])
@pytest.mark.parametrize("text", [b"not a number", b"12345"])
def test_it_is_no_number(number: Callable[[Any], object], text: bytes) -> None:
    """int() of a buffer says what is in it, where that is no number."""
    key = SecretBuffer(len(text))
    key[:] = text
    with pytest.raises(TypeError) as caught:
        number(key)
    assert text.decode() not in str(caught.value)
    with pytest.raises(ValueError, match=text.decode()):
        int(bytearray(text + b"!"))  # the control


@pytest.mark.parametrize("step", [2, 3, -1, -2])
def test_equality_with_a_view_whose_items_lie_apart(step: int) -> None:
    view = memoryview(bytes(range(12)))[::step]
    same = SecretBuffer(len(view))
    same[:] = bytes(view)
    assert same == view
    assert view == same
    assert Secret(view) == bytes(view)
    assert Secret(view) == Secret(view)
    same[len(same) - 1] ^= 1
    assert same != view
    assert SecretBuffer(1) != view


@pytest.mark.parametrize("kind", [HEAP_DEFAULT, HEAP_SECURE])
def test_slices_with_steps(kind: int) -> None:
    """As a bytearray's, also of its own bytes."""
    model = bytearray(range(40))
    with Arena(kind) as arena, arena.buffer(40) as key:
        key[:] = model
        for index in (slice(0, 40, 2), slice(39, 3, -3), slice(None, None, -1), slice(5, 5, 2)):
            size = len(model[index])
            for value in (bytes(range(100, 100 + size)), bytes(2 * size)[::2]):
                model[index] = value
                key[index] = value
                assert key == model
            apart = memoryview(bytes(range(200, 200 + size)))[::-1]
            model[index] = bytes(apart)
            key[index] = apart
            assert key == model
        key[:] = key[::-1]
        assert key == model[::-1]
        for wrong in (bytes(19), bytes(21), memoryview(bytes(80))[::2]):
            with pytest.raises(ValueError, match="different structures"):
                key[::2] = wrong
        with pytest.raises(ValueError, match="different structures"):
            key[::2] = memoryview(bytes(20)).cast("b")
        with pytest.raises(TypeError):
            key[::2] = "text"
        assert key == model[::-1]
    with pytest.raises(ValueError, match="closed"):
        key[::2] = b""


@pytest.mark.parametrize("apart", ["to[::2] = key", "to[:1000] = view[::-1]"])
def test_a_slice_with_a_step_leaves_no_copy(child: Callable[..., Child], apart: str) -> None:
    """memoryview makes one for it."""
    process = child(
        MAKE
        + f"""
key = get(HEAP_SECURE).buffer(1000)
with get(HEAP_SECURE): key[500:500 + len(make())] = make()
to = get(HEAP_SECURE).buffer(2000)
with memoryview(key) as view:
    {apart}
key.close()
to.close()
show()
"""
    )
    process.shown()
    assert process.copies(SECRET) == process.copies(SECRET[::-1]) == []
    process.ends()


def test_equality_with_a_view_of_more_dimensions() -> None:
    numbers = (ctypes.c_short * 3 * 2)((1, 2, 3), (4, 5, 6))
    same = SecretBuffer(ctypes.sizeof(numbers))
    same[:] = bytes(numbers)
    assert same == memoryview(numbers)
    rows = memoryview(bytes(numbers)).cast("h", (2, 3))
    assert Secret(rows[::-1]) == bytes(numbers)[6:] + bytes(numbers)[:6]
    assert Secret(rows[::-1]) != bytes(numbers)


def test_equality() -> None:
    key, same = SecretBuffer(16), SecretBuffer(16)
    key[:] = same[:] = b"0123456789abcdef"
    assert key == same
    assert key == b"0123456789abcdef"
    assert b"0123456789abcdef" == key
    assert key == bytearray(b"0123456789abcdef")
    assert not key != same
    for n in range(16):
        same[n] ^= 0x80
        assert key != same
        same[n] ^= 0x80
    assert key != b"0123456789abcde"
    assert key != b"0123456789abcdef0"
    assert key != "0123456789abcdef"
    assert SecretBuffer(0) == b""
    with pytest.raises(TypeError):
        key < same  # type: ignore[operator]  # noqa: B015


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 2047, 2048, 4096, 100_000])
def test_sizes(size: int) -> None:
    with SecretBuffer(size) as key:
        assert len(key) == size
        assert bytes(key) == bytes(size)
        key[:] = b"\xff" * size
    with SecretBuffer(size) as key:
        assert bytes(key) == bytes(size)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="negative"):
        SecretBuffer(-1)
    with pytest.raises(TypeError):
        SecretBuffer("12")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be an Arena"):
        SecretBuffer(12, "vault")  # type: ignore[arg-type]


def test_limit() -> None:
    arena = Arena(HEAP_SECURE, name="small", limit=64 * 1024)
    with pytest.raises(MemoryError) as error:
        arena.buffer(1 << 20)
    assert str(error.value) == (
        'arena "small" has a limit of 65536 bytes, and 1048576 were asked for at once. Raise limit='
    )
    with arena.buffer(40000), pytest.raises(MemoryError) as error:
        arena.buffer(40000)
    assert re.match(
        r'arena "small" is at its limit of 65536 bytes: 40000 more were asked for, and now it '
        r"holds \d+ bytes \(\d+ locked\), 40000 of them in 1 live blocks. Raise limit=, or drop ",
        str(error.value),
    )
    with arena.buffer(4096) as key:
        assert arena.owns(key.address or 0)
        with pytest.raises(ArenaError, match="1 blocks"):
            arena.close()
    arena.close()
    with pytest.raises(ArenaError, match="closed"):
        arena.buffer(1)


def test_more_than_all_addresses(child: Callable[..., Child]) -> None:
    script = """
from malloc_arena import HEAP_DEFAULT
try:
    buffer = get(HEAP_DEFAULT).buffer(3 << 30)
except MemoryError as error:
    show(message=str(error), length=0)
else:
    show(message="", length=len(buffer))
"""
    small = child(script, MALLOC_ARENA_OPTIONS="region_size=1G")
    assert small.shown()["message"] == (
        'arena "default" cannot give 3221225472 bytes: all arenas together have 1073741824 bytes '
        "of address space. Start the program with MALLOC_ARENA_OPTIONS=region_size=4G"
    )
    small.ends()
    large = child(script, MALLOC_ARENA_OPTIONS="region_size=4G")
    assert large.shown()["length"] == 3 << 30
    large.process.kill()  # not wiped: that would need the memory
    large.process.communicate()


def test_a_buffer_keeps_its_arena() -> None:
    key = Arena(HEAP_SECURE, name="kept").buffer(32)
    gc.collect()
    key[:] = b"x" * 32
    assert key == b"x" * 32


@on_a_kernel
def test_a_forked_child_finds_zeros(vault: Arena) -> None:
    key = vault.buffer(32)
    key[:] = b"S" * 32
    pid = os.fork()
    if pid == 0:
        os._exit(0 if bytes(key) == bytes(32) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert key == b"S" * 32
