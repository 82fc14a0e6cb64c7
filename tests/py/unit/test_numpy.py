"""numpy: what arrays hold is in the scope's arena, wherever the array goes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from conftest import Child
from malloc_arena import SecretBuffer

pytest.importorskip("numpy")

WORK = """
vault = get(HEAP_SECURE)
def at(array): return vault.owns(array.ctypes.data)
outside = np.arange(1000.0)
small = np.arange(3.0)
with vault:
    made = [np.zeros(10), np.ones(100_000), np.arange(5), np.array([b"secret"] * 9), outside * 2,
            np.concatenate([outside, outside]), np.empty((3, 4), order="F"), small + 1]
    assert all(map(at, made)), list(map(at, made))
    view = made[1][5:]
assert not at(outside) and not at(outside + 1) and not at(np.zeros(5))
moved = np.arange(200_000.0)
few = np.arange(8.0)
with vault:
    moved.resize(300_000, refcheck=False)
    few.resize(9, refcheck=False)
assert at(moved) and moved[199_999] == 199_999.0 and moved[-1] == 0.0
assert at(few) and list(few) == [0, 1, 2, 3, 4, 5, 6, 7, 0]
moved.resize(400_000, refcheck=False)
assert at(moved), "a block of an arena stays in it"
more = [np.zeros(n) for n in range(1000)]
del more
full = vault.stats().live_bytes
del made, view, moved, few
gc.collect()
assert vault.stats().live_bytes < full - 4_000_000
import threading, asyncio
async def step():
    await asyncio.sleep(0)
    return at(np.zeros(100))
assert asyncio.run(vault.run(step())) and not asyncio.run(step())
found = []
with vault:
    thread = threading.Thread(target=lambda: found.append(at(np.zeros(100))))
    thread.start(); thread.join()
assert found == [True]
assert vault.call(np.zeros, 50).ctypes.data and not at(np.zeros(50))
small_own = Arena(HEAP_SECURE, name="small", limit=1 << 20)
try:
    with small_own: np.zeros(1 << 20)
except MemoryError: pass
else: raise AssertionError
small_own.close()
"""


@pytest.mark.parametrize(
    "first", ["import numpy as np\n", "get(HEAP_SECURE)\nimport numpy as np\n", "late"]
)
@pytest.mark.parametrize("allocator", ["pymalloc", "debug", "malloc"])
def test_arrays_live_in_the_arena(child: Callable[..., Child], first: str, allocator: str) -> None:
    if first == "late":
        first = "vault = get(HEAP_SECURE)\nwith vault: import numpy as np\n"
    child(first + WORK, "-W", "error", PYTHONMALLOC=allocator).ends()


def test_arrays_die_at_exit(child: Callable[..., Child]) -> None:
    child(
        """
import numpy as np
with get(HEAP_SECURE):
    sys.kept = np.ones(1000)
    kept = [np.ones(10), np.array([object(), {}], dtype=object)]
"""
    ).ends()


def test_an_unknown_numpy_is_named(child: Callable[..., Child]) -> None:
    child(
        """
import types, warnings
numpy = types.ModuleType("numpy"); numpy.__version__ = "99"
from malloc_arena.numpy_hook import hook
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    hook(numpy)
assert "numpy 99" in str(seen[0].message), seen
"""
    ).ends()


def test_what_numpy_keeps_does_not_hold_an_arena(child: Callable[..., Child]) -> None:
    child(
        """
import numpy as np
def work():
    # Several of each length at a time, and of each way that a shape is made.
    several = [np.zeros((1,) * dims) for dims in range(1, 20) for _ in range(9)]
    class Nested:
        def __init__(self, depth, length): self.depth, self.length = depth, length
        def __index__(self):
            if self.depth: np.empty((Nested(self.depth - 1, self.length),) + (1,) * self.length)
            return 1
    for length in range(15): np.empty((Nested(9, length),) + (1,) * length)
    nested = np.frompyfunc(lambda self, n: self(self, n - 1) if n else 0, 2, 1)
    nested(nested, 9)
own = Arena(HEAP_SECURE, name="own")
own.call(work)
gc.collect()
try: own.close()
except malloc_arena.ArenaError: pass
else: raise AssertionError("numpy keeps none any more")
own.sweep()
own.close()
own = Arena(HEAP_SECURE, name="own")
with own.scope(sweep=True): work()
own.close()
"""
    ).ends()


def test_sweep_reaches_the_digits_of_the_last_number(child: Callable[..., Child]) -> None:
    """numpy writes a number's text into memory of the thread."""
    process = child(
        """
import numpy as np
vault = get(HEAP_SECURE)
def work(): assert str(np.array([int("86420975318") / 70007]))
np.set_printoptions(precision=17)
vault.call(work)
show()
vault.sweep()
show()
"""
    )
    digits = repr(86420975318 / 70007).encode()
    process.shown()
    assert process.copies(digits[2:]), "it would be kept"
    process.go_on()
    process.shown()
    assert not process.copies(digits[2:])
    process.ends()


@pytest.mark.parametrize(
    "work",
    [
        "np.ones(1 << 20)",
        "np.arange(1000).resize(10_000_000, refcheck=False)",
        "np.concatenate([np.ones(100_000)] * 9)",
    ],
)
def test_a_limit_that_numpy_met_is_named(child: Callable[..., Child], work: str) -> None:
    child(
        f"""
import numpy as np
own = Arena(HEAP_SECURE, name="own", limit=4 << 20)
try:
    with own: {work}
except MemoryError as error: own_note = error.__notes__
else: raise AssertionError
[note] = own_note
assert note.startswith('arena "own" ') and "limit of 4194304 bytes" in note
"""
    ).ends()


def test_a_buffer_is_compared_with_an_array_of_dates() -> None:
    """numpy has no format for them, and none is needed."""
    import numpy as np

    with SecretBuffer(8) as buffer:
        assert buffer == np.array([0], dtype="M8[s]")
        assert buffer != np.array([1], dtype="M8[s]")


def test_a_sweep_on_a_small_stack(child: Callable[..., Child]) -> None:
    """32 KiB, the least that threading has, are too few for all that numpy can be made to drop."""
    process = child(
        """
import threading
import numpy as np
vault = get(HEAP_SECURE)
def work():
    with vault.scope(sweep=True):
        str(np.arange(3.0) * 2)
threading.stack_size(max(32 << 10, os.sysconf("SC_THREAD_STACK_MIN")))
thread = threading.Thread(target=work)
thread.start()
thread.join()
show()
"""
    )
    process.shown()
    process.ends()
