"""Heap sizes, and workloads in one heap or in one each: memory, speed, and where it ends.

    python benchmarks/heapsize/run.py                     # both, 5 rounds, some minutes
    python benchmarks/heapsize/run.py --only burst --rounds 9
    python benchmarks/heapsize/run.py --quick             # does it work?
    python benchmarks/heapsize/run.py --from result.json  # tables and pictures again, no new run

Each sample is a process of its own; a round runs every case once, in an order that changes; times
are CPU time of the threads, and a figure is the median over the rounds. The library is built from
this checkout; results go to build-bench/heapsize. docs/heap-size.md says what came out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import plot  # noqa: E402
from run import CannotLook, find_library  # noqa: E402

ROOT = HERE.parents[1]
SCHEMA = "malloc-arena/heapsize/1"
FOREIGN = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
SIZES = tuple(64 << (10 + 2 * i) for i in range(6))  # 64 KiB to 64 MiB
THREADS = (1, 4, 16, 64)
EACH = 1 << 20
SPACES = (0, 1 << 30, 1 << 29)
LIVE = 32 << 20
BURST = 256 << 20
LIBRARIES = {
    "default": "-DPEER_ARENA=HEAP_DEFAULT",
    "secure": "-DPEER_ARENA=HEAP_SECURE",
    "glibc": "-DPEER_GLIBC",
    "jemalloc": "-DPEER_JEMALLOC",
    "mimalloc": "-DPEER_MIMALLOC",
}


@dataclass(frozen=True)
class Case:
    """One program with one setting."""

    name: str
    program: str
    library: str
    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()


def short(size: int) -> str:
    return f"{size >> 20}M" if size >= 1 << 20 else f"{size >> 10}K"


def spread_cases(*, quick: bool) -> Iterator[Case]:
    def case(library: str, label: str, threads: int, space: int, *pair: tuple[str, str]) -> Case:
        name = f"spread/{library}/{label}/{threads}/{short(space) if space else 'all'}"
        return Case(name, "spread", library, (str(threads), str(EACH), str(space)), pair)

    for space in SPACES:
        for threads in THREADS[-1:] if space or quick else THREADS:
            for size in SIZES:
                option = ("MALLOC_ARENA_OPTIONS", f"heap_size={size}")
                yield case("default", short(size), threads, space, option)
            yield case("glibc", "64M", threads, space)
            for most in (1, 8):
                pair = ("MALLOC_ARENA_MAX", str(most))
                yield case("glibc", f"64M, {most} arenas", threads, space, pair)
    for size in SIZES:
        option = ("MALLOC_ARENA_OPTIONS", f"heap_size={size},lock=off")
        yield case("secure", short(size), THREADS[-1], 0, option)


def burst_cases(*, quick: bool) -> Iterator[Case]:
    for library in LIBRARIES:
        for separate in (0, 1):
            if (library, separate) == ("glibc", 1) or library == "secure":
                continue  # glibc has no second heap for one thread
            name = f"burst/{library}/{'separate' if separate else 'one'}"
            sizes = (LIVE // 8, BURST // 8) if quick else (LIVE, BURST)
            yield Case(name, "burst", library, (str(separate), *map(str, sizes)))


def compile_all(build: Path, library: Path, cases: Sequence[Case]) -> dict[str, str]:
    """Why a library is left out, by its name."""
    missing = {}
    for program, name in sorted({(case.program, case.library) for case in cases}):
        command = [os.environ.get("CC", "cc"), "-O2", "-g", "-std=gnu17", "-D_GNU_SOURCE"]
        command += ["-Wall", "-Wextra", "-Wno-unused-function", "-pthread", LIBRARIES[name]]
        command += [str(HERE / f"{program}.c"), "-o", str(build / f"{program}-{name}")]
        if "ARENA" in LIBRARIES[name]:
            command += ["-I", str(ROOT / "include"), "-L", str(library.parent), "-lmalloc_arena"]
            command += [f"-Wl,-rpath,{library.parent}"]
        elif name != "glibc":
            command.append(f"-l{name}")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            if name not in ("jemalloc", "mimalloc"):
                raise CannotLook(done.stderr)
            missing[name] = f"apt install lib{name}-dev"
    return missing


def sample(build: Path, case: Case) -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
    done = subprocess.run(
        [str(build / f"{case.program}-{case.library}"), *case.arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, **dict(case.environment)},
    )
    try:
        values: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        values = {"error": done.stderr.strip() or f"exit {done.returncode}"}
    return values


def measure(build: Path, cases: Sequence[Case], rounds: int) -> dict[str, list[dict[str, Any]]]:
    samples: dict[str, list[dict[str, Any]]] = {case.name: [] for case in cases}
    for turn in range(rounds):
        shift = turn * len(cases) // rounds
        for number, case in enumerate([*cases[shift:], *cases[:shift]], 1):
            samples[case.name].append(sample(build, case))
            if sys.stderr.isatty():
                print(f"\rround {turn + 1}: {number}/{len(cases)}", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return samples


class Results:
    def __init__(self, document: dict[str, Any]) -> None:
        self.samples: dict[str, list[dict[str, Any]]] = document["samples"]

    def median(self, name: str, key: str) -> float | None:
        values = [s[key] for s in self.samples.get(name, ()) if key in s]
        return statistics.median(values) if values else None

    def error(self, name: str) -> str:
        return next((s["error"] for s in self.samples.get(name, ()) if "error" in s), "")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, ["-" * width for width in widths], *rows):
        cells = (
            c.rjust(w) if i else c.ljust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(cells).rstrip())
    print()


def mib(value: float | None) -> str:
    return "-" if value is None else f"{value / (1 << 20):.1f}"


def number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def print_spread(results: Results) -> None:
    rows = []
    for name in results.samples:
        if not name.startswith("spread/"):
            continue
        _, library, label, threads, space = name.split("/")
        rows.append(
            [
                f"{library} {label}",
                threads,
                space,
                number(results.median(name, "failed")),
                *(mib(results.median(name, key)) for key in ("size", "data", "rss", "live")),
                number((results.median(name, "tables") or 0) / 1024),
                *(number(results.median(name, key)) for key in ("vmas", "grow_ns", "steady_ns")),
            ]
        )
    head = ["heaps", "threads", "ulimit -v", "failed", "VmSize", "VmData", "RSS", "live MiB"]
    table([*head, "VmPTE KiB", "VMAs", "grow ns", "steady ns"], rows)


def print_burst(results: Results) -> None:
    rows = []
    for name in results.samples:
        if not name.startswith("burst/"):
            continue
        _, library, heaps = name.split("/")
        if results.error(name):
            rows.append([f"{library}, {heaps}", results.error(name), *[""] * 7])
            continue

        def over_live(key: str, live: str, name: str = name) -> str:
            held, alive = results.median(name, key), results.median(name, live)
            return "-" if not held or not alive else f"{held / alive:.2f}"

        rows.append(
            [
                f"{library}, {heaps}",
                mib(results.median(name, "peak")),
                over_live("settled", "live_before"),
                over_live("after", "live"),
                over_live("trimmed", "live_trimmed"),
                *(number(results.median(name, k)) for k in ("before_ns", "after_ns", "burst_ns")),
            ]
        )
    head = ["heaps", "peak MiB", "before", "after", "trimmed", "before ns", "after ns", "burst ns"]
    print("RSS over live bytes: before the bursts, after them, and after the allocator's own trim")
    table(head, rows)


def draw(results: Results, directory: Path) -> list[Path]:
    pictures = {}
    heaps = {
        f"{threads} threads": {
            size: f"spread/default/{short(size)}/{threads}/all" for size in SIZES
        }
        for threads in THREADS
    }
    for key, title, unit in (
        ("data", "Writable memory by heap size", "bytes"),
        ("rss", "Resident memory by heap size", "bytes"),
        ("tables", "Page tables by heap size", "bytes"),
        ("grow_ns", "Growth by heap size", "ns an object"),
    ):
        series = {}
        for label, names in heaps.items():
            points = {size: results.median(name, key) for size, name in names.items()}
            series[label] = {size: value for size, value in points.items() if value}
        for threads in THREADS[-1:]:
            value = results.median(f"spread/glibc/64M/{threads}/all", key)
            if value:
                series[f"glibc, {threads}"] = {SIZES[0]: value, SIZES[-1]: value}
        series = {label: points for label, points in series.items() if points}
        if series:
            pictures[f"{key}.svg"] = plot.lines(title, series, unit)
    groups: dict[str, dict[str, float]] = {}
    for key, live, title in (
        ("after", "live", "RSS over live bytes after the bursts"),
        ("trimmed", "live_trimmed", "after the allocator's own trim"),
    ):
        for name in results.samples:
            held, alive = results.median(name, key), results.median(name, live)
            if name.startswith("burst/") and held and alive:
                label = " ".join(name.split("/")[1:])
                groups.setdefault(title, {})[label] = held / alive
    if groups:
        pictures["burst.svg"] = plot.bars("One heap, or one each", groups, "times the live bytes")
    directory.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        (directory / name).write_text(picture)
    return [directory / name for name in pictures]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("spread", "burst"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round, small")
    parser.add_argument("--build", type=Path, default=ROOT / "build-bench")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    build = options.build / "heapsize"
    if options.source:
        document = json.loads(options.source.read_text())
    else:
        cases = []
        if options.only != "burst":
            cases += spread_cases(quick=options.quick)
        if options.only != "spread":
            cases += burst_cases(quick=options.quick)
        build.mkdir(parents=True, exist_ok=True)
        try:
            library = find_library(options.build, os.environ.get("LIB"))
            missing = compile_all(build, library, cases)
        except CannotLook as error:
            print(f"benchmark: {error}", file=sys.stderr)
            return 3
        for name, fix in missing.items():
            print(f"{name} is left out: {fix}")
        cases = [case for case in cases if case.library not in missing]
        samples = measure(build, cases, 1 if options.quick else options.rounds)
        path = build / "result.json"
        if options.only and path.exists():
            samples = {**json.loads(path.read_text())["samples"], **samples}
        document = {
            "schema": SCHEMA,
            "machine": {
                "kernel": platform.release(),
                "cpus": os.cpu_count(),
                "load": os.getloadavg(),
                "compiler": shutil.which("cc"),
            },
            "samples": samples,
        }
        path.write_text(json.dumps(document, indent=1))
    results = Results(document)
    print_spread(results)
    print_burst(results)
    for path in draw(results, build):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
