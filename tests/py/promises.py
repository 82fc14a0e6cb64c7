"""Promises, their tests, and the table of both: every row of docs/threat-model.md with an id has
tests marked promise("id"), and each of these shows what ordinary memory does, which must leak."""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "threat-model.md"
ROW = re.compile(r"^\| `([a-z0-9-]+)` \|", re.MULTILINE)


def rows() -> list[str]:
    """The ids, in the order of the document."""
    return ROW.findall(DOCUMENT.read_text())


@dataclass
class Evidence:
    """What a test has seen: a control that does not leak ends it, as it then shows nothing."""

    controls: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)

    def control(self, seen: str, leaks: object) -> None:
        assert leaks, f"the control does not leak ({seen}): this test cannot fail here"
        self.controls.append(seen)

    def result(self, seen: str) -> None:
        self.results.append(seen)

    def copies(self, memory: str, found: int, told: str = "") -> None:
        """Of a run in plain memory, which is the control, or in an arena, where none may be."""
        if memory == "plain":
            self.control(f"{found} copies{told}", found)
        else:
            assert found == 0
            self.result(f"0 copies{told}")


@dataclass(frozen=True)
class Outcome:
    row: str
    test: str
    state: str  # passed, failed, skipped
    seen: str
    control: str


EVIDENCE = pytest.StashKey[Evidence]()
OUTCOMES = pytest.StashKey[list[Outcome]]()


@pytest.fixture
def evidence(request: pytest.FixtureRequest) -> Evidence:
    request.node.stash[EVIDENCE] = made = Evidence()
    return made


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threat-model", action="store_true", help="print the table of promises")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    known = set(rows())
    for item in items:
        for mark in item.iter_markers("promise"):
            if not known.issuperset(mark.args):
                raise pytest.UsageError(f"{item.nodeid}: {mark.args} is no row of {DOCUMENT.name}")
            if "evidence" not in getattr(item, "fixturenames", ()):
                raise pytest.UsageError(f"{item.nodeid}: a promise needs the fixture evidence")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    marks = [row for mark in item.iter_markers("promise") for row in mark.args]
    if not marks or report.when == "teardown" or (report.when == "setup" and report.passed):
        return report
    seen = item.stash.get(EVIDENCE, Evidence())
    if report.passed and not (seen.controls and seen.results):
        report.outcome = "failed"
        report.longrepr = "it passed without showing a control that leaks and what the arena did"
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
    for row in marks:
        item.config.stash.setdefault(OUTCOMES, []).append(
            Outcome(
                row,
                item.nodeid.rpartition("/")[2],
                report.outcome,
                reason.removeprefix("Skipped: ") or "; ".join(dict.fromkeys(seen.results)),
                "; ".join(dict.fromkeys(seen.controls)),
            )
        )
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--threat-model") and session.exitstatus == pytest.ExitCode.OK:
        tested = {each.row for each in session.config.stash.get(OUTCOMES, [])}
        if not tested.issuperset(rows()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.getoption("--threat-model"):
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{DOCUMENT.name}: every promise, its tests, their controls")
    for column in ("row", "test", "result", "control: ordinary memory"):
        table.add_column(column, overflow="fold")
    outcomes = config.stash.get(OUTCOMES, [])
    styles = {"passed": "green", "failed": "red", "skipped": "yellow"}
    words = {"passed": "holds", "failed": "FAILS", "skipped": "not run"}
    for row in rows():
        found = [each for each in outcomes if each.row == row]
        for each in found:
            style = styles[each.state]
            result = f"[{style}]{words[each.state]}[/]: {escape(each.seen)}"
            table.add_row(row, escape(each.test), result, escape(each.control))
        if not found:
            table.add_row(row, "", "[red]no test[/]", "")
    console = Console(width=None if terminalreporter.isatty else 160)
    console.print(table)
    console.print(
        f"{len(rows())} promises, {len(outcomes)} tests: "
        + ", ".join(f"{sum(o.state == s for o in outcomes)} {words[s]}" for s in styles)
    )
