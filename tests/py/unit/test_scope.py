"""`with arena`: what the block allocates is in the arena, whatever happens to the block."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import malloc_arena
import malloc_arena.sweep
from conftest import Child, empty, memory, wiped
from malloc_arena import HEAP_DEFAULT, HEAP_ISOLATED, HEAP_SECURE, Arena, ArenaError


def in_region(obj: object) -> bool:
    base, size = malloc_arena.region()
    return base <= id(obj) < base + size


SAMPLES: list[Callable[[], Any]] = [
    lambda: "".join(["secret", "é", "x" * 40]),
    lambda: b"".join([b"secret"] * 9),
    lambda: bytearray(b"secret" * 9),
    lambda: int("9" * 50),
    lambda: {str(n) for n in range(100)},
    lambda: tuple([object() for _ in range(40)]),
    lambda: bytes(5000),
    lambda: bytes(200_000),
    lambda: memoryview(bytes(100)),
    lambda: lambda: None,
    lambda: type("Made", (), {}),
    lambda: sys.maxsize * 1.5j,
]


@pytest.mark.parametrize("kind", [HEAP_SECURE, HEAP_DEFAULT, HEAP_SECURE | HEAP_ISOLATED])
@pytest.mark.parametrize("make", SAMPLES)
def test_objects_live_in_the_arena(kind: int, make: Callable[[], Any]) -> None:
    arena = malloc_arena.get(kind)
    gc.collect()  # empties the free lists, whose objects are where they are
    with arena:
        inside = make()
    outside = make()
    assert arena.owns(id(inside))
    assert in_region(inside)
    assert not arena.owns(id(outside))
    assert not in_region(outside)


def test_what_containers_hold_lives_in_the_arena(own: Arena) -> None:
    """Their own headers may come from a free list, and be older than the scope."""
    with own:
        items = [str(n) for n in range(100, 1100)]
        table = {str(n): {n} for n in range(1000)}
    assert all(own.owns(id(item)) for item in items)
    assert all(own.owns(id(key)) and own.owns(id(value)) for key, value in table.items())
    assert own.stats().live_bytes > sys.getsizeof(items) + sys.getsizeof(table)


class Buffer(bytearray):
    pass


class Count:
    def __index__(self) -> int:
        return 7


def made(kind: type[bytearray], *arguments: Any, **keywords: Any) -> tuple[Any, ...]:
    try:
        array = kind(*arguments, **keywords)
    except Exception as error:
        return type(error), str(error)
    seen = (type(array), bytes(array), len(array), array.__alloc__())
    array += b"more"
    array[:2] = b"less"
    del array[-3:]
    array.__init__(2)  # type: ignore[misc]
    return *seen, bytes(array), array.__alloc__()


@pytest.mark.parametrize("kind", [bytearray, Buffer])
@pytest.mark.parametrize("which", [HEAP_SECURE, HEAP_DEFAULT, HEAP_SECURE | HEAP_ISOLATED])
def test_a_bytearray_of_a_count_is_what_it_is_outside(which: int, kind: type[bytearray]) -> None:
    arena = malloc_arena.get(which)
    arguments: list[tuple[Any, ...]] = [(), (b"bytes",), ("text",), ("text", "ascii"), ([1, 2],)]
    arguments += [(Count(),), (True,), (7.0,), (None,), (2, 3), (0,), (-1,), (1,), (7,), (600,)]
    arguments += [(n,) for n in (5000, 100_000, sys.maxsize, sys.maxsize - 1, 1 << 70, -1 << 70)]
    for some in arguments:
        outside = made(kind, *some)
        with arena:
            inside = made(kind, *some)
        if outside[0] is not MemoryError:
            assert inside == outside
        assert inside[0] == outside[0]
    for keywords in ({"source": 7}, {"source": "text", "encoding": "utf-8"}):
        outside = made(kind, **keywords)
        with arena:
            assert made(kind, **keywords) == outside


def test_a_bytearray_of_a_count_is_zero_where_other_data_was(own: Arena) -> None:
    for size in (20, 700, 5000, 100_000):
        with own:
            for _ in range(20):
                assert bytearray(size).count(0) == size
                bytearray(b"secret" * size)
                kept = bytearray(size)
        assert own.owns(id(kept))
        assert kept.count(0) == size
        address = ctypes.addressof(ctypes.c_char.from_buffer(kept))
        assert own.owns(address)


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_a_bytearray_of_a_count_is_not_written() -> None:
    """Its memory is zero. It is not locked, which would make its pages."""
    arena = Arena(HEAP_SECURE, name="unlocked", lock="off")
    before = resident()
    with arena:
        array = bytearray(64 << 20)
        array[1 << 20] = 1
    assert resident() - before < 8 << 20
    del array
    arena.close()


def test_wiped_when_the_last_reference_goes(own: Arena) -> None:
    with own:
        secret = "".join(["correct ", "horse ", "battery"]).encode()
    address, size = id(secret), sys.getsizeof(secret)
    assert b"correct horse" in memory(address, size)
    alias = secret
    del secret
    assert b"correct horse" in memory(address, size)
    del alias
    assert wiped(address, size)
    assert empty(own)


def test_wiped_in_another_thread(own: Arena) -> None:
    with own:
        box = [b"correct horse battery" + bytes([10, 11, 12])]
    address, size = id(box[0]), sys.getsizeof(box[0])
    assert own.owns(address)
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    assert wiped(address, size)


def test_a_thread_is_not_in_the_scope_of_another(own: Arena) -> None:
    made: list[object] = []
    entered, go = threading.Event(), threading.Event()

    def work() -> None:
        entered.wait()
        made.append(bytes(1000))
        go.set()

    thread = threading.Thread(target=work)
    thread.start()
    with own:
        entered.set()
        go.wait()
    thread.join()
    assert not own.owns(id(made[0]))


def test_many_short_threads(own: Arena) -> None:
    kept: list[bytes] = []

    def work(n: int) -> None:
        with own:
            kept.append(b"".join([str(n).encode()] * 50))
            for _ in range(20):
                [bytes(n + m) for m in range(50)]

    for start in range(0, 200, 8):
        threads = [threading.Thread(target=work, args=(start + n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(kept) == 200
    assert all(own.owns(id(value)) for value in kept)
    assert {value[:3] for value in kept if len(value) == 150} == {
        str(n).encode() for n in range(100, 200)
    }
    kept.clear()
    assert empty(own)


def test_small_thread_stacks(own: Arena) -> None:
    """The scrub at the end of a scope must not run over the end of a small stack."""
    before = threading.stack_size(max(64 * 1024, os.sysconf("SC_THREAD_STACK_MIN")))
    try:
        done: list[int] = []

        def work() -> None:
            for n in range(10):
                with own:
                    done.append(n)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert len(done) == 10


def test_exceptions_end_the_scope(own: Arena) -> None:
    with pytest.raises(ZeroDivisionError), own:
        _ = 1 // 0
    assert not own.owns(id(bytes(100)))
    for _ in range(1000):
        with contextlib.suppress(KeyError), own:
            raise KeyError("".join(["a", "b"]))
    assert not in_region(bytes(100))


def test_nesting() -> None:
    a, b = (Arena(HEAP_SECURE, name=name) for name in "ab")
    with a:
        one = bytes(100)
        with b:
            two = bytes(100)
            with a, a:
                three = bytes(100)
            four = bytes(100)
        five = bytes(100)
    six = bytes(100)
    where = [next((x.name for x in (a, b) if x.owns(id(y))), "") for y in (one, two, three, four)]
    assert where == ["a", "b", "a", "b"]
    assert a.owns(id(five))
    assert not in_region(six)
    del one, two, three, four, five
    a.close()
    b.close()


def test_wrong_order_raises_and_changes_nothing() -> None:
    a, b = (Arena(HEAP_SECURE, name=name) for name in "ab")
    with pytest.raises(ArenaError, match='"a" is left where it is not active'):
        a.__exit__(None, None, None)
    a.__enter__()
    b.__enter__()
    with pytest.raises(ArenaError, match='"a" is left while arena "b"'):
        a.__exit__(None, None, None)
    inside = bytes(100)
    b.__exit__(None, None, None)
    after = bytes(100)
    a.__exit__(None, None, None)
    assert b.owns(id(inside))
    assert a.owns(id(after))
    assert not in_region(bytes(100))


def test_exit_in_another_thread_raises(own: Arena) -> None:
    own.__enter__()
    errors: list[BaseException] = []

    def leave() -> None:
        try:
            own.__exit__(None, None, None)
        except ArenaError as error:
            errors.append(error)

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    still = bytes(100)
    own.__exit__(None, None, None)
    assert own.owns(id(still))
    assert "another thread" in str(errors[0])
    assert not own.owns(id(bytes(100)))
    del still, thread, leave
    errors.clear()


def test_exit_stack(own: Arena) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(own)
        inside = own.owns(id(bytes(100)))
    assert inside
    assert not own.owns(id(bytes(100)))
    del stack


def suspended_generator(arena: Arena) -> Iterator[int]:
    with arena:
        yield 1


def suspended_deep(arena: Arena) -> Iterator[int]:
    for _ in range(2):
        try:
            with contextlib.suppress(KeyError), arena:
                try:
                    _ = [n * n for n in range(3)]
                finally:
                    with contextlib.suppress(ValueError):
                        yield 1
        except ZeroDivisionError:
            yield 2


def suspended_scope(arena: Arena) -> Iterator[int]:
    with arena.scope():
        yield 1


async def suspended_coroutine(arena: Arena) -> None:
    with arena:
        await never()


async def suspended_async_generator(arena: Arena) -> AsyncIterator[int]:
    with arena:
        yield 1


async def suspended_async_for(arena: Arena) -> None:
    with arena:
        async for _ in suspended_async_generator(arena):
            pass


async def never() -> None:
    pass


@pytest.mark.parametrize("make", [suspended_generator, suspended_deep, suspended_scope])
def test_a_generator_cannot_be_suspended_inside(
    own: Arena, make: Callable[[Arena], Iterator[int]]
) -> None:
    for _ in range(2):
        with pytest.raises(ArenaError, match="yields or awaits"):
            next(make(own))
        assert not own.owns(id(bytes(100)))


@pytest.mark.parametrize("make", [suspended_coroutine, suspended_async_for])
def test_a_coroutine_cannot_be_suspended_inside(own: Arena, make: Callable[[Arena], Any]) -> None:
    with pytest.raises(ArenaError, match="yields or awaits"):
        make(own).send(None)
    with pytest.raises(ArenaError, match="yields or awaits"):
        suspended_async_generator(own).__anext__().send(None)  # type: ignore[attr-defined]


def test_each_block_of_a_coroutine_is_checked_where_it_stands(own: Arena) -> None:
    async def both(can_suspend: bool) -> list[bool]:
        with own:
            found = [own.owns(id(bytes(100)))]
        with own:
            found.append(own.owns(id(bytes(100))))
        if can_suspend:
            with own:
                await never()
        return found

    for _ in range(3):
        with pytest.raises(StopIteration) as stopped:
            both(False).send(None)
        assert stopped.value.value == [True, True]
        with pytest.raises(ArenaError, match="yields or awaits"):
            both(True).send(None)
        assert not own.owns(id(bytes(100)))


def test_what_is_known_of_a_block_goes_with_its_code(own: Arena) -> None:
    """Other code in the same place in memory is checked anew, and nothing keeps the old."""

    def made(body: str) -> Callable[[Arena], Iterator[int]]:
        space: dict[str, Any] = {}
        exec(f"def steps(own):\n  with own:\n{body}", {}, space)
        return space["steps"]  # type: ignore[no-any-return]

    for _ in range(200):
        steps = made("    pass\n  yield 1")
        assert list(steps(own)) == [1]
        code = weakref.ref(steps.__code__)
        del steps
        assert code() is None
        with pytest.raises(ArenaError, match="yields or awaits"):
            list(made("    yield 1\n  pass")(own))


def test_a_generator_may_have_scopes_between_its_steps(own: Arena) -> None:
    def steps() -> Iterator[bool]:
        yield in_region(bytes(100))
        try:
            with own:
                found = in_region(bytes(100))
                for _ in range(3):
                    with contextlib.suppress(KeyError):
                        raise KeyError
        finally:
            yield found
        with own:
            found = in_region(bytes(100))
        yield found
        yield in_region(bytes(100))

    assert list(steps()) == [False, True, True, False]

    async def work() -> bool:
        await never()
        with own:
            found = in_region(bytes(100))
        await never()
        return found

    with pytest.raises(StopIteration) as end:
        work().send(None)
    assert end.value.value is True


def test_a_container_from_outside_moves_in(own: Arena) -> None:
    for make in (list, bytearray):
        for size in (0, 1, 30, 100, 1000, 100_000):
            container: Any = make(bytes(range(1, 101)) * (size // 100 + 1))[:size]
            reference = bytes(container)
            with own:
                container.extend(b"more" * (size // 4 + 3))
            assert bytes(container) == reference + b"more" * (size // 4 + 3)
            assert own.stats().live_blocks >= 1, (make, size)
            for _ in range(5):
                container.extend(b"and more outside" * 50)
            assert own.stats().live_blocks >= 1, "a block of the arena stays in it"
            assert bytes(container).startswith(reference)
            del container
            assert empty(own)


def test_shrinking_a_container_from_outside(own: Arena) -> None:
    for size in (40, 500, 5000, 300_000):
        container = bytearray(os.urandom(size))
        reference = bytes(container)
        with own:
            del container[size // 3 :]
        assert container == reference[: size // 3]
        del container
    assert empty(own)


@pytest.mark.parametrize("domain", ["PyMem_Raw", "PyMem_", "PyObject_"])
def test_the_domains_keep_their_rules(own: Arena, domain: str) -> None:
    """Size 0 is a block of its own, calloc zeroes, an impossible size is refused without loss."""
    api = [
        getattr(ctypes.pythonapi, domain + name) for name in ("Malloc", "Calloc", "Realloc", "Free")
    ]
    for function in api:
        function.restype = ctypes.c_void_p
    malloc, calloc, realloc, free = api
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    with own:
        blocks = [malloc(size(0)), malloc(size(0)), calloc(size(0), size(8)), malloc(size(100))]
        blocks.append(realloc(None, size(100)))
        blocks[3] = realloc(pointer(blocks[3]), size(0))
        zeros = calloc(size(10), size(10))
    assert None not in blocks
    assert len(set(blocks)) == 5
    assert all(own.owns(block) for block in [*blocks, zeros])
    assert memory(zeros, 100) == bytes(100)
    blocks[0] = realloc(pointer(blocks[0]), size(5000))
    assert own.owns(blocks[0]), "a block stays in its arena, whatever is active"
    outside = malloc(size(100))
    ctypes.memset(outside, 7, 100)
    with own:
        assert calloc(size(1 << 40), size(1 << 40)) is None
        assert realloc(pointer(outside), size(1 << 62)) is None
        assert realloc(pointer(zeros), size(1 << 62)) is None
    assert memory(outside, 100) == bytes([7]) * 100
    assert not own.owns(outside)
    for block in [*blocks, zeros, outside]:
        free(pointer(block))
    assert empty(own)


def test_scope_and_sweep(own: Arena) -> None:
    import re

    cached = re.compile("".join(["a", "b"]))
    with own.scope(sweep=True) as arena:
        assert arena is own
        assert re.compile("".join(["a", "b"])) is not cached
        items = [str(n) for n in range(100)]
        assert own.owns(id(items))
        del items
    assert empty(own)


def test_a_scope_again_and_within_itself(own: Arena) -> None:
    scope = own.scope()
    for _ in range(2):
        with scope:
            with scope as arena:
                assert arena is own
                assert own.owns(id(bytes(100)))
            assert own.owns(id(bytes(100)))
        assert not own.owns(id(bytes(100)))
    with contextlib.ExitStack() as stack:
        stack.enter_context(scope)
        assert own.owns(id(bytes(100)))
        del stack
    assert not own.owns(id(bytes(100)))


def test_a_scope_that_is_left_in_the_wrong_order_stays(
    own: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[bool] = []
    monkeypatch.setattr(malloc_arena.sweep, "sweep", lambda: swept.append(True))
    scope = own.scope(sweep=True)
    with pytest.raises(ArenaError, match='"own" is left where it is not active'):
        scope.__exit__(None, None, None)
    with scope, Arena(HEAP_SECURE, name="inner") as inner:
        with pytest.raises(ArenaError, match='"own" is left while arena "inner"'):
            scope.__exit__(None, None, None)
        assert inner.owns(id(bytes(100)))
        assert len(swept) == 1
    assert len(swept) == 2


def test_a_scope_is_no_place_to_suspend_in_and_is_not_swept_for(
    own: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[bool] = []
    monkeypatch.setattr(malloc_arena.sweep, "sweep", lambda: swept.append(True))

    def suspended() -> Iterator[int]:
        with own.scope(sweep=True):
            yield 1

    def between() -> Iterator[bool]:
        with own.scope(sweep=True):
            found = in_region(bytes(100))
        yield found

    with pytest.raises(ArenaError, match="yields or awaits"):
        next(suspended())
    assert not swept
    assert list(between()) == [True]
    assert len(swept) == 2


def test_a_sweep_that_is_interrupted_leaves_no_scope_open(
    own: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    where: list[bool] = []

    class Interrupt(BaseException):
        pass

    def sweep() -> None:
        where.append(in_region(bytes(100)))
        if len(where) == fails:
            raise Interrupt

    monkeypatch.setattr(malloc_arena.sweep, "sweep", sweep)
    for fails in (1, 2):
        where.clear()
        with pytest.raises(Interrupt) as caught, own.scope(sweep=True):
            assert fails == 2
            raise KeyError
        assert isinstance(caught.value.__context__, KeyError) == (fails == 2)
        assert where == [False] * fails
        assert not in_region(bytes(100))
    del caught


@pytest.mark.parametrize("make", ["vault", "vault.scope()", "vault.scope(sweep=True)"])
def test_an_interrupt_leaves_no_scope_open(child: Callable[..., Child], make: str) -> None:
    """Whatever the instruction at which a signal's handler raises."""
    process = child(
        """
import signal, time
class Interrupt(Exception): pass
def interrupt(*_): raise Interrupt
signal.signal(signal.SIGALRM, interrupt)
vault = get(HEAP_SECURE)
base, size = malloc_arena.region()
def inside(): return base <= id(bytes(100)) < base + size
def work(): return [1] * 10

# It comes in the middle of one long instruction, and is looked at with the next call.
try:
    with MAKE:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        0.5 in range(2_000_000)
except Interrupt:
    pass
assert not inside()

# A function, as the jump back of a loop is not always covered by a `try` around it (CPython 3.13).
def loop():
    until = time.monotonic() + 0.1
    while time.monotonic() < until:  # a finalizer may have got it
        with MAKE: work()

caught = 0
for n in range(400):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0003 + n % 97 * 1e-6)
        loop()
    except Interrupt:
        caught += 1
    assert not inside(), n
assert caught > 300
""".replace("MAKE", make)
    )
    process.ends()


def test_live_objects_survive_everything(own: Arena) -> None:
    with own:
        kept = {str(n): [n, bytes([n % 256]) * n] for n in range(500)}
    for n in range(500):
        kept.pop(str(n)) if n % 3 else None
    for n in range(500):
        kept[str(1000 + n)] = [n, bytes(n)]
    for n in range(0, 500, 3):
        assert kept[str(n)] == [n, bytes([n % 256]) * n]
    kept.clear()
    del kept
    assert empty(own)
