"""Seen from outside: what another process finds in a process that handled a secret."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import MAKE, SECRET, SUBINTERPRETERS, Child, mappings, on_a_kernel, with_a_stack
from malloc_arena.cli.config import library


def test_the_scan_finds_what_is_there(child: Callable[..., Child]) -> None:
    process = child(MAKE + "secret = make(); show()")
    process.shown()
    assert process.copies(SECRET)
    process.ends()


def test_copies_are_in_the_arena_then_nowhere(child: Callable[..., Child]) -> None:
    process = child(
        MAKE
        + """
import base64, hashlib
vault = get(HEAP_SECURE)
def work():
    secret = make().decode("latin-1")
    text = json.dumps({"user": "x", "password": secret})
    config = json.loads(text)
    assert config["password"].encode("latin-1")[:4] == make()[:4]
    hashlib.sha256(secret.encode("latin-1")).digest()
    return config
with vault:
    config = work()
show(address=id(config["password"]))
del config
show()
"""
    )
    address = process.shown()["address"]
    assert process.owns(address)
    found = process.copies(SECRET)
    assert found
    assert all(process.owns(at) for at in found)
    process.go_on()
    process.shown()
    assert process.copies(SECRET) == []
    process.ends()


def test_a_call_leaves_nothing(child: Callable[..., Child]) -> None:
    process = child(
        MAKE
        + """
vault = get(HEAP_SECURE)
def work():
    first, _, last = make().decode("latin-1").partition("|")
    return len(first * 3 + last) > 3
assert vault.call(work)
with Arena(HEAP_DEFAULT):
    pass
show(live=vault.stats().live_blocks)
"""
    )
    process.shown()
    assert process.copies(SECRET) == []
    process.ends()


@with_a_stack
@pytest.mark.parametrize("depth", [40, 400])
@pytest.mark.parametrize("scoped", [False, True])
def test_the_dead_stack_is_scrubbed(child: Callable[..., Child], scoped: bool, depth: int) -> None:
    """CPython encodes short texts in a buffer on the stack; outside a scope they stay there. 400
    calls from C to Python and back need more of it than the end of a scope always looks at."""
    process = child(
        MAKE
        + """
def encode():
    return len(("\u00e9" + make().decode("latin-1")).encode())
def deep(n):  # below what show() will overwrite
    return encode() if n == 0 else max(map(deep, [n - 1]))
def work():
"""
        + f"    deep({depth})\n"
        + ("get(HEAP_SECURE).call(work)" if scoped else "work()")
        + "\nshow()"
    )
    process.shown()
    stack = next(m for m in mappings(process.pid) if m.name == "[stack]")
    found = [at for at in process.copies(SECRET) if stack.start <= at < stack.end]
    assert bool(found) == (not scoped)
    process.ends()


def test_a_moved_block_leaves_nothing_outside(child: Callable[..., Child]) -> None:
    """A large buffer from outside is filled in place, then grows inside the scope."""
    process = child(
        MAKE
        + """
vault = get(HEAP_SECURE)
buffer = bytearray(100_000)
with vault:
    buffer[50_000:50_000 + len(make())] = make()
    buffer.extend(bytes(200_000))
    kept = buffer[50_000:50_000 + 3]
del kept
show()
"""
    )
    process.shown()
    found = process.copies(SECRET)
    assert len(found) == 1
    assert process.owns(found[0])
    process.ends()


@on_a_kernel
def test_fork_in_a_scope(child: Callable[..., Child]) -> None:
    """The child goes on with its objects, in locked memory of its own."""
    process = child(
        MAKE
        + """
vault = get(HEAP_SECURE)
with vault:
    secret = make()
    large = [make() * 500]
    pid = os.fork()
    inside = bytes(100)
    if pid == 0:
        assert secret == make() and large[0][:10] == make()[:10]
        assert vault.owns(id(inside))
if pid == 0:
    assert vault.receipt.locked and vault.receipt.complete, vault.receipt
    show(pid=os.getpid(), addresses=[id(secret), id(large[0]), id(inside)])
    secret = large = None
    show()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert secret == make()
