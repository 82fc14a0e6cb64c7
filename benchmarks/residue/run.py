"""What a secret leaves behind: each operation in a fresh process, searched from outside.

    python benchmarks/residue/run.py                          # this Python, every mode
    python benchmarks/residue/run.py --python P311 --python P313 --json result.json
    python benchmarks/residue/run.py --ops json_loads,sqlite_file --modes scope,run
    python benchmarks/residue/run.py --from result.json --doc docs/residue.md    # no new run

malloc_arena must be installed in this Python and in each that is measured. An operation whose
library a Python lacks is left out there, and named.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import functools
import hashlib
import hmac
import json
import multiprocessing
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import causes
import child  # noqa: F401  its imports fill the register
from operation import OPERATIONS, Operation, fingerprint

from malloc_arena.audit import Process, Scanner
from malloc_arena.demo import peers

HERE = Path(__file__).resolve().parent
SCHEMA = "malloc-arena/residue/1"
TIMEOUT = 90.0
# What would change the watched process behind the suite's back.
FOREIGN = ("PYTHON", "MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


@dataclass(frozen=True)
class Mode:
    title: str
    argument: str  # of child.py
    run: bool = False  # under malloc-arena run
    environment: tuple[tuple[str, str], ...] = ()


MODES = {
    "plain": Mode("plain Python", "plain"),
    "scope": Mode("with vault", "scope"),
    "sweep": Mode("with vault.scope(sweep=True)", "sweep"),
    "run": Mode("the same under malloc-arena run", "sweep", run=True),
    "libc": Mode(
        "no arena: PYTHONMALLOC=malloc MALLOC_PERTURB_=165, tcache off",
        "plain",
        environment=(
            ("PYTHONMALLOC", "malloc"),
            ("MALLOC_PERTURB_", "165"),
            ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0"),
        ),
    ),
}

Row = dict[str, Any]  # one run: python, operation, mode, and error, or outside and inside


# ---- the other end ----


@contextlib.contextmanager
def _file(secret: str, directory: Path) -> Iterator[peers.Peer]:
    key = secret.encode()
    path = directory / "secret"
    path.write_bytes(key)
    inputs = {
        "path": str(path),
        "directory": str(directory),
        "sha256": hashlib.sha256(key).hexdigest(),
        "hmac": hmac.new(key, b"a message", "sha256").hexdigest(),
        "pbkdf2": hashlib.pbkdf2_hmac("sha256", key, b"salt", 1000).hex(),
        "blake2s": hashlib.blake2s(b"a message", key=key).hexdigest(),
    }
    yield peers.Peer(inputs, fingerprint(secret), key)


def _join(peer: peers.Peer, more: peers.Peer) -> peers.Peer:
    return peers.Peer({**peer.inputs, **more.inputs}, peer.fingerprint, peer.secret)


def _also(factory: peers.PeerFactory) -> peers.PeerFactory:
    @contextlib.contextmanager
    def both(secret: str, directory: Path) -> Iterator[peers.Peer]:
        with factory(secret, directory) as other, _file(secret, directory) as peer:
            yield _join(peer, other)

    return both


@contextlib.contextmanager
def _echo(secret: str, _: Path) -> Iterator[peers.Peer]:
    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            channel, _ = listener.accept()
            with channel:
                channel.settimeout(TIMEOUT)
                while data := channel.recv(4096):
                    channel.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT)
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        host, port = listener.getsockname()
        yield peers.Peer({"host": host, "port": port}, fingerprint(secret), secret.encode())


@contextlib.contextmanager
def _tls_files(secret: str, directory: Path) -> Iterator[peers.Peer]:
    with peers.tls_server(secret, directory) as server:  # for its certificate alone
        certificate = server.inputs["certificate"]
        inputs = {"certificate": certificate, "key": str(directory / "server.pem")}
        yield peers.Peer(inputs, server.fingerprint, server.secret)


PEERS: dict[str, peers.PeerFactory] = {
    "file": _file,
    "echo": _also(_echo),
    "http_server": _also(peers.http_server),
    "terminal": _also(peers.terminal),
    "tls_files": _also(_tls_files),
    "tls_server": _also(peers.tls_server),
}


# ---- what is looked for ----


def _looked_for(secret: bytes, forms: Sequence[str]) -> list[bytes]:
    number = int.from_bytes(secret, "big")
    found = [secret]
    if "digits" in forms:  # an int object's own digits, 30 bits each
        digits = []
        rest = number
        while rest:
            digits.append(rest & (1 << 30) - 1)
            rest >>= 30
        found.append(struct.pack(f"<{len(digits)}I", *digits))
    if "integers" in forms:  # of 16 bytes each, as CPython has them while it reads a float
        found.append(secret[15::-1] + secret[:15:-1])
    if "decimal" in forms:
        found.append(str(number).encode())
    if "floats" in forms:
        found += [repr(value).encode() for value in struct.unpack("<4d", secret)]
    return found


@functools.lru_cache(maxsize=16)
def _scanner(secret: bytes) -> Scanner:
    return Scanner(secret)


def _family(pid: int) -> Iterator[int]:
    """The process and its living descendants: a helper that is still there counts as well."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path("/proc", str(pid), "task").iterdir():
            for descendant in (task / "children").read_text().split():
                yield from _family(int(descendant))


