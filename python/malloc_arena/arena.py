"""Arena: on top of _core.Arena, the scopes of coroutines and generators, which C does not see."""

from __future__ import annotations

import sys
from _collections_abc import (  # type: ignore[attr-defined] # collections.abc costs 1 ms more
    AsyncGenerator,
    Coroutine,
    Generator,
    async_generator,
    coroutine,
    generator,
)

from . import _core
from .errors import ArenaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
    from types import CodeType, FrameType
    from typing import Any, ParamSpec, TypeVar, overload

    from .escapes import Escape
    from .receipt import Receipt, Stats

    P = ParamSpec("P")
    T = TypeVar("T")

    AnyAsyncGenerator = AsyncGenerator[Any, Any]
else:
    AnyAsyncGenerator = AsyncGenerator

    def overload(function):
        return function


Coroutine.register(_core._Run)
Generator.register(_core._Iterate)

_CO_GENERATOR, _CO_COROUTINE, _CO_ASYNC_GENERATOR = 0x20, 0x80, 0x200
_CO_ITERABLE_COROUTINE = 0x100  # a generator, of types.coroutine, that is awaited


class Arena(_core.Arena):
    """A heap with properties of its own. As a context manager, everything its block allocates in
    this thread lives in the arena, and is wiped when its last reference goes."""

    __slots__ = ()

    def run(self, awaitable: Awaitable[T]) -> Coroutine[Any, Any, T]:
        """Binds a coroutine: the arena is active in its steps only, not while it waits."""
        if isinstance(awaitable, (Coroutine, Generator)):
            return _core._Run(self, awaitable)
        if not hasattr(awaitable, "__await__"):
            raise TypeError(f"run() needs an awaitable, not {type(awaitable).__name__!r}")
        return _core._Run(self, self.call(awaitable.__await__))

    @overload
    def iterate(self, iterable: AsyncIterable[T]) -> AsyncGenerator[T, Any]: ...
    @overload
    def iterate(self, iterable: Iterable[T]) -> Generator[T, Any, Any]: ...  # noqa: F811
    def iterate(self, iterable: Any) -> Any:  # noqa: F811
        """Binds a generator, or any iterable: the arena is active in its steps only."""
        if hasattr(iterable, "__aiter__"):
            return _AsyncIterate(self, self.call(iterable.__aiter__))
        return _core._Iterate(self, self.call(iter, iterable))

    def bind(self, function: Callable[P, T]) -> Callable[P, T]:
        """The function, with the arena active in each call. A generator, an asynchronous one, or a
        coroutine that it returns is bound with iterate() or run()."""
        import functools

        bound: Callable[..., Any]
        flags = _code_flags(function)
        if flags & _CO_COROUTINE:

            async def bound(*args: Any, **kwargs: Any) -> Any:
                return await self.run(self.call(function, *args, **kwargs))  # type: ignore[arg-type]

        elif flags & _CO_GENERATOR and not flags & _CO_ITERABLE_COROUTINE:

            def bound(*args: Any, **kwargs: Any) -> Any:
                return (yield from self.iterate(self.call(function, *args, **kwargs)))  # type: ignore[call-overload]

        else:

            def bound(*args: Any, **kwargs: Any) -> Any:
                return self._bind_steps(self.call(function, *args, **kwargs))

        return functools.wraps(function)(bound)

    def _bind_steps(self, result: Any) -> Any:
        """What a function returned that does not look like one whose results have steps, but may
        call one: a wrapper, an object with a __call__."""
        kind = type(result)
        if kind is coroutine:
            return self.run(result)
        if kind is generator:
            awaited = result.gi_code.co_flags & _CO_ITERABLE_COROUTINE
            return self.run(result) if awaited else self.iterate(result)
        return self.iterate(result) if kind is async_generator else result

    def scope(self, *, sweep: bool = False) -> _core.Scope:
        """``with arena.scope(sweep=True):`` also sweeps, before and after."""
        return _core.Scope(self, sweep)

    def sweep(self) -> None:
        """Empties the places where CPython and its library keep dead or cached values: free lists
        and garbage (by a full collection, which is nearly all of the time it takes), compiled
        regular expressions, date formats, parsed URLs, what functools.lru_cache keeps of arenas,
        the type cache, lines of source, warnings, sys.last_*; and wipes all of the thread's stack
        that is dead."""
        _core._outside(_sweep, self.kind != _core.HEAP_DEFAULT)

    def buffer(self, size: int) -> _core.SecretBuffer:
        """Zeroed bytes of this arena's kind, wiped at close(). Those of get() lie beside it, in C's
        arena of the kind, which a forked child finds wiped, and have a receipt of their own."""
        return _core.SecretBuffer(size, self)

    @property
    def receipt(self) -> Receipt:
        """What protection was really obtained."""
        return _core._outside(_read_receipt, self)

    def stats(self) -> Stats:
        """What the arena holds now."""
        return _core._outside(_read_stats, self)

    def escapes(self) -> list[Escape]:
        """The objects that are alive in the arena, the largest first, each with the traceback of
        where it was made, if tracemalloc was on then. It looks at every object of the process."""
        return _core._outside(_escapes, self)


