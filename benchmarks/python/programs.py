"""What is timed. Each maker prepares its data outside of the timing and gives back one round of
work, which is the same in every process and drops all that it made."""

from __future__ import annotations

import io
import json
import math
import pickle
import re
import sqlite3
import string
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

Work = Callable[[], object]
MICROS: dict[str, Callable[[], Work]] = {}
PROGRAMS: dict[str, Callable[[], Work]] = {}


def micro(maker: Callable[[], Work]) -> Callable[[], Work]:
    MICROS[maker.__name__] = maker
    return maker


def program(maker: Callable[[], Work]) -> Callable[[], Work]:
    PROGRAMS[maker.__name__] = maker
    return maker


# ---- micros: little but allocation ----


@micro
def floats() -> Work:
    def work() -> object:
        return sum([i * 0.5 for i in range(5000)])

    return work


@micro
def tuples() -> Work:
    def work() -> object:
        return len([(i, i + 1, None) for i in range(4000)])

    return work


@micro
def list_append() -> Work:
    def work() -> object:
        rows: list[list[int]] = []
        for i in range(2500):
            rows.append([i, i])
        return len(rows)

    return work


@micro
def dict_build() -> Work:
    names = [f"name{i}" for i in range(500)]

    def work() -> object:
        return [dict.fromkeys(names[i : i + 8], i) for i in range(0, 480, 2)]

    return work


@micro
def set_build() -> Work:
    def work() -> object:
        found: set[int] = set()
        for i in range(300):
            found |= {i * 1000 + j for j in range(8)}
        return len(found)

    return work


@micro
def str_grow() -> Work:
    def work() -> object:
        text = ""
        for i in range(4000):
            text += "ab" if i & 1 else "c"
        return len(text)

    return work


@micro
def str_format() -> Work:
    def work() -> object:
        return [f"user={i} at {i * 7:x}" for i in range(2000)]

    return work


@micro
def str_split() -> Work:
    line = ",".join(f"field number {i}" for i in range(1500))

    def work() -> object:
        return ";".join(part.upper() for part in line.split(","))

    return work


@micro
def str_sort() -> Work:
    def work() -> object:
        return sorted(str(i * 7919 % 10007) for i in range(2000))[0]

    return work


@micro
def bytes_slices() -> Work:
    data = bytes(range(256)) * 64

    def work() -> object:
        return sum(len(data[i : i + 100]) for i in range(0, 16000, 4))

    return work


@micro
def bytearray_large() -> Work:
    def work() -> object:
        total = 0
        for i in range(60):
            data = bytearray(100_000)
            data[i] = 1
            total += len(data)
        return total

    return work


@micro
def list_large() -> Work:
    text = "a,b,c,d," * 5000

    def work() -> object:
        return len(text.split(","))

    return work


@micro
def lines_large() -> Work:
    text = "\n".join(f"line {i} of what happened" for i in range(20000))

    def work() -> object:
        return len(text.splitlines())

    return work


@micro
def big_integers() -> Work:
    def work() -> object:
        number = 3
        for _ in range(60):
            number = number * number % (1 << 1279) + 1
        for _ in range(1500):
            number = number * 5 % (1 << 700) + 3
        return number

    return work


class _Point:
    def __init__(self, x: int, y: int) -> None:
        self.x = x
        self.y = y


@micro
def objects() -> Work:
    def work() -> object:
        points = [_Point(i, -i) for i in range(2000)]
        return sum(point.x + point.y for point in points)

    return work


@micro
def closures() -> Work:
    def work() -> object:
        def adder(amount: int) -> Callable[[int], int]:
            return lambda value: value + amount

        total = 0
        for i in range(2500):
            total = adder(i)(total)
        return total + sum(next(iter([i]) for _ in [0]).__next__() for i in range(800))

    return work


@micro
def exceptions() -> Work:
    def work() -> object:
        caught = []
        for i in range(1500):
            try:
                raise ValueError(f"number {i}")
            except ValueError as error:
                caught.append(error.args)
        return len(caught)

    return work


# ---- programs: what people run ----


@program
def json_documents() -> Work:
    document = [
        {"id": i, "name": f"user {i}", "tags": ["a", "b", "é"], "balance": i * 1.25, "active": True}
        for i in range(150)
    ]

    def work() -> object:
        return len(json.loads(json.dumps(document, indent=None)))

    return work


@program
def regex_log() -> Work:
    line = '10.0.{}.{} - - [10/Oct/2000:13:55:36] "GET /items/{}?q=x HTTP/1.0" 200 {}\n'
    log = "".join(line.format(i % 256, i % 97, i, i * 31 % 5000) for i in range(300))
    pattern = re.compile(
        r'^([\d.]+) \S+ \S+ \[([^\]]+)\] "(\w+) ([^"? ]*)(\S*) [^"]*" (\d+) (\d+)$', re.MULTILINE
    )

    def work() -> object:
        total = 0
        for found in pattern.finditer(log):
            address, _, _, path, _, _, size = found.groups()
            total += int(size) + len(re.sub(r"\d+", "N", path)) + address.count(".")
        return total

    return work


