"""What a scope wrote to the standard streams is not left in their buffers, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from conftest import MAKE, SECRET, Child

WAYS = {
    "stdout": "print(make().decode(), flush=True)",
    "zeros": "sys.stdout.buffer.write(bytes(100) + make()); sys.stdout.flush()",
    "stderr": "print(make().decode(), file=sys.stderr)",
    "logging": "logging.warning('with %s', make().decode())",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scope", ["contextlib.nullcontext()", "vault"])
def test_what_was_written_is_wiped(child: Callable[..., Child], way: str, scope: str) -> None:
    """In plain Python it is there."""
    process = child(
        MAKE
        + f"""
import contextlib, os, logging
answers, sys.stdout = sys.stdout, open(os.devnull, "w")
def show(**values):
    print(json.dumps(values | {{"region": malloc_arena.region()}}), file=answers, flush=True)
    sys.stdin.readline()
vault = get(HEAP_SECURE)
with {scope}:
    {WAYS[way]}
gc.collect()
show()
"""
    )
    process.shown()
    found = [at for at in process.copies(SECRET) if not process.owns(at)]
    if scope == "vault":
        assert not found
    else:
        assert found
    process.ends()


SCRIPT = """
import io, sys, threading
from malloc_arena import HEAP_SECURE, get
vault = get(HEAP_SECURE)
with vault:
    sys.stdout.write("a" * 5000)
with vault:
    sys.stdout.write("b" * 5000)
with vault:
    sys.stderr.write("c")
    sys.stdout.flush()  # the text, which is not in the buffer yet unless it is written through
    sys.stdout.buffer.write(b"d" * 20000)
sys.stdout.write("e")
with vault:
    pass
done = threading.Event()
def enters():
    while not done.is_set():
        with vault:
            pass
threads = [threading.Thread(target=enters) for _ in range(3)]
for thread in threads:
    thread.start()
for n in range(3000):
    sys.stdout.write(f"{n:05} ")
    n % 7 or sys.stdout.flush()
done.set()
for thread in threads:
    thread.join()
for stream in io.StringIO(), None, open("/dev/null", "w"), object():
    sys.stdout = stream
    with vault:
        pass
sys.stdout.close() if hasattr(sys.stdout, "close") else None
sys.stdout = sys.__stdout__
del sys.stderr
with vault:
    pass
buffer = sys.stdout.detach()
with vault:
    pass
buffer.write(b"f")
buffer.close()
with vault:
    pass
sys.stdout = None
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_nothing_is_lost(unbuffered: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    assert done.returncode == 0, done.stderr
    numbers = "".join(f"{n:05} " for n in range(3000))
    assert done.stdout == "a" * 5000 + "b" * 5000 + "d" * 20000 + "e" + numbers + "f"
    assert done.stderr == "c"


def test_what_a_thread_fails_with_is_told_in_its_scope(child: Callable[..., Child]) -> None:
    process = child(
        MAKE
        + """
import threading
vault = get(HEAP_SECURE)
def fails():
    raise ValueError(make().decode())
with vault:
    thread = threading.Thread(target=fails)
    thread.start()
thread.join()
gc.collect()
show()
"""
    )
    process.shown()
    assert not [at for at in process.copies(SECRET) if not process.owns(at)]
    process.go_on()
    _, err = process.process.communicate(timeout=60)
    assert "ValueError: " + SECRET.decode() in err
