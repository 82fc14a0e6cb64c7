"""escapes(): what is alive in an arena and who made it."""

from __future__ import annotations

import dataclasses
import gc
import threading
import tracemalloc
import types
import weakref
from collections.abc import Callable, Iterator

import pytest

import malloc_arena
from conftest import SUBINTERPRETERS, Child
from malloc_arena import Arena


def texts(arena: Arena) -> list[str]:
    """Texts and bytes: a header of a list or tuple may be one that a free list has handed on."""
    found = sorted(escape.type for escape in arena.escapes())
    return [each for each in found if each in ("builtins.bytes", "builtins.str")]


class Thing:
    __slots__ = ("held",)

    def __init__(self, held: object) -> None:
        self.held = held


def test_finds_what_is_alive(own: Arena) -> None:
    assert texts(own) == []
    gc.collect()
    with own:
        name = "".join(["a ", "key"])
        kept = {name: [b"".join([b"a"] * 1000), Thing(int("9" * 40))]}
        del name
    found = own.escapes()
    assert {escape.type for escape in found} >= {
        "builtins.bytes",
        "builtins.int",
        "builtins.str",
        "test_escapes.Thing",
    }
    largest = found[0]
    assert largest.type == "builtins.bytes"
    assert largest.address == id(kept["a key"][0])
    assert largest.size == 1033
    assert largest.traceback == ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        largest.size = 0  # type: ignore[misc]
    del kept
    gc.collect()
    assert "builtins.bytes" not in texts(own)


def test_shows_no_value(own: Arena) -> None:
    with own:
        kept = ["".join(["hunter", "2"]), b"".join([b"hunter2"] * 9)]
    assert "hunter2" not in repr(own.escapes())
    assert len(kept) == 2


def test_finds_local_variables_and_does_not_keep_them(own: Arena) -> None:
    def hold() -> Iterator[None]:
        with own:
            secret = b"".join([b"generator"] * 20)
        yield
        del secret

    def running() -> tuple[list[str], list[str]]:
        with own:
            secret = "".join(["local"] * 20)
        before = texts(own)
        del secret
        return before, texts(own)

    suspended = hold()
    next(suspended)
    before, after = running()
    assert before == ["builtins.bytes", "builtins.str"]
    assert after == ["builtins.bytes"]
    suspended.close()
    assert texts(own) == []


def test_finds_those_of_other_threads(own: Arena) -> None:
    ready, go = threading.Event(), threading.Event()

    def work() -> None:
        with own:
            secret = "".join(["local"] * 20)
        ready.set()
        go.wait()
        assert secret

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    assert texts(own) == ["builtins.str"]
    go.set()
    thread.join()
    assert texts(own) == []


def test_tells_who_made_it(own: Arena) -> None:
    tracemalloc.start(3)
    try:
        with own:
            kept = b"".join([b"traced"] * 20)
        (escape,) = (each for each in own.escapes() if each.type == "builtins.bytes")
    finally:
        tracemalloc.stop()
    assert __file__ in "".join(escape.traceback)
    assert 'b"traced"' in "".join(escape.traceback)
    assert kept


def test_in_a_scope(own: Arena) -> None:
    with own:
        kept = b"".join([b"inside"] * 20)
        assert "builtins.bytes" in texts(own)
        blocks = own.stats().live_blocks
        own.escapes()
        assert own.stats().live_blocks <= blocks + 2
    assert kept


def test_does_not_touch_dead_objects(child: Callable[..., Child]) -> None:
    """What is on a free list that a module shows to the collector is not alive."""
    child(
        """
import asyncio
vault = get(HEAP_SECURE)
async def work():
    for _ in range(20):
        await asyncio.gather(*[asyncio.to_thread(int) for _ in range(5)])
for _ in range(3):
    asyncio.run(vault.run(work()))
    asyncio.run(work())
    vault.escapes()
    gc.collect()
"""
    ).ends()


def test_names_an_import(child: Callable[..., Child]) -> None:
    child(
        """
vault = get(HEAP_SECURE)
with vault:
    import decimal, csv
names = {escape.type for escape in vault.escapes()}
assert {"builtins.function", "builtins.code", "builtins.module"} <= names, names
assert any("csv.py" in line for escape in vault.escapes() for line in escape.traceback)
""",
        "-X",
        "tracemalloc=9",
    ).ends()


def test_close_after_what_was_alive_is_garbage(own: Arena) -> None:
    gc.disable()
    try:
        with own:
            cycle: list[object] = [bytes(1000)]
            cycle.append(cycle)
            pairs = [(n, [n]) for n in range(100)]
        del cycle, pairs
        own.close()
    finally:
        gc.enable()


def test_close_names_what_is_alive() -> None:
    arena = Arena(malloc_arena.HEAP_SECURE, name="busy")
    with arena:
        kept = bytes(1000)
    with pytest.raises(malloc_arena.ArenaError, match=r"busy.*1 blocks \(1033 bytes\) are alive"):
        arena.close()
    del kept
    arena.close()


def test_a_subinterpreter_leaves_the_frames_of_others_alone(child: Callable[..., Child]) -> None:
    """A frame object that it made of another's function would be freed by that one's allocator."""
    child(
        SUBINTERPRETERS
        + """
script = '''
import sys
import malloc_arena
from malloc_arena import _core
vault = malloc_arena.get(1)
with vault:
    kept = b"".join([b"a"] * 1000)
assert id(kept) in [escape.address for escape in vault.escapes()]
assert _core._frames() == [sys._getframe()], _core._frames()
'''

def main():
    interpreter = sub.create()
    failed = sub.run_string(interpreter, script)
    assert failed is None, failed
    sub.destroy(interpreter)

main()
"""
    ).ends()


def test_runs_no_code_of_what_it_looks_at(own: Arena) -> None:
    """Proxies of what is dead, objects that raise when they are asked, modules that wait to be
    executed."""
    ran: list[str] = []

    class Dead:
        pass

    class Touchy(type):
        @property
        def __module__(cls) -> str:  # type: ignore[override]
            raise LookupError

    class Lazy(types.ModuleType):
        def __getattribute__(self, name: str) -> object:
            ran.append(name)
            raise ModuleNotFoundError

    class Raises(metaclass=Touchy):
        __slots__ = ("__weakref__",)

        @property
        def __class__(self) -> type:  # type: ignore[override]
            raise LookupError

    dead = Dead()
    kept = [weakref.proxy(dead), Lazy("lazy")]
    del dead
    with own:
        kept.append(Raises())
    found = own.escapes()
    assert any("Raises" in escape.type for escape in found)
    assert not ran
    kept.clear()
