"""What the protection is worth, seen from outside: core dumps, forked children, ways to end, the
kernel's own flags. Each beside ordinary memory, where the same look finds the secret."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Child, Mapping, mappings
from malloc_arena.cli.config import Config, library

# Made in the child from a key, so that no script, pipe or test holds it in one piece. The witness
# is in ordinary memory in any case: a look that misses it has seen nothing.
MAKE = """
def unhide(data): return bytes(b ^ 0x5a for b in bytes.fromhex(data))
def make(): return unhide("3925282831392e7a35322928397a38352e2e393f36")
def witness(): return unhide("2d332e343f29297a3334")
"""
SECRET = bytes(b ^ 0x5A for b in bytes.fromhex("3925282831392e7a35322928397a38352e2e393f36"))
WITNESS = bytes(b ^ 0x5A for b in bytes.fromhex("2d332e343f29297a3334"))
WIDE = SECRET.decode("latin-1").encode("utf-16-le")

HANDLE = (
    MAKE
    + """
import contextlib, resource
os.chdir(os.environ["WHERE"])
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
memory, state = os.environ["STORY"].split()
vault = get(HEAP_SECURE) if memory == "arena" else None
seen = witness()
def work():
    secret = make().decode("latin-1")
    config = json.loads(json.dumps({"token": secret, "all": [secret * 3] * 5}))
    return config, bytearray(make() * 300), "\\u20ac" + secret, make() * 2
key = vault.buffer(100) if vault else bytearray(100)
with vault or contextlib.nullcontext():
    kept = work()
    key[:len(kept[3])] = kept[3]
if state == "dead":
    del kept, key
    gc.collect()
show()
"""
)


def found_in(dump: Path) -> list[bool]:
    data = dump.read_bytes()
    assert WITNESS in data
    return [SECRET in data, WIDE in data]


def need_kernel_dumps() -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith("|") or "/" in pattern or not pattern.startswith("core"):
        pytest.skip(f"core dumps do not stay in the current directory: core_pattern is {pattern!r}")
    if resource.getrlimit(resource.RLIMIT_CORE)[1] != resource.RLIM_INFINITY:
        pytest.skip("core dumps are limited here (ulimit -H -c)")


def kernel_dump(directory: Path) -> Path:
    (dump,) = directory.glob("core*")
    return dump


MEMORY = [("plain", "alive"), ("plain", "dead"), ("arena", "alive"), ("arena", "dead")]


@pytest.mark.parametrize(("memory", "state"), MEMORY)
def test_core_dump(child: Callable[..., Child], tmp_path: Path, memory: str, state: str) -> None:
    need_kernel_dumps()
    process = child(HANDLE, WHERE=str(tmp_path), STORY=f"{memory} {state}")
    process.shown()
    os.kill(process.pid, signal.SIGABRT)
    assert process.process.wait(60) == -signal.SIGABRT
    found = found_in(kernel_dump(tmp_path))
    assert any(found) == (memory == "plain")
    if (memory, state) == ("plain", "alive"):
        assert all(found)


@pytest.mark.parametrize(("memory", "state"), MEMORY)
def test_gcore(child: Callable[..., Child], tmp_path: Path, memory: str, state: str) -> None:
    if shutil.which("gcore") is None:
        pytest.skip("gcore (package gdb) is not installed")
    process = child(HANDLE, WHERE=str(tmp_path), STORY=f"{memory} {state}")
    process.shown()
    done = subprocess.run(
        ["gcore", "-o", str(tmp_path / "dump"), str(process.pid)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    dump = tmp_path / f"dump.{process.pid}"
    if not dump.exists() and "ptrace" in done.stderr:
        pytest.skip(f"no other process may be traced here: {done.stderr.strip()}")
    assert dump.exists(), done
    # The reserved address space is not written out as zeros.
    assert dump.stat().st_size < 200 << 20
    found = found_in(dump)
    assert any(found) == (memory == "plain")
    if (memory, state) == ("plain", "alive"):
        assert all(found)
    process.ends()


# What C code does: argv[1] names where the secret lies, argv[2] how it ends.
PROGRAM = r"""
#include <malloc_arena.h>
#include <pthread.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
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

