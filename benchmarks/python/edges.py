"""Where what is ready in an arena may be of no use: the same work with and without a scope.

    python benchmarks/python/edges.py
    python benchmarks/python/edges.py --only pool,grow-1M --rounds 500

Blocks that one thread makes and another frees, or that are many; buffers that grow, or become
less; short threads; and small work while what may be locked is spent on 10 MB that live, under a
limit of 8 MiB. Microseconds, the median of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import json
import pickle
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import malloc_arena

LOCK_LIMIT = 8 << 20
CAP_IPC_LOCK = 14
PIECE = b"x" * 1000
DOCUMENT = json.dumps([{"a": i, "b": [1.5, 2, "x" * 20]} for i in range(50)])
PICKLED = [bytes(5000) + bytes([i]) for i in range(200)]

vault = malloc_arena.get(malloc_arena.HEAP_SECURE)
pool = ThreadPoolExecutor(1)


def blocks() -> object:
    return [bytes(5000) for _ in range(100)]


def pool_without() -> None:
    pool.submit(blocks).result()


def pool_within() -> None:
    pool.submit(vault.bind(blocks)).result()


def rows() -> object:
    """As of a table that is read: more than may stay ready."""
    return [bytes(3000) + PIECE for _ in range(1500)]


def grow(pieces: int) -> Callable[[], None]:
    def work() -> None:
        buffer = bytearray()
        for _ in range(pieces):
            buffer += PIECE

    return work


def bytesio() -> None:
    buffer = io.BytesIO()
    for _ in range(1000):
        buffer.write(PIECE)


def halve() -> None:
    buffer = bytearray(100_000)
    while len(buffer) > 1000:
        del buffer[len(buffer) // 2 - 1 :]


def thread() -> None:
    started = threading.Thread(target=json.loads, args=(DOCUMENT,))
    started.start()
    started.join()


@contextlib.contextmanager
def spent() -> Iterator[None]:
    """Objects of more than may be locked."""
    with vault:
        live = [json.loads(DOCUMENT) for _ in range(600)]
    yield
    live.clear()


EDGES: dict[str, tuple[Callable[[], Any], Callable[[], Any] | None, bool]] = {
    "pool": (pool_without, pool_within, False),
    "grow-50K": (grow(50), None, False),
    "grow-1M": (grow(1000), None, False),
    "grow-2M": (grow(2000), None, False),
    "bytesio-1M": (bytesio, None, False),
    "pickle-1M": (lambda: pickle.dumps(PICKLED), None, False),
    "halve-100K": (halve, None, False),
    "thread": (thread, None, False),
    "json": (lambda: json.loads(DOCUMENT), None, False),
    "json-spent": (lambda: json.loads(DOCUMENT), None, True),
    "blocks": (blocks, None, False),
    "rows": (rows, None, False),
    "blocks-spent": (blocks, None, True),
}


def median(work: Callable[[], Any], scope: Any, rounds: int) -> float:
    times = []
    for turn in range(rounds + rounds // 10):
        with scope:
            begun = time.perf_counter_ns()
            work()
            spent_ns = time.perf_counter_ns() - begun
        if turn >= rounds // 10:
            times.append(spent_ns)
    return statistics.median(times) / 1000


def obey_lock_limit() -> None:
    """Also as root, whom the limit does not bind."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or soft > LOCK_LIMIT:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (LOCK_LIMIT, hard))
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None)
    libc.capget(header, data)
    data[0] &= ~(1 << CAP_IPC_LOCK)
    libc.capset(header, data)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="NAME,...", help=f"of {', '.join(EDGES)}")
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args(argv)
    names = options.only.split(",") if options.only else list(EDGES)
    for name in names:
        if name not in EDGES:
            parser.error(f"no edge {name}")
    obey_lock_limit()
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"Python {version}, {options.rounds} rounds\n\n| | without, us | with | ratio |")
    print("|---|---|---|---|")
    for name in names:
        without, within, is_spent = EDGES[name]
        with spent() if is_spent else contextlib.nullcontext():
            plain = median(without, contextlib.nullcontext(), options.rounds)
            scope = vault if within is None else contextlib.nullcontext()
            scoped = median(within or without, scope, options.rounds)
        print(f"| {name} | {plain:.1f} | {scoped:.1f} | {scoped / plain:.2f} |")
    pool.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
