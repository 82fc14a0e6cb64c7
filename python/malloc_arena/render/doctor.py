"""The doctor's report as text and as JSON."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from typing import TYPE_CHECKING

from ..doctor import CHECKS, Finding, Fix, Report, Result
from . import new_console

if TYPE_CHECKING:
    from rich.console import Console

_STYLES: dict[Result, str] = {
    "ok": "green",
    "warn": "yellow",
    "fail": "bold red",
    "unknown": "magenta",
}
_INDENT = 9


def as_json(report: Report) -> str:
    titles = {check.name: check.title for check in CHECKS}
    data = {
        "schema": "malloc-arena/doctor/1",
        "pid": report.pid,
        "program": report.program,
        "checks": [
            {"name": name, "title": titles[name]} | dataclasses.asdict(finding)
            for name, finding in report.findings.items()
        ],
        "ok": report.exit_code == 0,
    }
    return json.dumps(data, indent=2)


def print_text(report: Report, *, in_full: bool, console: Console | None = None) -> None:
    """What is fine takes a line or two, unless all is wanted IN FULL."""
    from rich.text import Text

    console = console or new_console()
    width = min(console.width, 100)

    def show(text: str, indent: int, style: str = "") -> None:
        # Wrapped here: a long path must not be broken, nor a command ever.
        for line in textwrap.wrap(
            text, width - indent, break_long_words=False, break_on_hyphens=False
        ):
            console.print(Text(" " * indent + line, style), soft_wrap=True)

    shown: tuple[Fix, ...] = ()
    console.print(Text(f"Process {report.pid} ({report.program})", "bold"))
    for name, finding in report.findings.items():
        _print_head(name, finding, console, width)
        if finding.result == "ok" and not in_full:
            continue
        show(finding.meaning, _INDENT, "dim")
        # What could not be looked at has one reason and one fix, several times in a row.
        for fix in finding.fixes if finding.fixes != shown else ():
            show(f"fix, {fix.where}:", _INDENT)
            for line in fix.lines:
                console.print(Text(" " * (_INDENT + 4) + line, "bold"), soft_wrap=True)
        shown = finding.fixes
    counts = ", ".join(f"{report.count(r)} {r}" for r in _STYLES if report.count(r))
    console.print(Text(f"\n{counts}" + ("" if in_full else "; -v says what each means")))


def _print_head(name: str, finding: Finding, console: Console, width: int) -> None:
    from rich.text import Text

    first, *more = textwrap.wrap(
        f"{name}: {finding.found}",
        width - _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
    line = Text(f"{finding.result:<{_INDENT}}", _STYLES[finding.result])
    line.append(first[: len(name) + 1], "bold")
    line.append(first[len(name) + 1 :], "not bold")
    console.print(line, soft_wrap=True)
    for rest in more:
        console.print(Text(" " * _INDENT + rest), soft_wrap=True)
