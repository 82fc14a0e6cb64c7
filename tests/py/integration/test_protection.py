"""Programs that end with secrets alive, the kernel's own flags, an import that costs nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Child, Mapping, mappings
from malloc_arena.cli.config import Config, library
from promises import Evidence

# What C code does: argv[1] names where the secret lies, argv[2] how it ends.
PROGRAM = r"""
#include <malloc_arena.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

enum { BLOCKS = 6 };
static const size_t sizes[BLOCKS] = { 16, 32, 500, 1500, 5000, 300000 };
static char *block[BLOCKS];
static malloc_arena *arena;

static void
fill (char *p, size_t size)
{
  static const unsigned char hidden[] = "9%((19.z52)(9z85..9?6";
  for (size_t i = 0; i < size; i++)
    p[i] = (char)(hidden[i % 21] ^ 0x5a);
}

static void late (void)
{
  free (block[0]);
  block[0] = strdup ("made at exit");
}
static __attribute__ ((destructor)) void last (void) { free (block[5]); }

static void *
holder (void *unused)
{
  (void)unused;
  if (arena)
    malloc_arena_enter (arena);
  fill (malloc (100), 100);
  pause ();
  return NULL;
}

int
main (int argc, char **argv)
{
  const char *how = argv[2];
  arena = strcmp (argv[1], "arena") == 0 ? malloc_arena_get (HEAP_SECURE) : NULL;
  if (arena)
    malloc_arena_enter (arena);
  for (int i = 0; i < BLOCKS; i++)
    fill (block[i] = malloc (sizes[i]), sizes[i]);
  pthread_t thread;
  pthread_create (&thread, NULL, holder, NULL);
  atexit (late);
  char *line = NULL;
  size_t room = 0;
  if (getline (&line, &room, stdin) == -1)
    puts ("no line");
  if (strcmp (how, "return") == 0)
    return 7;
  if (strcmp (how, "exit") == 0)
    exit (7);
  if (strcmp (how, "_exit") == 0)
    _exit (7);
  if (strcmp (how, "quick_exit") == 0)
    quick_exit (7);
  if (strcmp (how, "pthread_exit") == 0)
    {
      pthread_cancel (thread);
      pthread_exit (NULL);
    }
  abort ();
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler (package build-essential)")
    directory = tmp_path_factory.mktemp("program")
    source, binary = directory / "program.c", directory / "program"
    source.write_text(PROGRAM)
    values = Config().values()
    # What a compiler before glibc 2.34 would need for threads does no harm now.
    command = [compiler, "-pthread", *values["cflags"], "-o", str(binary), str(source)]
    subprocess.run([*command, *values["libs"]], check=True)
    return binary


def run(program: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *arguments], input="x\n", capture_output=True, text=True, cwd=cwd, timeout=60
    )


@pytest.mark.parametrize("memory", ["plain", "arena"])
@pytest.mark.parametrize(
    ("how", "status"),
    [("return", 7), ("exit", 7), ("_exit", 7), ("quick_exit", 7), ("pthread_exit", 0)],
)
def test_a_c_program_ends_with_secrets_alive(
    program: Path, tmp_path: Path, memory: str, how: str, status: int
) -> None:
    done = run(program, memory, how, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


ENDS = {
    "": 0,
    "sys.exit(3)": 3,
    "os._exit(3)": 3,
    "raise SystemExit('bye')": 1,
    "os.kill(os.getpid(), 15)": -15,
    "os.abort()": -6,
    "threading.Thread(target=os._exit, args=(3,)).start(); time.sleep(60)": 3,
}


@pytest.mark.parametrize("preload", [False, True], ids=["hooks", "preload"])
@pytest.mark.parametrize("inside", [False, True], ids=["after", "inside"])
@pytest.mark.parametrize("how", ENDS)
def test_python_ends_with_secrets_alive(
    tmp_path: Path, how: str, inside: bool, preload: bool
) -> None:
    script = f"""
import asyncio, atexit, os, resource, sys, threading, time
import malloc_arena
from malloc_arena import *
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
vault = get(HEAP_SECURE)
key = vault.buffer(1000)
view = memoryview(key)
class Late:
    def __del__(self): self.made = [bytes(1000), str(self.__dict__)]
def forever():
    with vault:
        kept = bytes(5000)
        time.sleep(1000)
with vault:
    kept = [Late(), bytearray(100_000), {{n: str(n) for n in range(1000)}}]
    kept.append(kept)
    threading.Thread(target=forever, daemon=True).start()
    atexit.register(lambda: kept.append(bytes(10)))
    file = open("file", "w"); file.write("x" * 100)
    {how if inside else ""}
{how}
"""
    environment = {"LD_PRELOAD": str(library())} if preload else {}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | environment,
        timeout=120,
    )
    bye = "bye\n" if "bye" in how else ""
    assert (done.returncode, done.stdout, done.stderr) == (ENDS[how], "", bye)


def mapping_of(maps: list[Mapping], address: int) -> Mapping:
    return next(each for each in maps if each.start <= address < each.end)


