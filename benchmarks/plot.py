"""Pictures of a benchmark's result: data in, SVG out, nothing but the standard library.

python plot.py result.json DIRECTORY draws them again.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

WIDTH = 860
COLOURS = {
    "glibc": "#444444",
    "jemalloc": "#8c8c8c",
    "mimalloc": "#b5a642",
    "dense": "#d62728",
    "isolated": "#ff7f0e",
    "default": "#e377c2",
    "sodium": "#1f77b4",
    "openssl": "#2ca02c",
    "gcrypt": "#17becf",
    "botan": "#9467bd",
}
BARS = {
    "mixed": "1,000 live objects of 16-512 B",
    "mixed2": "two threads of that",
    "handoff": "one thread allocates, another frees",
    "grow/2": "realloc 16 B to 64 KiB, doubling",
    "grow/1.125": "realloc 16 B to 64 KiB, by 1/8",
}


OTHERS = ("#1f77b4", "#2ca02c", "#ff7f0e", "#d62728", "#9467bd")


def colour_of(name: str, number: int) -> str:
    """Of a contender, whatever else its name says; of other names, by number."""
    return COLOURS.get(name.split(",")[0].split()[0], OTHERS[number % len(OTHERS)])


def medians(document: Mapping[str, Any], workload: str, key: str) -> dict[str, float]:
    found = {}
    for name, turns in document["samples"].get(workload, {}).items():
        values = [sample[key] for turn in turns for sample in turn if key in sample]
        if values:
            found[name] = float(statistics.median(values))
    return found


def text(x: float, y: float, says: str, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">'
        f"{escape(says)}</text>"
    )


def page(height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {WIDTH} {height:.0f}" font-family="sans-serif">\n'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def short(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def bars(title: str, groups: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """One group of horizontal bars per entry, on one logarithmic scale."""
    values = [v for group in groups.values() for v in group.values() if v > 0]
    low = math.floor(math.log10(min(values)))
    high = max(math.ceil(math.log10(max(values))), low + 1)
    left, right = 110, WIDTH - 70

    def place(value: float) -> float:
        share = (math.log10(value) - low) / (high - low) if value > 0 else 0.0
        return left + share * (right - left)

    y = 48.0
    parts = [text(14, 24, f"{title} ({unit}, logarithmic)", size=15)]
    for caption, group in groups.items():
        y += 16
        parts.append(text(14, y, caption, size=13))
        y += 8
        for number, name in enumerate(sorted(group, key=lambda n: group[n])):
            width = max(place(group[name]) - left, 1.0)
            parts.append(text(left - 6, y + 12, name, "end"))
            parts.append(
                f'<rect x="{left}" y="{y + 1:.1f}" width="{width:.1f}" height="14" '
                f'fill="{colour_of(name, number)}"/>'
            )
            parts.append(text(left + width + 5, y + 12, short(group[name])))
            y += 17
        y += 8
    return page(y + 10, parts)


def lines(title: str, series: Mapping[str, Mapping[int, float]], unit: str) -> str:
    """Time over size, both logarithmic."""
    left, right, top, bottom = 64, WIDTH - 100, 48, 440
    sizes = sorted({size for points in series.values() for size in points})
    values = [v for points in series.values() for v in points.values() if v > 0]
    first, last = math.log2(sizes[0]), math.log2(sizes[-1])
    low = math.floor(math.log10(min(values)))
    high = max(math.ceil(math.log10(max(values))), low + 1)

    def at(size: int, value: float) -> tuple[float, float]:
        x = left + (math.log2(size) - first) / ((last - first) or 1) * (right - left)
        y = bottom - (math.log10(value) - low) / (high - low) * (bottom - top)
        return x, y

    parts = [text(14, 24, f"{title} ({unit}, both axes logarithmic)", size=15)]
    for power in range(low, high + 1):
        y = at(sizes[0], 10.0**power)[1]
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(text(left - 6, y + 4, short(10.0**power), "end"))
    for size in sizes:
        if size & (size - 1) == 0:
            x = at(size, 10.0**low)[0]
            label = f"{size >> 20}M" if size >= 1 << 20 else short_size(size)
            parts.append(text(x, bottom + 18, label, "middle", 10))
    ends = []
    for number, (name, points) in enumerate(series.items()):
        places = [at(size, points[size]) for size in sorted(points) if points[size] > 0]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        colour = colour_of(name, number)
        width = 3 if name in ("dense", "isolated") else 1.5
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
        )
        ends.append((places[-1][1], name, colour))
    label_y = -math.inf
    for y, name, colour in sorted(ends):  # kept apart where the lines end together
        label_y = max(y + 4, label_y + 13)
        parts.append(
            f'<text x="{right + 6}" y="{label_y:.1f}" font-size="12" fill="{colour}">{name}</text>'
        )
    return page(bottom + 34, parts)


def short_size(size: int) -> str:
    return f"{size >> 10}K" if size >= 1 << 10 else str(size)


def write_all(document: Mapping[str, Any], directory: Path) -> list[Path]:
    """Draws what the result has data for; the files written."""
    pictures = {}
    series: dict[str, dict[int, float]] = {}
    for workload in document["samples"]:
        if workload.startswith("one/"):
            for name, value in medians(document, workload, "ns").items():
                series.setdefault(name, {})[int(workload.partition("/")[2])] = value
    if series:
        pictures["one.svg"] = lines("One at a time: alloc, write, free", series, "ns")
    times = {says: medians(document, workload, "ns") for workload, says in BARS.items()}
    times = {says: group for says, group in times.items() if group}
    if times:
        pictures["workloads.svg"] = bars("Time per operation", times, "ns")
    live = {
        f"{says} of 10,000 live 32-byte secrets": medians(document, "live/10000", key)
        for key, says in (("rss", "RSS"), ("vmlck", "locked bytes"))
    }
    live = {
        says: {name: v for name, v in group.items() if v > 0}
        for says, group in live.items()
        if any(v > 0 for v in group.values())
    }
    if live:
        pictures["live.svg"] = bars("Memory", live, "bytes")
    directory.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        (directory / name).write_text(picture)
    return [directory / name for name in pictures]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: plot.py RESULT.json DIRECTORY")
    for written in write_all(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])):
        print(written)