/* Bytes of all blocks that are not zero. */
static size_t
left (void)
{
  size_t n = 0;
  for (int i = 0; i < BLOCKS; i++)
    for (size_t j = 0; j < sizes[i]; j++)
      n += block[i][j] != 0;
  return n;
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
  struct rlimit all = { RLIM_INFINITY, RLIM_INFINITY };
  setrlimit (RLIMIT_CORE, &all);
  arena = strcmp (argv[1], "arena") == 0 ? malloc_arena_get (HEAP_SECURE) : NULL;
  if (arena)
    malloc_arena_enter (arena);
  for (int i = 0; i < BLOCKS; i++)
    fill (block[i] = malloc (sizes[i]), sizes[i]);
  if (strcmp (how, "fork") == 0)
    {
      size_t before = left ();
      fflush (stdout);
      pid_t pid = fork ();
      if (pid == 0)
        {
          size_t inherited = left ();
          for (int i = 0; i < BLOCKS; i++)
            {
              memset (block[i], 'c', sizes[i]);
              block[i] = realloc (block[i], sizes[i] * 2);
              for (size_t j = 0; j < sizes[i]; j++)
                if (block[i][j] != 'c')
                  _exit (3);
              free (block[i]);
              block[i] = NULL;
            }
          printf ("child %zu of %zu\n", inherited, before);
          exit (0);
        }
      int status;
      waitpid (pid, &status, 0);
      printf ("parent %zu of %zu, %d\n", left (), before, status);
      return 0;
    }
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


def test_a_forked_child_of_c_finds_zeros(program: Path, tmp_path: Path) -> None:
    total = sum((16, 32, 500, 1500, 5000, 300000))
    parent = f"parent {total} of {total}, 0\n"
    plain = run(program, "plain", "fork", cwd=tmp_path)
    assert (plain.stdout, plain.stderr) == (f"child {total} of {total}\n" + parent, "")
    arena = run(program, "arena", "fork", cwd=tmp_path)
    assert (arena.stdout, arena.stderr) == (f"child 0 of {total}\n" + parent, "")


def test_a_forked_child_of_python_finds_zeros(child: Callable[..., Child]) -> None:
    """From outside, while the child is alive: nothing of a SecretBuffer, all of a bytearray."""
    process = child(
        MAKE
        + """
size = 21
key, plain = SecretBuffer(9000), bytearray(9000)
with get(HEAP_SECURE):
    key[:size] = make()
    key[-size:] = make()
plain[:10] = witness()
pid = os.fork()
if pid == 0:
    touched = sum(key[:])
    key[0] = 1
    show(pid=os.getpid(), touched=touched, address=key.address)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
show(address=key.address)
assert key[:size] == make() and key[-size:] == make()
"""
    )
    shown = process.shown()
    assert shown["touched"] == 0
    assert process.copies(WITNESS, shown["pid"])
    assert process.copies(SECRET, shown["pid"]) == []
    at = shown["address"]
    assert process.copies(SECRET) == [at, at + 9000 - len(SECRET)]
    process.go_on()
    process.shown()
    process.ends()


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


@pytest.mark.parametrize("memory", ["plain", "arena"])
def test_a_c_program_aborts_with_secrets_alive(program: Path, tmp_path: Path, memory: str) -> None:
    need_kernel_dumps()
    done = run(program, memory, "abort", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGABRT, "", "")
    data = kernel_dump(tmp_path).read_bytes()
    assert len(data) > 100_000
    assert (SECRET in data) == (memory == "plain")


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


@pytest.mark.parametrize("name", ARENAS)
def test_the_kernels_flags_are_the_receipt(child: Callable[..., Child], name: str) -> None:
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
inside = [id(each) for each in kept if arena.owns(id(each))]
receipt = arena.receipt
show(inside=inside, receipt=dataclasses.asdict(receipt))
"""
    )
    shown = process.shown()
    receipt = shown["receipt"]
    maps = mappings(process.pid)
    assert len(shown["inside"]) > 50
    for address in shown["inside"]:
        assert process.owns(address)
        flags = set(mapping_of(maps, address).flags)
        assert ("lo" in flags) == receipt["locked"]
        assert ("dd" in flags) == receipt["dump_excluded"]
        assert bool(flags & {"wf", "dc"}) == (receipt["fork"] == "wipe")
    assert receipt["locked"] == (name not in ("unlocked", "default"))
    assert receipt["dump_excluded"] == (name != "default")
    assert receipt["fork"] == ("wipe" if name in ("wiped", "refused") else "keep")
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
