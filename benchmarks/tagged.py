#!/usr/bin/env python3
"""What memory tags stop: tests/c/tagged/crimes.c with HEAP_TAGGED, with Debian's arm64 glibc and
glibc.mem.tagging=3, and with Scudo; a table in Markdown.

    make tagged                      500 runs of each crime, about 15 minutes under qemu
    python benchmarks/tagged.py --runs 50 --only double_free

On another machine than arm64 everything runs under qemu's user mode, as .ci/aarch64 sets it up.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# qemu 7.2 does not check SVE accesses, and takes DC ZVA through a tagged pointer for a bad address.
CPU = "max,sve=off"
TUNABLES = "glibc.cpu.name=kunpeng920"


def contenders(build: Path) -> dict[str, dict[str, str]]:
    """By name, what each needs in its environment."""
    scudo = sorted(build.glob("tree/usr/lib/llvm-*/**/libclang_rt.scudo_standalone-aarch64.so"))
    library = build / "c/src/core/libmalloc_arena.so"
    found = {
        "HEAP_TAGGED": {
            "LD_PRELOAD": str(library),
            "GLIBC_TUNABLES": TUNABLES,
            "MALLOC_ARENA_OPTIONS": "region_size=64M",
        },
        "glibc": {"GLIBC_TUNABLES": f"glibc.mem.tagging=3:{TUNABLES}"},
    }
    if scudo:
        found["Scudo"] = {"LD_PRELOAD": str(scudo[-1]), "GLIBC_TUNABLES": TUNABLES}
    else:
        print("Scudo is left out: libclang-rt-*-dev of arm64 is not in the tree", file=sys.stderr)
    return found


def outcomes(
    build: Path, environment: dict[str, str], runs: int, only: list[str]
) -> dict[str, tuple[int, int, int]]:
    """By crime: how often it was stopped at once, later, and not at all."""
    command = [str(build / "c/tests/c/tagged_crimes"), str(runs), *only]
    if os.uname().machine != "aarch64":
        command[:0] = ["qemu-aarch64-static", "-cpu", CPU, "-L", str(build / "tree")]
        for key, value in environment.items():
            command[1:1] = ["-E", f"{key}={value}"]
        environment = {}
    run = subprocess.run(
        command,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    table: dict[str, tuple[int, int, int]] = {}
    for line in run.stdout.splitlines():
        name, at_once, late, missed, other = line.split()
        if other != "0":
            raise SystemExit(f"{name} ended {other} times in no way that is known")
        table[name] = (int(at_once), int(late), int(missed))
    return table


def cell(counts: tuple[int, int, int]) -> str:
    at_once, late, missed = counts
    if missed == 0:
        return "at once" if late == 0 else "later" if at_once == 0 else f"{late} later"
    return f"**{missed} missed**"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=ROOT / "build-aarch64")
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--only", action="append", default=[], metavar="CRIME")
    arguments = parser.parse_args()
    tables = {
        name: outcomes(arguments.build, environment, arguments.runs, arguments.only)
        for name, environment in contenders(arguments.build).items()
    }
    print(f"| crime, {arguments.runs} times | {' | '.join(tables)} |")
    print("|---" * (len(tables) + 1) + "|")
    crimes = next(iter(tables.values()))
    for crime in crimes:
        print(f"| `{crime}` | {' | '.join(cell(table[crime]) for table in tables.values())} |")
    missed = [sum(counts[2] > 0 for counts in table.values()) for table in tables.values()]
    print(f"| of {len(crimes)}, missed at least once | {' | '.join(map(str, missed))} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
