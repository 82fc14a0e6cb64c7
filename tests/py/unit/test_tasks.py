"""asyncio: tasks in and out of scopes, cancelled, failed, and nested."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

import malloc_arena
from malloc_arena import HEAP_SECURE, Arena


def where(*arenas: Arena) -> str:
    made = bytes(100)
    return next((arena.name for arena in arenas if arena.owns(id(made))), "none")


@pytest.fixture
def other() -> Arena:
    return Arena(HEAP_SECURE, name="other")


def test_tasks_side_by_side(own: Arena, other: Arena) -> None:
    async def work(steps: int) -> set[str]:
        seen = set()
        for _ in range(steps):
            seen.add(where(own, other))
            await asyncio.sleep(0)
        return seen

    async def main() -> list[set[str]]:
        return await asyncio.gather(
            own.run(work(20)), work(30), other.run(work(25)), own.run(work(5)), work(1)
        )

    assert asyncio.run(main()) == [{"own"}, {"none"}, {"other"}, {"own"}, {"none"}]


def test_nested_runs(own: Arena, other: Arena) -> None:
    seen: list[str] = []

    async def inner() -> None:
        seen.append(where(own, other))
        await asyncio.sleep(0)
        seen.append(where(own, other))

    async def outer() -> None:
        seen.append(where(own, other))
        await other.run(inner())
        seen.append(where(own, other))
        with other:
            seen.append(where(own, other))
        await inner()
        await asyncio.create_task(inner())  # a task of its own is not in the scope

    asyncio.run(own.run(outer()))  # type: ignore[arg-type]
    assert seen == ["own", "other", "other", "own", "other", "own", "own", "none", "none"]
    assert where(own, other) == "none"


@pytest.mark.parametrize("catches", [False, True])
def test_cancellation(own: Arena, catches: bool) -> None:
    seen: list[str] = []

    async def work() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append(where(own))
            if not catches:
                raise
        finally:
            seen.append(where(own))
            await asyncio.sleep(0)
            seen.append(where(own))
        return where(own)

    async def main() -> None:
        task = asyncio.create_task(own.run(work()))
        await asyncio.sleep(0.01)
        assert where(own) == "none"
        task.cancel()
        if catches:
            assert await task == "own"
        else:
            with pytest.raises(asyncio.CancelledError):
                await task
        assert where(own) == "none"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(own.run(asyncio.sleep(60)), 0.01)
        async with asyncio.timeout(10):
            await own.run(asyncio.sleep(0))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await own.run(asyncio.sleep(60))
        assert where(own) == "none"

    asyncio.run(main())
    assert seen == ["own"] * 3


def test_failures_in_a_group(own: Arena) -> None:
    seen: list[str] = []

    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError(where(own))

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            seen.append(where(own))

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(own.run(waits()))
            group.create_task(waits())
            group.create_task(own.run(fails()))

    with pytest.raises(ExceptionGroup) as failed:
        asyncio.run(main())
    assert failed.value.exceptions[0].args == ("own",)
    assert sorted(seen) == ["none", "own"]
    assert where(own) == "none"


async def numbers(own: Arena, seen: list[str]) -> AsyncIterator[int]:
    try:
        for n in range(5):
            seen.append(where(own))
            await asyncio.sleep(0)
            try:
                yield n
            except KeyError:
                seen.append("caught " + where(own))
    finally:
        seen.append("closed " + where(own))
        await asyncio.sleep(0)


def test_async_generators(own: Arena) -> None:
    async def whole() -> list[int]:
        seen: list[str] = []
        got = []
        async for n in own.iterate(numbers(own, seen)):
            assert where(own) == "none"
            got.append(n)
        assert seen == ["own"] * 5 + ["closed own"]
        return got

    async def thrown_into() -> list[str]:
        seen: list[str] = []
        generator: Any = own.iterate(numbers(own, seen))
        assert await anext(generator) == 0
        assert await generator.athrow(KeyError()) == 1
        with pytest.raises(ValueError, match="out"):
            await generator.athrow(ValueError("out"))
        assert where(own) == "none"
        return seen

    async def closed_early() -> list[str]:
        seen: list[str] = []
        async with contextlib.aclosing(own.iterate(numbers(own, seen))) as generator:
            async for _ in generator:
                break
        return seen

    async def main() -> Any:
        return await asyncio.gather(whole(), thrown_into(), closed_early(), own.run(whole_inside()))

    async def whole_inside() -> list[str]:
        return [where(own) async for _ in numbers(own, [])]

    whole_got, thrown, closed, inside = asyncio.run(main())
    assert whole_got == list(range(5))
    assert thrown == ["own", "caught own", "own", "closed own"]
    assert closed == ["own", "closed own"]
    assert inside == ["own"] * 5


def test_what_a_loop_calls_back(own: Arena) -> None:
    """Callbacks and tasks made in a scope are the loop's: not in it."""
    seen: list[str] = []

    async def work() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: seen.append(where(own)))
        task = asyncio.ensure_future(asyncio.sleep(0))
        task.add_done_callback(lambda _: seen.append(where(own)))
        await task
        await asyncio.sleep(0)
        seen.append(where(own))

    asyncio.run(own.run(work()))  # type: ignore[arg-type]
    assert seen == ["none", "none", "own"]


def test_many_requests(vault: Arena) -> None:
    """As a server does: nothing grows."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        writer.write(line.upper())
        await writer.drain()
        writer.close()

    async def main(count: int) -> None:
        server = await asyncio.start_server(
            lambda reader, writer: vault.run(handle(reader, writer)), "127.0.0.1", 0
        )
        port = server.sockets[0].getsockname()[1]
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"hello\n")
            assert await reader.readline() == b"HELLO\n"
            writer.close()
            await writer.wait_closed()
        server.close()
        await server.wait_closed()

    import gc

    blocks = []
    for _ in range(4):
        asyncio.run(main(50))
        gc.collect()
        blocks.append(vault.stats().live_blocks)
    assert blocks[3] <= blocks[1] + 10, blocks
    assert malloc_arena.get(HEAP_SECURE) is vault
