"""A real swap file, and a control group whose memory does not suffice."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import SECRET, Story, build

from promises import Evidence

SWAP = 192 << 20
MEMORY = 48 << 20
SECRETS = 512


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no swap file here: {' '.join(command)}: {done.stderr.strip()}")


@pytest.fixture
def swap(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("a swap file and a control group need root")
    for tool in ("mkswap", "swapon", "swapoff"):
        if shutil.which(tool, path=os.environ["PATH"] + ":/sbin:/usr/sbin") is None:
            pytest.skip(f"{tool} is not installed")
    path = os.environ["PATH"]
    os.environ["PATH"] = path + ":/sbin:/usr/sbin"
    file = tmp_path / "swap"
    try:
        with file.open("wb") as out:
            os.fchmod(out.fileno(), 0o600)
            for _ in range(SWAP >> 20):
                out.write(bytes(1 << 20))
            os.fsync(out.fileno())
            # What is read later must come from the disk.
            os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        run("mkswap", str(file))
        run("swapon", "-p", "32767", str(file))
        try:
            yield file
        finally:
            subprocess.run(["swapoff", str(file)], check=True)
    finally:
        os.environ["PATH"] = path


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of the memory controller, version 1 or 2."""
    root = Path("/sys/fs/cgroup/memory")
    limit = "memory.limit_in_bytes"
    if not root.is_dir():
        root, limit = Path("/sys/fs/cgroup"), "memory.max"
    made = root / f"malloc-arena-test-{os.getpid()}"
    try:
        made.mkdir()
        (made / limit).write_text(str(MEMORY))
    except OSError as error:
        with contextlib.suppress(OSError):
            made.rmdir()
        pytest.skip(f"no memory control group can be made: {error}")
    yield made
    with contextlib.suppress(OSError):
        made.rmdir()


def used(file: Path) -> int:
    """How much of the swap file is in use."""
    for line in Path("/proc/swaps").read_text().splitlines():
        fields = line.split()
        if fields[0] == str(file):
            return int(fields[3]) << 10
    return 0


def on_disk(file: Path) -> int:
    """How many of the numbered secrets are in the file, read from the disk itself."""
    os.sync()
    found = set()
    with file.open("rb") as data:
        os.posix_fadvise(data.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while block := data.read(1 << 20):
            at = block.find(SECRET)
            while at != -1:
                found.add(block[at + len(SECRET) : at + len(SECRET) + 3])
                at = block.find(SECRET, at + 1)
    return len(found)


@pytest.mark.promise("swap")
@pytest.mark.parametrize("kind", ["secure", "isolated", "secretmem"])
def test_nothing_is_swapped(
    swap: Path, group: Path, evidence: Evidence, tmp_path: Path, kind: str
) -> None:
    program = build(tmp_path)
    for memory in (kind, "plain"):
        with Story(program, memory, "swapped", group=group) as story:
            story.said("swapped")
            assert used(swap) > 32 << 20
            alive = on_disk(swap)
            assert story.ends()[0] == 0
        ended = on_disk(swap)
        seen = f"{alive} of {SECRETS} on the disk, {ended} after exit"
        if memory == "plain":
            evidence.control(seen, alive > SECRETS // 2 and ended > SECRETS // 2)
        else:
            assert (alive, ended) == (0, 0)
            evidence.result(seen)


@pytest.mark.promise("wipe-stack")
def test_a_dead_threads_stack_in_swap(
    swap: Path, group: Path, evidence: Evidence, tmp_path: Path
) -> None:
    program = build(tmp_path)
    for memory in ("plain", "secure"):
        with Story(program, memory, "dead-thread-in-swap", group=group) as story:
            assert story.said("absent") >= 8
            seen = story.said("left") // len(SECRET)
            evidence.copies(memory, seen, " in a stack that was swapped out")