ARENAS = {
    "vault": "get(HEAP_SECURE)",
    "own": "Arena(HEAP_SECURE, name='own')",
    "isolated": "get(HEAP_SECURE | HEAP_ISOLATED)",
    "unlocked": "Arena(HEAP_SECURE, lock='off')",
    "wiped": "Arena(HEAP_SECURE, fork='wipe')",
    "refused": "Arena(HEAP_SECURE, fork='refuse')",
    "default": "get(HEAP_DEFAULT)",
}


@pytest.mark.promise("receipt-true")
@pytest.mark.parametrize("name", ARENAS)
def test_the_kernels_flags_are_the_receipt(
    child: Callable[..., Child], evidence: Evidence, name: str
) -> None:
    process = child(
        f"""
import dataclasses
arena = {ARENAS[name]}
kept = []
def work():
    dead = [bytes(n * 7) for n in range(600)]  # within the lock limit of an ordinary user
    kept.extend(dead[::10])
    kept.extend([bytes(100_000), "x" * 3000, dict.fromkeys(range(1000))])
arena.call(work)
with arena: key = bytes(10)
kept.append(key)
ordinary = bytes(100_000)
inside = [id(each) for each in kept if arena.owns(id(each))]
receipt = arena.receipt
show(inside=inside, receipt=dataclasses.asdict(receipt), ordinary=id(ordinary))
"""
    )
    shown = process.shown()
    receipt = shown["receipt"]
    maps = mappings(process.pid)
    flags = set(mapping_of(maps, shown["ordinary"]).flags)
    evidence.control("neither locked nor undumped", not flags & {"lo", "dd", "wf", "dc"})
    assert len(shown["inside"]) > 50
    for address in shown["inside"]:
        assert process.owns(address)
        flags = set(mapping_of(maps, address).flags)
        assert ("lo" in flags) == receipt["locked"]
        assert ("dd" in flags) == receipt["dump_excluded"]
        assert ("wf" in flags) == (receipt["fork"] == "wipe")
        assert ("dc" in flags) == (receipt["fork"] == "refuse")
    assert receipt["locked"] == (name not in ("unlocked", "default"))
    assert receipt["dump_excluded"] == (name != "default")
    assert receipt["fork"] == {"wiped": "wipe", "refused": "refuse"}.get(name, "keep")
    # Nor is there any other page in the region, live or freed, of which the receipt is not true.
    # Address space ahead of its use may be open before it is locked.
    present = resident(process.pid)
    used = [each for each in maps if process.owns(each.start) and present[each.start]]
    assert used
    for each in used:
        assert ("lo" in each.flags) == receipt["locked"], each
        assert ("dd" in each.flags) == receipt["dump_excluded"], each
    locked = status(process.pid, "VmLck")
    assert receipt["locked_bytes"] <= locked
    assert bool(locked) == receipt["locked"]
    process.ends()
    evidence.result(f"{len(shown['inside'])} blocks, {len(used)} mappings: as the receipt says")


def resident(pid: int) -> dict[int, int]:
    """How much of each mapping is in memory, by its start."""
    found = {}
    start = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if first == "Rss:":
            found[start] = int(rest.split()[0]) << 10
        elif not first.endswith(":"):
            start = int(first.partition("-")[0], 16)
    return found


def status(pid: int, key: str) -> int:
    """A size in /proc/PID/status, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) << 10
    raise KeyError(key)


@pytest.mark.parametrize("preload", [False, True], ids=["plain", "preload"])
def test_an_import_reserves_and_locks_nothing(preload: bool) -> None:
    script = """
import json, sys
def stop(): print(flush=True); sys.stdin.readline()
stop()
import malloc_arena
from malloc_arena import *
stop()
with get(HEAP_SECURE): kept = bytes(100)
stop()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | ({"LD_PRELOAD": str(library())} if preload else {}),
    )
    assert process.stdin
    assert process.stdout
    own = {"lo", "wf", "dc"}
    moments: list[dict[str, Any]] = []
    with process:
        for _ in range(3):
            assert process.stdout.readline() == "\n"
            maps = mappings(process.pid)
            moments.append(
                {
                    "anonymous": sum(each.end - each.start for each in maps if not each.name),
                    "flags": {flag for each in maps for flag in each.flags} & own,
                    "undumped": sum("dd" in each.flags for each in maps),
                    "locked": status(process.pid, "VmLck"),
                    "threads": len(list(Path(f"/proc/{process.pid}/task").iterdir())),
                }
            )
            process.stdin.write("\n")
            process.stdin.flush()
    assert process.returncode == 0
    before, imported, used = moments
    # CPython's own small blocks, for all the modules that "*" names; the least region is 64 MiB.
    assert imported.pop("anonymous") - before["anonymous"] <= 16 << 20
    assert imported == {key: before[key] for key in imported}
    assert imported["flags"] == set()
    assert imported["locked"] == 0
    assert used["anonymous"] - before["anonymous"] >= 64 << 20
    assert "lo" in used["flags"]
    assert used["undumped"] > before["undumped"]
    assert used["locked"] > 0
    assert used["threads"] == 1
