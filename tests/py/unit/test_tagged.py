"""HEAP_TAGGED: objects and buffers in memory whose tags the CPU checks, and what is said where it
does not."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading

import pytest

import malloc_arena
from conftest import has_tags
from malloc_arena import HEAP_SECURE, HEAP_TAGGED, Arena, ArenaUnavailable, SecretBuffer

with_tags = pytest.mark.skipif(not has_tags(), reason="this CPU has no memory tags (MTE)")


@pytest.mark.skipif(has_tags(), reason="this CPU has memory tags")
@pytest.mark.parametrize("kind", [HEAP_TAGGED, HEAP_TAGGED | HEAP_SECURE])
def test_without_the_cpu(kind: int) -> None:
    for make in (malloc_arena.get, Arena):
        with pytest.raises(ArenaUnavailable, match="MTE") as error:
            make(kind)
        assert os.uname().machine in error.value.reason
        assert "HEAP_SECURE" in error.value.fix


def tag(value: object) -> int:
    return id(value) >> 56


@with_tags
@pytest.mark.parametrize("kind", [HEAP_TAGGED, HEAP_TAGGED | HEAP_SECURE])
def test_objects(kind: int) -> None:
    arena = malloc_arena.get(kind)
    assert arena.receipt.tagged
    assert ("locked" in arena.receipt.requested) == bool(kind & HEAP_SECURE)
    with arena:
        values = [
            {"key": [str(number) * 20, number << 70, (1.5 * number,)]} for number in range(500)
        ]
        text = "".join(value["key"][0] for value in values)  # type: ignore[misc]
        data = bytearray(text.encode())
        data.extend(b"!" * 100_000)
    assert arena.owns(id(text))
    assert 0 < tag(text) < 16
    assert len({tag(value) for value in values}) > 3
    assert text.startswith("0" * 20 + "1" * 20)
    assert bytes(data[-3:]) == b"!!!"
    before = arena.stats().live_blocks
    del values, text, data
    gc.collect()
    assert arena.stats().live_blocks < before / 10


@with_tags
def test_threads_have_them_too() -> None:
    arena = malloc_arena.get(HEAP_TAGGED)
    found: list[int] = []

    def work() -> None:
        with arena:
            text = str(12345) * 30
        found.append(tag(text))
        assert arena.receipt.tagged

    for _ in range(5):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(found) == 5
    assert 0 not in found


@with_tags
def test_buffer() -> None:
    with SecretBuffer(100, arena=malloc_arena.get(HEAP_TAGGED | HEAP_SECURE)) as buffer:
        view = memoryview(buffer)
        view[:] = bytes(range(100))
        assert ctypes.addressof(ctypes.c_char.from_buffer(buffer)) >> 56
        reader, writer = os.pipe()
        assert os.write(writer, view) == 100  # the kernel takes a tagged pointer
        view[:] = bytes(100)
        assert os.readv(reader, [view]) == 100
        assert view[99] == 99
        os.close(reader)
        os.close(writer)
        view.release()
        gc.collect()


@with_tags
@pytest.mark.parametrize("crime", ["end", "after"])
def test_a_crime_ends_the_process(crime: str) -> None:
    script = f"""
import ctypes, malloc_arena
buffer = malloc_arena.SecretBuffer(64, arena=malloc_arena.get(malloc_arena.HEAP_TAGGED))
address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
print(ctypes.string_at(address, 64) == bytes(64), flush=True)
if {crime!r} == "after":
    import gc
    gc.collect()
    buffer.close()
    ctypes.string_at(address, 1)
else:
    ctypes.string_at(address, 65)
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.stdout == "True\n"
    assert run.returncode == -signal.SIGSEGV
