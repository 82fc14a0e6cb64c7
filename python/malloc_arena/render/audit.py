"""What an audit found: as text, as JSON, as one HTML page that needs nothing else."""

from __future__ import annotations

import collections
import dataclasses
import html
import json
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from ..audit import Finding, Frame, Scan
from . import new_console

if TYPE_CHECKING:
    from rich.table import Table

_OWNERS = {
    "arena": "in an arena",
    "pymalloc": "CPython's small blocks",
    "heap": "malloc's heap",
    "stack": "a thread's stack",
    "argv": "the program's arguments",
    "environ": "the program's environment",
    "file": "a mapped file, a library's data",
    "anonymous": "other private memory",
    "register": "registers",
    "dump": "a raw dump",
}


@dataclass(frozen=True)
class Look:
    """One search, and why it was then: exit, signal, interval, request, file."""

    why: str
    scan: Scan


@dataclass(frozen=True)
class Report:
    """All that one audit found."""

    target: str
    looks: tuple[Look, ...]
    seconds: float
    traced: bool = False
    status: int | None = None  # the program's exit code, if it was started here

    def outside(self) -> int:
        return sum(len(look.scan.outside()) for look in self.looks)


def as_json(report: Report) -> str:
    data = {
        "schema": "malloc-arena/audit/1",
        "target": report.target,
        "ok": not report.outside(),
        "exit_status": report.status,
        "traced": report.traced,
        "seconds": round(report.seconds, 3),
        "looks": [
            {
                "why": look.why,
                "outside": len(look.scan.outside()),
                "inside": len(look.scan.inside()),
                "scanned_bytes": look.scan.scanned_bytes,
                "unreadable_bytes": look.scan.unreadable_bytes,
                "threads": look.scan.threads,
                "longest_pause_ms": round(look.scan.longest_pause * 1000, 3),
                "findings": [_finding(finding) for finding in look.scan.findings],
            }
            for look in report.looks
        ],
    }
    return json.dumps(data, indent=2)


def _finding(finding: Finding) -> dict[str, Any]:
    place = finding.place
    return {
        **dataclasses.asdict(finding.hit),
        "state": place.state or None,
        "what": place.what or None,
        "block": place.block or None,
        "block_size": place.block_size or None,
        "age_seconds": None if finding.age is None else round(finding.age, 3),
        "before": finding.before,
        "after": finding.after,
        "traceback": [dataclasses.asdict(frame) for frame in finding.traceback],
    }


def summary(scan: Scan) -> str:
    """As "2 pymalloc (1 live, 1 freed), 1 stack (live)"."""
    found: dict[str, collections.Counter[str]] = {}
    for finding in scan.findings:
        found.setdefault(finding.hit.owner, collections.Counter())[finding.place.state] += 1
    parts = []
    for owner, states in sorted(found.items()):
        told = {state: count for state, count in states.items() if state}
        detail = ", ".join(f"{count} {state}" for state, count in sorted(told.items()))
        parts.append(f"{sum(states.values())} {owner}" + (f" ({detail})" if detail else ""))
    return ", ".join(parts)


def alike(findings: Iterable[Finding]) -> list[tuple[Finding, int]]:
    """The first of those that differ in nothing but their address, and how many they are."""
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for number, one in enumerate(findings):
        hit, place = one.hit, one.place
        kind = (hit.owner, place.state, place.what, hit.encoding, hit.length, one.traceback)
        # Without a traceback each may be another's.
        groups.setdefault(kind if one.traceback else (number,), []).append(one)
    return [(group[0], len(group)) for group in groups.values()]


def describe(finding: Finding, count: int = 1) -> list[str]:
    """A finding, and the COUNT of those like it, in a few lines, without any of the secret."""
    hit, place = finding.hit, finding.place
    where = f"{hit.address:#x}" if hit.owner != "register" else hit.mapping
    kind = hit.encoding if hit.whole else f"{hit.encoding} ({hit.length} bytes of it)"
    owner = " ".join(part for part in (place.state, hit.owner) if part)
    size = f" of {place.block_size} bytes" if place.block_size else ""
    what = f", {place.what}{size}" if place.what else f", a block{size}" if size else ""
    more = f", and {count - 1} more of the same lines" if count > 1 else ""
    age = f", allocated {finding.age:.1f} s before" if finding.age is not None else ""
    lines = [f"{where}  {owner}{what}{age}: {kind}{more}"]
    if hit.owner in ("file", "anonymous", "dump") or (hit.owner == "heap" and not place.block):
        lines.append(f"  in {hit.mapping}")
    if finding.before or finding.after:
        lines.append(f"  {finding.before}[secret]{finding.after}")
    lines += [f"  {_line(frame)}" for frame in _frames(finding.traceback)]
    return lines


