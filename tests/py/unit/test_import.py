"""Importing costs nothing: no hook, no address space, no thread, no slow module."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import malloc_arena

STATE = """
import ctypes, sys

class Allocator(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("ctx", "malloc", "calloc", "realloc", "free")]

def allocators():
    found = []
    for domain in range(3):
        allocator = Allocator()
        ctypes.pythonapi.PyMem_GetAllocator(domain, ctypes.byref(allocator))
        found.append((allocator.malloc, allocator.calloc, allocator.realloc, allocator.free))
    return found

def biggest():
    with open("/proc/self/maps") as maps:
        ranges = [line.split(None, 1)[0].split("-") for line in maps]
    return max(int(end, 16) - int(start, 16) for start, end in ranges)

biggest()
before = allocators(), biggest()
import malloc_arena
"""


def run(script: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, *options, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_hooks_and_reserves_nothing() -> None:
    run(
        STATE
        + """
assert (allocators(), biggest()) == before
assert malloc_arena.region() == (0, 0)
vault = malloc_arena.get(malloc_arena.HEAP_SECURE)
assert all(now != then for now, then in zip(allocators(), before[0], strict=True))
hooks = allocators()
base, size = malloc_arena.region()
assert size >= 1 << 26 and biggest() >= size // 2
malloc_arena.get(malloc_arena.HEAP_DEFAULT), malloc_arena.Arena(malloc_arena.HEAP_SECURE)
assert allocators() == hooks, "hooked twice"
with vault:
    pass
hooks = allocators()  # with free of objects, from the first scope on
with vault:
    pass
malloc_arena.Arena(malloc_arena.HEAP_SECURE)
assert allocators() == hooks, "hooked twice"
assert malloc_arena.region() == (base, size)
"""
    )


def test_a_buffer_alone_hooks_nothing() -> None:
    run(
        STATE
        + """
malloc_arena.SecretBuffer(32)
assert allocators() == before[0]
"""
    )


def test_import_stays_light() -> None:
    loaded = run(
        "import sys; before = set(sys.modules); import malloc_arena; "
        "print(*sorted(set(sys.modules) - before))"
    )
    assert {name for name in loaded.split() if not name.startswith("malloc_arena")} <= {
        "__future__",
        "errno",
    }
    assert "malloc_arena._core" in loaded.split()
    assert "malloc_arena.receipt" not in loaded.split()


def test_a_sweep_imports_nothing() -> None:
    """In a child that is forked while another thread imports something, the same import never ends;
    and a signal's handler meets half a module."""
    run(
        """
import sys
import malloc_arena
vault = malloc_arena.get(malloc_arena.HEAP_SECURE)
class Nothing:
    def find_spec(self, name, *rest):
        raise SystemExit(f"{name} is imported")
sys.meta_path.insert(0, Nothing())
with vault.scope(sweep=True):
    pass
vault.sweep()
"""
    )


def test_a_package_that_is_not_built_says_so(tmp_path: Path) -> None:
    """As in a source tree, or in the directory that another Python installed into."""
    package = Path(malloc_arena.__file__).parent
    shutil.copytree(package, tmp_path / "malloc_arena", ignore=shutil.ignore_patterns("_core*.so"))
    done = subprocess.run(
        [sys.executable, "-c", "import malloc_arena"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    python = ".".join(map(str, sys.version_info[:2]))
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: malloc_arena in {tmp_path}/malloc_arena has not been built for Python "
        f"{python}: install it with this one's pip"
    )


def test_what_is_exported() -> None:
    for name in malloc_arena.__all__:
        assert getattr(malloc_arena, name) is not None
    assert malloc_arena.__version__.count(".") == 2


def test_reload_keeps_hooks_and_objects() -> None:
    run(
        """
import importlib, sys
import malloc_arena
vault = malloc_arena.get(1)
with vault:
    kept = bytes(range(256)) * 2
for name in [name for name in sys.modules if name.startswith("malloc_arena")]:
    del sys.modules[name]
import malloc_arena as again
assert again is not malloc_arena
other = again.get(1)
assert other.owns(id(kept))
with other:
    inner = kept + b"x"
    with vault:
        assert other.owns(id(inner * 2))
del kept, inner
"""
    )