"""
    )
    shown = process.shown()
    maps = mappings(shown["pid"])
    for address in shown["addresses"]:
        assert process.owns(address)
        mapping = next(m for m in maps if m.start <= address < m.end)
        assert {"lo", "dd"} <= set(mapping.flags)
    found = process.copies(SECRET, shown["pid"])
    assert found
    assert all(process.owns(at) for at in found)
    process.go_on()
    process.shown()
    assert process.copies(SECRET, shown["pid"]) == []
    assert process.copies(SECRET)
    process.ends()


def test_multiprocessing(tmp_path: Path, child: Callable[..., Child]) -> None:
    process = child(
        """
import multiprocessing
vault = get(HEAP_SECURE)
context = multiprocessing.get_context("fork")
with vault:
    secret = ["s" * 100, {n: str(n) for n in range(1000)}]
    queue = context.SimpleQueue()
    workers = [context.Process(target=lambda: queue.put((len(secret[0]), secret[1][999])))
               for _ in range(4)]
    for worker in workers: worker.start()
    assert [queue.get() for _ in workers] == [(100, "999")] * 4
    for worker in workers: worker.join()
    assert all(worker.exitcode == 0 for worker in workers)
"""
    )
    process.ends()


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "os._exit(0)", "1 // 1; raise SystemExit"])
def test_ends_well_with_objects_alive(child: Callable[..., Child], end: str) -> None:
    process = child(
        f"""
import atexit, threading
vault = get(HEAP_SECURE)
with vault:
    import decimal, html.parser
    class Made:
        def __del__(self):
            self.data = str(self.__dict__)
    made = Made(); made.me = made; sys.made = made; sys.path.append("".join(["a", "b"]))
    atexit.register(lambda: [].append(made))
    key = vault.buffer(10)
    threading.local().x = made
    {end}
{end}
"""
    )
    process.ends()


@pytest.mark.parametrize("allocator", ["malloc", "debug", "pymalloc_debug", "malloc_debug"])
def test_other_allocators(child: Callable[..., Child], allocator: str) -> None:
    process = child(
        """
vault = get(HEAP_SECURE)
kept = []
for size in (0, 1, 16, 100, 500, 513, 1000, 5000, 200_000):
    outside = bytearray(b"x" * size)
    items = list(range(size))
    with vault:
        outside += b"y" * (size + 1)
        items.append(size)
        inside = bytearray(b"z" * size)
        kept.append(inside)
        shrunk = bytearray(b"w" * size * 3)
    del shrunk[size:]
    inside += b"more"
    outside += b"more"
    del outside[1:]
    items += items
    kept.append(outside)
    with vault:
        del items[size:]
        del inside[size:]
        assert bytes(inside) == b"z" * size
    assert items == list(range(size)) + [size][:0]
del kept, outside, items, inside, shrunk
gc.collect()
assert vault.stats().live_bytes < 1000, vault.stats()
""",
        PYTHONMALLOC=allocator,
    )
    process.ends()


def test_development_mode(child: Callable[..., Child]) -> None:
    process = child(
        "with get(HEAP_SECURE): kept = json.loads(json.dumps(list(range(1000))))", "-X", "dev"
    )
    process.ends()


@pytest.mark.parametrize("allocator", ["debug", "malloc_debug"])
def test_debugging_allocator_under_preload(allocator: str, child: Callable[..., Child]) -> None:
    """In the scope blocks are the arena's own, elsewhere the debugging allocator's."""
    work = """
vault = get(HEAP_SECURE)
grown = bytearray(100)
with vault:
    kept = json.loads(json.dumps(list(range(1000))))
    grown += bytes(100_000)
    assert vault.owns(id(kept))
for _ in range(1000):
    grown += b"more"
assert not vault.owns(id(bytes(100)))
"""
    child(work, LD_PRELOAD=str(library()), PYTHONMALLOC=allocator).ends()


@pytest.mark.parametrize("allocator", ["debug", "malloc_debug"])
def test_what_lies_in_an_arena_block_is_freed_by_its_own_layer(
    allocator: str, child: Callable[..., Child]
) -> None:
    """tracemalloc asks the debugging allocator itself for room, as it found it at the start, and
    gives it back through the hooks: at an address inside a block of the arena."""
    work = """
import tracemalloc
vault = get(HEAP_SECURE)
for depth in (1, 40, 60_000):
    with vault:
        tracemalloc.start(depth)
        kept = [str(n) for n in range(1000)]
        tracemalloc.stop()
    with vault:
        tracemalloc.start(depth)
        kept += [str(n) for n in range(1000)]
    tracemalloc.stop()
    assert vault.owns(id(kept[-1]))