# What is not the program's own: installed packages, Python's own modules.
_INSTALLED = r".*/(site-packages|dist-packages|python3\.\d+)/"


def _line(frame: Frame) -> str:
    file = re.sub(_INSTALLED, "", frame.file)
    if not frame.line:  # C
        return f"{file.rpartition('/')[2]}  {frame.text}"
    return f"{file}:{frame.line}  {frame.text}".rstrip()


def _frames(traceback: tuple[Frame, ...]) -> tuple[Frame, ...]:
    """The innermost three; of the program's own one at least."""
    own = [frame for frame in traceback if not re.match(_INSTALLED, frame.file)]
    shown = traceback[:3]
    return shown if not own or own[0] in shown else (*shown[:2], own[0])


def print_text(report: Report, file: IO[str] | Any = None) -> None:
    console = new_console(file)

    def print_(line: str, indent: str = "") -> None:
        # Words that are longer, as paths, stay whole: to be copied.
        lines = textwrap.wrap(
            line,
            console.width,
            initial_indent=indent,
            subsequent_indent=indent + "  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        console.print("\n".join(lines), markup=False, soft_wrap=True)

    for look in report.looks:
        scan = look.scan
        print_(f"{report.target}, {_WHEN[look.why]}: {_verdict(scan)}")
        outside = [one for one in scan.findings if one.hit.owner != "arena"]
        if outside:
            console.print(_table(outside))
        for finding, count in alike(outside):
            for line in describe(finding, count):
                print_(line.lstrip(), " " * (len(line) - len(line.lstrip())))
        if scan.unreadable_bytes:
            print_(f"{_size(scan.unreadable_bytes)} could not be read (device memory, secretmem).")
        threads = f", {scan.threads} thread{'s' * (scan.threads != 1)}" if scan.threads else ""
        pause = f", stopped for at most {scan.longest_pause * 1000:.0f} ms at a time"
        print_(
            f"Searched {_size(scan.scanned_bytes)}{threads}{pause if scan.longest_pause else ''}."
        )
        console.print()
    if report.status:
        print_(f"The program ended with {report.status}.")


_WHEN = {
    "exit": "at its exit",
    "signal": "at the signal",
    "interval": "while it ran",
    "request": "now",
    "file": "in the file",
}


def _verdict(scan: Scan) -> str:
    outside, inside = len(scan.outside()), len(scan.inside())
    protected = f", {inside} in an arena" if inside else ""
    if not outside:
        return f"no copy of the secret outside an arena{protected}"
    return f"{outside} {'copy' if outside == 1 else 'copies'} of the secret{protected}"


def _table(findings: list[Finding]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("owner")
    for state in ("live", "freed", "not told"):
        table.add_column(state, justify="right")
    table.add_column("forms")
    counts: dict[str, collections.Counter[str]] = {}
    forms: dict[str, set[str]] = {}
    for finding in findings:
        owner = finding.hit.owner
        counts.setdefault(owner, collections.Counter())[finding.place.state] += 1
        forms.setdefault(owner, set()).add(finding.hit.encoding)
    for owner in sorted(counts):
        numbers = (counts[owner][state] for state in ("live", "freed", ""))
        cells = [str(number) if number else "" for number in numbers]
        table.add_row(_OWNERS.get(owner, owner), *cells, ", ".join(sorted(forms[owner])))
    return table


def _size(size: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size //= 1024
    return f"{size} GiB"


def as_html(report: Report) -> str:
    rows = []
    owners = sorted({one.hit.owner for look in report.looks for one in look.scan.findings})
    for look in report.looks:
        for finding in look.scan.findings:
            rows.append(_row(look.why, finding))
    options = "".join(f'<option value="{owner}">{owner}</option>' for owner in owners)
    verdicts = "".join(
        f"<li>{html.escape(_WHEN[look.why])}: {html.escape(_verdict(look.scan))}; searched "
        f"{_size(look.scan.scanned_bytes)}</li>"
        for look in report.looks
    )
    page = _PAGE
    for name, value in (
        ("TARGET", html.escape(report.target)),
        ("VERDICTS", verdicts),
        ("OPTIONS", options),
        ("ROWS", "".join(rows)),
    ):
        page = page.replace(f"<!--{name}-->", value)
    return page


def _row(why: str, finding: Finding) -> str:
    hit, place = finding.hit, finding.place
    cells = (
        (why, why),
        (hit.owner, hit.owner),
        (place.state or "not told", place.state),
        (" ".join(filter(None, (place.what, hit.mapping))), place.what),
        (hit.encoding if hit.whole else f"{hit.encoding} (fragment)", hit.encoding),
        (str(hit.length), f"{hit.length:08}"),
        (f"{hit.address:#x}" if hit.address else "", f"{hit.address:020}"),
    )
    around = f"{finding.before}[secret]{finding.after}"
    lines = [html.escape(_line(frame)) for frame in finding.traceback]
    if finding.age is not None:
        lines.insert(0, f"allocated {finding.age:.1f} s before")
    trace = "\n".join(lines) or "No traceback: not under --trace, or of no block that is known."
    tds = "".join(
        f'<td data-key="{html.escape(key, quote=True)}">{html.escape(text)}</td>'
        for text, key in cells
    )
    return (
        f'<tbody class="finding" data-owner="{hit.owner}"><tr>{tds}</tr>'
        f'<tr><td colspan="7"><details><summary>{html.escape(around)}</summary>'
        f"<pre>{trace}</pre></details></td></tr></tbody>"
    )


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>malloc-arena audit: <!--TARGET--></title>
<style>
:root { color-scheme: light dark; --line: #8886; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .25rem .6rem; vertical-align: top; overflow-wrap: anywhere; }
tbody.finding { border-top: 1px solid var(--line); }
th button { font: inherit; font-weight: 600; background: none; border: 0; padding: 0; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
:focus-visible { outline: 2px solid Highlight; outline-offset: 2px; }
summary, pre { font: 13px/1.5 ui-monospace, monospace; }
pre { white-space: pre-wrap; margin: .3rem 0 .3rem 1rem; }
</style>
</head>
<body>
<h1>Copies of the secret</h1>
<p><code><!--TARGET--></code></p>
<ul><!--VERDICTS--></ul>
<p><label>Owner <select id="owner"><option value="">all</option><!--OPTIONS--></select></label>
<span id="shown" role="status"></span></p>
<table id="findings">
<thead><tr>
<th scope="col"><button>when</button></th>
<th scope="col"><button>owner</button></th>
<th scope="col"><button>state</button></th>
<th scope="col"><button>what</button></th>
<th scope="col"><button>form</button></th>
<th scope="col"><button>bytes</button></th>
<th scope="col"><button>address</button></th>
</tr></thead>
<!--ROWS-->
</table>
<script>
"use strict";
const table = document.getElementById("findings");
const owner = document.getElementById("owner");
const findings = [...table.querySelectorAll("tbody.finding")];
function filter() {
  let count = 0;
  for (const one of findings) {
    one.hidden = owner.value !== "" && one.dataset.owner !== owner.value;
    count += one.hidden ? 0 : 1;
  }
  document.getElementById("shown").textContent = count + " of " + findings.length + " shown";
}
owner.addEventListener("change", filter);
filter();
const headings = [...table.querySelectorAll("th")];
function sort(heading, column) {
  const up = heading.getAttribute("aria-sort") !== "ascending";
  headings.forEach(other => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = one => one.rows[0].cells[column].dataset.key;
  findings.sort((a, b) => key(a).localeCompare(key(b)) * (up ? 1 : -1));
  table.append(...findings);
}
headings.forEach((heading, column) =>
  heading.querySelector("button").addEventListener("click", () => sort(heading, column)));
</script>
</body>
</html>
"""
