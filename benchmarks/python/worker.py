"""One condition in a process of its own: python worker.py absent|inactive|left|active.

Each line of input, "NAME COUNT", is answered with the nanoseconds of COUNT rounds of that work, as
CPU time of this process: what others do on the machine is not in it.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Coroutine
from typing import Any

from programs import MICROS, PROGRAMS, Work


def timed(work: Work, count: int) -> int:
    rounds = range(count)
    begun = time.process_time_ns()
    for _ in rounds:
        work()
    return time.process_time_ns() - begun


def entering(vault: Any, count: int) -> int:
    rounds = range(count)
    begun = time.process_time_ns()
    for _ in rounds:
        with vault:
            pass
    return time.process_time_ns() - begun


async def entering_in_coroutine(vault: Any, count: int) -> int:
    rounds = range(count)
    begun = time.process_time_ns()
    for _ in rounds:
        with vault:
            pass
    return time.process_time_ns() - begun


def result_of(coroutine: Coroutine[Any, Any, int]) -> int:
    """Of one that does not wait for anything."""
    try:
        coroutine.send(None)
    except StopIteration as stopped:
        return int(stopped.value)
    raise AssertionError("it waits")


def main(condition: str) -> None:
    vault: Any = None
    if condition != "absent":
        import malloc_arena

        vault = malloc_arena.get(malloc_arena.HEAP_SECURE)
    if condition == "left":
        with vault:
            pass
    ready: dict[str, Work] = {}
    for line in sys.stdin:
        name, number = line.split()
        count = int(number)
        if name == "enter_leave":
            entering(vault, count // 10)
            spent = entering(vault, count)
        elif name == "enter_leave_in_coroutine":
            result_of(entering_in_coroutine(vault, count // 10))
            spent = result_of(entering_in_coroutine(vault, count))
        else:
            if name not in ready:
                ready[name] = {**MICROS, **PROGRAMS}[name]()
            work = ready[name]
            gc.collect()
            if condition == "active":
                with vault:
                    timed(work, max(count // 10, 1))
                    spent = timed(work, count)
            else:
                timed(work, max(count // 10, 1))
                spent = timed(work, count)
        print(spent, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
