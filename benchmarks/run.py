"""Builds one program per allocator, runs them round by round, and says what holds.

Every round runs every workload with every contender, one process each, one after the other: what
the machine does in a minute hits all alike. A ratio is taken within a round; the figure is the
median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SCHEMA = "malloc-arena-benchmark"
SCHEMA_VERSION = 1
ROUNDS = 11
ENOUGH_ROUNDS = 7
MEMLOCK = 8 << 20
SAMPLE_SECONDS = 120
QUICK_SIZES = (16, 32, 256, 4096, 65536, 1048576)
SIZES = (
    *(16, 24, 32, 48, 64, 100, 128, 200, 256, 512, 1000, 1024, 2048, 4096, 5000, 8192, 16384),
    *(32768, 65536, 100000, 131072, 262144, 524288, 1048576),
)

# What would change an allocator behind the benchmark's back.
FOREIGN = ("LD_PRELOAD", "LD_LIBRARY_PATH", "GLIBC_TUNABLES", "BOTAN_MLOCK_POOL_SIZE")
FOREIGN_PREFIXES = ("MALLOC_", "MIMALLOC_", "JE_MALLOC", "OPENSSL_")


@dataclass(frozen=True)
class Contender:
    """An allocator: how it is compiled, and where it comes from."""

    name: str
    define: str
    header: str = "stdlib.h"
    libs: tuple[str, ...] = ()
    package: str = ""
    pkg_config: tuple[str, ...] = ()
    malloc_in: str = "libc.so"
    ours: bool = False
    cxx: bool = False
    preload: bool = False

    @property
    def program(self) -> str:
        return "bench-glibc" if self.preload else f"bench-{self.name}"


CONTENDERS = (
    Contender("glibc", "PEER_GLIBC"),
    Contender("dense", "PEER_ARENA=HEAP_SECURE", malloc_in="libmalloc_arena", ours=True),
    Contender(
        "isolated",
        "PEER_ARENA=(HEAP_SECURE|HEAP_ISOLATED)",
        malloc_in="libmalloc_arena",
        ours=True,
    ),
    Contender("default", "PEER_ARENA=HEAP_DEFAULT", malloc_in="libmalloc_arena", ours=True),
    Contender("preloaded", "", malloc_in="libmalloc_arena", ours=True, preload=True),
    Contender(
        "jemalloc",
        "PEER_JEMALLOC",
        "jemalloc/jemalloc.h",
        ("-ljemalloc",),
        "libjemalloc-dev",
        malloc_in="libjemalloc",
    ),
    # Debian's library replaces malloc as well; it is called by its own names all the same.
    Contender(
        "mimalloc",
        "PEER_MIMALLOC",
        "mimalloc.h",
        ("-lmimalloc",),
        "libmimalloc-dev",
        malloc_in="libmimalloc",
    ),
    Contender("sodium", "PEER_SODIUM", "sodium.h", ("-lsodium",), "libsodium-dev"),
    Contender("openssl", "PEER_OPENSSL", "openssl/crypto.h", ("-lcrypto",), "libssl-dev"),
    Contender("gcrypt", "PEER_GCRYPT", "gcrypt.h", ("-lgcrypt",), "libgcrypt20-dev"),
    Contender(
        "botan",
        "PEER_BOTAN",
        "botan/mem_ops.h",
        package="libbotan-2-dev",
        pkg_config=("botan-3", "botan-2"),
        cxx=True,
    ),
)
PEERS = tuple(c.name for c in CONTENDERS if not c.ours)
ARENAS = ("dense", "isolated", "default")


@dataclass(frozen=True)
class Workload:
    """One line of the plan. The unit of a timed one is nanoseconds per operation."""

    name: str
    arguments: tuple[str, ...]
    contenders: tuple[str, ...]
    says: str
    repeat: int = 1  # samples in one round, where a few per cent are to be told apart
    most_rounds: int = 1000  # counts do not need as many as times

    @property
    def group(self) -> str:
        return self.name.partition("/")[0]


def plan(*, quick: bool) -> list[Workload]:
    everyone = PEERS + ARENAS
    sizes = QUICK_SIZES if quick else SIZES
    one = [
        Workload(f"one/{n}", ("one", str(n)), everyone, f"{n} B: alloc, write, free") for n in sizes
    ]
    return [
        *one,
        Workload("mixed", ("mixed",), everyone, "1,000 live objects of 16-512 B, replaced"),
        Workload("mixed2", ("mixed2",), everyone, "the same in each of two threads"),
        Workload("handoff", ("handoff",), everyone, "one thread allocates, another frees"),
        Workload("grow/2", ("grow", "2"), everyone, "realloc 16 B to 64 KiB, doubling"),
        Workload("grow/1.125", ("grow", "1"), everyone, "realloc 16 B to 64 KiB, by 1/8"),
        Workload("enter_leave", ("enter_leave",), ("dense",), "malloc_arena_enter and _leave"),
        Workload("entered", ("entered",), ("dense",), "32 B inside enter: malloc, free", repeat=3),
        Workload("bound", ("bound",), ("dense",), "32 B: malloc_arena(a, malloc), free", repeat=3),
        Workload(
            "program", ("program",), ("glibc", "preloaded"), "an allocation-heavy program", repeat=7
        ),
        Workload("idle/mixed", ("mixed",), ("glibc", "preloaded"), "malloc alone", repeat=3),
        Workload("live/10000", ("live", "10000"), everyone, "live 32 B secrets", most_rounds=3),
        Workload("live/150000", ("live", "150000"), everyone, "live 32 B secrets", most_rounds=3),
        Workload("properties", ("properties",), ARENAS, "what is checked", most_rounds=1),
    ]


Sample = dict[str, Any]


@dataclass
class Results:
    """samples[workload][contender][round] = the samples of that round, in the order taken."""

    samples: dict[str, dict[str, list[list[Sample]]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, workload: str, contender: str, turn: int, sample: Sample) -> None:
        rounds = self.samples.setdefault(workload, {}).setdefault(contender, [])
        while len(rounds) <= turn:
            rounds.append([])
        rounds[turn].append(sample)

    def of(self, workload: str, contender: str) -> list[list[Sample]]:
        return self.samples.get(workload, {}).get(contender, [])

    def flat(self, workload: str, contender: str) -> list[Sample]:
        return [sample for turn in self.of(workload, contender) for sample in turn]

    def per_round(self, workload: str, contender: str, key: str = "ns") -> list[float | None]:
        values: list[float | None] = []
        for turn in self.of(workload, contender):
            numbers = [float(s[key]) for s in turn if key in s]
            values.append(statistics.median(numbers) if numbers else None)
        return values

    def median(self, workload: str, contender: str, key: str = "ns") -> float | None:
        values = [v for v in self.per_round(workload, contender, key) if v is not None]
        return statistics.median(values) if values else None

    def error(self, workload: str, contender: str) -> str:
        if contender in self.missing:
            return f"{contender}: {self.missing[contender]}"
        for sample in self.flat(workload, contender):
            if "error" in sample:
                return f"{contender}: {sample['error']}"
        return f"{workload} was not run"


# ---- figures: what the requirements ask ----


@dataclass(frozen=True)
class Figure:
    value: float | None
    note: str = ""
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    sound: bool = True  # false: measured, but without the property it should have


@dataclass(frozen=True)
class Row:
    says: str
    sense: str
    bound: float
    unit: str
    figure: Callable[[Results], Figure]


@dataclass(frozen=True)
class Verdict:
    says: str
    must_be: str
    measured: str
    verdict: str
    note: str
    value: float | None
    low: float | None
    high: float | None
    rounds: int


def summary(values: Sequence[float], note: str = "", *, sound: bool = True) -> Figure:
    if len(values) > 1:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    else:
        low = high = values[0]
    return Figure(statistics.median(values), note, low, high, len(values), sound)


def paired(
    results: Results, above: tuple[str, str], below: tuple[str, str], note: str = ""
) -> Figure:
    """The median over the rounds of ABOVE / BELOW, each a (workload, contender)."""
    pairs = zip(results.per_round(*above), results.per_round(*below), strict=False)
    ratios = [a / b for a, b in pairs if a is not None and b]
    if not ratios:
        lacks = above if results.median(*above) is None else below
        return Figure(None, results.error(*lacks))
    unlocked = [
        contender
        for workload, contender in {above, below}
        if contender in ("dense", "isolated")
        and any(s.get("locked") is False for s in results.flat(workload, contender))
    ]
    if unlocked:
        return summary(ratios, f"{note} {unlocked[0]} was not locked".strip(), sound=False)
    return summary(ratios, note)


def worst(results: Results, first: int, last: int, a: str, b: str) -> Figure:
    """The largest of the ratios over the sizes that were measured; one bad size is a bad figure."""
    names = [name for name in results.samples if name.startswith("one/")]
    sizes = sorted(n for n in (int(name.partition("/")[2]) for name in names) if first <= n <= last)
    if not sizes:
        return Figure(None, "no such size was run")
    figures = []
    for size in sizes:
        figure = paired(results, (f"one/{size}", a), (f"one/{size}", b), f"worst of all: {size} B")
        if figure.value is None or not figure.sound:
            return figure
        figures.append((figure.value, figure))
    return max(figures, key=lambda pair: pair[0])[1]


def counted(workload: str, key: str, scale: float = 1.0) -> Callable[[Results], Figure]:
    def figure(results: Results) -> Figure:
        samples = [s for s in results.flat(workload, "dense") if key in s]
        if not samples:
            return Figure(None, results.error(workload, "dense"))
        short = [s for s in samples if s["live"] < s["wanted"]]
        note = f"{short[0]['live']} live: {short[0]['ended']}" if short else ""
        return summary([s[key] / scale for s in samples], note)

    return figure


def binding(results: Results) -> Figure:
    both = zip(
        results.per_round("bound", "dense"), results.per_round("entered", "dense"), strict=False
    )
    values = [a - b for a, b in both if a is not None and b is not None]
    return summary(values) if values else Figure(None, results.error("bound", "dense"))


def entering(results: Results) -> Figure:
    values = [v for v in results.per_round("enter_leave", "dense") if v is not None]
    return summary(values) if values else Figure(None, results.error("enter_leave", "dense"))


def properties(results: Results) -> Figure:
    """How many of the checked properties of the secure kinds do not hold."""
    broken: list[str] = []
    for contender in ("dense", "isolated"):
        samples = results.flat("properties", contender)
        if not samples or any("error" in s for s in samples):
            return Figure(None, results.error("properties", contender))
        for sample in samples:
            broken += [f"{contender}: not {key}" for key, holds in sample.items() if holds is False]
            refused = sample["receipt_requested"] & ~sample["receipt_obtained"]
            if refused:
                broken.append(f"{contender}: properties {refused:#x} not obtained")
    return Figure(len(broken), "; ".join(broken), len(broken), len(broken), 1)


def versus(workload: str, a: str, b: str) -> Callable[[Results], Figure]:
    return lambda results: paired(results, (workload, a), (workload, b))


ROWS = (
    Row("dense, 16-256 B one at a time, vs glibc", "<=", 1.1, "x",
        lambda r: worst(r, 16, 256, "dense", "glibc")),
    Row("dense, 1,000 live mixed, vs glibc", "<=", 1.1, "x", versus("mixed", "dense", "glibc")),
    Row("dense, 1,000 live mixed, vs OpenSSL", "<=", 0.3, "x",
        versus("mixed", "dense", "openssl")),
    Row("dense, two threads, vs glibc", "<=", 1.25, "x", versus("mixed2", "dense", "glibc")),
    Row("dense, two threads, vs OpenSSL", "<=", 0.08, "x", versus("mixed2", "dense", "openssl")),
    Row("dense, two threads vs one", "<=", 1.25, "x",
        lambda r: paired(r, ("mixed2", "dense"), ("mixed", "dense"))),
    Row("default, 1,000 live mixed, vs glibc", "<=", 1.15, "x",
        versus("mixed", "default", "glibc")),
    Row("default, two threads, vs glibc", "<=", 1.15, "x",
        versus("mixed2", "default", "glibc")),
    Row("producer/consumer, vs glibc", "<=", 2.0, "x", versus("handoff", "dense", "glibc")),
    Row("4 KiB to 1 MiB, vs glibc", "<=", 2.3, "x",
        lambda r: worst(r, 4096, 1048576, "dense", "glibc")),
    Row("realloc 16 B -> 64 KiB, vs glibc", "<=", 4.0, "x", versus("grow/2", "dense", "glibc")),
    Row("realloc 16 B -> 64 KiB, vs OpenSSL", "<=", 0.4, "x",
        versus("grow/2", "dense", "openssl")),
    Row("isolated, 32 B, vs libsodium", "<=", 0.33, "x", versus("one/32", "isolated", "sodium")),
    Row("isolated, 4 KiB, vs libsodium", "<=", 0.33, "x",
        versus("one/4096", "isolated", "sodium")),
    Row("10,000 live 32 B secrets: RSS", "<=", 1.0, "MiB", counted("live/10000", "rss", 1 << 20)),
    Row("10,000 live 32 B secrets: VMAs", "<=", 100, "", counted("live/10000", "vmas")),
    Row("live 32 B secrets, 8 MiB memlock, locked", ">=", 150000, "",
        counted("live/150000", "locked_secrets")),
    Row("preloaded, nothing active, vs without", "<=", 1.03, "x",
        versus("program", "preloaded", "glibc")),
    Row("binding: enter + leave", "<", 10, "ns", entering),
    Row("binding: malloc_arena(a, malloc, n)", "<", 10, "ns", binding),
    Row("security properties that do not hold", "<=", 0, "", properties),
)  # fmt: skip


def judge(results: Results) -> list[Verdict]:
    verdicts = []
    for row in ROWS:
        figure = row.figure(results)
        digits = 2 if row.unit else 0  # what has no unit is a count
        unit = f" {row.unit}" if row.unit not in ("", "x") else ""
        measured, verdict = "-", "not measured"
        if figure.value is not None:
            measured = f"{figure.value:,.{digits}f}{unit}"
            if figure.rounds > 1:
                measured += f" ({figure.low:,.{digits}f} to {figure.high:,.{digits}f})"
            verdict = "met" if figure.sound and holds(figure.value, row) else "NOT MET"
        verdicts.append(
            Verdict(
                says=row.says,
                must_be=f"{row.sense} {row.bound:,.{digits}f}{unit}",
                measured=measured,
                verdict=verdict,
                note=figure.note,
                value=figure.value,
                low=figure.low,
                high=figure.high,
                rounds=figure.rounds,
            )
        )
    return verdicts


def holds(value: float, row: Row) -> bool:
    if row.sense == "<=":
        return value <= row.bound
    if row.sense == "<":
        return value < row.bound
    return value >= row.bound


# ---- building ----


class CannotLook(Exception):
    """The benchmark cannot be run here; the message says why and what would help."""


def output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def find_library(build: Path, given: str | None) -> Path:
    """The library of this checkout, built as the package builds it, unless another one is given."""
    if given:
        path = Path(given).resolve()
        if not path.is_file():
            raise CannotLook(f"{path}: no such library")
        return path
    beside = Path(sys.executable).with_name("meson")
    meson = str(beside) if beside.exists() else shutil.which("meson")
    if meson:
        directory = build / "library"
        # ninja from a venv is not in the PATH of who calls that venv's python
        search = os.pathsep.join([str(beside.parent), os.environ.get("PATH", "")])
        environment = {**os.environ, "PATH": search}
        setup = [meson, "setup", str(directory), str(ROOT), "-Dpython=false"]
        if (directory / "build.ninja").exists():
            setup.append("--reconfigure")
        for command in (setup, [meson, "compile", "-C", str(directory)]):
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=environment
            )
            if done.returncode != 0:
                tail = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
                raise CannotLook(f"the library does not build:\n{tail}")
        return directory / "src/core/libmalloc_arena.so"
    candidates = [ROOT / "build/src/core/libmalloc_arena.so"]
    installed = importlib.util.find_spec("malloc_arena")
    if installed is not None and installed.origin:
        candidates.append(Path(installed.origin).parent / "lib/libmalloc_arena.so")
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CannotLook("no meson to build the library, and none is built: pip install meson ninja")


def compile_contender(
    contender: Contender, build: Path, cc: str, cxx: str, library: Path | None
) -> str | None:
    """None, or why there is no such contender here. Raises where our own code does not compile."""
    flags = ["-O2", "-g", "-std=gnu17", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-pthread"]
    include: list[str] = []
    libs = list(contender.libs)
    for module in contender.pkg_config:
        if output_of("pkg-config", "--libs", module):
            include = output_of("pkg-config", "--cflags", module).split()
            libs = output_of("pkg-config", "--libs", module).split()
            break
    if contender.ours:
        if library is None:
            return "left out (--peers)"
        include = ["-I", str(ROOT / "include")]
        libs = ["-L", str(library.parent), "-lmalloc_arena", f"-Wl,-rpath,{library.parent}"]
    else:
        compiler = [cxx, "-xc++"] if contender.cxx else [cc, "-xc"]
        try:
            there = subprocess.run(
                [*compiler, "-E", *include, "-"],
                input=f"#include <{contender.header}>\n",
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            return "no C++ compiler (apt install g++)"
        if there.returncode != 0:
            return f"not installed (apt install {contender.package})"
    target = str(build / contender.program)
    define = f"-D{contender.define}"
    source = str(HERE / "bench.c")
    if contender.cxx:
        objects = [f"{target}.o", f"{target}-cc.o"]
        commands = [
            [cc, *flags, define, "-c", source, "-o", objects[0]],
            [cxx, "-O2", "-g", *include, "-c", str(HERE / "peer_botan.cc"), "-o", objects[1]],
            [cxx, "-pthread", *objects, "-o", target, *libs],
        ]
    else:
        commands = [[cc, *flags, define, *include, source, "-o", target, *libs]]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CannotLook(f"{' '.join(command)}\n{done.stderr}")
    return None


# ---- running ----


@dataclass(frozen=True)
class Bench:
    """How a sample is taken on this machine."""

    build: Path
    library: Path | None
    memlock: int
    environment: Mapping[str, str]

    def sample(
        self, contender: Contender, arguments: Sequence[str], cpus: tuple[int, int]
    ) -> Sample:
        environment = dict(self.environment)
        if contender.preload:
            environment["LD_PRELOAD"] = str(self.library)
        command = [str(self.build / contender.program), arguments[0], str(self.memlock)]
        command += [str(cpus[0]), str(cpus[1]), *arguments[1:]]
        try:
            done = subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=SAMPLE_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"no answer in {SAMPLE_SECONDS} s"}
        said = done.stderr.strip()
        if done.returncode != 0:
            return {"error": f"exit status {done.returncode}: {said}"}
        sample: Sample = json.loads(done.stdout)
        if said:
            sample["said"] = said
        return sample


def clean_environment() -> dict[str, str]:
    return {
        key: value
        for key, value in os.environ.items()
        if key not in FOREIGN and not key.startswith(FOREIGN_PREFIXES)
    }


def cpu_pairs() -> list[tuple[int, int]]:
    """For each CPU we may use, another one that shares no core with it if there is such; -1: none.

    The rounds go through them: a CPU that is busy with something else spoils its rounds only."""
    cpus = sorted(os.sched_getaffinity(0))

    def core(cpu: int) -> str:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            return path.read_text().strip()
        except OSError:
            return str(cpu)

    pairs = []
    for index, cpu in enumerate(cpus):
        others = cpus[index + 1 :] + cpus[:index]
        apart = [other for other in others if core(other) != core(cpu)]
        pairs.append((cpu, (apart or others or [-1])[0]))
    return pairs


@contextlib.contextmanager
def progress_bar(total: int) -> Iterator[Callable[[str], None]]:
    """Calls advance it. On a terminal only: a log full of bars helps nobody."""
    if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task("starting", total=total)

        def advance(what: str) -> None:
            bar.update(task, advance=1, description=what)

        yield advance


def run_rounds(
    bench: Bench,
    contenders: Mapping[str, Contender],
    workloads: Sequence[Workload],
    rounds: int,
    results: Results,
) -> int:
    """Fills RESULTS; how many rounds were complete when it ended or was interrupted."""
    pairs = cpu_pairs()
    jobs = [
        (turn, workload, name)
        for turn in range(rounds)
        for workload in workloads
        if turn < workload.most_rounds
        for name in rotated([n for n in workload.contenders if n in contenders], turn)
        * workload.repeat
    ]
    done = 0
    try:
        with progress_bar(len(jobs)) as advance:
            for turn, workload, name in jobs:
                done = turn
                cpus = pairs[turn % len(pairs)]
                sample = bench.sample(contenders[name], workload.arguments, cpus)
                results.add(workload.name, name, turn, sample)
                advance(f"{workload.name} {name}")
    except KeyboardInterrupt:
        print("interrupted: the figures are those of the rounds so far", file=sys.stderr)
        return done
    return rounds


def rotated(names: list[str], by: int) -> list[str]:
    """Who comes after whom changes from round to round."""
    by %= len(names) or 1
    return names[by:] + names[:by]


# ---- facts, tables ----


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "CPU part")):
            return line.partition(":")[2].strip()
    return platform.processor() or "?"


def read_or(path: str, otherwise: str = "?") -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return otherwise


def machine_facts(cc: str) -> dict[str, Any]:
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpu": cpu_model(),
        "cpus": sorted(os.sched_getaffinity(0)),
        "siblings": read_or("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list"),
        "governor": read_or("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "hypervisor": "hypervisor" in Path("/proc/cpuinfo").read_text(),
        "transparent_hugepage": read_or("/sys/kernel/mm/transparent_hugepage/enabled"),
        "max_map_count": int(read_or("/proc/sys/vm/max_map_count", "0")),
        "glibc": os.confstr("CS_GNU_LIBC_VERSION"),
        "compiler": output_of(cc, "--version").partition("\n")[0],
        "python": platform.python_version(),
        "memlock_hard_limit": resource.getrlimit(resource.RLIMIT_MEMLOCK)[1],
        "root": os.geteuid() == 0,
        "load_average": os.getloadavg(),
        "commit": output_of("git", "-C", str(ROOT), "rev-parse", "--verify", "-q", "HEAD"),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """Columns from the LEFT'th on are set flush right."""
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    for line in [head, ["-" * width for width in widths], *rows]:
        cells = [
            text.ljust(width) if i < left else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def print_times(results: Results, workloads: Sequence[Workload], names: Sequence[str]) -> None:
    rows = []
    star = False
    for workload in workloads:
        cells = []
        for name in names:
            value = results.median(workload.name, name)
            if value is None:
                failed = any("error" in s for s in results.flat(workload.name, name))
                cells.append("failed" if failed else "")
                continue
            unlocked = any(s.get("locked") is False for s in results.flat(workload.name, name))
            star = star or (unlocked and name != "default")
            mark = "*" if unlocked and name != "default" else ""
            cells.append((f"{value:.1f}" if value < 1000 else f"{value:,.0f}") + mark)
        if any(cells):
            rows.append([workload.name, *cells])
    if rows:
        print("\nNanoseconds per operation, median of the rounds")
        print_table(["workload", *names], rows)
        if star:
            print("* a secure heap whose memory was not locked")


def print_live(results: Results, names: Sequence[str]) -> None:
    rows = []
    for workload in ("live/10000", "live/150000"):
        for name in names:
            samples = results.flat(workload, name)
            if not samples:
                continue
            last = samples[-1]
            if "error" in last:
                rows.append([workload, name, last["error"], *[""] * 5])
                continue
            rows.append(
                [
                    workload,
                    name,
                    last["ended"],
                    f"{last['live']:,}",
                    f"{last['locked_secrets']:,}",
                    f"{last['rss'] / 1024:,.0f}",
                    f"{last['vmlck'] / 1024:,.0f}",
                    f"{last['vmas']:,}",
                ]
            )
    if rows:
        print("\nLive 32-byte secrets (differences to the process before it allocated)")
        head = ["workload", "contender", "ended", "live", "locked", "RSS KiB", "VmLck KiB", "VMAs"]
        print_table(head, rows, left=3)


def print_report(
    results: Results,
    verdicts: Sequence[Verdict],
    workloads: Sequence[Workload],
    names: Sequence[str],
    rounds: int,
) -> None:
    print_times(results, workloads, names)
    print_live(results, names)
    errors = sorted(
        {
            f"{name}, {workload}: {sample['error']}"
            for workload, by_name in results.samples.items()
            for name, turns in by_name.items()
            for turn in turns
            for sample in turn
            if "error" in sample
        }
    )
    if errors:
        print("\nFailed samples")
        for error in errors:
            print(f"  {error}")
    if results.missing:
        print("\nMissing")
        for name, why in results.missing.items():
            print(f"  {name}: {why}")
    print(f"\nFigures: median (quartiles) of the rounds, of which there were {rounds}")
    print_table(
        ["figure", "measured", "must be", "verdict", "note"],
        [[v.says, v.measured, v.must_be, v.verdict, v.note] for v in verdicts],
        left=5,
    )
    if rounds < ENOUGH_ROUNDS:
        print(f"Fewer than {ENOUGH_ROUNDS} rounds: a trial run, no figures to quote.")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run.py", description="Compare malloc-arena with other allocators in one run."
    )
    parser.add_argument("--quick", action="store_true", help="3 rounds, few sizes: a trial")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}; at least {ENOUGH_ROUNDS}")
    parser.add_argument(
        "--only",
        action="append",
        metavar="WORKLOAD",
        help="a workload or a group of them (one, one/32, mixed, ...); may be repeated",
    )
    parser.add_argument(
        "--contender",
        action="append",
        metavar="NAME",
        choices=[c.name for c in CONTENDERS],
        help="only these; may be repeated; --list names them",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="default: result.json in the build directory"
    )
    parser.add_argument("--plot", metavar="DIR", help="default: the build directory")
    parser.add_argument(
        "--lib",
        default=os.environ.get("LIB"),
        metavar="PATH",
        help="a built libmalloc_arena.so; default: $LIB, else one built from this checkout",
    )
    parser.add_argument("--peers", action="store_true", help="without malloc-arena itself")
    parser.add_argument("--build", default=str(ROOT / "build-bench"), metavar="DIR")
    parser.add_argument("--memlock", type=int, default=MEMLOCK, metavar="BYTES")
    parser.add_argument("--check", action="store_true", help="exit 1 unless every figure is met")
    parser.add_argument("--list", action="store_true", help="list workloads and contenders")
    arguments = parser.parse_args(argv)
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    return arguments


