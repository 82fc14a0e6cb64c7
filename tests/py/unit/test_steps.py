"""call, bind, run and iterate: the arena is active in the bound steps and nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import sys
import types
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from typing import Any

import pytest

import malloc_arena
from malloc_arena import Arena, ArenaError


def active() -> bool:
    base, size = malloc_arena.region()
    return base <= id(bytes(100)) < base + size


def test_call(own: Arena) -> None:
    def work(*args: Any, **kwargs: Any) -> Any:
        return active(), args, kwargs

    assert own.call(work, 1, 2, key=3) == (True, (1, 2), {"key": 3})
    assert own.call(work) == (True, (), {})
    assert not active()
    with pytest.raises(ZeroDivisionError):
        own.call(divmod, 1, 0)
    assert not active()
    with pytest.raises(TypeError):
        own.call()  # type: ignore[call-arg]


def test_call_repairs_an_unbalanced_callee(own: Arena) -> None:
    with pytest.raises(ArenaError, match="without leaving it"):
        own.call(own.__enter__)
    assert not active()
    with pytest.raises(ArenaError, match="left where it is not active"):
        own.call(own.__exit__, None, None, None)
    assert not active()


def test_bind(own: Arena) -> None:
    @own.bind
    def work(n: int, *, m: int = 2) -> tuple[bool, int]:
        """What it does."""
        return active(), n + m

    assert work(1, m=5) == (True, 6)
    assert work.__name__ == "work"
    assert work.__doc__ == "What it does."
    assert not active()


def test_bind_whatever_calls_one_with_steps(own: Arena) -> None:
    async def load(value: int) -> tuple[bool, int]:
        await asyncio.sleep(0)
        return active(), value

    def each(value: int) -> Iterator[tuple[bool, int]]:
        yield active(), value

    async def each_later(value: int) -> AsyncIterator[tuple[bool, int]]:
        await asyncio.sleep(0)
        yield active(), value

    @types.coroutine
    def old(value: int) -> Generator[Any, Any, tuple[bool, int]]:
        yield from asyncio.sleep(0).__await__()
        return active(), value

    class Loader:
        async def __call__(self, value: int) -> tuple[bool, int]:
            return await load(value)

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def inner(*args: Any) -> Any:
            return function(*args)

        return inner

    async def main() -> None:
        for function in (load, old, Loader(), wrapped(load), staticmethod(load)):
            assert await own.bind(function)(1) == (True, 1)
            assert await own.bind(functools.partial(function, 1))() == (True, 1)
        for make in (each_later, functools.partial(each_later), wrapped(each_later)):
            assert [seen async for seen in own.bind(make)(2)] == [(True, 2)]

    asyncio.run(main())
    assert inspect.iscoroutinefunction(own.bind(functools.partial(load, 1)))
    for make in (each, functools.partial(each), wrapped(each)):
        assert list(own.bind(make)(3)) == [(True, 3)]
    assert not active()


def test_bind_coroutine_function(own: Arena) -> None:
    @own.bind
    async def work(n: int) -> list[bool]:
        found = [active()]
        await asyncio.sleep(0)
        return [*found, active(), n == 7]

    assert inspect.iscoroutinefunction(work)

    async def main() -> tuple[list[bool], bool]:
        task = asyncio.create_task(work(7))
        await asyncio.sleep(0)
        return await task, active()

    assert asyncio.run(main()) == ([True, True, True], False)


def test_bind_generator_functions(own: Arena) -> None:
    @own.bind
    def steps(n: int) -> Generator[bool, int, str]:
        for _ in range(n):
            yield active()
        return "end"

    @own.bind
    async def asteps(n: int) -> AsyncIterator[bool]:
        for _ in range(n):
            await asyncio.sleep(0)
            yield active()

    found = []
    for value in steps(3):
        found += [value, not active()]
    assert found == [True] * 6

    async def main() -> list[bool]:
        found = []
        async for value in asteps(3):
            found += [value, not active()]
        return found

    assert asyncio.run(main()) == [True] * 6


def test_run_is_active_in_its_own_steps_only(own: Arena) -> None:
    log: list[tuple[str, bool]] = []

    async def work(name: str) -> str:
        for _ in range(5):
            log.append((name, active()))
            await asyncio.sleep(0)
        return name

    async def main() -> tuple[str, ...]:
        return tuple(
            await asyncio.gather(own.run(work("in")), work("out"), own.run(work("in")), work("out"))
        )

    assert asyncio.run(main()) == ("in", "out", "in", "out")
    assert len(log) == 20
    assert all(was == (name == "in") for name, was in log)
    log.clear()


def test_run_cancellation_and_exceptions(own: Arena) -> None:
    seen: list[bool] = []

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append(active())
            raise

    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    async def main() -> None:
        task = asyncio.create_task(own.run(waits()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(KeyError):
            await own.run(fails())
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(own.run(waits()), 0.01)
        assert not active()

    asyncio.run(main())
    assert seen == [True, True]


def test_run_other_awaitables(own: Arena) -> None:
    class Awaitable:
        def __await__(self) -> Generator[None, None, bool]:
            yield None
            return active()

    async def main() -> tuple[bool, int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, 5)
        return await own.run(Awaitable()), await own.run(future)

    assert asyncio.run(main()) == (True, 5)


def test_iterate(own: Arena) -> None:
    closed: list[bool] = []

    def steps() -> Generator[Any, Any, str]:
        try:
            got = yield active()
            while got is not None:
                try:
                    got = yield got, active()
                except KeyError:
                    got = yield "caught", active()
            return "end"
        finally:
            closed.append(active())

    bound = own.iterate(steps())
    assert next(bound) is True
    assert bound.send(5) == (5, True)
    assert bound.throw(KeyError("x")) == ("caught", True)
    assert not active()
    with pytest.raises(StopIteration) as end:
        bound.send(None)
    assert end.value.value == "end"
    bound = own.iterate(steps())
    next(bound)
    bound.close()
    assert closed == [True, True]
    assert list(own.iterate([1, 2, 3])) == [1, 2, 3]
    lines = own.iterate("-".join(["line", str(n)]) for n in range(3))
    assert [own.owns(id(line)) for line in lines] == [True] * 3
    del end


def test_what_is_ended_leaves_nothing(own: Arena) -> None:
    """Not the name of its method either, which CPython's cache of methods would keep."""

    def steps() -> Generator[int, None, None]:
        yield from (1, 2)

    async def waits() -> None:
        await asyncio.sleep(0)

    def end_each() -> None:
        ended: Any = own.iterate(steps())
        next(ended)
        ended.close()
        ended = own.iterate(steps())
        with contextlib.suppress(KeyError):
            ended.throw(KeyError)
        ended = own.run(waits())
        ended.send(None)
        ended.close()

    end_each()
    gc.collect()
    before = own.stats().live_blocks
    for _ in range(100):
        end_each()
    gc.collect()
    assert own.stats().live_blocks <= before