"""
    child(work, LD_PRELOAD=str(library()), PYTHONMALLOC=allocator).ends()


@pytest.mark.parametrize("allocator", ["debug", "malloc_debug"])
def test_debugging_allocator_on_an_arena(allocator: str) -> None:
    """Its blocks lie in arena blocks, at other addresses: that cannot be, and is said."""
    done = subprocess.run(
        [sys.executable, "-c", "import malloc_arena"],
        env=os.environ
        | {
            "LD_PRELOAD": str(library()),
            "MALLOC_ARENA_OPTIONS": "active=secure",
            "PYTHONMALLOC": allocator,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done
    assert "ArenaError: CPython's debugging allocator" in done.stderr, done
    assert "start without one of the two" in done.stderr


TRACED = """
import tracemalloc
def fill():
    return [bytes(n) + b"x" for n in range(1, 1000)]
before = fill()
vault = get(HEAP_SECURE)
assert tracemalloc.is_tracing()
assert tracemalloc.get_traceback_limit() == 7
with vault:
    inside = fill()
assert all(vault.owns(id(block)) for block in inside)
assert tracemalloc.get_object_traceback(inside[50]) is not None
tracemalloc.stop()
with vault:
    assert vault.owns(id(bytes(100)))
del before, inside
gc.collect()
tracemalloc.start(3)
with vault:
    inside = fill()
more = fill()
tracemalloc.stop()
del inside, more
"""


ALLOCATOR = """
import ctypes
class Allocator(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("ctx", "malloc", "calloc", "realloc", "free")]
"""


def test_what_another_tool_puts_back_is_seen_some_scopes_later(child: Callable[..., Child]) -> None:
    """Saved before the first scope, it has no hook on free: each object counts as one less."""
    child(
        ALLOCATOR
        + """
import gc, sys
get_allocator = ctypes.pythonapi.PyMem_GetAllocator
set_allocator = ctypes.pythonapi.PyMem_SetAllocator
for function in get_allocator, set_allocator:
    function.argtypes, function.restype = [ctypes.c_int, ctypes.c_void_p], None
vault = get(HEAP_SECURE)
saved = [Allocator(), Allocator(), Allocator()]
for domain, allocator in enumerate(saved):
    get_allocator(domain, ctypes.byref(allocator))
with vault:
    pass
for domain, allocator in enumerate(saved):
    set_allocator(domain, ctypes.byref(allocator))
def work(scopes):
    gc.collect()
    before = sys.getallocatedblocks()
    for i in range(scopes):
        with vault:
            kept = [str(i) * 3 for i in range(50)]
        kept = None
    gc.collect()
    return sys.getallocatedblocks() - before
work(20)
assert abs(work(300)) < 50
"""
    ).ends()


COUNTED = """
import sys
vault = get(HEAP_SECURE)
def fill():
    outside = [bytearray(size) for size in (100, 400, 600, 1000, 3000, 100_000) for _ in range(50)]
    with vault:
        for block in outside:
            block.extend(bytes(2000))
            del block[100:]
        return [bytes(n) for n in range(2, 1000)]
fill()
before = sys.getallocatedblocks()
for _ in range(20):
    fill()