def _search(pid: int, secrets: list[bytes], region: tuple[int, int]) -> tuple[list[Row], list[Row]]:
    outside: list[Row] = []
    inside: list[Row] = []
    for member in _family(pid):
        with Process(member) as process:
            for form, secret in enumerate(secrets):
                scan = _scanner(secret).scan(process, region)
                for hit in scan.hits:
                    row = asdict(hit)
                    if form:
                        row["encoding"] = "number"
                    if member != pid:
                        row["mapping"] = f"{hit.mapping} of a child process"
                    (inside if hit.owner == "arena" else outside).append(row)
    return outside, inside


# ---- one run ----


def observe(python: str, name: str, mode: str, secret: str, base: Path) -> Row:
    """Runs the operation once and searches what is left."""
    operation = OPERATIONS[name]
    row: Row = {"python": python, "operation": name, "mode": mode}
    with tempfile.TemporaryDirectory(dir=base) as directory:
        with PEERS[operation.peer](secret, Path(directory)) as peer:
            return row | _run(python, operation, MODES[mode], peer)


def _run(python: str, operation: Operation, mode: Mode, peer: peers.Peer) -> Row:
    command = [python, str(HERE / "child.py"), operation.name, mode.argument]
    if mode.run:
        command = [python, "-m", "malloc_arena", "run", "--", *command]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)},
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENBLAS_NUM_THREADS": "1",  # idle threads with stacks of their own, at numpy's import
        **dict(mode.environment),
    }
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,
        ) as process,
    ):
        try:
            report = _report(process, peer)
            if report is None:
                process.kill()
                process.wait()
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()
                return {"error": said[-1] if said else "it ended, or hung, without a word"}
            if report["fingerprint"] != peer.fingerprint:
                return {"error": "what came out is not the secret"}
            if report["imported"]:
                return {"error": f"imported inside: {' '.join(report['imported'])}"}
            base, size = report.get("region", (0, 0))
            secrets = _looked_for(peer.secret, operation.forms)
            outside, inside = _search(process.pid, secrets, (base, size))
        finally:
            process.kill()
    return {"outside": outside, "inside": inside}


def _report(process: subprocess.Popen[bytes], peer: peers.Peer) -> dict[str, Any] | None:
    assert process.stdin
    assert process.stdout
    process.stdin.write(json.dumps(peer.inputs).encode())
    process.stdin.flush()
    deadline = time.monotonic() + TIMEOUT
    said = b""
    while not said.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            return None
        piece = os.read(process.stdout.fileno(), 1 << 16)
        if not piece:
            return None
        said += piece
    report: dict[str, Any] = json.loads(said)
    return report


# ---- all of them ----


def about(python: str) -> Row:
    """The version of PYTHON and which of the libraries it has."""
    wanted = sorted({operation.needs for operation in OPERATIONS.values() if operation.needs})
    program = (
        "import importlib.util as u, json, platform, sys, malloc_arena\n"
        "print(json.dumps({'version': platform.python_version(), 'malloc_arena': "
        "malloc_arena.__version__, 'missing': [n for n in sys.argv[1:] if not u.find_spec(n)]}))"
    )
    done = subprocess.run(
        [python, "-c", program, *wanted], stdout=subprocess.PIPE, check=True, cwd="/"
    )
    facts: Row = json.loads(done.stdout)
    return facts


