"""The guides' commands are run, in their order, and say what the guides show."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SHOP = ROOT / "examples" / "python" / "shop"

# A line that a reader relies on: verdicts, lines of the program, exit codes; not other programs'
# lines, the text around a finding, how long it took.
TOLD = re.compile(
    r"copies|copy of|orders$|\bapp(_fixed)?\.py:\d+|^malloc-arena:|^HEAP_|^  (yes|no) |^\[exit"
)


def normal(line: str) -> str:
    """LINE without what differs from run to run and from machine to machine."""
    line = re.sub(r"0x[0-9a-f]+", "0x", line.strip())
    line = re.sub(r"^process \d+", "process N", line)
    line = re.sub(r"^/\S+/(app(_fixed)?\.py)", r"\1", line)
    return re.sub(r"\b\d+ (copies|bytes)", r"N \1", line)


def blocks(guide: str) -> list[list[str]]:
    text = (ROOT / "docs" / guide).read_text()
    return [block.splitlines() for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL)]


class Reader:
    """Who follows a guide in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.waiting: subprocess.Popen[str] | None = None
        self.commands = 0
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PORT": str(20000 + os.getpid() % 20000),
            "COLUMNS": "80",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def start(self, command: str) -> subprocess.Popen[str]:
        self.commands += 1
        # Not through a job of the shell: such a one would ignore the interrupt.
        return subprocess.Popen(
            ["bash", "-c", f"exec {command}" if "-- python app" in command else command],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def follow(self, block: list[str]) -> None:
        said: list[str] = []
        for line in block:
            if line == "^C":
                assert self.waiting
                os.killpg(self.waiting.pid, signal.SIGINT)
                said += self.waiting.communicate(timeout=120)[0].splitlines()
                self.waiting = None
            elif line.startswith("$ pip install"):
                continue
            elif line.startswith("$ malloc-arena audit") and "-- python app" in line:
                self.waiting = self.start(line[2:])
            elif line.startswith("$ "):
                with self.start(line[2:]) as child:
                    said += child.communicate(timeout=300)[0].splitlines()
                if child.returncode:
                    said.append(f"[exit code {child.returncode}]")
        # A paragraph that was wrapped at another place is the same. Findings come in the order of
        # their addresses, which differs from run to run.
        there = [normal(line) for line in said]
        for line in block:
            if not line.startswith("$ ") and TOLD.search(line):
                assert normal(line) in there, "\n".join([line, "is not in", *said])
                there.remove(normal(line))
        codes = [line for line in block if line.startswith("[exit")]
        assert [line for line in said if line.startswith("[exit")] == codes, said


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    shutil.copytree(SHOP, tmp_path / "shop")
    reader = Reader(tmp_path / "shop")
    # A background job of a script ignores the interrupt, and so would all that it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield reader
    signal.signal(signal.SIGINT, before)
    if reader.waiting:
        os.killpg(reader.waiting.pid, signal.SIGKILL)
        reader.waiting.communicate()


@pytest.mark.parametrize("guide", ["guide-find-a-leak.md", "guide-ci-gate.md", "guide-receipt.md"])
def test_guide(reader: Reader, guide: str) -> None:
    if guide != "guide-receipt.md" and importlib.util.find_spec("flask") is None:
        pytest.skip("flask is not installed")
    if guide == "guide-ci-gate.md":  # goes on from the first one
        reader.follow([blocks("guide-find-a-leak.md")[0][1]])
    for block in blocks(guide):
        reader.follow(block)
    assert reader.waiting is None
    assert reader.commands >= 2


def test_guides_show_the_example_as_it_is() -> None:
    for guide in ("guide-find-a-leak.md", "guide-ci-gate.md"):
        text = (ROOT / "docs" / guide).read_text()
        sources = [path.read_text() for path in SHOP.iterdir() if path.is_file()]
        for kind, block in re.findall(r"```(python|sh)\n(.*?)```", text, re.DOTALL):
            for line in block.splitlines():
                assert line == "..." or any(line in source for source in sources), (kind, line)
        for number, line in re.findall(
            r"^  (?:/shop/)?app\.py:(\d+)(?:  (.*))?$", text, re.MULTILINE
        ):
            there = (SHOP / "app.py").read_text().splitlines()[int(number) - 1].strip()
            assert line in ("", there)