assert abs(sys.getallocatedblocks() - before) < 100, (before, sys.getallocatedblocks())
"""


def test_tracemalloc_started_before(child: Callable[..., Child]) -> None:
    child("import tracemalloc; tracemalloc.start(7)" + TRACED).ends()
    child(TRACED, "-X", "tracemalloc=7").ends()
    child(COUNTED).ends()
    child(COUNTED, "-X", "tracemalloc=7").ends()


def test_free_before_the_first_scope(child: Callable[..., Child]) -> None:
    """Until then CPython's own free is in place, also for who saves it; nothing is lost by that."""
    process = child(
        ALLOCATOR
        + """
import sys, tracemalloc
def look():
    found = []
    for domain in (1, 2):
        allocator = Allocator()
        ctypes.pythonapi.PyMem_GetAllocator(domain, ctypes.byref(allocator))
        found.append((allocator.malloc, allocator.free))
    return found
plain = look()
vault = get(HEAP_SECURE)
hooked = look()
for (malloc, free), (hook_malloc, hook_free) in zip(plain, hooked):
    assert hook_malloc != malloc and hook_free == free
tracemalloc.start()
def fill():
    return [b"7" * n for n in range(2, 1000)]
with vault:
    inside = fill()
assert all(vault.owns(id(block)) for block in inside)
addresses = [(id(block), sys.getsizeof(block)) for block in inside]
assert tracemalloc.get_object_traceback(inside[50]) is not None
del inside
gc.collect()
assert vault.stats().live_blocks < 10, vault.stats()
for address, size in addresses:
    if size < 500:
        assert ctypes.string_at(address, size) == bytes(size)
with vault:
    kept = fill()
tracemalloc.stop()
assert look() == hooked
with vault:
    del kept
    assert all(vault.owns(id(block)) for block in fill())
gc.collect()
assert vault.stats().live_blocks < 10, vault.stats()
for (_, free), (hook_malloc, _), now in zip(plain, hooked, look()):
    assert now[0] == hook_malloc and now[1] != free
before = sys.getallocatedblocks()
with vault:
    kept = [fill() for _ in range(20)]
del kept
assert abs(sys.getallocatedblocks() - before) < 100
"""
    )
    process.ends()


def test_a_free_of_another_tool_stays(child: Callable[..., Child]) -> None:
    """One put there between the first arena and the first scope; here it is a hook of ours."""
    process = child(
        ALLOCATOR
        + """
from malloc_arena.cli.config import library
vault = get(HEAP_SECURE)
top, now = Allocator(), Allocator()
ctypes.pythonapi.PyMem_GetAllocator(2, ctypes.byref(top))
theirs = ctypes.cast(ctypes.CDLL(str(library())).ma_hook_free_1, ctypes.c_void_p).value
top.free = theirs
ctypes.pythonapi.PyMem_SetAllocator(2, ctypes.byref(top))
with vault:
    kept = [bytes(n) for n in range(2, 1000)]
ctypes.pythonapi.PyMem_GetAllocator(2, ctypes.byref(now))
assert now.free == theirs
"""
    )
    process.ends()


def test_lost_hooks(child: Callable[..., Child]) -> None:
    """A tool that restores an allocator it saved before us is noticed at the next entry."""
    process = child(
        ALLOCATOR
        + """
saved, ours = Allocator(), Allocator()
ctypes.pythonapi.PyMem_GetAllocator(2, ctypes.byref(saved))
vault = get(HEAP_SECURE)
with vault: pass
ctypes.pythonapi.PyMem_GetAllocator(2, ctypes.byref(ours))
ctypes.pythonapi.PyMem_SetAllocator(2, ctypes.byref(saved))
errors = []
for enter in (vault.__enter__, lambda: vault.call(int)):
    try:
        enter()
    except HooksLost as error:
        errors.append(str(error))
assert len(errors) == 2 and "another tool" in errors[0]
assert not vault.owns(id(bytes(100)))
ctypes.pythonapi.PyMem_SetAllocator(2, ctypes.byref(ours))
with vault: assert vault.owns(id(bytes(100)))
"""
    )
    process.ends()


def test_lost_raw_hook_below_another_layer(child: Callable[..., Child]) -> None:
    """What tracemalloc found frees objects by RAW, whose hook is gone: no trial makes one."""
    process = child(
        ALLOCATOR
        + """
import tracemalloc
raw = Allocator()
ctypes.pythonapi.PyMem_GetAllocator(0, ctypes.byref(raw))
vault = get(HEAP_SECURE)
tracemalloc.start()
ctypes.pythonapi.PyMem_SetAllocator(0, ctypes.byref(raw))
try:
    with vault: pass
except HooksLost:
    pass
else:
    raise AssertionError
"""
    )
    process.ends()