def select(arguments: argparse.Namespace) -> list[Workload]:
    workloads = plan(quick=arguments.quick)
    if not arguments.only:
        return workloads
    known = {w.name for w in workloads} | {w.group for w in workloads}
    for name in arguments.only:
        size = name.removeprefix("one/")
        if name not in known and name != size and size.isdecimal() and int(size) > 0:
            everyone = PEERS + ARENAS
            workloads.append(Workload(name, ("one", size), everyone, f"{size} B"))
        elif name not in known:
            raise CannotLook(f"no workload {name}; there are {', '.join(sorted(known))}")
    return [w for w in workloads if w.name in arguments.only or w.group in arguments.only]


def prepare(
    arguments: argparse.Namespace, build: Path, cc: str, results: Results
) -> tuple[Bench, dict[str, Contender], dict[str, Sample]]:
    """Builds all that can be built here; the rest is named in RESULTS.missing."""
    library = None if arguments.peers else find_library(build, arguments.lib)
    bench = Bench(build, library, arguments.memlock, clean_environment())
    there: dict[str, Contender] = {}
    about: dict[str, Sample] = {}
    cpus = cpu_pairs()[0]
    for contender in CONTENDERS:
        if arguments.contender and contender.name not in arguments.contender:
            results.missing[contender.name] = "left out (--contender)"
            continue
        if contender.preload:
            why = None if library else "left out (--peers)"
            if not (build / contender.program).exists():
                why = "needs the contender glibc"
        else:
            why = compile_contender(contender, build, cc, os.environ.get("CXX", "c++"), library)
        if why is None:
            said = bench.sample(contender, ["about"], cpus)
            why = said.get("error")
            if why is None and contender.malloc_in not in said["malloc"]:
                raise CannotLook(f"{contender.name} would measure another malloc: {said['malloc']}")
            about[contender.name] = said
        if why is None:
            there[contender.name] = contender
        else:
            results.missing[contender.name] = why
    return bench, there, about


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    rounds = arguments.rounds or (3 if arguments.quick else ROUNDS)
    if arguments.list:
        for workload in plan(quick=False):
            print(f"{workload.name:<14} {workload.says}")
        print("contenders:", ", ".join(c.name for c in CONTENDERS))
        return 0
    cc = os.environ.get("CC", "cc")
    build = Path(arguments.build).resolve()
    build.mkdir(parents=True, exist_ok=True)
    results = Results()
    try:
        if shutil.which(cc) is None:
            raise CannotLook("no C compiler (apt install gcc libc6-dev)")
        workloads = select(arguments)
        bench, contenders, about = prepare(arguments, build, cc, results)
    except CannotLook as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 3
    machine = machine_facts(cc)
    print(f"{machine['cpu']}, {len(machine['cpus'])} CPUs, Linux {machine['kernel']}, ", end="")
    print(f"{machine['glibc']}, {machine['compiler']}")
    print(f"memlock {bench.memlock >> 10} KiB, load {machine['load_average'][0]:.2f}, ", end="")
    print(f"library {bench.library or '-'}")
    if machine["load_average"][0] > 1:
        print("  Others use this machine: two threads contend less, and small differences drown.")
    for name, said in about.items():
        if name in contenders and name not in ("isolated", "default", "preloaded"):
            print(f"  {name:<9} {said['version']}")

    complete = run_rounds(bench, contenders, workloads, rounds, results)
    machine["load_average_after"] = os.getloadavg()
    verdicts = judge(results)
    names = [name for name in contenders if name != "preloaded"]
    print_report(results, verdicts, workloads, [*names, "preloaded"], complete)

    path = Path(arguments.json) if arguments.json else build / "result.json"
    document = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "machine": machine,
        "memlock": bench.memlock,
        "library": str(bench.library) if bench.library else None,
        "rounds": complete,
        "contenders": about,
        "missing": results.missing,
        "figures": [asdict(verdict) for verdict in verdicts],
        "workloads": {w.name: w.says for w in workloads},
        "samples": results.samples,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    import plot

    pictures = plot.write_all(document, Path(arguments.plot) if arguments.plot else build)
    print(f"\n{path}" + "".join(f"\n{picture}" for picture in pictures))
    if arguments.check and any(v.verdict != "met" for v in verdicts):
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
