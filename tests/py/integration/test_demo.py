"""The demo end to end on a few of its jobs: real processes, searched from outside."""

from __future__ import annotations

import json
import subprocess
import sys

from malloc_arena.audit import Process, Scanner
from malloc_arena.demo import measure, peers

KEEPER = """
import os, malloc_arena
vault = malloc_arena.get(malloc_arena.HEAP_SECURE)
with vault:
    kept = os.read(0, 100).decode()
os.write(1, b"%d %d\\n" % malloc_arena.region())
os.read(0, 1)
del kept
os.write(1, b"x")
os.read(0, 1)
"""


def test_a_live_secret_is_seen_inside_the_arena_and_a_dead_one_nowhere() -> None:
    # The demo's zeros mean something only if a copy in the arena is seen, and counted as inside.
    secret = peers.new_secret().encode()
    scanner = Scanner(secret)
    command = [sys.executable, "-c", KEEPER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin
        assert child.stdout
        child.stdin.write(secret)
        child.stdin.flush()
        base, size = map(int, child.stdout.readline().split())
        with Process(child.pid) as process:
            alive = scanner.scan(process, (base, size))
        child.stdin.write(b"x")
        child.stdin.flush()
        assert child.stdout.read(1) == b"x"
        with Process(child.pid) as process:
            dead = scanner.scan(process, (base, size))
        child.kill()
    assert alive.outside() == ()
    assert [hit.whole for hit in alive.inside()] == [True]
    assert dead.hits == ()


def test_three_jobs_leave_copies_in_plain_python_and_none_outside_the_arena() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "malloc_arena", "demo", "--json", "--jobs", "json,getpass,env"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stderr == ""
    data = json.loads(done.stdout)
    assert data["schema"] == "malloc-arena/demo/1"
    assert data["receipt"]
    assert [job["name"] for job in data["jobs"]] == ["json", "getpass", "env"]
    for job in data["jobs"]:
        counts = {mode: job["modes"][mode]["outside"] for mode in measure.MODES}
        # A typed line is short-lived: now and then plain Python reuses all of its memory by itself.
        assert counts["plain"] > 0 or job["name"] == "getpass", job
        assert counts["vault"] == counts["run"] == 0, job
        for mode in measure.MODES:
            assert job["modes"][mode]["scanned_bytes"] > 1 << 22


def test_a_budget_stops_a_huge_document_and_nothing_else() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "malloc_arena", "demo", "budget", "--json"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    data = json.loads(done.stdout)
    assert data["schema"] == "malloc-arena/demo-budget/1"
    plain, run = data["runs"]["plain"], data["runs"]["budget"]
    limit, document = data["limit_bytes"], data["document_bytes"]
    assert plain["outcome"] == "parsed"
    assert plain["peak_bytes"] > plain["base_bytes"] + limit * 3 // 2
    assert 'arena "parser" is at its limit of 209715200 bytes' in run["outcome"]
    assert run["peak_bytes"] < run["base_bytes"] + document + limit * 9 // 8
    assert run["arena_peak_bytes"] > limit * 3 // 4
    assert run["after_bytes"] < run["base_bytes"] + (8 << 20)
    assert run["arena_after_bytes"] < 1 << 20
    for one in (plain, run):
        assert one["answers_after"] >= 20
        assert one["failures"] == 0
