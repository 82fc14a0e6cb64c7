"""The arenas of a process as one SVG file that loads nothing: a cell for each slot."""

from __future__ import annotations

import html
from collections.abc import Iterator

from ..errors import kind_name
from ..snapshot import FREE, LIVE, STATES, Arena, Large, Slab, Snapshot
from .map import WORDS, _size

_WIDTH = 1000
_LEFT = 190  # where the cells begin
_RIGHT = _WIDTH - 20
_CELL = 14
_MOST_CELLS = 20000  # slots drawn one by one; of more, each slab is one bar


def as_svg(found: Snapshot) -> str:
    return _Picture(found).text()


class _Picture:
    def __init__(self, found: Snapshot) -> None:
        self._found = found
        self._parts: list[str] = []
        self._y = 30.0
        slots = sum(len(slab.states) for arena in found.arenas for slab in arena.slabs)
        self._one_by_one = slots <= _MOST_CELLS

    def text(self) -> str:
        found = self._found
        title = f"Arenas of process {found.pid}"
        self._text(20, title, "h1")
        self._y += 22
        program = found.program if len(found.program) <= 120 else found.program[:117] + "..."
        self._text(20, program, "dim")
        self._y += 26
        self._legend()
        if not found.arenas:
            self._text(20, "No arena has been made in it.", "")
            self._y += 30
        for arena in found.arenas:
            self._arena(arena)
        # Room for what is told of the last cells.
        height = self._y + 60
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" '
            f'width="{_WIDTH}" height="{height:.0f}" role="group" '
            f'aria-label="{html.escape(title, quote=True)}">\n'
            f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n{_DEFS}"
            f'<rect class="page" width="100%" height="100%"/>\n'
            + "".join(self._parts)
            + _TIP
            + f"<script>//<![CDATA[{_SCRIPT}//]]></script>\n</svg>\n"
        )

    def _text(self, x: float, text: str, kind: str, anchor: str = "start") -> None:
        self._parts.append(
            f'<text x="{x:.0f}" y="{self._y:.0f}" class="{kind}" text-anchor="{anchor}">'
            f"{html.escape(text)}</text>\n"
        )

    def _cell(self, x: float, y: float, width: float, kind: str, label: str, first: bool) -> None:
        self._parts.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
            f'height="{_CELL - 2}" tabindex="{0 if first else -1}">'
            f"<title>{html.escape(label)}</title></rect>\n"
        )

    def _legend(self) -> None:
        used = {FREE, LIVE}
        for arena in self._found.arenas:
            for slab in arena.slabs:
                used |= set(slab.states)
            used |= {large.state for large in arena.larges}
        x = 20.0
        entries = [(state, word) for state, word in STATES.items() if state in used]
        for kind, word in (
            *entries,
            ("guard", "guard, a touch faults"),
            ("rest", "not opened yet"),
        ):
            self._parts.append(
                f'<rect class="{kind}" x="{x:.0f}" y="{self._y - 10:.0f}" width="18" '
                'height="12"/>\n'
            )
            self._text(x + 24, word, "small")
            x += 24 + 7 * len(word) + 22
        self._y += 20
        self._text(
            20,
            "Point at a cell, or Tab to a slab and go on with the arrow keys, to see what it is.",
            "dim small",
        )
        self._y += 30

    def _arena(self, arena: Arena) -> None:
        top = self._y - 20
        at = len(self._parts)
        self._text(30, f"“{arena.name}”", "h2")
        self._text(_RIGHT - 10, kind_name(arena.kind), "mono", "end")
        self._y += 20
        limit = f" of at most {_size(arena.limit)}" if arena.limit else ""
        self._text(
            30,
            f"{arena.live_blocks:,} live block{'s' * (arena.live_blocks != 1)}, "
            f"{_size(arena.live_bytes)}, in {_size(arena.mapped)} mapped{limit}",
            "",
        )
        self._y += 12
        self._badges(arena)
        for heap in arena.heaps:
            self._text(30, f"heap {heap.address:#x}, {_size(heap.bytes)} of addresses", "dim small")
            self._y += 10
            for slab in heap.slabs:
                self._slab(arena, slab)
            self._y += 14
        if arena.larges:
            self._text(30, "blocks with pages of their own", "dim small")
            self._y += 10
            for large in arena.larges:
                self._large(arena, large)
        self._y += 6
        box = (
            f'<rect class="box" x="15" y="{top:.0f}" width="{_WIDTH - 30}" '
            f'height="{self._y - top:.0f}" rx="6"/>\n'
        )
        self._parts.insert(at, box)
        self._y += 44

    def _badges(self, arena: Arena) -> None:
        x = 30.0
        badges = [(WORDS[flag], "yes") for flag in arena.flags]
        if arena.kind & 1:
            badges += [
                (f"not {WORDS[flag]}", "no") if flag == "locked" else ("dumped", "no")
                for flag in ("locked", "undumped")
                if flag not in arena.flags and arena.mapped
            ]
        for kernel, flag, word in (
            (arena.kernel_locked, "locked", "locked"),
            (arena.kernel_undumped, "undumped", "not dumped"),
        ):
            if kernel is not None and flag in arena.flags:
                kind = "yes" if kernel >= arena.mapped else "no"
                badges.append((f"kernel: {_size(kernel)} {word}", kind))
        for word, kind in badges:
            width = 6.9 * len(word) + 20
            self._parts.append(
                f'<rect class="badge {kind}" x="{x:.0f}" y="{self._y:.0f}" width="{width:.0f}" '
                'height="20" rx="10"/>\n'
                f'<text class="small" x="{x + width / 2:.0f}" y="{self._y + 14:.0f}" '
                f'text-anchor="middle">{html.escape(word)}</text>\n'
            )
            x += width + 6
        self._y += 40

    def _label(self, text: str, missing: list[str]) -> None:
        self._parts.append(
            f'<text class="mono" x="{_LEFT - 12}" y="{self._y + 11:.0f}" text-anchor="end">'
            f"{html.escape(text)}</text>\n"
        )
        if missing:
            self._parts.append(
                f'<text class="small wrong" x="{_LEFT - 12}" y="{self._y + 24:.0f}" '
                f'text-anchor="end">{html.escape(", ".join(missing))}</text>\n'
            )

    def _slab(self, arena: Arena, slab: Slab) -> None:
        live = sum(slab.states.count(state) for state in "ln")
        missing = _missing(arena, slab.flags)
        self._parts.append('<g class="row">\n')
        self._label(f"{slab.slot} B  {live}/{len(slab.states)}", missing)
        top = self._y
        x = self._cells(arena, slab) if self._one_by_one else self._bar(arena, slab)
        rest = 0 if not slab.guard else 15 * slab.guard - slab.opened
        for kind, width, size, what in (
            ("rest", 40, rest, "of this slab, not opened yet"),
            ("guard", 20, slab.guard, "guard: a touch faults"),
        ):
            if size:
                if x + width > _RIGHT:
                    x, self._y = _LEFT, self._y + _CELL
                self._cell(x, self._y, width - 2, kind, f"{size:,} bytes {what}", False)
                x += width
        self._y = max(self._y + _CELL, top + (_CELL + 14 if missing else 0)) + 5
        self._parts.append("</g>\n")

    def _cells(self, arena: Arena, slab: Slab) -> float:
        width = min(6 + 60 * slab.slot / 2048, 120)
        x = float(_LEFT)
        protection = _protection(slab.flags)
        for number, (address, state, size) in enumerate(slab.blocks()):
            if x + width > _RIGHT:
                x, self._y = float(_LEFT), self._y + _CELL
            what = f", block of {size:,} bytes" if state in "lng" else ""
            label = (
                f"{STATES[state]}: slot of {slab.slot:,} bytes{what}\n"
                f"arena “{arena.name}”, {protection}\n"
                f"{address:#x}, slot {number} of {len(slab.states)}"
            )
            self._cell(x, self._y, width - 1.5, state, label, number == 0)
            x += width
        return x

    def _bar(self, arena: Arena, slab: Slab) -> float:
        room = _RIGHT - _LEFT - 70
        x = float(_LEFT)
        first = True
        for state, word in STATES.items():
            count = slab.states.count(state)
            if not count:
                continue
            width = max(room * count / len(slab.states), 3)
            label = (
                f"{count:,} of {len(slab.states):,} slots {word}, {slab.slot:,} bytes each\n"
                f"arena “{arena.name}”, {_protection(slab.flags)}\n"
                f"slab {slab.address:#x}"
            )
            self._cell(x, self._y, width - 1.5, state, label, first)
            first = False
            x += width
        return x

    def _large(self, arena: Arena, large: Large) -> None:
        self._parts.append('<g class="row">\n')
        missing = _missing(arena, large.flags)
        self._label(_size(large.bytes), missing)
        x = float(_LEFT)
        if large.before:
            label = f"{large.before:,} bytes guard or unused before the block: a touch faults"
            self._cell(x, self._y, 18, "guard", label, False)
            x += 20
        width = min(60 + 40 * max((large.bytes // 4096).bit_length() - 1, 0), _RIGHT - x - 22)
        block = f", block of {large.size:,} bytes" if large.block else ", kept for the next"
        label = (
            f"{STATES[large.state]}: {large.bytes:,} bytes of pages{block}\n"
            f"arena “{arena.name}”, {_protection(large.flags)}\n"
            f"{large.block or large.address:#x}"
        )
        self._cell(x, self._y, width - 2, large.state, label, True)
        label = f"{large.guard:,} bytes guard: a touch faults"
        self._cell(x + width, self._y, 18, "guard", label, False)
        self._y += _CELL + (14 if missing else 0) + 5
        self._parts.append("</g>\n")


def _missing(arena: Arena, flags: tuple[str, ...]) -> list[str]:
    if not arena.kind & 1:
        return []
    wanted = (("locked", "not locked"), ("undumped", "dumped"))
    return [word for flag, word in wanted if flag not in flags]


def _protection(flags: tuple[str, ...]) -> str:
    return ", ".join(_words(flags)) or "ordinary memory"


def _words(flags: tuple[str, ...]) -> Iterator[str]:
    yield "locked" if "locked" in flags else "not locked"
    yield "not dumped" if "undumped" in flags else "dumped"
    for flag in ("secretmem", "tagged", "isolated"):
        if flag in flags:
            yield WORDS[flag]


_STYLE = """
svg { --page: #fff; --ink: #1b1b1f; --dim: #5d5d66; --line: #c9c9d2; --live: #2f6f4f;
  --free: #fff; --held: #b7791f; --back: #4a6fa5; --new: #0b7285; --gone: #c92a2a; --guard: #8a3ffc;
  --tip: #fffff2; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  svg { --page: #16161a; --ink: #ececf1; --dim: #a0a0ab; --line: #4a4a55; --live: #4cae7f;
    --free: #16161a; --held: #e0a94a; --back: #7fa3d8; --new: #3bc9db; --gone: #ff6b6b;
    --guard: #b794f6; --tip: #2a2a32; }
}
text { font: 13px system-ui, sans-serif; fill: var(--ink); }
text.h1 { font-size: 20px; font-weight: 600; } text.h2 { font-size: 16px; font-weight: 600; }
text.dim { fill: var(--dim); } text.small { font-size: 12px; }
text.mono { font: 12px ui-monospace, monospace; } text.wrong { fill: var(--gone); }
.page { fill: var(--page); } .box { fill: none; stroke: var(--line); }
.badge { fill: none; stroke: var(--live); } .badge.no { stroke: var(--gone); stroke-width: 2; }
.l { fill: var(--live); } .n { fill: var(--new); stroke: var(--ink); stroke-width: 1.5; }
.f { fill: var(--free); stroke: var(--line); } .g { fill: url(#gone); stroke: var(--gone); }
.q { fill: url(#held); stroke: var(--held); }
.r { fill: var(--free); stroke: var(--back); stroke-dasharray: 2 2; }
.guard { fill: url(#guard); stroke: var(--guard); }
.rest { fill: none; stroke: var(--line); stroke-dasharray: 4 3; }
[tabindex]:hover, [tabindex]:focus { outline: none; stroke: var(--ink); stroke-width: 2.5; }
#tip rect { fill: var(--tip); stroke: var(--ink); } #tip { pointer-events: none; }
"""

_DEFS = """<defs>
<pattern id="guard" width="5" height="5" patternUnits="userSpaceOnUse">
<path d="M0 5 5 0" stroke="var(--guard)" stroke-width="1.2"/></pattern>
<pattern id="held" width="4" height="4" patternUnits="userSpaceOnUse">
<path d="M0 2H4" stroke="var(--held)" stroke-width="1.6"/></pattern>
<pattern id="gone" width="6" height="6" patternUnits="userSpaceOnUse">
<path d="M0 0 6 6M6 0 0 6" stroke="var(--gone)" stroke-width="1.2"/></pattern>
</defs>
"""

_TIP = """<g id="tip" visibility="hidden" role="status" aria-live="polite">
<rect rx="4"/><text class="small"></text></g>
"""

# A cell's <title> is its name where no script runs; with one, it is shown at once, also on focus.
_SCRIPT = """
"use strict";
const svg = document.documentElement;
const tip = document.getElementById("tip");
const rows = [...document.querySelectorAll("g.row")].map(row =>
  [...row.querySelectorAll("[tabindex]")]);
const place = new Map();
rows.forEach((cells, row) => cells.forEach((cell, column) => {
  place.set(cell, [row, column]);
  const title = cell.querySelector("title");
  cell.setAttribute("aria-label", title.textContent);
  cell.setAttribute("role", "img");
  title.remove();
}));
function show(cell) {
  const [box, text] = tip.children;
  text.replaceChildren(...cell.getAttribute("aria-label").split("\\n").map((line, number) => {
    const span = document.createElementNS(svg.namespaceURI, "tspan");
    span.setAttribute("x", 8);
    span.setAttribute("y", 18 + 16 * number);
    span.textContent = line;
    return span;
  }));
  const at = cell.getBBox(), size = text.getBBox(), all = svg.viewBox.baseVal;
  const width = size.width + 16, height = size.height + 12;
  box.setAttribute("width", width);
  box.setAttribute("height", height);
  const x = Math.max(4, Math.min(at.x, all.width - width - 4));
  const below = at.y + at.height + 6;
  const y = below + height < all.height ? below : at.y - height - 6;
  tip.setAttribute("transform", `translate(${x} ${y})`);
  tip.setAttribute("visibility", "visible");
}
function hide() {
  const focused = document.activeElement;
  if (place.has(focused)) show(focused); else tip.setAttribute("visibility", "hidden");
}
svg.addEventListener("mouseover", event => place.has(event.target) ? show(event.target) : hide());
svg.addEventListener("mouseleave", hide);
svg.addEventListener("focusin", event => { if (place.has(event.target)) show(event.target); });
svg.addEventListener("focusout", () => tip.setAttribute("visibility", "hidden"));
svg.addEventListener("keydown", event => {
  if (event.key === "Escape") return tip.setAttribute("visibility", "hidden");
  if (!place.has(document.activeElement)) return;
  let [row, column] = place.get(document.activeElement);
  switch (event.key) {
    case "ArrowRight": column++; break;
    case "ArrowLeft": column--; break;
    case "ArrowDown": row++; break;
    case "ArrowUp": row--; break;
    case "Home": column = 0; break;
    case "End": column = Infinity; break;
    default: return;
  }
  event.preventDefault();
  const cells = rows[Math.max(0, Math.min(row, rows.length - 1))];
  const next = cells[Math.max(0, Math.min(column, cells.length - 1))];
  // Tab comes back to where one was.
  cells.forEach(cell => cell.setAttribute("tabindex", cell === next ? 0 : -1));
  next.focus();
});
"""
