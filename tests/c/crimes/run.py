#!/usr/bin/env python3
"""Runs one crime and asserts how it ends.

A crime's first comment says what is expected, one line for each variant (argument) or several:

    secure isolated at free: malloc_arena: double free: ADDR (arena "VARIANT")
    isolated at touch: SIGSEGV
    with LD_PRELOAD=$FOREIGN_MALLOC

The program must die in the step it announced last, by SIGABRT with exactly that line on standard
error (ADDR is the address that the step was announced with, VARIANT the variant's first word, PATH
any path), or by the signal named, with nothing.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

EXPECTED = re.compile(r"^ \* ([a-z0-9 -]+) at ([a-z-]+): (.+?)(?: \*/)?$")
# What a user-mode emulator adds of its own when a signal ends the program.
EMULATOR = re.compile(r"^qemu: uncaught target signal .*\n", re.MULTILINE)
SETTING = re.compile(r"^ \* with ([A-Z_]+)=(.*?)(?: \*/)?$")


def pattern_of(line: str, variant: str, address: str) -> re.Pattern[str]:
    text = re.escape(line.replace("VARIANT", variant.split("-")[0]))
    return re.compile(text.replace("PATH", r"\S*").replace("ADDR", re.escape(address)) + r"\n")


def verdict(
    program: str, variant: str, step: str, line: str, settings: dict[str, str]
) -> str | None:
    """What is wrong; None: the crime was caught as expected."""
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    wrapper = shlex.split(os.environ.get("MESON_EXE_WRAPPER", ""))
    run = subprocess.run(
        [*wrapper, program, variant],
        env=environment | settings,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=50,
    )
    want = getattr(signal, line) if line.startswith("SIG") else signal.SIGABRT
    said = EMULATOR.sub("", run.stderr)
    last = (run.stdout.splitlines() or ["none 0x0"])[-1]
    reached, _, address = last.partition(" ")
    if run.returncode != -want:
        return f"ended with {run.returncode}, not {-want}, in step {last!r}; said {said!r}"
    if reached != step:
        return f"died in step {last!r}, not in {step!r}; said {said!r}"
    if line.startswith("SIG"):
        return f"said {said!r}" if said else None
    if not pattern_of(line, variant, address).fullmatch(said):
        return f"said {said!r}, not {line!r} with {address}"
    return None


def main() -> int:
    program, source = sys.argv[1:3]
    comment = Path(source).read_text(encoding="utf-8").partition("*/")[0].splitlines()
    settings = {
        found[1]: os.path.expandvars(found[2]) for found in map(SETTING.match, comment) if found
    }
    count = 0
    wrong = 0
    for found in map(EXPECTED.match, comment):
        if found is None:
            continue
        for variant in found[1].split():
            count += 1
            problem = verdict(program, variant, found[2], found[3], settings)
            if problem is not None:
                wrong += 1
                print(f"{Path(source).stem} {variant}: {problem}", file=sys.stderr)
    if count == 0:
        print(f"{source} expects nothing", file=sys.stderr)
    return 0 if count and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