@pytest.mark.parametrize("allocator", ["pymalloc", "malloc", "debug"])
def test_raw_blocks_of_any_size(child: Callable[..., Child], allocator: str) -> None:
    process = child(
        """
import ctypes
api = ctypes.pythonapi
for name, arguments in (("Malloc", 1), ("Calloc", 2), ("Realloc", 2), ("Free", 1)):
    function = getattr(api, "PyMem_Raw" + name)
    function.restype = None if name == "Free" else ctypes.c_void_p
    function.argtypes = [ctypes.c_void_p if name in ("Realloc", "Free") else ctypes.c_size_t,
                         ctypes.c_size_t][:arguments]
vault = get(HEAP_SECURE)
def look(is_inside):
    for size in (0, 1, 100, 600, 100_000):
        blocks = [api.PyMem_RawMalloc(size), api.PyMem_RawCalloc(size, 3),
                  api.PyMem_RawCalloc(3, size), api.PyMem_RawRealloc(None, size)]
        assert all(blocks) and len(set(blocks)) == 4
        assert ctypes.string_at(blocks[1], size * 3) == bytes(size * 3)
        ctypes.memset(blocks[0], 7, size)
        blocks[0] = api.PyMem_RawRealloc(blocks[0], size * 2)
        assert ctypes.string_at(blocks[0], size) == bytes([7]) * size
        blocks[1] = api.PyMem_RawRealloc(blocks[1], 0)
        assert all(blocks) and {vault.owns(block) for block in blocks} == {is_inside}
        with vault:
            ctypes.memset(blocks[0], 8, size)
            blocks[0] = api.PyMem_RawRealloc(blocks[0], size * 3)
            assert ctypes.string_at(blocks[0], size) == bytes([8]) * size
        assert vault.owns(blocks[0])
        for block in blocks:
            api.PyMem_RawFree(block)
    api.PyMem_RawFree(None)
look(False)
live = vault.stats().live_blocks
with vault: look(True)
gc.collect()
assert vault.stats().live_blocks < live + 20, vault.stats()
""",
        PYTHONMALLOC=allocator,
    )
    process.ends()


def test_a_profiler_of_calls_to_malloc(child: Callable[..., Child], tmp_path: Path) -> None:
    """memray replaces malloc in the tables by which it is called, after the first arena too."""
    pytest.importorskip("memray")
    script = """
import memray
from pathlib import Path
vault = get(HEAP_SECURE)
if SCOPED:
    with vault: pass
path = Path(PATH)
with memray.Tracker(path):
    kept = [bytearray(5_000_000) for _ in range(10)]
assert memray.FileReader(path).metadata.peak_memory >= 50_000_000
"""
    for scoped in (False, True):
        path = repr(str(tmp_path / f"{scoped}.bin"))
        child(f"SCOPED, PATH = {scoped}, {path}\n" + script).ends()


@pytest.mark.skipif(
    sys.version_info < (3, 13), reason="before 3.13 CPython itself ends at this stop()"
)
def test_tracemalloc_that_cannot_be_stopped(child: Callable[..., Child]) -> None:
    """By an interpreter with a GIL of its own, which cannot import it: no hooks to be lost."""
    process = child(
        """
import tracemalloc, _interpreters
tracemalloc.start()
interpreter = _interpreters.create("isolated")
failed = _interpreters.run_string(interpreter, "import malloc_arena; malloc_arena.get(1)")
assert failed.type.__name__ == "ArenaError" and "in the main one" in failed.msg, failed
vault = get(HEAP_SECURE)
failed = _interpreters.run_string(interpreter, '''
vault = malloc_arena.get(1)
with vault: kept = [b"s" * n for n in range(2, 2000)]
''')
assert failed is None, failed
tracemalloc.stop()
assert _interpreters.run_string(interpreter, "kept = None") is None
"""
    )
    process.ends()


