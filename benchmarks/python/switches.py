"""What a switch between greenlets costs: before a thread's first scope, after it, and in one.

python benchmarks/python/switches.py: medians of 11 rounds, in nanoseconds.
"""

from __future__ import annotations

import statistics
import time

import greenlet

import malloc_arena

SWITCHES = 20_000
ROUNDS = 11


def measure(*, in_scope: bool = False) -> float:
    main = greenlet.getcurrent()

    def work() -> None:
        while True:
            main.switch()

    worker = greenlet.greenlet(vault.call if in_scope else work)
    worker.switch(*((work,) if in_scope else ()))
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        for _ in range(SWITCHES // 2):
            worker.switch()
        rounds.append((time.perf_counter_ns() - start) / SWITCHES)
    return statistics.median(rounds)


vault = malloc_arena.get(malloc_arena.HEAP_SECURE)
print(f"before the first scope {measure():8.0f}")
with vault:
    pass
print(f"after it               {measure():8.0f}")
print(f"one in a scope         {measure(in_scope=True):8.0f}")
