"""The demo's numbers as text and as JSON."""

from __future__ import annotations

import collections
import dataclasses
import json
from typing import TYPE_CHECKING

from ..audit import Hit
from ..demo.budget import Budget
from ..demo.measure import MODES, Demo, Residue, Result
from . import new_console

if TYPE_CHECKING:
    from rich.console import Console

_TITLES = {"plain": "plain Python", "vault": "with vault", "run": "malloc-arena run"}


def as_json(demo: Demo) -> str:
    data = {
        "schema": "malloc-arena/demo/1",
        "jobs": [
            {
                "name": result.task.name,
                "title": result.task.title,
                "kept_by_c_library": result.task.keeps or None,
                "unexpected": list(result.unexpected()),
                "modes": {mode: _residue(residue) for mode, residue in result.residue.items()},
            }
            for result in demo.results
        ],
        "missing": [{"job": job, "package": package} for job, package in demo.missing],
        "receipt": demo.receipt.fields if demo.receipt else None,
        "ok": not demo.unexpected(),
        "seconds": round(demo.seconds, 3),
    }
    return json.dumps(data, indent=2)


def _residue(residue: Residue) -> dict[str, object]:
    return {
        "outside": len(residue.outside),
        "inside": len(residue.inside),
        "scanned_bytes": residue.scanned_bytes,
        "unreadable_bytes": residue.unreadable_bytes,
        "hits": [dataclasses.asdict(hit) for hit in residue.outside + residue.inside],
    }


def print_text(demo: Demo, console: Console | None = None) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    console = console or new_console()
    table = Table(
        title="Copies of the secret left in the finished process",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("job")
    for title in ("plain\nPython", "with\nvault", "malloc-\narena run", "left in\nthe arena"):
        table.add_column(title, justify="right")
    for result in demo.results:
        outside = [len(result.residue[mode].outside) for mode in MODES]
        inside = max(len(result.residue[mode].inside) for mode in MODES[1:])
        styles = ["yellow" if outside[0] else "green"]
        for mode, count in zip(MODES[1:], outside[1:], strict=True):
            unexpected = mode in result.unexpected()
            styles.append("bold red" if unexpected else "yellow" if count else "green")
        counts = [f"[{style}]{n}[/]" for style, n in zip(styles, outside, strict=True)]
        table.add_row(result.task.title, *counts, str(inside))
    if demo.results:
        console.print(table)
        _print_verdict(demo, console)
    for job, package in demo.missing:
        console.print(
            f"{job}: not run, it needs {package}: python3 -m pip install 'malloc-arena\\[demo]'"
        )


def _print_verdict(demo: Demo, console: Console) -> None:
    left = sum(bool(result.residue["plain"].outside) for result in demo.results)
    console.print(
        f"Plain Python leaves copies in {left} of {len(demo.results)} jobs; the other columns "
        "count what lies outside the arena."
    )
    if demo.receipt:
        console.print(f"\n[bold]Receipt of the vault[/] ({demo.results[0].task.title})")
        console.print(demo.receipt.text, markup=False)
    remaining = [
        (result, mode)
        for result in demo.results
        for mode in MODES[1:]
        if result.residue[mode].outside
    ]
    if remaining:
        console.print("\n[bold]What remains[/]")
    for result, mode in remaining:
        console.print(_remains(result, mode), markup=False)
    kept = [result for result in demo.results if result.residue["run"].inside]
    for result in kept:
        where = _owners(result.residue["run"].inside)
        console.print(
            f"{result.task.title}: {where} is alive or cached: protected, and wiped at its free.",
            markup=False,
        )


def _remains(result: Result, mode: str) -> str:
    line = f"{result.task.title}, {_TITLES[mode]}: {_owners(result.residue[mode].outside)}."
    if mode in result.unexpected():
        return f"{line} This should not be there: please report it."
    line = f"{line} {result.task.keeps}"
    if result.residue["run"].outside:
        return line
    return f"{line} Under malloc-arena run that memory is in the arena, too."


def _owners(hits: tuple[Hit, ...]) -> str:
    """Owners with their counts and encodings, as "2 in heap (raw), 1 in stack (hex)"."""
    found: dict[str, list[str]] = collections.defaultdict(list)
    for hit in hits:
        found[hit.owner].append(hit.encoding if hit.whole else f"{hit.encoding} fragment")
    return ", ".join(
        f"{len(kinds)} in {owner} ({', '.join(sorted(set(kinds)))})"
        for owner, kinds in sorted(found.items())
    )


def budget_as_json(seen: Budget) -> str:
    data = {
        "schema": "malloc-arena/demo-budget/1",
        "document_bytes": seen.document_bytes,
        "limit_bytes": seen.limit_bytes,
        "runs": {
            mode: {**dataclasses.asdict(run), "stopped": run.stopped}
            for mode, run in seen.runs.items()
        },
        "unexpected": list(seen.unexpected()),
        "ok": not seen.unexpected(),
    }
    return json.dumps(data, indent=2)


def print_budget(seen: Budget, console: Console | None = None) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    console = console or new_console()
    table = Table(
        title=f"A JSON document of {_mib(seen.document_bytes)} MiB, with and without a budget of "
        f"{_mib(seen.limit_bytes)} MiB",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("resident, MiB, by another process")
    for title in ("as it is", "with parser"):
        table.add_column(title, justify="right")
    plain, budget = seen.runs["plain"], seen.runs["budget"]
    for title, name in (
        ("before the job", "base_bytes"),
        ("at most", "peak_bytes"),
        ("after the job", "after_bytes"),
        ("of that in the arena", "arena_after_bytes"),
    ):
        table.add_row(title, _mib(getattr(plain, name)), _mib(getattr(budget, name)))
    for title, name in (
        ("answers of the other thread after it", "answers_after"),
        ("its MemoryErrors", "failures"),
    ):
        table.add_row(title, str(getattr(plain, name)), str(getattr(budget, name)))
    console.print(table)
    for title, run in (("as it is", plain), ("with parser", budget)):
        outcome = f"MemoryError: {run.outcome}" if run.stopped else "parsed"
        console.print(f"{title}: {outcome} ({run.seconds:.1f} s)", markup=False)
    for words in seen.unexpected():
        console.print(f"[bold red]unexpected[/]: {words}")


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.1f}".removesuffix(".0")
