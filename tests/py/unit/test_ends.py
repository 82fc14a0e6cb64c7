"""The end of the interpreter, in every order, and modules that come back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Child, is_emulated

HOLDERS = {
    "global": "kept = made",
    "module": "json.kept = made",
    "sys": "sys.kept = made",
    "builtins": "import builtins; builtins.kept = made",
    "class": "class Holder: kept = made",
    "cycle": "made.append(made); made.append(Dies(made))",
    "atexit": "import atexit; atexit.register(lambda made=made: made.append([bytes(100)]))",
    "thread local": "import threading; local = threading.local(); local.kept = made",
    "daemon": "import threading, time\n"
    "def wait():\n    with vault: time.sleep(60)\n"
    "threading.Thread(target=wait, daemon=True).start(); kept = made",
    "inherited daemon": "import threading, time\n"
    "with vault: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    "kept = made",
    "generator": "def hold():\n    inside = vault.call(list, made)\n    yield inside\n"
    "kept = hold(); next(kept)",
    "open scope": "vault.__enter__(); kept = [bytes(100)]",
    "callback": "import weakref; kept = Dies(made); "
    "weakref.finalize(kept, lambda made: made.clear(), made)",
    "excepthook": "sys.excepthook = lambda *_: None; sys.kept = made",
    "coroutine": "import asyncio\nasync def wait(): await asyncio.sleep(60)\n"
    "kept = vault.run(wait()); kept.send if False else kept.close()",
    "pool": "import concurrent.futures as cf; pool = cf.ThreadPoolExecutor()\n"
    "with vault: pool.submit(made.append, 1)",
    "buffer": "kept = [vault.buffer(100), memoryview(vault.buffer(100)), made]",
    "arena": "kept = Arena(HEAP_SECURE, name='own')\nwith kept: inside = [bytes(1000)]\n"
    "sys.both = kept, inside",
    "secret": "from malloc_arena import Secret; kept = Secret(made[0])",
    "meta path": "sys.modules.pop('malloc_arena'); kept = made",
}
BEGIN = """
vault = get(HEAP_SECURE)
class Dies:
    def __init__(self, held): self.held = held
    def __del__(self):
        try:
            with vault: self.held.append(bytes(1000))
        except (NameError, TypeError, AttributeError): pass
with vault:
    made = [bytes(100), "x" * 100, {n: [n] for n in range(100)}, 1.5, Dies([])]
"""


LATE = """
import sys
from malloc_arena import HEAP_SECURE, get
vault = get(HEAP_SECURE)
class Dies:
    def __del__(self):
        with vault.scope(sweep=True): print("in the block")
vault.sweep()
sys.modules["late"] = Dies()
"""


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable],
        pytest.param(
            [sys.executable, "-m", "malloc_arena", "run", "--sweep"],
            marks=pytest.mark.skipif(is_emulated(), reason="it is the emulator that is preloaded"),
        ),
    ],
)
def test_a_scope_that_sweeps_when_modules_are_gone(command: list[str], tmp_path: Path) -> None:
    """There is nothing to sweep any more; but the block runs."""
    script = tmp_path / "late.py"
    script.write_text(LATE)
    done = subprocess.run([*command, script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("in the block\n", "")


@pytest.mark.parametrize("options", [(), ("-X", "dev", "-W", "ignore"), ("-X", "tracemalloc=5")])
@pytest.mark.parametrize("holder", HOLDERS)
def test_ends_well(child: Callable[..., Child], holder: str, options: tuple[str, ...]) -> None:
    child(BEGIN + HOLDERS[holder], *options).ends()


@pytest.mark.parametrize("allocator", ["malloc", "debug", "malloc_debug", "pymalloc_debug"])
def test_ends_well_with_other_allocators(child: Callable[..., Child], allocator: str) -> None:
    everything = "\n".join(
        text for name, text in HOLDERS.items() if name not in ("open scope", "meta path")
    )
    child(BEGIN + everything, PYTHONMALLOC=allocator).ends()


def test_modules_that_come_back(child: Callable[..., Child]) -> None:
    """Reloaded, or removed and imported again: the same hooks, the same arena."""
    child(
        """
import importlib, threading, concurrent.futures
vault = get(HEAP_SECURE)
with vault: kept = [bytes(100)]
for name in ("errors", "receipt", "threads", "sweep", "escapes", "secret", "sources", "arena"):
    importlib.reload(importlib.import_module("malloc_arena." + name))
importlib.reload(malloc_arena)
for _ in range(3):
    for name in [name for name in sys.modules if name.startswith("malloc_arena")]:
        del sys.modules[name]
    import malloc_arena as again
    gc.collect()
    second = again.get(again.HEAP_SECURE)
    assert second is not vault and second.owns(id(kept[0]))
    seen = []
    with second, vault, second:
        thread = threading.Thread(target=lambda: seen.append(vault.owns(id(bytes(100)))))
        thread.start(); thread.join()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            seen.append(pool.submit(lambda: vault.owns(id(bytes(100)))).result())
    assert seen == [True, True] and not vault.owns(id(bytes(100)))
    kept.append(bytes(100))
depth = 0
start = getattr(threading, "_start_joinable_thread", None) or threading._start_new_thread
while hasattr(start, "__wrapped__"): start, depth = start.__wrapped__, depth + 1
assert depth == 1, depth
"""
    ).ends()


def test_two_copies_of_the_package(child: Callable[..., Child], tmp_path: Path) -> None:
    """Vendored, or unpacked twice: the second finds the hooks of the first in place."""
    child(
        f"""
import shutil, threading
from pathlib import Path
with get(HEAP_SECURE): first = [bytes(100)]
copy = Path({str(tmp_path)!r})
shutil.copytree(Path(malloc_arena.__file__).parent, copy / "malloc_arena")
for name in [name for name in sys.modules if name.startswith("malloc_arena")]:
    del sys.modules[name]
sys.path.insert(0, str(copy))
import malloc_arena as other
assert Path(other._core.__file__).is_relative_to(copy), other._core.__file__
vault = other.get(other.HEAP_SECURE)
with vault:
    second = [bytes(100), bytes(5000)]
    seen = []
    thread = threading.Thread(target=lambda: seen.append(vault.owns(id(bytes(100)))))
    thread.start(); thread.join()
assert seen == [True] and all(vault.owns(id(item)) for item in second)
assert get(HEAP_SECURE).owns(id(first[0]))
outside = [bytes(size) for size in range(1000)]
assert not any(vault.owns(id(item)) for item in outside)
del first, second, outside
"""
    ).ends()


def test_threads_of_a_subinterpreter_inherit(child: Callable[..., Child]) -> None:
    child(
        """
import importlib
for name in ("_interpreters", "_xxsubinterpreters"):
    try: sub = importlib.import_module(name); break
    except ImportError: pass
vault = get(HEAP_SECURE)
script = '''
import malloc_arena, threading
vault = malloc_arena.get(1)
seen = []
with vault:
    thread = threading.Thread(target=lambda: seen.append(vault.owns(id(bytes(100)))))
    thread.start(); thread.join()
assert seen == [True], seen
assert vault.escapes() is not None
vault.sweep()
'''
for _ in range(3):
    # In 3.11 an isolated one has no threads.
    interpreter = sub.create(**({"isolated": False} if sys.version_info < (3, 12) else {}))
    with vault:
        failed = sub.run_string(interpreter, script)
    assert failed is None, failed
    sub.destroy(interpreter)
"""
    ).ends()
