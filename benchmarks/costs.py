"""What each mitigation costs by itself: the same work with and without it, one right after the
other, in so many rounds; the medians of both, and of their ratio. docs/design quotes it.

    python benchmarks/costs.py [--rounds N] [NAME...]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILT = ROOT / "build-bench"
MEMLOCK = 8 << 20


def bench(contender: str, workload: str, argument: str, options: str = "") -> float:
    """Nanoseconds of one operation of bench.c."""
    done = subprocess.run(
        [BUILT / f"bench-{contender}", workload, str(MEMLOCK), "0", "1", argument],
        env=os.environ | {"MALLOC_ARENA_OPTIONS": options},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(done.stdout)["ns"])


def timed(action: Callable[[], object], times: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(times):
        action()
    return (time.perf_counter_ns() - start) / times


def pair(without: Callable[[], float], with_it: Callable[[], float]) -> list[Callable[[], float]]:
    return [without, with_it]


def options(workload: str, argument: str, off: str, on: str) -> list[Callable[[], float]]:
    return pair(
        lambda: bench("dense", workload, argument, off),
        lambda: bench("dense", workload, argument, on),
    )


def kinds(workload: str, argument: str, off: str, on: str) -> list[Callable[[], float]]:
    return pair(lambda: bench(off, workload, argument), lambda: bench(on, workload, argument))


def fork_once() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def forks(policy: str) -> float:
    """One fork and exit, with 4 MiB in an arena."""
    import malloc_arena

    arena = malloc_arena.Arena(malloc_arena.HEAP_SECURE, fork=policy)
    kept = [arena.buffer(4000) for _ in range(1000)]
    cost = timed(fork_once, 20)
    del kept
    arena.close()
    return cost


def plain_fork() -> float:
    kept = [bytearray(4000) for _ in range(1000)]
    cost = timed(fork_once, 20)
    del kept
    return cost


def buffers(kind: int, size: int) -> float:
    """A buffer made and closed, with pages of its own."""
    import malloc_arena

    arena = malloc_arena.Arena(kind)
    cost = timed(lambda: arena.buffer(size).close(), 300)
    arena.close()
    return cost


def scrub(size: int) -> float:
    from malloc_arena.cli.config import library

    function = ctypes.CDLL(str(library())).malloc_arena_scrub
    return timed(lambda: function(size), 5000)


def sweep(objects: int) -> float:
    import malloc_arena

    vault = malloc_arena.get(malloc_arena.HEAP_SECURE)
    kept = [[n] for n in range(objects)]
    cost = timed(vault.sweep, 10)
    del kept
    return cost


SECURE, ISOLATED, SECRETMEM = 1, 5, 9
COSTS: dict[str, tuple[str, list[Callable[[], float]]]] = {
    "lock": ("32 B one at a time", options("one", "32", "lock=off", "lock=prefer")),
    "lock-live": ("1,000 live blocks", options("mixed", "0", "lock=off", "lock=prefer")),
    "verify": ("256 B one at a time", options("one", "256", "verify=off", "verify=on")),
    "verify-64K": ("64 KiB one at a time", options("one", "65536", "verify=off", "verify=on")),
    "wipe-canary": ("256 B, HEAP_DEFAULT and HEAP_SECURE", kinds("one", "256", "default", "dense")),
    "wipe-64K": ("64 KiB, the same", kinds("one", "65536", "default", "dense")),
    "wipe-zeros": ("100 KB, written and looked at", kinds("zeros", "100000", "glibc", "dense")),
    "guards": ("4 KiB, slots and mappings of their own", kinds("one", "4096", "dense", "isolated")),
    "preload": ("a C program, glibc and preloaded", kinds("program", "0", "glibc", "glibc")),
    "fork-wipe": ("a fork, ordinary memory and wiped", pair(plain_fork, lambda: forks("wipe"))),
    "fork-keep": ("a fork, ordinary memory and kept", pair(plain_fork, lambda: forks("keep"))),
    "fork-refuse": ("a fork, ordinary and absent", pair(plain_fork, lambda: forks("refuse"))),
    "secretmem": (
        "a buffer of 1 MiB, locked and secret",
        pair(lambda: buffers(SECURE, 1 << 20), lambda: buffers(SECRETMEM, 1 << 20)),
    ),
    "scrub": ("a call, and with 128 KiB of stack", pair(lambda: scrub(0), lambda: scrub(131072))),
    "sweep": ("few objects, and 10,000 more", pair(lambda: sweep(0), lambda: sweep(10_000))),
}


def preloaded() -> float:
    from malloc_arena.cli.config import library

    environment = os.environ.get("LD_PRELOAD")
    os.environ["LD_PRELOAD"] = str(library())
    try:
        return bench("glibc", "program", "0")
    finally:
        del os.environ["LD_PRELOAD"]
        if environment is not None:
            os.environ["LD_PRELOAD"] = environment


COSTS["preload"][1][1] = preloaded


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(COSTS))
    given = parser.parse_args()
    if not (BUILT / "bench-isolated").exists():
        quick = ["--quick", "--rounds", "1", "--only", "one/32", "--only", "program"]
        subprocess.run([sys.executable, ROOT / "benchmarks" / "run.py", *quick], check=True)
    print(f"{'':14} {'without':>12} {'with':>12} {'ratio':>7}  of")
    for name in given.names or COSTS:
        what, (without, with_it) = COSTS[name]
        rounds = [(without(), with_it()) for _ in range(given.rounds)]
        off, on = (statistics.median(each[n] for each in rounds) for n in (0, 1))
        ratio = statistics.median(b / a for a, b in rounds)
        print(f"{name:14} {off:>9,.0f} ns {on:>9,.0f} ns {ratio:>7.2f}  {what}", flush=True)


if __name__ == "__main__":
    main()