@program
def bodies() -> Work:
    start = [
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], 39.47),
        ([4.84, -1.16, -0.10], [0.6, 2.81, -0.02], 0.037),
        ([8.34, 4.12, -0.4], [-1.01, 1.82, 0.008], 0.011),
        ([12.89, -15.11, -0.22], [1.08, 0.86, -0.01], 0.0017),
    ]

    def work() -> object:
        system = [(list(place), list(speed), mass) for place, speed, mass in start]
        for _ in range(150):
            for i, (place, speed, mass) in enumerate(system):
                for other, other_speed, other_mass in system[i + 1 :]:
                    away = [a - b for a, b in zip(place, other, strict=True)]
                    force = 0.01 / math.sqrt(sum(d * d for d in away)) ** 3
                    for axis in range(3):
                        speed[axis] -= away[axis] * other_mass * force
                        other_speed[axis] += away[axis] * mass * force
            for place, speed, _ in system:
                for axis in range(3):
                    place[axis] += 0.01 * speed[axis]
        return system[0][0][0]

    return work


@dataclass(eq=False)
class _Cell:
    value: float = 0.0
    watchers: list[_Rule] = field(default_factory=list)


class _Rule:
    """target = scale * source + offset, kept true when the source changes."""

    def __init__(self, source: _Cell, target: _Cell, scale: float, offset: float) -> None:
        self.source, self.target, self.scale, self.offset = source, target, scale, offset
        source.watchers.append(self)

    def apply(self) -> _Cell:
        self.target.value = self.scale * self.source.value + self.offset
        return self.target


@program
def constraints() -> Work:
    def work() -> object:
        cells = [_Cell() for _ in range(120)]
        for i, cell in enumerate(cells[1:]):
            _Rule(cells[i], cell, 0.5, 1.0)
            if i % 10 == 9:
                _Rule(cells[i // 2], cell, 2.0, -1.0)
        for value in range(12):
            cells[0].value = float(value)
            waiting, seen = deque([cells[0]]), set()
            while waiting:
                for rule in waiting.popleft().watchers:
                    if id(rule) not in seen:
                        seen.add(id(rule))
                        waiting.append(rule.apply())
        return cells[-1].value

    return work


@program
def templates() -> Work:
    row = string.Template("<tr><td>$number</td><td>$name</td><td>${price}</td></tr>\n")
    rows = [(i, f"item <{i}>", i * 0.99) for i in range(250)]

    def escape(text: str) -> str:
        return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

    def work() -> object:
        page = ["<table>\n"]
        for number, name, price in rows:
            page.append(row.substitute(number=number, name=escape(name), price=f"{price:.2f}"))
        page.append("</table>\n")
        return len("".join(page).encode())

    return work


@program
def pickling() -> Work:
    data = [
        {"id": i, "name": f"row {i}", "values": tuple(range(i % 7)), "nested": {"x": [i * 1.5]}}
        for i in range(400)
    ]

    def work() -> object:
        return len(pickle.loads(pickle.dumps(data)))

    return work


@program
def sqlite_rows() -> Work:
    rows = [(i, f"customer {i}", i * 1.5) for i in range(300)]

    def work() -> object:
        database = sqlite3.connect(":memory:")
        database.execute("CREATE TABLE sale (id INTEGER PRIMARY KEY, who TEXT, amount REAL)")
        database.executemany("INSERT INTO sale VALUES (?, ?, ?)", rows)
        total = 0.0
        for _, _, amount in database.execute("SELECT * FROM sale ORDER BY who DESC"):
            total += amount
        database.close()
        return total

    return work


@program
def text_tables() -> Work:
    source = "".join(f"{i};name {i};{i * 3 % 17};{i / 7:.3f}\n" for i in range(500))

    def work() -> object:
        sums: dict[str, list[float]] = {}
        for line in io.StringIO(source):
            _, name, group, amount = line.rstrip("\n").split(";")
            sums.setdefault(group, []).append(float(amount) + len(name))
        return "\n".join(f"{group:>4} {sum(all_):9.2f}" for group, all_ in sorted(sums.items()))

    return work


@program
def queens() -> Work:
    def solve(size: int, row: int, taken: frozenset[tuple[int, int]]) -> int:
        if row == size:
            return 1
        return sum(
            solve(size, row + 1, taken | {(0, column), (1, row + column), (2, row - column)})
            for column in range(size)
            if taken.isdisjoint({(0, column), (1, row + column), (2, row - column)})
        )

    def work() -> object:
        return solve(5, 0, frozenset())

    return work


@program
def short_threads() -> Work:
    """A thread for each request, as `http.server.ThreadingHTTPServer` has it."""
    body = json.dumps({"items": [{"name": f"item {i}", "price": i * 1.5} for i in range(40)]})

    def serve() -> None:
        order = json.loads(body)
        json.dumps({"total": sum(item["price"] for item in order["items"])})

    def work() -> object:
        threads = [threading.Thread(target=serve) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return threads

    return work