def test_what_is_dropped_ends_in_the_arena(own: Arena) -> None:
    """Its last step is the `finally`, whether the last reference goes or a collection finds it."""
    ended: list[bool] = []

    class Rows:
        def __init__(self) -> None:
            self.rows = own.iterate(self.each())

        def each(self) -> Iterator[int]:
            try:
                yield from (1, 2)
            finally:
                ended.append(active())

    async def waits() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            ended.append(active())

    class Catches:
        def each(self) -> Iterator[int]:
            try:
                yield 1
            except KeyError:
                try:
                    yield 3
                finally:
                    ended.append(active())

    class Nested(Rows):
        def __init__(self) -> None:
            self.rows = own.iterate(own.iterate(self.each()))

    next(Rows().rows)
    gc.collect()
    next(Nested().rows)
    gc.collect()
    assert ended == [True] * 2
    ended.clear()
    work: Any = own.run(waits())
    work.send(None)
    error = ValueError("pending while it ends")
    with pytest.raises(ValueError, match="pending"):
        try:
            raise error
        finally:
            del work
    assert ended == [True]

    # What nobody has begun does not begin now, and what somebody else has goes on.
    inner = Rows().each()
    next(inner)
    bound = own.iterate(inner)
    next(bound)
    del bound
    assert ended == [True]
    inner.close()
    with pytest.warns(RuntimeWarning, match="never awaited"):
        own.run(waits())
    assert ended == [True, False]

    # An iterator that has a close() of its own is dropped, not closed.
    class Plain:
        def __iter__(self) -> Any:
            return self

        def __next__(self) -> int:
            return 1

        def close(self) -> None:
            raise AssertionError

    next(own.iterate(Plain()))
    # Begun elsewhere, and suspended by a throw.
    inner = Catches().each()
    next(inner)
    bound = own.iterate(inner)
    assert bound.throw(KeyError()) == 3
    del inner, bound
    assert ended == [True, False, True]


