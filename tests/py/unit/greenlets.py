"""A scope is its greenlet's, whoever runs in the thread meanwhile. Seen by where blocks lie."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import malloc_arena
from conftest import Child
from malloc_arena import HEAP_SECURE, Arena, ArenaError, _core

greenlet = pytest.importorskip("greenlet", reason="greenlet has no wheel for this machine")


@pytest.fixture
def own() -> Iterator[Arena]:
    arena = Arena(HEAP_SECURE, name="own")
    yield arena
    gc.collect()
    arena.close()


def _is_in(arena: Arena) -> bool:
    return arena.owns(id(bytes(100)))


def test_a_scope_is_left_while_another_greenlet_runs(own: Arena) -> None:
    main = greenlet.getcurrent()
    seen = []

    def work() -> None:
        with own:
            seen.append(_is_in(own))
            main.switch()
            seen.append(_is_in(own))
            main.switch()
            seen.append(_is_in(own))
        seen.append(_is_in(own))

    worker = greenlet.greenlet(work)
    for _ in range(3):
        worker.switch()
        assert not _is_in(own)
    assert worker.dead
    assert seen == [True, True, True, False]


def test_scopes_of_two_greenlets_may_cross(own: Arena) -> None:
    vault = malloc_arena.get(HEAP_SECURE)
    main = greenlet.getcurrent()
    seen = []

    def work(arena: Arena) -> None:
        for _ in range(3):
            with arena:
                main.switch()
                seen.append(_is_in(arena))
                with vault:
                    main.switch()
                    seen.append(_is_in(vault))
                main.switch()
                seen.append(_is_in(arena))

    other = Arena(HEAP_SECURE, name="other")
    workers = [greenlet.greenlet(work) for _ in range(2)]
    for worker, arena in zip(workers, (own, other), strict=True):
        worker.switch(arena)
    while not all(worker.dead for worker in workers):
        for worker in workers:
            if not worker.dead:
                worker.switch()
        assert not any(map(_is_in, (own, other, vault)))
    assert len(seen) == 18
    assert all(seen)
    del workers, worker
    gc.collect()
    other.close()


def test_calls_may_switch(own: Arena) -> None:
    main = greenlet.getcurrent()
    workers = [greenlet.greenlet(own.call) for _ in range(2)]

    def work(number: int) -> tuple[int, bool]:
        main.switch()
        return number, _is_in(own)

    for number, worker in enumerate(workers):
        worker.switch(work, number)
    assert [worker.switch() for worker in workers] == [(0, True), (1, True)]


def test_one_that_is_started_inside_is_in_the_arena_for_its_life(own: Arena) -> None:
    main = greenlet.getcurrent()
    seen = []

    def work() -> None:
        seen.append(_is_in(own))
        main.switch()
        seen.append(_is_in(own))
        try:
            own.__exit__(None, None, None)
        except ArenaError:
            seen.append(True)

    worker = greenlet.greenlet(work)
    with own:
        worker.switch()
        assert _is_in(own)
    assert not _is_in(own)
    worker.switch()
    assert not _is_in(own)
    assert seen == [True, True, True]
    with own:
        assert _is_in(own)


def test_await_in_functions(own: Arena) -> None:
    """As SQLAlchemy's asyncio does it: each step of the task switches to the function."""

    async def call(function: Any) -> Any:
        worker = greenlet.greenlet(function)
        result = worker.switch()
        while not worker.dead:
            result = worker.switch(await result)
        return result

    def query() -> list[bool]:
        driver = greenlet.getcurrent().parent
        seen = [_is_in(own)]
        for _ in range(3):
            driver.switch(asyncio.sleep(0))
            seen.append(_is_in(own))
            with malloc_arena.get(HEAP_SECURE):
                driver.switch(asyncio.sleep(0))
                seen.append(_is_in(malloc_arena.get(HEAP_SECURE)))
        return seen

    async def both() -> list[list[bool]]:
        return await asyncio.gather(own.run(call(query)), own.run(call(query)))

    assert asyncio.run(both()) == [[True] * 7] * 2


def test_an_arena_with_a_suspended_scope_is_not_closed() -> None:
    arena = Arena(HEAP_SECURE, name="suspended")
    main = greenlet.getcurrent()
    ended = [False]

    def work() -> None:
        with arena:
            try:
                main.switch()
            finally:
                ended[0] = _is_in(arena)

    worker = greenlet.greenlet(work)
    worker.switch()
    with pytest.raises(ArenaError, match="cannot be closed"):
        arena.close()
    del worker  # which throws GreenletExit into it
    assert ended == [True]
    arena.close()


def test_a_greenlet_that_ended_keeps_no_arena_open() -> None:
    arena = Arena(HEAP_SECURE, name="ended")
    worker = greenlet.greenlet(lambda: None)
    with arena:
        worker.switch()
    assert worker.dead
    arena.close()


