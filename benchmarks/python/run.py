"""What the hooks cost: every program without them, with them before a scope, after one, and in one.

    python benchmarks/python/run.py                      # this Python
    python benchmarks/python/run.py --python P311 --python P313 --json result.json
    python benchmarks/python/run.py --only str_sort,json_documents --rounds 40

Four workers, one for each condition, are told round by round to do the same work, one right after
the other, in changing order. A ratio is taken within a round; a figure is the median of a program's
ratios, a total the geometric mean of these. Workers are replaced every few rounds, as where a
process lies in memory is good for some per cent either way.
"""

from __future__ import annotations

import argparse
import contextlib
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

from programs import MICROS, PROGRAMS

HERE = Path(__file__).resolve().parent
SCHEMA = "malloc-arena/python-cost/2"
# Of the geometric mean and of the worst.
BOUNDS = {"inactive": (1.02, 1.05), "left": (1.02, 1.05), "active": (1.08, 1.3)}
CONDITIONS = ("absent", *BOUNDS)
SAMPLE_NS = 20_000_000
ENTERS = 20_000
ENTERING = {
    "enter_leave": "enter + leave, us",
    "enter_leave_in_coroutine": "the same in a coroutine, us",
}
FOREIGN = ("PYTHON", "MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


class Worker:
    def __init__(self, python: str, condition: str, cpu: int) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
        self.process = subprocess.Popen(
            [python, str(HERE / "worker.py"), condition],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # glibc gives the top of its heap back when 128 KiB of it are free, at each free of a
            # 100 KB block that happens to lie there: luck, for all three alike.
            env={**environment, "PYTHONHASHSEED": "0", "MALLOC_TOP_PAD_": str(4 << 20)},
        )
        os.sched_setaffinity(self.process.pid, {cpu})

    def ask(self, name: str, count: int) -> int:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{name} {count}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.process.args!r} ended at {name}")
        return int(answer)


@contextlib.contextmanager
def _workers(python: str, cpu: int) -> Iterator[dict[str, Worker]]:
    workers = {condition: Worker(python, condition, cpu) for condition in CONDITIONS}
    try:
        yield workers
    finally:
        for worker in workers.values():
            assert worker.process.stdin
            assert worker.process.stdout
            worker.process.stdin.close()
            worker.process.wait()
            worker.process.stdout.close()


Samples = dict[str, dict[str, list[float]]]  # by program and condition, nanoseconds of one round


def measure(python: str, names: Sequence[str], rounds: int, each: int) -> dict[str, Any]:
    cpus = sorted(os.sched_getaffinity(0))
    samples: Samples = {name: {condition: [] for condition in CONDITIONS} for name in names}
    entering: dict[str, list[float]] = {name: [] for name in ENTERING}
    counts: dict[str, int] = {}
    done = 0
    while done < rounds:
        with _workers(python, cpus[done // each % len(cpus)]) as workers:
            for name in names:
                if name not in counts:
                    counts[name] = max(SAMPLE_NS * 3 // max(workers["absent"].ask(name, 3), 1), 1)
            for turn in range(min(each, rounds - done)):
                first = (turn + done) % len(CONDITIONS)
                order = CONDITIONS[first:] + CONDITIONS[:first]
                for name in names:
                    for condition in order:
                        spent = workers[condition].ask(name, counts[name])
                        samples[name][condition].append(spent / counts[name])
                for name, of in entering.items():
                    of.append(workers["left"].ask(name, ENTERS) / ENTERS)
                if sys.stderr.isatty():
                    print(f"\r{python} {done + turn + 1}/{rounds}\x1b[K", end="", file=sys.stderr)
        done += each
    version = subprocess.run(
        [python, "-c", "import platform; print(platform.python_version())"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()
    return {"python": version, "samples": samples, "entering": entering}


# ---- figures ----


@dataclass(frozen=True)
class Figure:
    says: str
    value: float
    bound: float
    note: str

    @property
    def met(self) -> bool:
        return self.value <= self.bound


def ratios(samples: Samples, condition: str) -> dict[str, float]:
    """The median over the rounds of the ratio to the same round without hooks."""
    return {
        name: statistics.median(a / b for a, b in zip(of[condition], of["absent"], strict=True))
        for name, of in samples.items()
    }


def figures(result: dict[str, Any]) -> list[Figure]:
    found = []
    for condition, (mean, most) in BOUNDS.items():
        of = ratios(result["samples"], condition)
        worst = max(of, key=lambda name: of[name])
        found.append(
            Figure(
                f"{condition}, geometric mean",
                statistics.geometric_mean(of.values()),
                mean,
                f"of {len(of)}",
            )
        )
        found.append(Figure(f"{condition}, worst", of[worst], most, worst))
    for name, says in ENTERING.items():
        microseconds = statistics.median(result["entering"][name]) / 1000
        found.append(Figure(says, microseconds, 2.5, "with the scrub"))
    return found


def report(results: Sequence[dict[str, Any]]) -> None:
    names = list(results[0]["samples"])
    print(
        "| program | "
        + " | ".join(f"{r['python']} us | inactive | left | active" for r in results)
        + " |"
    )
    print("|---|" + "---|" * len(CONDITIONS) * len(results))
    for name in names:
        cells = []
        for result in results:
            base = statistics.median(result["samples"][name]["absent"]) / 1000
            one: Samples = {name: result["samples"][name]}
            cells += [f"{base:.0f}"] + [
                f"{ratios(one, condition)[name]:.3f}" for condition in BOUNDS
            ]
        print(f"| `{name}` | " + " | ".join(cells) + " |")
    print("\n| figure | Python | measured | must be | | |\n|---|---|---|---|---|---|")
    for result in results:
        for figure in figures(result):
            verdict = "met" if figure.met else "NOT MET"
            print(
                f"| {figure.says} | {result['python']} | {figure.value:.3f} | "
                f"<= {figure.bound} | {verdict} | {figure.note} |"
            )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [*MICROS, *PROGRAMS]
    parser.add_argument(
        "--python",
        action="append",
        metavar="PATH",
        help="an interpreter that has malloc_arena; may be given again",
    )
    parser.add_argument("--only", metavar="NAME,...", help=f"of {', '.join(known)}")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument(
        "--each", type=int, default=5, metavar="N", help="rounds before the workers are replaced"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--check", action="store_true", help="exit 1 unless every figure is met")
    options = parser.parse_args(argv)
    names = options.only.split(",") if options.only else known
    for name in names:
        if name not in known:
            parser.error(f"no program {name}")
    results = []
    for wanted in options.python or [sys.executable]:
        python = shutil.which(wanted)
        if python is None:
            parser.error(f"{wanted} is not there")
        results.append(measure(python, names, options.rounds, options.each))
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(
        f"Linux {platform.release()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, "
        f"{options.rounds} rounds; CPU time, ratios to the same Python without malloc_arena\n"
    )
    report(results)
    if options.json:
        options.json.write_text(json.dumps({"schema": SCHEMA, "results": results}, indent=1) + "\n")
    met = all(figure.met for result in results for figure in figures(result))
    return 1 if options.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())