def test_what_does_not_end_when_dropped_is_told(
    own: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stubborn() -> Iterator[int]:
        try:
            yield 1
        except GeneratorExit:
            yield 2

    told: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda seen: told.append(str(seen.exc_value)))
    other = Arena(malloc_arena.HEAP_DEFAULT, name="other")
    first, second = own.iterate(stubborn()), other.iterate(stubborn())
    assert next(first) == next(second) == 1
    with pytest.raises(ArenaError, match="nor while what"):
        other.close()
    del first, second
    assert ["ignored GeneratorExit" in each for each in told] == [True, True]
    told.clear()
    other.close()


def test_an_async_generator_that_is_dropped_ends_in_the_arena(own: Arena) -> None:
    ended: list[bool] = []

    async def steps() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            ended.append(active())

    kept: list[Any] = []

    async def until(count: int) -> None:
        while len(ended) < count:
            await asyncio.sleep(0)

    async def main() -> None:
        async for _ in own.iterate(steps()):
            break
        async for _ in own.bind(steps)():
            break
        await until(2)
        assert ended == [True] * 2
        kept.append(own.iterate(steps()))
        await anext(kept[0])
        await anext(own.iterate(Plain()))
        async for _ in steps():
            break
        await until(3)
        assert ended == [True, True, False]

    class Plain:
        def __aiter__(self) -> Plain:
            return self

        def __anext__(self) -> Any:
            return anext(other)

    other = steps()
    asyncio.run(main())
    # What is open when the loop ends is closed by it, in any order.
    assert sorted(map(str, ended)) == ["False"] * 2 + ["True"] * 3


def test_iterate_async_generator(own: Arena) -> None:
    async def steps() -> AsyncIterator[bool]:
        yield active()
        await asyncio.sleep(0)
        yield active()

    async def main() -> list[bool]:
        found = []
        async for value in own.iterate(steps()):
            found += [value, not active()]
        bound = own.iterate(steps())
        found.append(await anext(bound))
        await bound.aclose()
        return found

    assert asyncio.run(main()) == [True] * 5


def test_run_is_a_coroutine_to_everybody(own: Arena) -> None:
    async def work() -> tuple[int, str]:
        await asyncio.sleep(0)
        return 1, "tuple"

    class Awaitable:
        def __await__(self) -> Iterator[None]:
            return iter([None])

    run = own.run(work())
    assert isinstance(run, Coroutine)
    assert asyncio.iscoroutine(run)
    assert inspect.isawaitable(run)
    assert not asyncio.iscoroutine(own.iterate([1]))
    assert isinstance(own.iterate([1]), Generator)
    assert run.__name__ == "work"
    assert run.__qualname__ == work.__qualname__
    assert 'in arena "own"' in repr(run)
    assert asyncio.run(run) == (1, "tuple")
    with pytest.raises(RuntimeError, match="already awaited"):
        run.send(None)

    other: Coroutine[Any, Any, Any] = own.run(Awaitable())  # type: ignore[arg-type]
    assert other.__name__ in ("list_iterator", "Awaitable")
    assert other.send(None) is None
    with pytest.raises(KeyError, match="x"):
        other.throw(KeyError("x"))
    with pytest.raises(KeyError):
        other.throw(KeyError)
    with pytest.raises(TypeError):
        other.throw(1, 2, 3, 4)  # type: ignore[call-overload]
    with pytest.raises(StopIteration):
        other.send(None)
    other.close()