EMBEDDING = """
#include <Python.h>
int main (int argc, char **argv)
{
  for (int i = 0; i < 4; i++)
    {
      PyConfig config;
      PyConfig_InitPythonConfig (&config);
      PyConfig_SetBytesString (&config, &config.program_name, argv[1]);
      if (PyStatus_Exception (Py_InitializeFromConfig (&config)))
        return 2;
      PyConfig_Clear (&config);
      int failed = PyRun_SimpleString (argv[2]);
      if (failed || Py_FinalizeEx () < 0)
        return 1;
    }
  return argc != 3;
}
"""


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_ENABLE_SHARED") or shutil.which("cc") is None,
    reason="needs a shared libpython and a C compiler",
)
@pytest.mark.parametrize("allocator", ["pymalloc", "malloc", "debug"])
def test_an_interpreter_that_is_started_again(tmp_path: Path, allocator: str) -> None:
    source, program = tmp_path / "embedding.c", tmp_path / "embedding"
    source.write_text(EMBEDDING)
    directory = sysconfig.get_config_var("LIBDIR")
    library = f"-lpython{sysconfig.get_config_var('LDVERSION')}"
    headers, runtime = sysconfig.get_path("include"), f"-Wl,-rpath,{directory}"
    subprocess.run(
        ["cc", source, "-o", program, f"-I{headers}", f"-L{directory}", library, runtime],
        check=True,
    )
    script = """
import malloc_arena
vault = malloc_arena.get(malloc_arena.HEAP_SECURE)
with vault: kept = [bytes(n) for n in range(2, 2000)]
assert all(vault.owns(id(block)) for block in kept)
assert not vault.owns(id(bytes(100)))
del kept
"""
    subprocess.run(
        [program, sys.executable, script],
        check=True,
        env=os.environ | {"PYTHONMALLOC": allocator},
        timeout=60,
    )


IN_SUBINTERPRETERS = """
vault = get(HEAP_SECURE)
script = '''
import malloc_arena
vault = malloc_arena.get(1)
with vault:
    kept = [bytes(1000), "x" * 100, {n: str(n) for n in range(100)}]
assert vault.owns(id(kept[0]))
outside = bytearray(100)
with vault:
    outside.extend(bytes(10_000))
with malloc_arena.SecretBuffer(10) as key:
    key[:] = b"0123456789"
looked_at = bytearray()
with memoryview(looked_at), vault:
    try:
        looked_at.__init__(10)
    except BufferError:
        pass
    else:
        raise AssertionError("a bytearray with a view has another size")
'''
for _ in range(5):
    interpreter = sub.create()
    failed = sub.run_string(interpreter, script)
    assert failed is None, failed
    with vault:
        kept = bytes(1000)
    sub.destroy(interpreter)
assert vault.owns(id(kept))
"""


def test_subinterpreters(child: Callable[..., Child]) -> None:
    child(SUBINTERPRETERS + IN_SUBINTERPRETERS).ends()


def test_all_names_in_a_subinterpreter(child: Callable[..., Child]) -> None:
    child(
        SUBINTERPRETERS
        + """
failed = sub.run_string(sub.create(), "from malloc_arena import *; get(HEAP_SECURE)")
assert failed is None, failed
"""
    ).ends()


def test_subinterpreters_in_a_standing_arena(child: Callable[..., Child]) -> None:
    child(SUBINTERPRETERS + IN_SUBINTERPRETERS, MALLOC_ARENA_OPTIONS="active=secure").ends()


def test_standing_arena(child: Callable[..., Child]) -> None:
    """MALLOC_ARENA_OPTIONS=active=secure: everything after the import is in an arena."""
    process = child(
        """
import threading, decimal, asyncio
base, size = malloc_arena.region()
assert size
made = [bytes(100), "x" * size.bit_length(), object(), bytes(1 << 20)]
assert all(base <= id(each) < base + size for each in made)
thread = threading.Thread(target=lambda: made.append(bytes(100)))
thread.start(); thread.join()
assert base <= id(made[-1]) < base + size
vault = get(HEAP_SECURE)
with vault:
    assert vault.owns(id(bytes(100)))
assert not vault.owns(id(bytes(100)))
sys.path.extend(["x"] * 1000)
async def work(): await asyncio.sleep(0)
asyncio.run(work())
gc.collect()
""",
        MALLOC_ARENA_OPTIONS="active=secure",
    )
    process.ends()


def test_a_limit_that_a_c_library_met_is_named(child: Callable[..., Child]) -> None:
    """Where it is preloaded, and the library says by a MemoryError that it had no memory."""
    child(
        """
import sqlite3
own = Arena(HEAP_DEFAULT, name="own", limit=4 << 20)
database = sqlite3.connect(":memory:")
try:
    with own: database.execute("select zeroblob(8000000) || 'x'").fetchone()
except MemoryError as error: assert str(error).startswith('arena "own" is at its limit'), error
else: raise AssertionError
try:
    with own: raise MemoryError("of its own accord")
except MemoryError as error: assert not hasattr(error, "__notes__")
""",
        LD_PRELOAD=str(library()),
    ).ends()
