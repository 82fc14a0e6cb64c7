"""The scanner: every planted copy is found, with its owner, and nothing is found where none is."""

from __future__ import annotations

import base64
import contextlib
import os
import random
import secrets
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from malloc_arena.audit import CannotLook, Process, Scan, Scanner, needles

SECRET = "kT7/+9aQ=zz&Lm4%pWx@c1RfGh5~~~B3"

ENCODED: dict[str, Callable[[bytes], bytes]] = {
    "raw": lambda s: s,
    "reversed": lambda s: s[::-1],
    "utf-16le": lambda s: s.decode().encode("utf-16-le"),
    "utf-16be": lambda s: s.decode().encode("utf-16-be"),
    "utf-32le": lambda s: s.decode().encode("utf-32-le"),
    "utf-32be": lambda s: s.decode().encode("utf-32-be"),
    "hex": lambda s: s.hex().encode(),
    "HEX": lambda s: s.hex().upper().encode(),
    "base64+0": lambda s: base64.b64encode(b"abc" + s + b"de"),
    "base64+1": lambda s: base64.b64encode(b"abcd" + s + b"de"),
    "base64+2": lambda s: base64.b64encode(b"abcde" + s + b"de"),
    "base64url+0": lambda s: base64.urlsafe_b64encode(b"abc" + s),
    "url-quoted": lambda s: urllib.parse.quote(s, safe="").encode(),
}

# Reads the secret without a buffer of its own, puts it in one place byte by byte (memcpy would
# leave it in vector registers as well), wipes what it read into, and stands still.
PLANT = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static char input[512];
static ssize_t length;
static char written[512] = { 1 };
static char zeroed[1 << 16];

static void put (volatile char *to)
{
  for (ssize_t i = 0; i < length; i++)
    to[i] = input[i];
  for (ssize_t i = 0; i < (ssize_t)sizeof input; i++)
    ((volatile char *)input)[i] = 0;
}

static void stand_still (void)
{
  write (1, "x", 1);
  for (;;)
    pause ();
}

static void *in_thread (void *unused)
{
  char local[512];
  put (local);
  stand_still ();
  return local[0] ? unused : NULL;
}

static void *in_arena (void *unused)
{
  put (malloc (512));
  stand_still ();
  return unused;
}

static void __attribute__ ((noinline)) below (void)
{
  volatile char room[8192];
  put (room);
}