def test_a_suspended_scope_keeps_a_full_arena_open() -> None:
    """Told by _core itself: greenlet needs memory for a switch, which this arena has not."""
    arena = Arena(HEAP_SECURE, name="full", limit=1 << 20)
    buffers = []

    def fill() -> None:
        for size in (1 << 16, 1 << 12, 1 << 8, 16, 1):
            with contextlib.suppress(MemoryError):
                while True:
                    buffers.append(arena.buffer(size))

    with arena:
        _core._outside(fill)
        suspended = _core._suspend(False)
        for buffer in buffers:
            buffer.close()
        try:
            with pytest.raises(ArenaError, match="cannot be closed"):
                arena.close()
        finally:
            _core._resume(suspended, False)
    del suspended
    buffers.clear()
    arena.close()


def test_exceptions_pass_between_greenlets(own: Arena) -> None:
    main = greenlet.getcurrent()

    def work() -> None:
        with own:
            main.switch()

    worker = greenlet.greenlet(work)
    worker.switch()
    with pytest.raises(ZeroDivisionError):
        worker.throw(ZeroDivisionError)
    assert not _is_in(own)

    def fail() -> None:
        with own:
            raise KeyError

    with pytest.raises(KeyError):
        greenlet.greenlet(fail).switch()
    assert not _is_in(own)


@pytest.mark.parametrize("is_first", [True, False])
def test_other_tracers_are_called(own: Arena, is_first: bool) -> None:
    events: list[str] = []
    failures = []

    def in_thread() -> None:
        main = greenlet.getcurrent()

        def work() -> None:
            with own:
                main.switch()
                if not _is_in(own):
                    failures.append("outside")

        if is_first:
            greenlet.settrace(lambda event, _: events.append(event))
        with own:
            pass
        if not is_first:
            previous = greenlet.gettrace()

            def trace(event: str, args: Any) -> None:
                events.append(event)
                previous(event, args)
                previous(event, args)

            greenlet.settrace(trace)
        worker = greenlet.greenlet(work)
        worker.switch()
        if _is_in(own):
            failures.append("inside")
        worker.switch()

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert events == ["switch"] * 4
    assert failures == []


def test_gevent(child: Callable[..., Child]) -> None:
    """Its hub does not stay in the arena, and patched threads and sleeps may be in a scope."""
    pytest.importorskip("gevent", reason="gevent has no wheel for this machine")
    child(
        """
from gevent import monkey
monkey.patch_all()
import threading, time
import gevent
import malloc_arena
vault = malloc_arena.get(malloc_arena.HEAP_SECURE)
def is_in():
    return vault.owns(id(bytes(100)))
def work():
    time.sleep(0.001)
    with vault:
        time.sleep(0.001)
        inside = is_in()
    return inside, is_in()
seen = []
with vault:
    time.sleep(0.001)  # the hub's first turn
    plain = gevent.spawn(is_in)
    bound = gevent.spawn(vault.bind(is_in))
    tasks = [gevent.spawn(work) for _ in range(3)]
    thread = threading.Thread(target=lambda: seen.append(is_in()))
    thread.start()
    thread.join()
    gevent.joinall([plain, bound, *tasks])
    assert is_in()
assert not is_in()
assert [plain.value, bound.value] == [False, True], (plain.value, bound.value)
assert [task.value for task in tasks] == [(True, False)] * 3, [task.value for task in tasks]
assert seen == [True]
assert [gevent.spawn(vault.call, work).get() for _ in range(2)] == [(True, True)] * 2
"""
    ).ends()


def test_nothing_is_followed_without_greenlets(child: Callable[..., Child]) -> None:
    child(
        """
with malloc_arena.get(HEAP_SECURE):
    pass
assert not {"greenlet", "malloc_arena.greenlets"} & set(sys.modules)
import greenlet
assert greenlet.gettrace() is None
with malloc_arena.get(HEAP_SECURE):
    assert greenlet.gettrace() is not None
"""
    ).ends()


def test_a_subinterpreter_that_ended_takes_no_scopes_along(child: Callable[..., Child]) -> None:
    """greenlet has one tracer for a thread, whatever interpreter runs in it."""
    child(
        """
import importlib
for name in ("_interpreters", "_xxsubinterpreters"):
    try: sub = importlib.import_module(name); break
    except ImportError: pass
import greenlet
vault = get(HEAP_SECURE)
# greenlet is for no isolated one.
interpreter = sub.create("legacy") if name == "_interpreters" else sub.create(isolated=False)
script = "import malloc_arena, greenlet\\nwith malloc_arena.get(1): pass"
failed = sub.run_string(interpreter, script)
assert failed is None, failed
sub.destroy(interpreter)
main = greenlet.getcurrent()
def work():
    with vault: main.switch()
worker = greenlet.greenlet(work)
worker.switch()
assert not vault.owns(id(bytes(100)))
worker.switch()
assert worker.dead
"""
    ).ends()