def measure(
    pythons: Sequence[str],
    names: Sequence[str],
    modes: Sequence[str],
    workers: int,
    progress: Callable[[int, int, Row], None],
) -> Row:
    facts = {python: about(python) for python in pythons}
    secret = peers.new_secret()
    rows: list[Row] = []
    begun = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="residue-") as directory,
        concurrent.futures.ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn")
        ) as pool,
    ):
        futures = [
            pool.submit(observe, python, name, mode, secret, Path(directory))
            for python in pythons
            for name in names
            if OPERATIONS[name].needs not in facts[python]["missing"]
            for mode in modes
        ]
        try:
            for future in concurrent.futures.as_completed(futures):
                rows.append(future.result())
                progress(len(rows), len(futures), rows[-1])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    order = {name: at for at, name in enumerate(OPERATIONS)}
    rows.sort(key=lambda row: (row["python"], order[row["operation"]], row["mode"]))
    return {
        "schema": SCHEMA,
        "pythons": facts,
        "modes": list(modes),
        "operations": list(names),
        "seconds": round(time.monotonic() - begun, 1),
        "rows": rows,
    }


# ---- what is said about it ----

TARGETS = {
    ("scope", "outside"): 11,
    ("sweep", "outside"): 9,
    ("run", "outside"): 2,
    ("run", "inside"): 5,
}  # per cent of the operations, at most


@dataclass(frozen=True)
class Total:
    python: str
    mode: str
    ran: int
    outside: int
    inside: int
    errors: int

    def share(self, where: str) -> float:
        return 100 * getattr(self, where) / self.ran if self.ran else 0.0


def totals(result: Row) -> list[Total]:
    found = []
    for python, facts in result["pythons"].items():
        for mode in result["modes"]:
            rows = [r for r in result["rows"] if r["python"] == python and r["mode"] == mode]
            ran = [row for row in rows if "error" not in row]
            found.append(
                Total(
                    facts["version"],
                    mode,
                    len(ran),
                    sum(bool(row["outside"]) for row in ran),
                    sum(bool(row["inside"]) for row in ran),
                    len(rows) - len(ran),
                )
            )
    return found


