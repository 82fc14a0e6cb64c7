"""A web service under load that holds a key, each request in a scope, against the same without.

    python benchmarks/python/soak.py                  # 10,000 requests to each of four services
    python benchmarks/python/soak.py --requests 2000 --kind asyncio --json result.json

Two services run side by side, and batches of requests go to one and the other in turn. Throughput
is requests per second of the services' CPU time, and by the clock; a ratio is taken within a round,
a figure is the median. At the end another process searches them for the key: held, it must lie in
the arena alone; forgotten, nowhere. Blocks that live in the arena must not have become more.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from malloc_arena.audit import Process, Scanner

HERE = Path(__file__).resolve().parent
SCHEMA = "malloc-arena/soak/1"
KINDS = ("asyncio", "prefork")
ROUNDS = 50
LEAST = 0.93  # of the throughput without scopes


class Service:
    def __init__(self, kind: str, mode: str, key: str) -> None:
        self.kind = kind
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "service.py"), kind, mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(key.encode())
        self.process.stdin.close()
        started = json.loads(self.process.stdout.readline())
        self.port: int = started["port"]
        self.pids: list[int] = started["pids"]
        self.region: tuple[int, int] = tuple(started["region"])
        self.connection: socket.socket | None = None

    def ask(self, method: str, path: str, body: str = "") -> Any:
        """In one segment: a service that is slower would otherwise find head and body together, and
        do with one read less."""
        if self.connection is None:
            self.connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        head = f"{method} {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
        self.connection.sendall((head + body).encode())
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        answer, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = answer.decode("latin-1").split("\r\n")
        assert " 200 " in first, first
        fields = dict(line.lower().split(": ", 1) for line in lines)
        while len(rest) < int(fields["content-length"]):
            rest += self._more()
        if first.startswith("HTTP/1.0"):
            self.connection.close()
            self.connection = None
        return json.loads(rest)

    def _more(self) -> bytes:
        assert self.connection
        data = self.connection.recv(1 << 16)
        assert data, "the service has closed the connection"
        return data

    def everywhere(self, method: str, path: str) -> dict[int, Any]:
        """The answer of each worker: whoever is free takes the next request."""
        found: dict[int, Any] = {}
        for _ in range(2000):
            answer = self.ask(method, path)
            found[answer["pid"]] = answer
            if len(found) == len(self.pids):
                return found
        raise SystemExit(f"one of {self.pids} never answers")

    def batch(self, count: int) -> tuple[float, float]:
        """Seconds for so many requests, by the clock and of the workers' CPU time."""
        order = {"user": "someone", "items": [1, 2, 3], "amount": "19.99", "note": "n" * 200}
        before, begun = self._spent(), time.perf_counter()
        for i in range(count):
            answer = self.ask("POST", "/sign", json.dumps(order | {"number": i}))
            assert answer["signed"]["number"] == i
            assert len(answer["signature"]) == 64
        return time.perf_counter() - begun, self._spent() - before

    def _spent(self) -> float:
        nanoseconds = 0
        for pid in self.pids:
            nanoseconds += int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
        return nanoseconds / 1e9

    def hits(self, key: str) -> tuple[int, int]:
        """Copies of the key in the workers: in the arena, and elsewhere."""
        inside = outside = 0
        for pid in self.pids:
            with Process(pid) as process:
                scan = Scanner(key.encode()).scan(process, self.region)
            inside += len(scan.inside())
            outside += len(scan.outside())
        return inside, outside

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.process.terminate()
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()


def soak(kind: str, requests: int) -> dict[str, Any]:
    key = secrets.token_urlsafe(24)
    plain, scoped = Service(kind, "plain", key), Service(kind, "scope", key)
    try:
        rounds = min(ROUNDS, max(requests // 50, 1))
        size = -(-requests // rounds)
        for service in (plain, scoped):
            service.batch(max(size, 300))
        before = scoped.everywhere("GET", "/stats")
        times: dict[Service, list[tuple[float, float]]] = {plain: [], scoped: []}
        cpus = sorted(os.sched_getaffinity(0))
        for turn in range(rounds):
            # One CPU may be slower than the other, for what else runs there.
            for pid in (*plain.pids, *scoped.pids):
                os.sched_setaffinity(pid, {cpus[turn // 2 % len(cpus)]})
            for service in (plain, scoped) if turn % 2 else (scoped, plain):
                times[service].append(service.batch(size))
        after = scoped.everywhere("GET", "/stats")
        growth = max(after[pid]["live_blocks"] - before[pid]["live_blocks"] for pid in before)
        held = scoped.hits(key)
        scoped.everywhere("POST", "/forget")
        forgotten = scoped.hits(key)
    finally:
        plain.close()
        scoped.close()
    ratios = [
        statistics.median(a[by] / b[by] for a, b in zip(times[plain], times[scoped], strict=True))
        for by in (0, 1)
    ]
    return {
        "kind": kind,
        "requests": rounds * size,
        "microseconds": statistics.median(cpu for _, cpu in times[plain]) / size * 1e6,
        "throughput": ratios[1],
        "throughput_by_clock": ratios[0],
        "growth": growth,
        "live_blocks": max(each["live_blocks"] for each in after.values()),
        "held_inside": held[0],
        "held_outside": held[1],
        "forgotten": sum(forgotten),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: both")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--check", action="store_true", help="exit 1 unless every figure is met")
    options = parser.parse_args(argv)
    results = [soak(kind, options.requests) for kind in options.kind or KINDS]
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"Python {version}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}\n")
    print("| service | requests | us each | throughput | by the clock | blocks more | the key |")
    print("|---|---|---|---|---|---|---|")
    met = True
    for each in results:
        print(
            f"| {each['kind']} | {each['requests']} | {each['microseconds']:.0f} | "
            f"{each['throughput']:.3f} | {each['throughput_by_clock']:.3f} | {each['growth']} of "
            f"{each['live_blocks']} | {each['held_inside']} inside, {each['held_outside']} outside"
            f"; forgotten: {each['forgotten']} anywhere |"
        )
        met &= each["throughput"] >= LEAST and each["growth"] <= 8
        met &= each["held_outside"] == each["forgotten"] == 0
    if options.json:
        options.json.write_text(json.dumps({"schema": SCHEMA, "results": results}, indent=1) + "\n")
    return 1 if options.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())
