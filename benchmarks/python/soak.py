"""A web service under load that holds a key, each request in a scope, against the same without.

    python benchmarks/python/soak.py                  # 10,000 requests to each of four services
    python benchmarks/python/soak.py --requests 2000 --kind asyncio --json result.json

Two services run side by side, and batches of requests go to one and the other in turn. Throughput
is requests per second by the clock, of a client that waits for each answer; the same of the
services' CPU time; and with requests that always wait, by the clock. A ratio is taken within a
round, a figure is the median. At the end another process searches them for the key: held, it must
lie in the arena alone; forgotten, nowhere. Blocks that live in the arena must not have become more.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import selectors
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
SCHEMA = "malloc-arena/soak/2"
KINDS = ("asyncio", "prefork")
ROUNDS = 50
AT_ONCE = 8  # requests that are under way, where some always wait
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

    def rush(self, count: int) -> float:
        """Seconds for so many requests, AT_ONCE under way. The client does next to nothing, so that
        it is the service that cannot do more."""
        body = json.dumps({"user": "someone", "items": [1, 2, 3], "note": "n" * 200})
        request = f"POST /sign HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        answers: dict[socket.socket, bytes] = {}
        begun = 0

        def begin(connection: socket.socket) -> None:
            nonlocal begun
            begun += 1
            answers[connection] = b""
            connection.sendall(request)

        def connect() -> None:
            connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
            selector.register(connection, selectors.EVENT_READ)
            begin(connection)

        def close(connection: socket.socket) -> None:
            selector.unregister(connection)
            connection.close()

        with selectors.DefaultSelector() as selector:
            started = time.perf_counter()
            while begun < min(count, AT_ONCE):
                connect()
            done = 0
            while done < count:
                for key, _ in selector.select():
                    connection = key.fileobj
                    assert isinstance(connection, socket.socket)
                    data = connection.recv(1 << 16)
                    answers[connection] += data
                    head, end, rest = answers[connection].partition(b"\r\n\r\n")
                    stays = head.startswith(b"HTTP/1.1")
                    if data and not (stays and end and len(rest) == _length(head)):
                        continue
                    assert b" 200 " in head, head
                    done += 1
                    if not stays:
                        close(connection)
                    if begun < count and stays:
                        begin(connection)
                    elif begun < count:
                        connect()
            spent = time.perf_counter() - started
            for each in list(selector.get_map().values()):
                assert isinstance(each.fileobj, socket.socket)
                close(each.fileobj)
            return spent

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


def _length(head: bytes) -> int:
    """Of what follows, as the head of an answer says."""
    _, _, value = head.lower().partition(b"content-length:")
    return int(value.split(b"\r\n")[0])


def soak(kind: str, requests: int) -> dict[str, Any]:
    key = secrets.token_urlsafe(24)
    plain, scoped = Service(kind, "plain", key), Service(kind, "scope", key)
    try:
        rounds = min(ROUNDS, max(requests // 50, 1))
        size = -(-requests // rounds)
        for service in (plain, scoped):
            service.batch(max(size, 300))
            service.rush(max(size, 300))
        before = scoped.everywhere("GET", "/stats")
        times: dict[Service, list[tuple[float, float, float]]] = {plain: [], scoped: []}
        cpus = sorted(os.sched_getaffinity(0))
        for turn in range(rounds):
            # One CPU may be slower than the other, for what else runs there.
            for pid in (*plain.pids, *scoped.pids):
                os.sched_setaffinity(pid, {cpus[turn // 2 % len(cpus)]})
            for service in (plain, scoped) if turn % 2 else (scoped, plain):
                times[service].append((*service.batch(size), service.rush(size)))
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
        for by in range(3)
    ]
    return {
        "kind": kind,
        "requests": rounds * size,
        "microseconds": statistics.median(cpu for _, cpu, _ in times[plain]) / size * 1e6,
        "throughput": ratios[0],
        "of_cpu_time": ratios[1],
        "rush": ratios[2],
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
    print(
        "| service | requests | us each | throughput | CPU time | always busy | blocks | the key |"
    )
    print("|---|---|---|---|---|---|---|---|")
    met = True
    for each in results:
        print(
            f"| {each['kind']} | {each['requests']} | {each['microseconds']:.0f} | "
            f"{each['throughput']:.3f} | {each['of_cpu_time']:.3f} | {each['rush']:.3f} | "
            f"{each['growth']} more of {each['live_blocks']} | {each['held_inside']} inside, "
            f"{each['held_outside']} outside; forgotten: {each['forgotten']} anywhere |"
        )
        met &= each["throughput"] >= LEAST and each["growth"] <= 8
        met &= each["held_outside"] == each["forgotten"] == 0
    if options.json:
        options.json.write_text(json.dumps({"schema": SCHEMA, "results": results}, indent=1) + "\n")
    return 1 if options.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())
