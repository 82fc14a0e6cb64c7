"""Sequences of what a program does with arenas, held against a model that is a dict.

Values are made in arenas and outside, in this thread, in others, in steps of generators; they are
changed, handed over, dropped, looked at in forked children; arenas are made, swept and closed.
Whatever the order: values are what the model says, what was made inside lies inside, what is
dropped is wiped, nothing is lost. FUZZ_EXAMPLES says how many sequences."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from collections.abc import Callable, Generator
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from conftest import empty, wiped
from malloc_arena import HEAP_ISOLATED, HEAP_SECURE, Arena, ArenaError, SecretBuffer

KINDS = [HEAP_SECURE, HEAP_SECURE | HEAP_ISOLATED]
SIZES = st.one_of(st.integers(1, 600), st.sampled_from([1000, 2040, 2048, 4096, 9000, 70_000]))
BYTES = st.integers(1, 255)


def value_of(shape: int, size: int, byte: int) -> Any:
    """Values without a part that CPython has made before."""
    if shape == 0:
        return bytes([byte]) * size + b"!"
    if shape == 1:
        return bytearray([byte]) * size
    if shape == 2:
        return chr(0x20AC + byte) * size
    if shape == 3:
        return [str(byte * 1000 + n) for n in range(size % 50 + 1)]
    return {f"{byte}-{n}": (n + 1) * 1_000_003 + byte for n in range(size % 50 + 1)}


class Model(RuleBasedStateMachine):
    names = Bundle("names")

    def __init__(self) -> None:
        super().__init__()
        self.arenas: list[Arena | None] = []
        self.model: dict[str, Any] = {}
        self.real: dict[str, Any] = {}
        self.homes: dict[str, int] = {}  # index of the arena, -1 outside
        self.changed: set[str] = set()  # containers that may have nothing of their home any more
        self.buffers: dict[str, SecretBuffer] = {}
        self.contents: dict[str, bytes] = {}
        self.count = 0

    @initialize()
    def begin(self) -> None:
        self.open_arena(0)
        self.open_arena(1)

    def open_arena(self, kind: int) -> None:
        self.arenas.append(Arena(KINDS[kind], name=f"model {len(self.arenas)}"))

    def arena(self, which: int) -> tuple[int, Arena]:
        alive = [(n, each) for n, each in enumerate(self.arenas) if each is not None]
        return alive[which % len(alive)]

    def keep(self, home: int, real: Any, model: Any) -> str:
        self.count += 1
        name = f"v{self.count}"
        self.real[name], self.model[name], self.homes[name] = real, model, home
        return name

    def inside(self, home: int, value: object) -> None:
        # The header of a list or dict may be one that CPython had.
        if isinstance(value, list):
            parts = value
        elif isinstance(value, dict):
            parts = [*value, *value.values()]
        else:
            parts = [value]
        owners = [each for each in self.arenas if each is not None]
        if home >= 0:
            owners = [each for each in owners if each is self.arenas[home]]
            assert all(owners[0].owns(id(part)) for part in parts)
        else:
            assert not any(each.owns(id(part)) for each in owners for part in parts)

    @rule(target=names, which=st.integers(0, 9), shape=st.integers(0, 4), size=SIZES, byte=BYTES)
    def make(self, which: int, shape: int, size: int, byte: int) -> str:
        home, arena = self.arena(which)
        with arena:
            value = value_of(shape, size, byte)
        self.inside(home, value)
        return self.keep(home, value, value_of(shape, size, byte))

    @rule(target=names, shape=st.integers(0, 1), size=SIZES, byte=BYTES)
    def make_outside(self, shape: int, size: int, byte: int) -> str:
        value = value_of(shape, size, byte)
        self.inside(-1, value)
        return self.keep(-1, value, value_of(shape, size, byte))

    @rule(target=names, which=st.integers(0, 9), shape=st.integers(0, 4), size=SIZES, byte=BYTES)
    def make_nested(self, which: int, shape: int, size: int, byte: int) -> str:
        """In the inner of two arenas, left by an exception."""
        home, arena = self.arena(which)
        _, other = self.arena(which + 1)
        kept = []
        try:
            with other, arena:
                kept.append(value_of(shape, size, byte))
                raise LookupError
        except LookupError:
            pass
        self.inside(home, kept[0])
        return self.keep(home, kept.pop(), value_of(shape, size, byte))

    @rule(target=names, which=st.integers(0, 9), shape=st.integers(0, 4), size=SIZES, byte=BYTES)
    def make_in_a_thread(self, which: int, shape: int, size: int, byte: int) -> str:
        home, arena = self.arena(which)
        got: list[Any] = []

        def work() -> None:
            with arena:
                got.append(value_of(shape, size, byte))

        run(work)
        self.inside(home, got[0])
        return self.keep(home, got.pop(), value_of(shape, size, byte))

    @rule(target=names, which=st.integers(0, 9), shape=st.integers(0, 4), size=SIZES, byte=BYTES)
    def make_in_steps(self, which: int, shape: int, size: int, byte: int) -> str:
        """Outside between the steps, and the second of two generators is another arena's."""
        home, arena = self.arena(which)
        _, other = self.arena(which + 1)

        def steps() -> Generator[Any, None, None]:
            while True:
                yield value_of(shape, size, byte)

        mine, others = arena.iterate(steps()), other.iterate(steps())
        next(others)
        value = next(mine)
        outside = bytes([byte]) * size
        self.inside(-1, outside)
        next(others)
        mine.close()
        others.close()
        self.inside(home, value)
        return self.keep(home, value, value_of(shape, size, byte))

    @rule(name=names, which=st.integers(-1, 9), size=SIZES, byte=BYTES)
    def change(self, name: str, which: int, size: int, byte: int) -> None:
        """In place, in whatever arena: the block stays where it is, or moves into the arena."""
        real, model = self.real.get(name), self.model.get(name)
        if not isinstance(real, bytearray | list | dict):
            return
        arena = self.arena(which)[1] if which >= 0 else None

        def work(value: Any) -> None:
            if isinstance(value, bytearray):
                value.extend(bytes([byte]) * (size % 3000))
                del value[: size % 7]
            elif isinstance(value, list):
                value.append(str(byte) * 30)
                value.sort()
            else:
                value[f"new {byte}"] = size + 1_000_003
                value.pop(next(iter(value)))

        if arena is None:
            work(real)
        else:
            arena.call(work, real)
        work(model)
        if isinstance(real, list | dict):
            self.changed.add(name)

    @rule(name=names)
    def look(self, name: str) -> None:
        if name in self.real:
            assert self.real[name] == self.model[name]
            if not isinstance(self.real[name], list | dict):  # they may have been changed elsewhere
                self.inside(self.homes[name], self.real[name])

    @rule(name=consumes(names), thread=st.booleans())
    def drop(self, name: str, thread: bool) -> None:
        if name not in self.real:
            return
        home = self.homes.pop(name)
        del self.model[name]
        value = self.real[name]
        # What its last reference frees: of bytes the block is the object's own.
        place = id(value), len(value) if isinstance(value, bytes) and home >= 0 else 0
        del value
        if thread:
            run(lambda: self.real.pop(name) and None)
        else:
            del self.real[name]
        if place[1] and self.arenas[home] is not None:
            # The first words of a dead object may be used by CPython's own free lists.
            assert wiped(place[0] + 32, place[1])

    @rule(which=st.integers(0, 9), size=SIZES, byte=BYTES)
    def buffer(self, which: int, size: int, byte: int) -> None:
        self.count += 1
        made = SecretBuffer(size) if which % 3 == 0 else self.arena(which)[1].buffer(size)
        assert not any(bytes(made))
        made[:] = bytes([byte]) * size
        self.buffers[f"b{self.count}"] = made
        self.contents[f"b{self.count}"] = bytes([byte]) * size

    @rule(which=st.integers(0, 9))
    def close_buffer(self, which: int) -> None:
        if not self.buffers:
            return
        name = sorted(self.buffers)[which % len(self.buffers)]
        buffer, contents = self.buffers.pop(name), self.contents.pop(name)
        assert bytes(buffer) == contents
        address, size = buffer.address, len(buffer)
        buffer.close()
        assert wiped(address, size)

    @rule()
    def fork(self) -> None:
        """The child has the values, and zeros for buffers that are not of an arena which keeps
        its memory; it frees all, its parent keeps all."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for name, value in self.real.items():
                    assert value == self.model[name]
                for name, buffer in self.buffers.items():
                    is_kept = any(each.owns(buffer.address) for each in self.arenas if each)
                    zeros = bytes(len(buffer))
                    assert bytes(buffer) == (self.contents[name] if is_kept else zeros)
                self.real.clear()
                self.buffers.clear()
                _, arena = self.arena(0)
                with arena:
                    made = [bytes([7]) * n for n in range(1, 3000, 100)]
                assert all(set(each) == {7} for each in made)
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0

    @rule(which=st.integers(0, 9))
    def sweep(self, which: int) -> None:
        self.arena(which)[1].sweep()

    @rule(kind=st.integers(0, 1))
    def another(self, kind: int) -> None:
        if sum(each is not None for each in self.arenas) < 4:
            self.open_arena(kind)

    @rule(which=st.integers(0, 9))
    def close(self, which: int) -> None:
        """Refused while something of it lives."""
        home, arena = self.arena(which)
        if sum(each is not None for each in self.arenas) < 3:
            return
        is_used = any(
            where == home and name not in self.changed for name, where in self.homes.items()
        )
        try:
            arena.close()
        except ArenaError:
            assert is_used or self.buffers or arena.stats().live_blocks > 0
        else:
            assert not is_used
            self.arenas[home] = None
            for name in list(self.buffers):
                assert bytes(self.buffers[name]) == self.contents[name]

    @invariant()
    def accounts(self) -> None:
        for arena in self.arenas:
            if arena is not None:
                stats = arena.stats()
                assert stats.live_bytes <= stats.peak_bytes
                assert stats.locked_bytes <= stats.mapped_bytes
                assert stats.live_blocks or not stats.live_bytes

    def teardown(self) -> None:
        for name, value in self.real.items():
            assert value == self.model[name]
        for name, buffer in self.buffers.items():
            assert bytes(buffer) == self.contents[name]
        self.real.clear()
        self.buffers.clear()
        value = buffer = None
        gc.collect()
        for arena in self.arenas:
            if arena is not None:
                assert empty(arena) or sys.exc_info()[0]
                # What CPython's free lists still have of it goes too: there can be 256 arenas.
                arena.sweep()
                with contextlib.suppress(ArenaError):
                    arena.close()


def run(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "25")),
    stateful_step_count=40,
    deadline=None,
    # Sequences of forks and threads shrink for minutes; what fails is printed step by step anyway.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
