"""What an installed package must do, without a compiler, a checkout or any other package: run by
`make release-check` and by the wheels workflow, with the Python of the environment to be tried.

    python tests/smoke.py
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import malloc_arena

PACKAGE = Path(malloc_arena.__file__).parent
# No run of 8 bytes of it is in this file, or in anything that Python starts with.
SECRET = os.urandom(24).hex()

PROGRAM = """
import os, sys
import malloc_arena
path = sys.argv[1]
if sys.argv[2] == "arena":
    token = malloc_arena.sources.from_file(path, as_str=True)
    with malloc_arena.get(malloc_arena.HEAP_SECURE):
        header = "Authorization: Bearer " + token
else:
    with open(path) as file:
        header = "Authorization: Bearer " + file.read()
assert len(header) == 70
os._exit(0)
"""


def command(*arguments: str, exits: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "malloc_arena", *arguments], capture_output=True, text=True
    )
    assert done.returncode in exits, (arguments, done.returncode, done.stdout, done.stderr)
    return done.stdout


def versions() -> None:
    version = importlib.metadata.version("malloc-arena")
    header = (PACKAGE / "include" / "malloc_arena.h").read_text()
    parts = re.findall(r"#define MALLOC_ARENA_VERSION_\w+ (\d+)", header)
    assert malloc_arena.__version__ == version == ".".join(parts)
    assert command("--version") == f"malloc-arena {version}\n"
    script = Path(sys.executable).with_name("malloc-arena")
    said = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == f"malloc-arena {version}\n"


def vault() -> None:
    arena = malloc_arena.get(malloc_arena.HEAP_SECURE)
    with arena:
        token = SECRET.upper()
    assert arena.owns(id(token))
    assert arena.stats().live_bytes >= len(token)
    assert arena.receipt.dump_excluded
    address = id(token)
    del token
    # The bytes themselves, by another way than the allocator's.
    with Path("/proc/self/mem").open("rb", buffering=0) as memory:
        try:
            left = os.pread(memory.fileno(), 64, address)
        except OSError:  # the page went back to the kernel
            left = b""
    assert SECRET.upper()[:8].encode() not in left

    key = arena.buffer(32)
    key[:] = b"k" * 32
    base, size = malloc_arena.region()
    assert key.address is not None
    assert base <= key.address < base + size
    key.close()
    assert key.closed


def library() -> None:
    """One library, one state: under `run` the extension uses the copy that is preloaded."""
    path = command("config", "--preload").strip()
    assert Path(path) == PACKAGE / "lib" / "libmalloc_arena.so"
    program = (
        "import malloc_arena\nmalloc_arena.get(malloc_arena.HEAP_SECURE)\n"
        "for line in open('/proc/self/maps'):\n"
        "    if 'libmalloc_arena' in line: print(line.split()[-1])\n"
    )
    mapped = command("run", "--", sys.executable, "-c", program)
    assert set(mapped.split()) == {path}
    command("run", "--", sys.executable, "-c", "raise SystemExit(7)", exits=(7,))


def doctor() -> None:
    report = json.loads(command("doctor", "--json", exits=(0, 1, 3)))
    assert report["schema"].startswith("malloc-arena/doctor/")


def audit() -> None:
    with tempfile.TemporaryDirectory() as directory:
        secret, program = Path(directory, "secret"), Path(directory, "program.py")
        secret.write_text(SECRET)
        program.write_text(PROGRAM)
        search = ("audit", "--secret-file", str(secret), "--json", "--", sys.executable)
        arguments = (str(program), str(secret))
        inside = json.loads(command(*search, *arguments, "arena"))["looks"][-1]
        assert inside["inside"] >= 1
        # The control: the same search finds the same secret in ordinary memory.
        outside = json.loads(command(*search, *arguments, "plain", exits=(1,)))["looks"][-1]
        assert outside["outside"] >= 1


if __name__ == "__main__":
    for part in (versions, vault, library, doctor, audit):
        part()
        print(f"smoke: {part.__name__}: fine")