def _code_flags(function: Any) -> int:
    """Of the function that is called in the end, as inspect.iscoroutinefunction() sees it."""
    import functools

    while isinstance(function, (functools.partial, staticmethod)):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    return getattr(getattr(function, "__code__", None), "co_flags", 0)


# Whatever these import, and what they count with, must not stay in the arena.


def _read_receipt(arena: Arena) -> Receipt:
    from .receipt import make_receipt

    return make_receipt(arena.kind, *arena._receipt())


def _read_stats(arena: Arena) -> Stats:
    from .receipt import make_stats

    return make_stats(*arena._stats())


def _sweep(has_secrets: bool) -> None:
    try:
        from .sweep import sweep, sweep_budget
    except ImportError:
        if getattr(sys, "meta_path", None) is None:
            return  # the interpreter ends, and has taken the modules away with what they kept
        raise
    (sweep if has_secrets else sweep_budget)()


def _escapes(arena: Arena) -> list[Escape]:
    from .escapes import find

    return find(arena)


_shared: dict[int, Arena] = {}


def get(kind: int) -> Arena:
    """Python's own arena of that kind; the same object at each call. ArenaUnavailable where the
    machine cannot give it."""
    arena = _shared.get(kind)
    return arena if arena is not None else _shared.setdefault(kind, Arena._shared(kind))


class _AsyncIterate(AnyAsyncGenerator):
    """The steps of an inner asynchronous generator, each in the arena."""

    __slots__ = ("__weakref__", "_arena", "_begun", "_inner")

    def __init__(self, arena: Arena, inner: AsyncIterator[Any]) -> None:
        self._arena = arena
        self._inner: Any = inner
        self._begun = not hasattr(inner, "ag_frame")

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("ag_"):  # at which an event loop looks
            raise AttributeError(name)
        return getattr(self._inner, name)

    def _step(self, name: str, *args: Any) -> Any:
        if self._begun:
            step = getattr(self._inner, name)(*args)
        else:
            self._begun = True
            step = self._begin(getattr(self._inner, name), *args)
        return self._arena.run(step)

    def _begin(self, step: Callable[..., Any], *args: Any) -> Any:
        """The first step, at which a generator asks who closes it if nobody else does: an event
        loop that is told of this one, and not of the inner one, takes these steps in the arena as
        well."""
        arena, inner, hooks = self._arena, self._inner, sys.get_asyncgen_hooks()
        told, closes = hooks.firstiter, hooks.finalizer
        try:
            sys.set_asyncgen_hooks(
                told and (lambda begun: told(self if begun is inner else begun)),
                closes and (lambda left: closes(_AsyncIterate(arena, left))),
            )
            return step(*args)
        finally:
            sys.set_asyncgen_hooks(*hooks)

    def __anext__(self) -> Any:
        return self._step("__anext__")

    def asend(self, value: Any) -> Any:
        return self._step("asend", value)

    def athrow(self, *error: Any) -> Any:
        return self._step("athrow", *error)

    def aclose(self) -> Any:
        return self._step("aclose")


def check_frame(frame: FrameType) -> None:
    """ArenaError if the `with` that a generator or coroutine is entering has a yield or an await in
    its block: suspended there, it would leave the arena active in its caller, or in other tasks."""
    code = frame.f_code
    if not code.co_flags & (_CO_GENERATOR | _CO_COROUTINE | _CO_ASYNC_GENERATOR):
        return
    if _may_suspend(code, frame.f_lasti):
        raise ArenaError(
            f"the block of this `with` in {code.co_qualname} ({code.co_filename}:{frame.f_lineno}) "
            "yields or awaits, and would leave the arena active in whatever runs meanwhile: use "
            "arena.iterate() for a generator, await arena.run() for a coroutine, arena.bind() for "
            "the function, or arena.call() for a single step"
        )


def _may_suspend(code: CodeType, offset: int) -> bool:
    import opcode

    before_with = opcode.opmap.get("BEFORE_WITH")
    yield_value = opcode.opmap["YIELD_VALUE"]
    bytecode = code.co_code
    if bytecode[offset] != before_with:
        return False  # an explicit call of __enter__: no block to look at
    handlers = _handlers(code.co_exceptiontable)

    def handler(at: int) -> int | None:
        return next((target for start, end, target in handlers if start <= at < end), None)

    exit_handler = handler(offset + 2)
    for at in range(offset + 2, len(bytecode), 2):
        if bytecode[at] == yield_value:
            # Blocks within the block have handlers of their own, which lie in it in turn.
            outer = handler(at)
            while outer is not None and outer != exit_handler:
                outer = handler(outer)
            if outer is not None:
                return True
    return False


def _handlers(table: bytes) -> list[tuple[int, int, int]]:
    """(start, end, target) in bytes, of an exception table (Objects/exception_handling_notes.txt of
    CPython): groups of four numbers, six bits a byte, most significant first."""
    numbers: list[int] = []
    value = 0
    for byte in table:
        value = value << 6 | byte & 0x3F
        if not byte & 0x40:
            numbers.append(value)
            value = 0
    return [
        (2 * start, 2 * (start + length), 2 * target)
        for start, length, target in zip(numbers[::4], numbers[1::4], numbers[2::4], strict=True)
    ]
