"""What is still alive in an arena, and who made it."""

from __future__ import annotations

import contextlib
import gc
import sys
from dataclasses import dataclass
from inspect import CO_OPTIMIZED

from . import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from .arena import Arena

_Module = type(sys)


@dataclass(frozen=True, slots=True)
class Escape:
    """One object that is alive in an arena; what it is, not what it says."""

    type: str
    size: int
    address: int
    traceback: tuple[str, ...]
    """Where it was made, as lines to be printed; empty unless tracemalloc was on."""


def find(arena: Arena) -> list[Escape]:
    """The objects of ARENA, the largest first. Memory that is not an object's own, the table of a
    dict or what a C library allocated, is in stats() only."""
    base, size = _core.region()
    found = [
        _escape(each) for each in _objects() if 0 <= id(each) - base < size and arena.owns(id(each))
    ]
    return sorted(found, key=lambda escape: (-escape.size, escape.address))


def _objects() -> Iterator[object]:
    """Every object that the collector tracks, those that they refer to, and those in the variables
    of running functions, which no tracked object refers to."""
    pending = gc.get_objects()
    seen = set(map(id, pending))
    for value in _variables():
        if id(value) not in seen:
            seen.add(id(value))
            pending.append(value)
    while pending:
        one = pending.pop()
        yield one
        # Of a module the collector may be shown more than lives: 3.12's _asyncio has it look at a
        # free list, whose objects must not be touched.
        # Both by the type: what an object says of itself runs its code.
        values: list[object] = (
            [object.__getattribute__(one, "__dict__")]
            if issubclass(type(one), _Module)
            else gc.get_referents(one)
        )
        if issubclass(type(one), dict):
            values += dict.keys(one)  # texts among them are not shown to the collector
        for value in values:
            if id(value) not in seen:
                seen.add(id(value))
                pending.append(value)


def _variables() -> Iterator[object]:
    for top in _core._frames():
        frame: FrameType | None = top
        while frame is not None:
            names = frame.f_locals
            with contextlib.suppress(Exception):  # of a class body, or exec(): any mapping
                yield from list(names.values())
            if frame.f_code.co_flags & CO_OPTIMIZED and isinstance(names, dict):
                names.clear()  # a copy, that would keep alive what the function lets go
            frame = frame.f_back


def _escape(one: object) -> Escape:
    made = type(one)
    name = type.__repr__(made)
    size = 0
    with contextlib.suppress(Exception):  # a metaclass of the program's own
        name = f"{made.__module__}.{made.__qualname__}"
    with contextlib.suppress(Exception):  # or a __sizeof__
        size = sys.getsizeof(one)
    lines: list[str] = []
    if "tracemalloc" in sys.modules or "_tracemalloc" in sys.modules:
        import tracemalloc

        traceback = tracemalloc.get_object_traceback(one)
        lines = traceback.format() if traceback is not None else []
    return Escape(name, size, id(one), tuple(lines))