def totals_table(result: Row) -> list[str]:
    lines = [
        "| mode | Python | operations | a hit outside the arena | | must be | still inside | "
        "| must be |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for mode in result["modes"]:
        for total in (total for total in totals(result) if total.mode == mode):
            cells = [f"`{mode}`", total.python, str(total.ran)]
            for where in ("outside", "inside"):
                bound = TARGETS.get((mode, where))
                share = total.share(where)
                met = "" if bound is None else f"<= {bound} %: "
                if bound is not None:
                    met += "met" if share <= bound else "NOT MET"
                cells += [str(getattr(total, where)), f"{share:.1f} %", met]
            if MODES[mode].argument == "plain":
                cells[6:] = ["", "", ""]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _where(hits: Sequence[Row]) -> str:
    counts: dict[str, int] = {}
    for hit in hits:
        key = f"{hit['owner']}, {hit['encoding']}{'' if hit['whole'] else ' fragment'}"
        counts[key] = counts.get(key, 0) + 1
    return "; ".join(f"{count} {key}" if count > 1 else key for key, count in counts.items())


@dataclass(frozen=True)
class Remnant:
    """One operation that left something in one of the arena modes, on whichever Python."""

    operation: str
    mode: str
    where: str  # outside, inside
    pythons: tuple[str, ...]
    hits: str
    cause: causes.Cause | None


def remnants(result: Row) -> list[Remnant]:
    found = []
    for name in result["operations"]:
        for mode in (mode for mode in result["modes"] if MODES[mode].argument != "plain"):
            for where in ("outside", "inside"):
                rows = [
                    row
                    for row in result["rows"]
                    if row["operation"] == name and row["mode"] == mode and row.get(where)
                ]
                if rows:
                    versions = (result["pythons"][row["python"]]["version"] for row in rows)
                    found.append(
                        Remnant(
                            name,
                            mode,
                            where,
                            tuple(version.rpartition(".")[0] for version in versions),
                            _where(max((row[where] for row in rows), key=len)),
                            causes.find(name, mode, where),
                        )
                    )
    return found


def remnants_table(result: Row, where: str) -> list[str]:
    lines = ["| operation | mode | Python | found in | cause |", "|---|---|---|---|---|"]
    for left in remnants(result):
        if left.where == where:
            cause = left.cause.key if left.cause else "NOT EXPLAINED"
            pythons = ", ".join(left.pythons)
            cells = (f"`{left.operation}`", f"`{left.mode}`", pythons, left.hits, cause)
            lines.append("| " + " | ".join(cells) + " |")
    return lines if len(lines) > 2 else ["Nothing."]


def errors(result: Row) -> list[str]:
    return [
        f"{result['pythons'][row['python']]['version']} {row['operation']} {row['mode']}: "
        f"{row['error']}"
        for row in result["rows"]
        if "error" in row
    ]


def document(result: Row) -> str:
    groups: dict[str, list[str]] = {}
    for name in result["operations"]:
        groups.setdefault(OPERATIONS[name].group, []).append(name)
    seen = {left.cause for left in remnants(result) if left.cause}
    return "\n".join(
        [
            causes.HEAD.format(count=len(result["operations"])),
            "## Totals",
            "",
            *totals_table(result),
            "",
            *(f"`{mode}`: {MODES[mode].title}." + "  " for mode in result["modes"]),
            "",
            "## Causes",
            "",
            "| cause | what it is | what helps |",
            "|---|---|---|",
            *(f"| {c.key} | {c.what} | {c.helps} |" for c in causes.CAUSES if c in seen),
            "",
            "## Outside the arena",
            "",
            *remnants_table(result, "outside"),
            "",
            "## Still inside the arena",
            "",
            *remnants_table(result, "inside"),
            "",
            "## The operations",
            "",
            "| group | operations |",
            "|---|---|",
            *(
                f"| {group} | {', '.join(f'`{name}`' for name in names)} |"
                for group, names in groups.items()
            ),
            "",
        ]
    )


def report(result: Row) -> None:
    print("\n".join(totals_table(result)))
    for where, title in (("outside", "Outside the arena"), ("inside", "Still inside")):
        print(f"\n{title}\n" + "\n".join(remnants_table(result, where)))
    failed = errors(result)
    for line in failed[:20]:
        print(f"did not run: {line}")
    if failed[20:]:
        print(f"did not run: {len(failed) - 20} more")


def holds(result: Row) -> bool:
    """Every share within its bound, every remnant explained, every operation done."""
    within = all(
        total.share(where) <= TARGETS[total.mode, where]
        for total in totals(result)
        for where in ("outside", "inside")
        if (total.mode, where) in TARGETS
    )
    return within and not errors(result) and all(left.cause for left in remnants(result))


def _names(known: Sequence[str], what: str) -> Callable[[str], list[str]]:
    def parse(value: str) -> list[str]:
        names = value.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"no {what} {', '.join(unknown)}")
        return names

    return parse


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    everything, every_mode = list(OPERATIONS), list(MODES)
    parser.add_argument(
        "--ops",
        type=_names(everything, "operation"),
        default=everything,
        metavar="NAME,...",
        help="default: all; --list names them",
    )
    parser.add_argument(
        "--modes",
        type=_names(every_mode, "mode"),
        default=every_mode,
        metavar="MODE,...",
        help=f"default: {','.join(MODES)}",
    )
    parser.add_argument(
        "--python",
        action="append",
        metavar="PATH",
        help="an interpreter to measure; may be given again",
    )
    parser.add_argument(
        "-j", type=int, default=min(2, os.cpu_count() or 1), metavar="N", help="processes at a time"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE",
        help="take that result instead of measuring",
    )
    parser.add_argument("--doc", type=Path, metavar="FILE", help="write the result as Markdown")
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit 1 unless every bound is met and every hit explained",
    )
    parser.add_argument("--list", action="store_true", help="list operations and modes")
    options = parser.parse_args(argv)
    if options.list:
        for operation in OPERATIONS.values():
            print(f"{operation.name:<24} {operation.group}")
        for name, mode in MODES.items():
            print(f"--modes {name:<8} {mode.title}")
        return 0

    def progress(done: int, count: int, row: Row) -> None:
        if sys.stderr.isatty():
            line = f"{done}/{count} {row['operation']} {row['mode']}"
            print(f"\r\x1b[K{line}", end="" if done < count else "\r\x1b[K", file=sys.stderr)

    if options.source:
        result = json.loads(options.source.read_text())
    else:
        pythons = []
        for wanted in options.python or [sys.executable]:
            found = shutil.which(wanted)
            if found is None:
                parser.error(f"{wanted} is not there")
            pythons.append(str(Path(found).absolute()))
        result = measure(pythons, options.ops, options.modes, options.j, progress)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.doc:
        options.doc.write_text(document(result))
    report(result)
    return 1 if options.check and not holds(result) else 0


if __name__ == "__main__":
    sys.exit(main())