def test_steps_return_and_throw_whatever_it_is(own: Arena) -> None:
    def returns(value: object) -> Generator[None, None, object]:
        yield
        return value

    for value in (None, (), (1, 2), StopIteration(3), KeyError("x"), [4]):
        bound = own.iterate(returns(value))
        assert next(bound) is None
        with pytest.raises(StopIteration) as end:
            bound.send(None)
        assert end.value.value is value
        del end

    with pytest.raises(TypeError):
        own.iterate(5)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="needs an awaitable, not 'int'"):
        own.run(5)  # type: ignore[arg-type]


def test_run_awaits_what_has_a_send_of_its_own(own: Arena) -> None:
    class Connection:
        def send(self, message: object) -> None:
            raise AssertionError(message)

        def __await__(self) -> Generator[None, None, bool]:
            yield
            return active()

    async def main() -> bool:
        return await own.run(Connection())

    assert asyncio.run(main())


@pytest.mark.parametrize("way", ["close", "next", "del", "throw"])
def test_what_is_suspended_ends_in_the_arena_if_that_is_full(way: str) -> None:
    seen = bytearray(1)  # which nothing that runs in the arena makes longer

    def steps() -> Iterator[int]:
        try:
            while True:
                yield 1
                bytes(100)
        finally:
            seen[0] = malloc_arena._core._is_inside()  # type: ignore[attr-defined]

    arena = Arena(malloc_arena.HEAP_SECURE, limit=1 << 19, name="full")
    bound = arena.iterate(steps())
    assert next(bound) == 1
    kept: list[Any] = []
    for size in (4096, 512, 64, 32, 16):
        with contextlib.suppress(MemoryError):
            while True:
                kept.append(arena.buffer(size))
    with pytest.raises(MemoryError), arena:
        pass
    # Of any of them CPython wants a traceback, for which there is no room.
    with contextlib.suppress(MemoryError, KeyError):
        if way == "close":
            bound.close()
        elif way == "throw":
            bound.throw(KeyError())
        elif way == "next":
            next(bound)
    del bound
    assert seen[0] == 1
    kept.clear()
    gc.collect()
    arena.close()


def test_steps_of_a_closed_arena(own: Arena) -> None:
    other = Arena(malloc_arena.HEAP_DEFAULT, name="other")
    steps = other.iterate(iter([1]))
    other.close()
    with pytest.raises(ArenaError, match="closed"):
        next(steps)


def test_a_cycle_through_steps_is_collected(own: Arena) -> None:
    class Cycle:
        def __await__(self) -> Any:
            return self

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> None:
            raise StopIteration

        steps: Any

    for make in (own.run, own.iterate):
        cycle = Cycle()
        cycle.steps = make(cycle)
        gone = weakref.ref(cycle)
        del cycle
        gc.collect()
        assert gone() is None


def test_where_a_bound_coroutine_stands_can_be_seen(own: Arena) -> None:
    async def inner() -> None:
        await asyncio.sleep(60)

    async def work() -> None:
        await inner()

    async def main() -> None:
        for coroutine in (work(), own.run(work())):
            task = asyncio.create_task(coroutine)
            await asyncio.sleep(0)
            assert [frame.f_code.co_name for frame in task.get_stack()] == ["work"]
            assert "work() running at" in repr(task)
            assert inspect.getcoroutinestate(coroutine) == inspect.CORO_SUSPENDED
            task.cancel()
            await asyncio.wait([task])
            assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
            del task

    asyncio.run(main())
    rows = own.iterate(n for n in range(3))
    assert next(rows) == 0
    assert inspect.getgeneratorstate(rows) == inspect.GEN_SUSPENDED
    rows.close()
    assert inspect.getgeneratorstate(rows) == inspect.GEN_CLOSED
    assert not hasattr(own.iterate([1]), "gi_frame"), "a list's iterator has none"
