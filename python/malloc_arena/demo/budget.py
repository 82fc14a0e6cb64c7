"""A document of unknown size parsed by a program that has something else to do, with and without a
memory budget for the parser, watched by another process.

Run as a program this is the program that is watched: it says one line when it is ready, and one of
JSON when the job has ended.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODES = ("plain", "budget")
_TIMEOUT = 120.0


@dataclass(frozen=True)
class Run:
    """What was seen of one program, the memory by this process."""

    outcome: str
    """"parsed", or the words of the MemoryError."""
    base_bytes: int
    """Resident before the job."""
    peak_bytes: int
    """Most resident at any time."""
    after_bytes: int
    """Resident when the job had ended and the rest went on."""
    arena_peak_bytes: int
    arena_after_bytes: int
    """Of the parser's arena; 0 without one."""
    answers_before: int
    answers_after: int
    """What the rest of the program did meanwhile."""
    failures: int
    seconds: float

    @property
    def stopped(self) -> bool:
        return self.outcome != "parsed"


@dataclass(frozen=True)
class Budget:
    document_bytes: int
    limit_bytes: int
    runs: dict[str, Run]

    def unexpected(self) -> tuple[str, ...]:
        """What did not go as it should, in words."""
        budget = self.runs["budget"]
        slack = self.limit_bytes // 8
        found = {
            "the document fits into the budget: it tells nothing": not budget.stopped,
            "the program held more than base, document and budget": budget.peak_bytes
            > budget.base_bytes + 3 * self.document_bytes + self.limit_bytes + slack,
            "the budget's memory was not given back": budget.after_bytes > budget.base_bytes + slack
            or budget.arena_after_bytes > slack,
            "the rest of the program did not go on": budget.answers_after == 0
            or any(run.failures for run in self.runs.values()),
        }
        return tuple(words for words, is_so in found.items() if is_so)


def measure(
    document: int = 16 << 20,
    limit: int = 200 << 20,
    progress: Callable[[str], None] = lambda _: None,
) -> Budget:
    """Runs both programs; PROGRESS is told each finished mode."""
    runs = {}
    for mode in MODES:
        runs[mode] = _watch(mode, document, limit)
        progress(mode)
    return Budget(document, limit, runs)


def _watch(mode: str, document: int, limit: int) -> Run:
    from ..audit import CannotLook

    command = [sys.executable, "-m", __name__, mode, str(document), str(limit)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdin
        assert child.stdout
        assert child.stderr
        timer = threading.Timer(_TIMEOUT, child.kill)
        timer.start()
        try:
            lines = [child.stdout.readline()]
            before = _memory(child.pid)
            child.stdin.write(b"\n")
            child.stdin.flush()
            lines.append(child.stdout.readline())
            after = _memory(child.pid)
            if not all(lines):
                child.kill()
                said = child.stderr.read().decode(errors="replace").strip().splitlines()
                raise CannotLook(f"the program ({mode}) did not finish", (said or ["no word"])[-1])
        except BrokenPipeError as error:
            raise CannotLook(f"the program ({mode}) did not start", str(error)) from None
        finally:
            timer.cancel()
            child.kill()
    report = json.loads(lines[1])
    return Run(
        base_bytes=before["VmRSS"], peak_bytes=after["VmHWM"], after_bytes=after["VmRSS"], **report
    )


def _memory(pid: int) -> dict[str, int]:
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return {
        name: int(fields[name].split()[0]) << 10 for name in ("VmRSS", "VmHWM") if name in fields
    }


# ---- the program that is watched ----


class _Service(threading.Thread):
    """The rest of the program: small documents parsed, all the time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.answers = 0
        self.failures = 0

    def run(self) -> None:
        while True:
            try:
                if json.loads('{"user": "ada", "roles": ["admin", "dev"]}')["user"] == "ada":
                    self.answers += 1
            except MemoryError:
                self.failures += 1
            time.sleep(0.001)

    def wait(self, more: int) -> int:
        """Until it has done so much more; how much it had done by then."""
        goal = self.answers + more
        while self.answers < goal:
            time.sleep(0.001)
        return self.answers


def _job(mode: str, size: int, limit: int) -> dict[str, Any]:
    from malloc_arena import HEAP_DEFAULT, Arena

    # Small to send, and thirty times as large when it is parsed.
    document = "[" + "[]," * (size // 3) + "[]]"
    service = _Service()
    service.start()
    print("ready", flush=True)
    sys.stdin.readline()
    before = service.wait(20)
    outcome = "parsed"
    peak = after = 0
    begun = time.perf_counter()
    if mode == "plain":
        json.loads(document)
    else:
        parser = Arena(HEAP_DEFAULT, name="parser", limit=limit)
        try:
            with parser:
                json.loads(document)
        except MemoryError as error:
            outcome = str(error)
        peak = parser.stats().peak_bytes
        parser.trim()
        after = parser.stats().mapped_bytes
    seconds = time.perf_counter() - begun
    del document
    reached = service.answers
    return {
        "outcome": outcome,
        "arena_peak_bytes": peak,
        "arena_after_bytes": after,
        "answers_before": before,
        "answers_after": service.wait(20) - reached,
        "failures": service.failures,
        "seconds": round(seconds, 3),
    }


if __name__ == "__main__":
    print(json.dumps(_job(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))), flush=True)
    sys.stdin.readline()