int main (int argc, char **argv)
{
  const char *place = argv[1];
  length = read (0, input, sizeof input);
  if (!strcmp (place, "heap"))
    put (malloc (512));
  else if (!strcmp (place, "freed"))
    {
      char *p = malloc (600);
      put (p + 64);
      free (p);
    }
  else if (!strcmp (place, "bin"))
    {
      char *p = malloc (6000);
      volatile char *behind = malloc (100);
      put (p + 640);
      free (p);
      behind[0] = 1;
    }
  else if (!strcmp (place, "fast"))
    {
      char *p[9];
      for (int i = 0; i < 9; i++)
        p[i] = malloc (72);
      put (p[8] + 16);
      for (int i = 0; i < 9; i++)
        free (p[i]);
    }
  else if (!strcmp (place, "small"))
    {
      char *p[9];
      for (int i = 0; i < 9; i++)
        p[i] = malloc (72);
      for (int i = 0; i < 8; i++)
        free (p[i]);
      put (p[8] + 16);
    }
  else if (!strcmp (place, "top"))
    {
      char *p = malloc (6000);
      put (p + 640);
      free (p);
    }
  else if (!strcmp (place, "large"))
    put ((char *)malloc (1 << 20) + 5000);
  else if (!strcmp (place, "arena"))
    {
      pthread_t thread;
      free (malloc (100));
      pthread_create (&thread, NULL, in_arena, NULL);
      pthread_join (thread, NULL);
    }
  else if (!strcmp (place, "dead"))
    {
      below ();
      stand_still ();
    }
  else if (!strcmp (place, "bss"))
    put (zeroed + 40000);
  else if (!strcmp (place, "stack"))
    in_thread (NULL);
  else if (!strcmp (place, "thread"))
    {
      pthread_t thread;
      pthread_create (&thread, NULL, in_thread, NULL);
      pthread_join (thread, NULL);
    }
  else if (!strcmp (place, "data"))
    put (written);
  else if (!strcmp (place, "anonymous") || !strcmp (place, "seam"))
    {
      char *p = mmap (NULL, 1 << 18, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      char *seam = (char *)(((uintptr_t)p + (1 << 17)) & ~(uintptr_t)0xffff);
      seam[-1] = seam[0] = 1;
      put (*place == 's' ? seam - 10 : p + 100);
    }
  else if (!strcmp (place, "file"))
    {
      int fd = open (argv[2], O_RDWR | O_CREAT, 0600);
      if (ftruncate (fd, 4096))
        return 1;
      put (mmap (NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    }
  else if (!strcmp (place, "register"))
    {
      unsigned char low[16];
      for (int i = 0; i < 16; i++)
        low[i] = input[i];
      write (1, "x", 1);
#if defined __x86_64__
      __asm__ volatile ("movdqu %0, %%xmm9" : : "m"(low) : "xmm9");
#else
      __asm__ volatile ("ldr q9, %0" : : "Q"(low) : "v9");
#endif
      for (int i = 0; i < 16; i++)
        ((volatile unsigned char *)low)[i] = 0;
      for (int i = 0; i < (int)sizeof input; i++)
        ((volatile char *)input)[i] = 0;
      for (;;)
        ;
    }
  stand_still ();
  return argc;
}
"""


@pytest.fixture(scope="session")
def plant(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: apt-get install gcc")
    directory = tmp_path_factory.mktemp("plant")
    source = directory / "plant.c"
    source.write_text(PLANT)
    program = directory / "plant"
    subprocess.run(
        [compiler, "-O0", "-pthread", "-o", str(program), str(source)],
        check=True,
        capture_output=True,
    )
    return str(program)


@contextlib.contextmanager
def started(command: list[str], given: bytes) -> Iterator[int]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin
        assert child.stdout
        try:
            child.stdin.write(given)
            child.stdin.flush()
            assert child.stdout.read(1) == b"x"
            yield child.pid
        finally:
            child.kill()


def look(pid: int, secret: str = SECRET, arena: tuple[int, int] = (0, 0)) -> Scan:
    with Process(pid) as process:
        return Scanner(secret.encode()).scan(process, arena)


@pytest.mark.parametrize("encoding", ENCODED)
def test_finds_each_encoding(plant: str, encoding: str) -> None:
    secret = SECRET.encode()
    with started([plant, "anonymous"], ENCODED[encoding](secret)) as pid:
        (hit,) = look(pid).hits
    assert (hit.encoding, hit.whole, hit.owner) == (encoding, True, "anonymous")


@pytest.mark.parametrize(
    ("place", "owner", "state", "what"),
    [
        ("heap", "heap", "live", ""),
        ("small", "heap", "live", ""),
        ("freed", "heap", "freed", ""),
        ("fast", "heap", "freed", ""),
        ("bin", "heap", "freed", ""),
        ("top", "heap", "freed", "unused end of the heap"),
        ("arena", "heap", "live", ""),
        ("large", "heap", "live", ""),
        ("stack", "stack", "live", "thread"),
        ("dead", "stack", "freed", "thread"),
        ("thread", "stack", "live", "thread"),
        ("data", "file", "", ""),
        ("bss", "file", "", "zero-initialised data"),
        ("anonymous", "anonymous", "", ""),
        ("seam", "anonymous", "", ""),
        ("file", "file", "", ""),
    ],
)
def test_finds_each_place(
    plant: str, tmp_path: Path, place: str, owner: str, state: str, what: str
) -> None:
    with started([plant, place, str(tmp_path / "file")], SECRET.encode()) as pid:
        (finding,) = look(pid).findings
    assert (finding.hit.owner, finding.hit.encoding, finding.hit.whole) == (owner, "raw", True)
    assert (finding.place.state, finding.place.what[: len(what)]) == (state, what)
    if owner == "heap" and place != "top":
        size = {"small": 72, "fast": 72, "freed": 600, "bin": 6000, "large": 1 << 20}.get(
            place, 512
        )
        assert finding.place.block % 16 == 0
        assert size <= finding.place.block_size < size + 8192
        offset = {"small": 16, "fast": 16, "freed": 64, "bin": 640, "large": 5000}.get(place, 0)
        assert finding.hit.address == finding.place.block + offset


def test_what_stands_around_is_told_without_the_secret(plant: str) -> None:
    with started([plant, "anonymous"], b'{"key": "' + SECRET.encode() + b'"}') as pid:
        (finding,) = look(pid).findings
    assert finding.before.endswith('{"key": "')
    assert finding.after.startswith('"}')
    with started([plant, "anonymous"], SECRET.encode()[:20] + b"#" + SECRET.encode()[20:]) as pid:
        one, other = look(pid).findings
    assert one.after.startswith("#*********")
    assert other.before.endswith("**********#")


def test_finds_a_register(plant: str) -> None:
    with started([plant, "register"], SECRET.encode()) as pid:
        for _ in range(100):  # it says "x" a few instructions before it is ready
            scan = look(pid)
            if len(scan.hits) == 1:
                break
    (hit,) = scan.hits
    assert (hit.owner, hit.length, hit.whole) == ("register", 16, False)


def test_finds_a_python_string_after_its_death() -> None:
    program = (
        "import os\n"
        "def forget():\n"
        "    text = os.read(0, 100).decode()\n"
        "    return len(text)\n"
        "forget(); os.write(1, b'x'); os.read(0, 1)\n"
    )
    with started([sys.executable, "-c", program], SECRET.encode()) as pid:
        scan = look(pid)
    assert any(hit.whole for hit in scan.outside())


def test_arena_is_told_apart(plant: str) -> None:
    with started([plant, "anonymous"], SECRET.encode()) as pid:
        (hit,) = look(pid).hits
        page = hit.address & ~4095
        scan = look(pid, arena=(page, 4096))
    assert scan.outside() == ()
    assert [one.address for one in scan.inside()] == [hit.address]


def test_clean_processes_have_no_hit() -> None:
    scanner = Scanner(SECRET.encode())
    for _ in range(3):
        program = "import json, os, ssl; os.write(1, b'x'); os.read(0, 1)"
        with started([sys.executable, "-c", program], b"") as pid, Process(pid) as process:
            scan = scanner.scan(process)
        assert scan.hits == ()
        assert scan.scanned_bytes > 1 << 22


def test_scanner_finds_in_the_second_process_what_the_first_had_not(plant: str) -> None:
    # What was searched once is skipped when seen again: that must never hide a copy.
    scanner = Scanner(SECRET.encode())
    for given, count in ((b"nothing of interest", 0), (SECRET.encode(), 1)):
        with started([plant, "data"], given) as pid, Process(pid) as process:
            assert len(scanner.scan(process).hits) == count


def test_process_goes_on_after_the_look(plant: str) -> None:
    program = "import os; os.write(1, b'x'); os.write(1, os.read(0, 1)); os.read(0, 1)"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin
        assert child.stdout
        assert child.stdout.read(1) == b"x"
        look(child.pid)
        child.stdin.write(b"yz")
        child.stdin.close()
        assert child.stdout.read(1) == b"y"
        assert child.wait(timeout=20) == 0


@pytest.mark.parametrize("secret", [SECRET.encode(), bytes(range(200, 232)), b"\0\1" * 8 + b"ab"])
def test_finds_each_fragment_of_each_encoding(secret: bytes) -> None:
    scanner = Scanner(secret)
    noise = b"\xee" * 50
    for needle in needles(secret):
        units = len(needle.starts) - 1
        for first in range(units - needle.fragment + 1):
            begin, end = needle.starts[first], needle.starts[first + needle.fragment]
            data = noise + needle.pattern[begin:end] + noise
            found = scanner.find(data)
            assert len(found) == 1, (needle.encoding, first)
            assert found[0][0] <= 50 <= 50 + end - begin <= found[0][1]
        short = needle.pattern[: needle.starts[needle.fragment] - 1]
        if secret == SECRET.encode():
            assert scanner.find(noise + short + noise) == [], needle.encoding


def test_overlapping_runs_count_once() -> None:
    secret = b"aaaaaaaaaaaaaaaa"
    assert len(Scanner(secret).find(b"x" + secret + b"x")) == 1
    secret = SECRET.encode()
    (found,) = Scanner(secret).find(b"xx" + secret + b"yy")
    assert found[:2] == (2, 2 + len(secret))
    assert len(Scanner(secret).find(secret + secret[5:20])) == 2


def test_random_bytes_hold_nothing() -> None:
    noise = random.Random(7).randbytes(1 << 20)
    assert Scanner(secrets.token_bytes(32)).find(noise) == []
    assert Scanner(secrets.token_urlsafe(32).encode()).find(noise) == []


def test_short_secrets_are_refused() -> None:
    with pytest.raises(ValueError, match="8 bytes"):
        Scanner(b"1234567")


def test_who_cannot_be_looked_at_is_named() -> None:
    with pytest.raises(CannotLook, match=str(os.getpid())), Process(os.getpid()):
        pass
    with subprocess.Popen(["true"]) as child:
        child.wait()
        with pytest.raises(CannotLook), Process(child.pid):
            pass


def test_what_no_right_helps_against_is_told() -> None:
    with pytest.raises(CannotLook, match="it is this one"), Process(os.getpid()):
        pass
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie
    with pytest.raises(CannotLook, match="it has no memory: it has ended"), Process(child.pid):
        pass
    child.wait()
    with subprocess.Popen(["sleep", "60"]) as child:
        code = (
            "import sys\nfrom malloc_arena.audit import Process\n"
            f"with Process({child.pid}): print(flush=True), sys.stdin.read()\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout
            assert other.stdout.readline() == b"\n"
            said = f"process {other.pid} traces it already"
            with pytest.raises(CannotLook, match=said), Process(child.pid):
                pass
            other.communicate()
        child.kill()


# A thread that waits for what it has started, as no signal makes it stop.
WAITS = r"""
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

static void *
start (void *unused)
{
  if (vfork () == 0)
    {
      char end;
      puts ("waits");
      fflush (stdout);
      _exit (read (0, &end, 1) != 0);
    }
  return unused;
}

int
main (void)
{
  pthread_t thread;
  pthread_create (&thread, NULL, start, NULL);
  pthread_join (thread, NULL);
  return pause ();
}
"""


def test_a_thread_that_cannot_be_stopped_is_told(tmp_path: Path) -> None:
    source = tmp_path / "waits.c"
    source.write_text(WAITS)
    subprocess.run(
        ["cc", "-pthread", "-w", "-o", tmp_path / "waits", source], check=True, timeout=60
    )
    with subprocess.Popen(
        [tmp_path / "waits"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline()
            look = (
                "import sys\n"
                "from malloc_arena.audit import CannotLook, Process\n"
                "try:\n"
                "    with Process(int(sys.argv[1]), 0.1):\n"
                "        pass\n"
                "except CannotLook as error:\n"
                "    print(error)\n"
            )
            # In a process of its own: who cannot stop a thread stays its tracer until it ends.
            said = subprocess.run(
                [sys.executable, "-c", look, str(child.pid)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                timeout=30,
            ).stdout
            assert said.startswith(f"process {child.pid} cannot be stopped: its thread "), said
            # The others go on as they did.
            assert child.stdin is not None
            child.stdin.close()
            with Process(child.pid) as process:
                assert process.threads
        finally:
            child.kill()


# Sleeps, and ends; for a processor in 32-bit mode.
SLEEPER = """
.globl _start
_start:
  mov $162, %eax
  mov $seconds, %ebx
  xor %ecx, %ecx
  int $0x80
  mov $1, %eax
  xor %ebx, %ebx
  int $0x80
.data
seconds: .long 60, 0
"""


def test_a_32_bit_program_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "program"
    (tmp_path / "program.s").write_text(SLEEPER)
    build = ["cc", "-m32", "-nostdlib", "-static", "-o", str(program), f"{program}.s"]
    try:
        if subprocess.run(build, capture_output=True).returncode:
            pytest.skip("this compiler makes no 32-bit x86 programs")
        child = subprocess.Popen([program])
    except OSError as error:
        pytest.skip(f"no compiler, or a 32-bit program does not run: {error}")
    with child:
        while Path(f"/proc/{child.pid}/exe").readlink() != program:
            pass
        with pytest.raises(CannotLook, match="is a 32-bit program"), Process(child.pid):
            pass
        child.kill()
