"""CPython's own tests, with everything that the interpreter allocates in an arena, against the same
tests in the plain interpreter on the same machine.

    python tests/py/integration/cpython_suites.py                      # this Python, the whole list
    python tests/py/integration/cpython_suites.py --python P311 --python P313 --only test_ssl
    python tests/py/integration/cpython_suites.py --json result.json

Compared is every single test by its name. One that ends otherwise than in the plain interpreter is
tried again, in both, and counts if it never once ends the same: what a busy machine does to a time
limit is no difference. A difference is printed with its output, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

# What the arena is proved on in `make test`, and the rest. The name of a suite is that of the first
# of its modules that this Python has.
QUICK = (
    ("test_str", "test_unicode"),
    ("test_bytes",),
    ("test_dict",),
    ("test_list",),
    ("test_set",),
    ("test_json",),
    ("test_re",),
    ("test_gc",),
    ("test_generators",),
    ("test_coroutines",),
    ("test_exceptions",),
    ("test_fork1",),
    ("test_threading",),
)
SLOW = (
    ("test_asyncio",),
    ("test_ssl",),
    ("test_sqlite3",),
    ("test_ctypes",),
    ("test_subprocess",),
    ("test_pickle",),
    ("test_tracemalloc",),
    ("test_interpreters",),
    ("test__interpreters", "test__xxsubinterpreters"),
)

# In the plain interpreter 3.13.0 it does not end before regrtest's time is up, on a busy machine.
ENDLESS = ("test_print_exception_gh_102056",)

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

MODES = ("plain", "hooks", "preload")


@dataclass
class Outcome:
    """What became of each test of one suite; of the suite itself if it did not get so far."""

    tests: dict[str, str] = field(default_factory=dict)
    inside: int = 0
    outside: int = 0
    output: str = ""

    def summary(self) -> str:
        count = dict.fromkeys(("ok", "skipped", "failed", "ended"), 0)
        for outcome in self.tests.values():
            count[outcome] += 1
        return ", ".join(f"{n} {kind}" for kind, n in count.items() if n)


def modules(python: str, suites: Sequence[Sequence[str]]) -> list[str]:
    """The modules of SUITES that PYTHON has; none where it comes without its tests."""
    script = (
        "import importlib.util as u, sys\n"
        "if u.find_spec('test') and u.find_spec('test.test_gc'):\n"
        "    for names in sys.argv[1:]:\n"
        "        print(*[n for n in names.split() if u.find_spec('test.' + n)][:1])"
    )
    command = [python, "-c", script, *map(" ".join, suites)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()


def library(python: str) -> str:
    script = "from malloc_arena.cli.config import library; print(library())"
    command = [python, "-c", script]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def run(python: str, module: str, mode: str, only: Sequence[str] = ()) -> Outcome:
    """One suite, or of it the tests ONLY, in a process of its own."""
    arguments = ["-m", "test"] if mode == "plain" else ["-c", RUNNER]
    # Without preload the arena is active from the import on. With it, and with malloc for CPython's
    # small blocks, from the first instruction.
    environment = {} if mode == "plain" else {"MALLOC_ARENA_OPTIONS": "active=secure"}
    if mode == "preload":
        environment |= {"LD_PRELOAD": library(python), "PYTHONMALLOC": "malloc"}
    foreign = ("PYTHON", "MALLOC_", "LD_PRELOAD")
    with tempfile.TemporaryDirectory(prefix="regrtest-") as directory:
        report = Path(directory, "report.xml")
        matching = Path(directory, "matching")
        matching.write_text("".join(f"{name}\n" for name in only))
        done = subprocess.run(
            [
                python,
                *arguments,
                "--timeout=600",
                f"--junit-xml={report}",
                f"--tempdir={directory}",
                *([f"--matchfile={matching}"] if only else []),
                *(f"--ignore={name}" for name in ENDLESS),
                module,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=directory,
            env={k: v for k, v in os.environ.items() if not k.startswith(foreign)} | environment,
            timeout=1200,
        )
        outcome = Outcome(output=done.stdout)
        if report.exists():
            for case in ET.parse(report).getroot().iter("testcase"):
                kinds = {child.tag for child in case}
                outcome.tests[case.get("name", "")] = (
                    "failed"
                    if kinds & {"error", "failure"}
                    else "skipped"
                    if "skipped" in kinds
                    else "ok"
                )
    if not outcome.tests or done.returncode < 0:
        outcome.tests[module] = "skipped" if "skipped" in done.stdout.lower() else "ended"
    _, marker, counts = done.stdout.rpartition("tracked objects in the arena:")
    if marker:
        outcome.inside, outcome.outside = int(counts.split()[0]), int(counts.split()[2])
    return outcome


@dataclass
class Suite:
    """One suite in all modes, and what of it differs from the plain interpreter."""

    python: str
    module: str
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    differences: dict[str, dict[str, str]] = field(default_factory=dict)


def compare(python: str, module: str, modes: Sequence[str] = MODES[1:], tries: int = 3) -> Suite:
    suite = Suite(python, module, {mode: run(python, module, mode) for mode in ("plain", *modes)})
    plain = suite.outcomes["plain"].tests
    for mode in modes:
        found = suite.outcomes[mode].tests
        seen = {
            name: ({plain.get(name, "absent")}, {found.get(name, "absent")})
            for name in plain | found
            if plain.get(name) != found.get(name)
        }
        for _ in range(tries - 1):
            if not seen:
                break
            for again, side in (("plain", 0), (mode, 1)):
                outcome = run(python, module, again, [n for n in seen if n != module])
                for name, sides in seen.items():
                    sides[side].add(outcome.tests.get(name, "absent"))
            seen = {name: sides for name, sides in seen.items() if not sides[0] & sides[1]}
        suite.differences[mode] = {
            name: f"{'/'.join(sorted(before))} -> {'/'.join(sorted(now))}"
            for name, (before, now) in seen.items()
        }
    return suite


def version(python: str) -> str:
    command = [python, "-c", "import platform; print(platform.python_version())"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--python",
        action="append",
        metavar="PATH",
        help="an interpreter that has malloc_arena; may be given again",
    )
    parser.add_argument("--only", metavar="MODULE,...", help="any modules of CPython's tests")
    parser.add_argument("--mode", choices=MODES[1:], action="append", help="default: both")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="suites at a time")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    modes = options.mode or MODES[1:]
    wanted = [(name,) for name in options.only.split(",")] if options.only else [*QUICK, *SLOW]
    todo = [
        (python, module)
        for python in map(os.path.abspath, options.python or [sys.executable])
        for module in modules(python, wanted)
    ]
    if not todo:
        parser.error("these interpreters come without CPython's test package")
    names = {python: version(python) for python, _ in todo}
    print(f"| suite | Python | plain | {' | '.join(modes)} |\n|---|---|---|{'---|' * len(modes)}")
    suites = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for suite in pool.map(lambda each: compare(*each, modes), todo):
            suites.append(suite)
            cells = []
            for mode in modes:
                differences = suite.differences[mode]
                verdict = f"{len(differences)} DIFFER" if differences else "same"
                cells.append(f"{verdict} ({suite.outcomes[mode].summary()})")
            plain = suite.outcomes["plain"].summary()
            print(
                f"| {suite.module} | {names[suite.python]} | {plain} | {' | '.join(cells)} |",
                flush=True,
            )
            for mode, differences in suite.differences.items():
                for name, how in differences.items():
                    print(f"{mode}: {name}: {how}", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps([asdict(suite) for suite in suites], indent=1) + "\n")
    return 1 if any(found for suite in suites for found in suite.differences.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
