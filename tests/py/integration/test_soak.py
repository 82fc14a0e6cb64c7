"""A mixed Python program under load: threads, tasks, generators, buffers, forks, limits.

SOAK_SECONDS
says how long (`make soak`); the ordinary run has a few seconds of it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import MAKE, SECRET, Child

SECONDS = float(os.environ.get("SOAK_SECONDS", "6"))

SCRIPT = (
    MAKE
    + """
import asyncio, collections, concurrent.futures, contextlib, queue, random, resource
import threading, time
most = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
resource.setrlimit(resource.RLIMIT_MEMLOCK, (4 << 20, most))
seed = int(os.environ["SEED"])
vault = get(HEAP_SECURE)
small = Arena(HEAP_SECURE, name="small", limit=1 << 20)
counts = collections.Counter()
wrong = []

@vault.bind
def check(value, number):
    # What was put in is what comes out.
    secret = make().decode()
    if value["name"] != f"{secret}:{number}" or value["list"] != [number] * 20:
        wrong.append(number)
    if bytes(value["bytes"]) != make() * (number % 50 + 1):
        wrong.append(number)

def build(number):
    secret = make().decode()
    return {
        "name": json.loads(json.dumps(f"{secret}:{number}")),
        "list": [number] * 20,
        "bytes": bytearray(make() * (number % 50 + 1)),
        "text": ("\\u20ac" * (number % 7) + secret).upper().split("-"),
    }

def in_threads(number, kept, hand_over, stop):
    state = random.Random(seed + number)
    mine = []
    while not stop.is_set():
        counts["operations"] += 1
        what = state.randrange(10)
        n = state.randrange(100_000)
        if what < 5:
            with vault:
                mine.append((n, build(n)))
        elif what == 5 and mine:
            hand_over.put(mine.pop())
        elif what == 6:
            with contextlib.suppress(queue.Empty):
                got = hand_over.get_nowait()
                check(got[1], got[0])
        elif what == 7:
            try:
                with small:
                    kept.append(make() * state.randrange(1, 4000))
            except MemoryError:
                counts["refused"] += 1
                kept.clear()
        elif what == 8:
            with SecretBuffer(n % 9000 + 50) as buffer, vault:
                buffer[:len(make())] = make()
                if bytes(buffer[:len(make())]) != make():
                    wrong.append(n)
        elif mine:
            for number, value in mine:
                check(value, number)
            mine.clear()
        if len(mine) > 60:
            del mine[:30]

async def a_task(number):
    await asyncio.sleep(0)
    value = build(number)
    await asyncio.sleep(0.001)
    check(value, number)
    counts["tasks"] += 1

def pieces(number):
    for n in range(5):
        yield build(number + n), number + n

async def in_tasks(stop):
    number = 0
    while not stop.is_set():
        number += 1
        await asyncio.gather(*(vault.run(a_task(number * 10 + n)) for n in range(8)))
        for value, n in vault.iterate(pieces(number)):
            check(value, n)

def in_child():
    for number in range(30):
        with vault:
            value = build(number)
        check(value, number)
    os._exit(1 if wrong else 0)

def round_of(seconds):
    stop, kept, hand_over = threading.Event(), [], queue.Queue()
    threads = [
        threading.Thread(target=in_threads, args=(n, kept, hand_over, stop)) for n in range(3)
    ]
    threads.append(threading.Thread(target=lambda: asyncio.run(in_tasks(stop))))
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.3)
        pid = os.fork()
        if pid == 0:
            in_child()
        counts["forks"] += 1
        if os.waitpid(pid, 0)[1] != 0:
            wrong.append(-1)
    stop.set()
    for thread in threads:
        thread.join()
    while not hand_over.empty():
        number, value = hand_over.get()
        check(value, number)
    with concurrent.futures.ThreadPoolExecutor(2) as pool, vault:
        results = list(pool.map(build, range(20)))
    for number, value in enumerate(results):
        check(value, number)
    with vault:
        alive = build(7)
    return alive

while True:
    alive = round_of(2)
    results = number = value = kept = None
    gc.collect()
    show(counts=counts, wrong=len(wrong), alive=1)
    check(alive, 7)
    del alive
    gc.collect()
    vault.sweep()
    show(counts=counts, wrong=len(wrong), alive=0)
    if sys.stdin.closed or os.path.exists(os.environ["STOP"]):
        break
"""
)


@pytest.mark.filterwarnings("ignore")
def test_soak(child: Callable[..., Child], tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    seed = int(os.environ.get("SOAK_SEED", random.randrange(1 << 30)))
    process = child(SCRIPT, "-W", "ignore", SEED=str(seed), STOP=str(stop))
    end = time.monotonic() + SECONDS
    looks = 0
    while True:
        shown = process.shown()
        assert shown["wrong"] == 0, (seed, shown)
        found = process.copies(SECRET)
        assert all(process.owns(at) for at in found), seed
        # The look sees what is alive, and nothing when nothing is.
        assert bool(found) == bool(shown["alive"]), (seed, found)
        looks += 1
        if not shown["alive"] and time.monotonic() > end:
            stop.touch()
            process.go_on()
            break
        process.go_on()
    process.ends()
    assert shown["counts"]["operations"] > 100
    print(f"seed {seed}: {shown['counts']}, {looks} looks")
