"""CPython's own tests, with everything that the interpreter allocates in an arena."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from malloc_arena.cli.config import library

pytestmark = pytest.mark.timeout(1200)

SUITES = (
    "test_str" if sys.version_info >= (3, 13) else "test_unicode",
    "test_bytes",
    "test_dict",
    "test_json",
    "test_re",
    "test_gc",
    "test_threading",
)

# regrtest, with proof before and after that what is allocated lies in the arena, and how much of
# what the collector knows at the end does.
RUNNER = """
import gc, runpy, sys
import malloc_arena
base, size = malloc_arena.region()
def inside(made):
    return base <= id(made) < base + size
assert inside(bytes(100)) and inside(bytes(1 << 20)) and inside(object())
sys.argv[0] = "test"
try:
    runpy.run_module("test", run_name="__main__", alter_sys=True)
finally:
    assert inside(bytes(100)) and inside(bytes(1 << 20)) and inside(object())
    objects = gc.get_objects()
    count = sum(map(inside, objects))
    print("tracked objects in the arena:", count, "outside:", len(objects) - count, flush=True)
"""

# Without preload the arena is active from the import on. With it, and with malloc for CPython's
# small blocks, from the first instruction.
MODES: dict[str, dict[str, str]] = {
    "hooks": {},
    "preload": {"LD_PRELOAD": str(library()), "PYTHONMALLOC": "malloc"},
}


def regrtest(
    arguments: list[str], suites: tuple[str, ...], directory: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    directory.mkdir()
    return subprocess.run(
        [sys.executable, *arguments, "--tempdir", str(directory), *suites],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=directory,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | environment,
        timeout=900,
    )


Result = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Result]:
    """Both modes at the same time: the tests of threads mostly sleep."""
    if importlib.util.find_spec("test.test_gc") is None:
        pytest.skip("this interpreter comes without CPython's test package (Debian: none has it)")
    directory = tmp_path_factory.mktemp("regrtest")
    found: dict[str, subprocess.CompletedProcess[str]] = {}

    def run(mode: str) -> None:
        environment = {"MALLOC_ARENA_OPTIONS": "active=secure"} | MODES[mode]
        found[mode] = regrtest(["-c", RUNNER], SUITES, directory / mode, environment)

    threads = {mode: threading.Thread(target=run, args=(mode,)) for mode in MODES}
    for thread in threads.values():
        thread.start()

    def result(mode: str) -> subprocess.CompletedProcess[str]:
        threads[mode].join()
        return found[mode]  # missing: the time was up, and the thread has said so

    yield result
    for thread in threads.values():
        thread.join()


@pytest.mark.parametrize("mode", MODES)
def test_everything_in_an_arena(mode: str, results: Result, tmp_path: Path) -> None:
    done = results(mode)
    assert "tracked objects in the arena:" in done.stdout, (done.returncode, done.stdout)
    counts = done.stdout.rpartition("tracked objects in the arena:")[2].split()
    inside, outside = int(counts[0]), int(counts[2])
    # What the interpreter made before the import is outside, without preload.
    assert inside > (1000 * outside if mode == "preload" else outside), (inside, outside)
    if done.returncode == 0:
        assert f"All {len(SUITES)} tests OK." in done.stdout
        assert "malloc_arena:" not in done.stdout
        return
    # A machine may fail some of them by itself (a limit, a missing locale, no network): only what
    # the plain interpreter passes counts.
    failed = tuple(name for name in SUITES if f"test {name} failed" in done.stdout)
    assert failed, (done.returncode, done.stdout)
    plain = regrtest(["-m", "test"], failed, tmp_path / "plain", {})
    broken = [name for name in failed if f"test {name} failed" not in plain.stdout]
    assert not broken, done.stdout
