"""The watched process: python child.py OPERATION plain|scope|sweep.

It does one operation, forgets the secret, says so, and stands still until it has been searched.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from typing import Any

import formats  # noqa: F401
import libraries  # noqa: F401
import processes  # noqa: F401
import streams  # noqa: F401
import values  # noqa: F401
from operation import OPERATIONS, fingerprint


def main(name: str, mode: str) -> None:
    operation = OPERATIONS[name]
    for module in operation.modules:
        importlib.import_module(module)
    # What the operation does to the standard streams must not reach the watcher; and no stream's
    # buffer lies between.
    control, report_to = os.dup(0), os.dup(1)
    sink = os.open(os.devnull, os.O_RDWR)
    os.dup2(sink, 0)
    os.dup2(sink, 1)
    inputs = json.loads(os.read(control, 1 << 16))
    if "terminal" in inputs:
        os.open(inputs["terminal"], os.O_RDWR)  # of a session leader: this is now its /dev/tty
    report: dict[str, Any] = {}
    if mode == "plain":
        before = set(sys.modules)
        report["fingerprint"] = fingerprint(operation.function(inputs))
    else:
        import malloc_arena

        vault = malloc_arena.get(malloc_arena.HEAP_SECURE)
        before = set(sys.modules)
        with vault.scope(sweep=mode == "sweep"):
            report["fingerprint"] = fingerprint(operation.function(inputs))
    gc.collect()
    # The package's own are not the operation's; it sees to it that they do not lie in the arena.
    report["imported"] = sorted(
        name for name in set(sys.modules) - before if not name.startswith("malloc_arena.")
    )
    if mode != "plain":
        report["region"] = list(malloc_arena.region())
    os.write(report_to, json.dumps(report).encode() + b"\n")
    os.read(control, 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
