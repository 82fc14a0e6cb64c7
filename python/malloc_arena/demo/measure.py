"""Runs each job three ways in fresh processes and counts what is left of its secret in them."""

from __future__ import annotations

import concurrent.futures
import functools
import importlib.util
import json
import multiprocessing
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..audit import CannotLook, Hit, Process, Scanner
from . import jobs, peers

MODES = ("plain", "vault", "run")
_TIMEOUT = 60.0


@dataclass(frozen=True)
class Task:
    """An everyday job: what it is called, who is at its other end, what it needs.

    `keeps` names the memory of a C library that `with vault` alone cannot reach, "" if there is
    none: the demo accepts copies there without the preload, and nowhere else.
    """

    name: str
    title: str
    peer: peers.PeerFactory
    needs: tuple[str, ...] = ()
    keeps: str = ""


TASKS = (
    Task("json", "JSON config file", peers.json_file),
    Task("token", "HTTP API token (requests)", peers.http_server, ("requests",)),
    Task(
        "pem",
        "PEM private key (cryptography)",
        peers.pem_file,
        ("cryptography",),
        "OpenSSL computes on copies of the private number in memory that it gets from malloc.",
    ),
    Task("getpass", "password typed at getpass", peers.terminal),
    Task("env", ".env file", peers.env_file),
    Task("toml", "TOML file", peers.toml_file),
    Task(
        "sqlite",
        "SQLite row",
        peers.sqlite_file,
        keeps="SQLite's page cache and its row values come from malloc, and are freed unwiped.",
    ),
    Task(
        "tls",
        "TLS round trip (ssl)",
        peers.tls_server,
        ("cryptography",),
        "OpenSSL's record buffers come from malloc, and are freed unwiped.",
    ),
    Task("hmac", "hashing and HMAC", peers.key_file),
    Task("subprocess", "subprocess fed on stdin", peers.text_file),
    Task("form", "login form, urlencoded", peers.http_server),
)


@dataclass(frozen=True)
class Residue:
    """What one run of a job left."""

    outside: tuple[Hit, ...]
    inside: tuple[Hit, ...]
    scanned_bytes: int
    unreadable_bytes: int


@dataclass(frozen=True)
class Receipt:
    """The vault's receipt as a preloaded job got it."""

    fields: dict[str, Any]
    text: str


@dataclass(frozen=True)
class Result:
    """One job, by mode."""

    task: Task
    residue: dict[str, Residue]

    def unexpected(self) -> tuple[str, ...]:
        """The modes that left more outside the arena than they should."""
        return tuple(
            mode
            for mode in MODES[1:]
            if self.residue[mode].outside and not (mode == "vault" and self.task.keeps)
        )


@dataclass(frozen=True)
class Demo:
    """All jobs; `missing` are the (job, distribution) pairs that could not run."""

    results: tuple[Result, ...]
    missing: tuple[tuple[str, str], ...]
    receipt: Receipt | None
    seconds: float

    def unexpected(self) -> tuple[tuple[str, str], ...]:
        return tuple((one.task.name, mode) for one in self.results for mode in one.unexpected())


def measure(names: Iterable[str] = (), progress: Callable[[str], None] = lambda _: None) -> Demo:
    """Runs the jobs NAMES, all if none; PROGRESS is told each finished one as "name mode"."""
    chosen = [task for task in TASKS if task.name in names] if names else list(TASKS)
    missing = [
        (task.name, package)
        for task in chosen
        for package in task.needs
        if importlib.util.find_spec(package) is None
    ]
    runnable = [task for task in chosen if task.name not in dict(missing)]
    begun = time.monotonic()
    secret = peers.new_secret()
    residue: dict[str, dict[str, Residue]] = {task.name: {} for task in runnable}
    receipts: dict[str, Receipt] = {}
    # Processes, because searching holds the interpreter's lock; spawned, because the caller's
    # progress bar is a thread.
    with (
        tempfile.TemporaryDirectory(prefix="malloc-arena-demo-") as directory,
        concurrent.futures.ProcessPoolExecutor(
            min(2, os.cpu_count() or 1), multiprocessing.get_context("spawn")
        ) as pool,
    ):
        futures = {
            pool.submit(_observe, task, mode, secret, Path(directory)): (task.name, mode)
            for task in runnable
            for mode in MODES
        }
        try:
            for future in concurrent.futures.as_completed(futures):
                name, mode = futures[future]
                residue[name][mode], receipt = future.result()
                if receipt and mode == "run":
                    receipts[name] = receipt
                progress(f"{name} {mode}")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return Demo(
        tuple(Result(task, residue[task.name]) for task in runnable),
        tuple(missing),
        receipts[runnable[0].name] if runnable else None,
        time.monotonic() - begun,
    )


@functools.lru_cache(maxsize=2)
def _scanner(secret: bytes) -> Scanner:
    return Scanner(secret)


def _observe(task: Task, mode: str, secret: str, base: Path) -> tuple[Residue, Receipt | None]:
    directory = base / f"{task.name}-{mode}"
    directory.mkdir()
    with task.peer(secret, directory) as peer:
        return _run(task, mode, peer)


def _run(task: Task, mode: str, peer: peers.Peer) -> tuple[Residue, Receipt | None]:
    command = [sys.executable, "-P", jobs.__file__, task.name, "plain"]
    if mode != "plain":
        command[-1] = "vault"
    if mode == "run":
        command = [sys.executable, "-m", "malloc_arena", "run", "--", *command]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,
        ) as child,
    ):
        try:
            report = _report(child, peer)
            if report is None:
                child.kill()
                child.wait()
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()
                raise CannotLook(
                    f"the job {task.name} ({mode}) did not finish", said[-1] if said else "no word"
                )
            if report["fingerprint"] != peer.fingerprint:
                raise CannotLook(f"the job {task.name} ({mode}) had another secret", "a bug")
            base, size = report.get("region", (0, 0))
            with Process(child.pid) as process:
                scan = _scanner(peer.secret).scan(process, (base, size))
        finally:
            child.kill()
    receipt = Receipt(report["receipt"], report["receipt_text"]) if "receipt" in report else None
    residue = Residue(scan.outside(), scan.inside(), scan.scanned_bytes, scan.unreadable_bytes)
    return residue, receipt


def _report(child: subprocess.Popen[bytes], peer: peers.Peer) -> dict[str, Any] | None:
    """What the job says when it is done; None if it ends or hangs first."""
    assert child.stdin
    assert child.stdout
    child.stdin.write(json.dumps(peer.inputs).encode())
    child.stdin.flush()
    deadline = time.monotonic() + _TIMEOUT
    text = b""
    while not text.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([child.stdout], [], [], left)[0]:
            return None
        piece = os.read(child.stdout.fileno(), 1 << 16)
        if not piece:
            return None
        text += piece
    report: dict[str, Any] = json.loads(text)
    return report
