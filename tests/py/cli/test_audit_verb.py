"""malloc-arena audit from outside: planted copies, their owners, their lines; codes and streams."""

from __future__ import annotations

import bz2
import concurrent.futures
import gzip
import json
import lzma
import os
import re
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from malloc_arena.cli.config import library

SECRET = "kT7/+9aQ=zz&Lm4%pWx@c1RfGh5~~~B3"
MASKED = bytes(byte ^ 0x5A for byte in SECRET.encode()).hex()

# Each copy is made of the masked secret by C code on one line, whose comment says what it must be
# found as: owner, state, type, form.
PLANT = """
import base64, os, sys, time, urllib.parse
key = bytes.fromhex(sys.argv[1])
mask = (0x5A).__xor__
a = bytes(map(mask, key))                                      # pymalloc live bytes raw
b = bytearray(map(mask, key))                                  # pymalloc live - raw
c = bytes(map(mask, key)).decode()                             # pymalloc live str raw
d = int.from_bytes(bytes(map(mask, key)), "big")               # pymalloc live int int
e = {bytes(map(mask, key)).decode(): 1}                        # pymalloc live str raw
f = "\\u20ac" + bytes(map(mask, key)).decode()                 # pymalloc live str utf-16le
g = base64.b64encode(bytes(map(mask, key))).decode()           # pymalloc live str base64+0
h = base64.b64encode(b"a" + bytes(map(mask, key))).decode()    # pymalloc live str base64+1
i = base64.b64encode(b"ab" + bytes(map(mask, key))).decode()   # pymalloc live str base64+2
j = bytes(map(mask, key)).hex()                                # pymalloc live str hex
k = "%s%9000d" % (bytes(map(mask, key)).decode(), 1)           # heap live str raw
m = bytes(map(mask, key)).decode()[::-1]                       # pymalloc live str reversed
n = bytes(map(mask, key)).decode()[9:21]                       # pymalloc live str fragment
o = "%s%900000d" % (bytes(map(mask, key)).decode(), 1)         # heap live str raw
def fail():
    local = bytes(map(mask, key)).decode()                     # pymalloc live str raw
    raise ValueError
try:
    fail()
except ValueError as error:
    kept = error
if len(sys.argv) > 2:
    os.write(1, b"x")
    os.read(0, 1)
"""


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(SECRET + "\n")
    return path


def audit(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "malloc_arena", "audit", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
        **options,
    )


def look(done: subprocess.CompletedProcess[str], number: int = -1) -> dict[str, Any]:
    assert done.returncode in (0, 1), done.stderr
    assert done.stderr == ""
    data = json.loads(done.stdout[done.stdout.index("{") :])
    assert data["schema"] == "malloc-arena/audit/1"
    one: dict[str, Any] = data["looks"][number]
    assert one["outside"] + one["inside"] == len(one["findings"])
    return one


@pytest.fixture
def waiting() -> Iterator[Any]:
    """Starts programs that write "x" when they are ready."""
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)
        started.append(child)
        assert child.stdout
        assert child.stdout.read(1) == b"x"
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


def test_every_planted_copy_is_found_with_its_owner_and_its_line(
    token: Path, tmp_path: Path
) -> None:
    script = tmp_path / "plant.py"
    script.write_text(PLANT)
    done = audit("--secret-file", token, "--trace", "--json", "--", sys.executable, script, MASKED)
    assert done.returncode == 1
    assert SECRET not in done.stdout
    findings = look(done)["findings"]
    by_line: dict[int, set[str]] = {}
    for one in findings:
        for frame in one["traceback"][:1]:
            assert frame["file"] == str(script)
            form = one["encoding"] if one["whole"] else "fragment"
            told = f"{one['owner']} {one['state']} {one['what'] or '-'} {form}"
            by_line.setdefault(frame["line"], set()).add(told)
            assert frame["text"].startswith(PLANT.splitlines()[frame["line"] - 1].strip()[:20])
    planted = 0
    for number, line in enumerate(PLANT.splitlines(), 1):
        if expected := re.search(r"# (\w+ \w+ [\w-]+ \S+)$", line):
            planted += 1
            assert expected[1] in by_line.get(number, set()), (line, by_line.get(number))
    assert planted == 15


# Unmasks byte by byte, so that no copy is left in registers or on the stack.
PLANT_IN_C = """
#include <stdlib.h>
static char *kept;
static void put (volatile char *to, const char *masked, int n)
{
  for (int i = 0; i < n; i++)
    to[i] = masked[i] ^ 0x5A;
}
void keep_it (const char *masked, int n)
{
  put (kept = malloc (200), masked, n);
}
void drop_it (const char *masked, int n)
{
  char *p = malloc (3000);
  char *volatile behind = malloc (100);
  put (p + 640, masked, n);
  free (p);
  (void)behind;
}
"""


def test_functions_of_c_that_allocated_are_told(token: Path, tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: apt-get install gcc")
    source, library = tmp_path / "plant.c", tmp_path / "libplant.so"
    source.write_text(PLANT_IN_C)
    subprocess.run([compiler, "-O0", "-shared", "-fPIC", "-o", library, source], check=True)
    script = tmp_path / "plant.py"
    script.write_text(
        "import ctypes, sys, time\n"
        f"plant = ctypes.CDLL({str(library)!r})\n"
        "key = bytes.fromhex(sys.argv[1])\n"
        "plant.keep_it(key, len(key))\n"
        "plant.drop_it(key, len(key))\n"
        "time.sleep(1)\n"
    )
    done = audit("--secret-file", token, "--trace", "--json", "--", sys.executable, script, MASKED)
    found = {one["state"]: one for one in look(done)["findings"] if one["owner"] == "heap"}
    for state, function in (("live", "keep_it"), ("freed", "drop_it")):
        first = found[state]["traceback"][0]
        assert (first["file"], first["line"], first["text"]) == (str(library), 0, function)
        assert len(found[state]["traceback"]) > 3
        assert 1 <= found[state]["age_seconds"] < 60
    text = audit("--secret-file", token, "--trace", "--", sys.executable, script, MASKED).stdout
    assert re.search(r"live heap, a block of \d+ bytes, allocated \d+\.\d s\s+before: raw", text)
    assert "  libplant.so  keep_it\n" in text


def test_arguments_environment_and_a_live_process(
    token: Path, tmp_path: Path, waiting: Any
) -> None:
    script = tmp_path / "plant.py"
    script.write_text("import os; os.write(1, b'x'); os.read(0, 1)\n")
    child = waiting(
        [sys.executable, str(script), "--token=" + SECRET], env=os.environ | {"TOKEN": SECRET}
    )
    done = audit("--secret-file", token, "--pid", str(child.pid), "--json")
    owners = {one["owner"] for one in look(done)["findings"] if one["whole"]}
    assert {"argv", "environ", "pymalloc"} <= owners
    (argument,) = (one for one in look(done)["findings"] if one["owner"] == "argv")
    assert argument["before"].endswith("--token=")
    assert child.poll() is None
    child.stdin.write(b"y")
    child.stdin.flush()
    assert child.wait(timeout=30) == 0


def test_a_core_file_and_a_raw_dump(token: Path, tmp_path: Path, waiting: Any) -> None:
    script = tmp_path / "plant.py"
    script.write_text(PLANT)
    child = waiting([sys.executable, str(script), MASKED, "wait"])
    if shutil.which("gcore") is None:
        pytest.skip("gcore is not installed: apt-get install gdb")
    subprocess.run(
        ["gcore", "-o", str(tmp_path / "core"), str(child.pid)], check=True, capture_output=True
    )
    core = tmp_path / f"core.{child.pid}"
    live = look(audit("--secret-file", token, "--pid", str(child.pid), "--json"))
    dead = look(audit("--secret-file", token, "--core", core, "--json"))

    def told(one: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(one[key]) for key in ("address", "owner", "state", "what", "encoding"))

    kept = {told(one) for one in live["findings"] if one["owner"] in ("pymalloc", "heap")}
    assert len(kept) >= 15
    assert kept - {told(one) for one in dead["findings"]} == set()
    assert dead["threads"] == 1

    raw = tmp_path / "memory"
    raw.write_bytes(b"\0" * 70000 + SECRET.encode() + b"\0" * 70000)
    (found,) = look(audit("--secret-file", token, "--core", raw, "--json"))["findings"]
    assert (found["owner"], found["address"], found["whole"]) == ("dump", 70000, True)


def test_a_core_file_that_is_packed_or_cut_off_is_not_called_clean(
    token: Path, tmp_path: Path
) -> None:
    for name, packed in (
        ("gz", gzip.compress(SECRET.encode())),
        ("xz", lzma.compress(SECRET.encode())),
        ("bz2", bz2.compress(SECRET.encode())),
        ("zst", b"\x28\xb5\x2f\xfd" + bytes(100)),
        ("lz4", b"\x04\x22\x4d\x18" + bytes(100)),
    ):
        path = tmp_path / f"core.{name}"
        path.write_bytes(packed)
        done = audit("--secret-file", token, "--core", path)
        assert (done.returncode, done.stdout) == (3, "")
        assert f"{path}: it is compressed: unpack it first" in done.stderr

    # A core as the kernel writes it: a header, two segments of memory, no sections.
    pages = [b"a" * 4096, SECRET.encode().ljust(4096, b"b"), b"c" * 4096]
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    for number, size in ((0, 8192), (2, 4096)):
        at = 4096 * (1 + number)
        head += struct.pack("<IIQQQQQQ", 1, 6, at, 0x10000 + at, 0, size, size, 4096)
    whole = head.ljust(4096, b"\0") + b"".join(pages)
    core = tmp_path / "core"
    for size, code in ((16384, 1), (15000, 1), (8192, 3), (4096, 3), (100, 3), (20, 3)):
        core.write_bytes(whole[:size])
        done = audit("--secret-file", token, "--core", core)
        assert done.returncode == code, size
        assert ("1 copy of the secret" in done.stdout) == (code == 1)
        said = f"malloc-arena audit: {core}: "
        assert done.stderr.startswith(said) if size < 16384 else done.stderr == ""


def test_copies_in_the_arena_are_no_findings(token: Path, tmp_path: Path, waiting: Any) -> None:
    script = tmp_path / "vault.py"
    script.write_text(
        "import os, sys, malloc_arena\n"
        "vault = malloc_arena.get(malloc_arena.HEAP_SECURE)\n"
        "key = bytes.fromhex(sys.argv[1])\n"
        "with vault:\n"
        "    kept = bytes(map((0x5A).__xor__, key)).decode()\n"
        "os.write(1, b'x'); os.read(0, 1)\n"
    )
    child = waiting([sys.executable, str(script), MASKED])
    done = audit("--secret-file", token, "--pid", str(child.pid), "--json")
    assert done.returncode == 0
    found = look(done)
    assert (found["outside"], found["inside"]) == (0, 1)
    (one,) = found["findings"]
    assert (one["owner"], one["state"], one["what"]) == ("arena", "live", 'str in arena "secure"')
    assert one["block"] < one["address"] < one["block"] + one["block_size"]


def test_a_library_that_was_replaced_while_the_program_ran(
    token: Path, tmp_path: Path, waiting: Any
) -> None:
    ours = tmp_path / "libmalloc_arena.so"
    shutil.copy(library(), ours)
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "kept = bytes(map((0x5A).__xor__, bytes.fromhex(sys.argv[1]))).decode()\n"
        "os.write(1, b'x'); os.read(0, 1)\n"
    )
    options = {"LD_PRELOAD": str(ours), "MALLOC_ARENA_OPTIONS": "active=secure"}
    child = waiting(
        [sys.executable, str(script), MASKED],
        env=os.environ | options | {"PYTHONMALLOC": "malloc"},
    )
    ours.unlink()
    link = next(
        f"/proc/{child.pid}/map_files/{line.split()[0]}"
        for line in Path(f"/proc/{child.pid}/maps").read_text().splitlines()
        if line.endswith(f"{ours} (deleted)")
    )
    done = audit("--secret-file", token, "--pid", str(child.pid), "--json")
    shown = subprocess.run(
        [sys.executable, "-m", "malloc_arena", "map", "--pid", str(child.pid)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    try:
        os.close(os.open(link, os.O_RDONLY))
    except PermissionError:
        for refused in (done, shown):
            assert refused.returncode == 3
            assert "libmalloc_arena.so was replaced or removed while it ran: " in refused.stderr
        return
    assert look(done)["inside"] >= 1
    assert {one["owner"] for one in look(done)["findings"]} <= {"arena", "register", "stack"}
    assert shown.returncode == 0
    assert 'arena "secure"' in shown.stdout


def test_a_program_and_its_files_may_have_any_name(
    token: Path, tmp_path: Path, waiting: Any
) -> None:
    # Of the program's name the kernel keeps 15 bytes, here with half of the last letter.
    program = tmp_path / ("a" * 14 + "\xe4")
    shutil.copy(os.path.realpath(sys.executable), program)
    mapped = os.fsencode(tmp_path) + b"/m\xff\r\x0b\xc2\x85 1-2"
    with open(mapped, "wb") as file:
        file.write(bytes(1 << 16))
    script = (
        "import mmap, os, sys, malloc_arena\n"
        "from malloc_arena import snapshot\n"
        "kept = mmap.mmap(os.open(os.fsencode(sys.argv[1]), os.O_RDWR), 0)\n"
        "with malloc_arena.get(malloc_arena.HEAP_SECURE): text = str(4711) * 9\n"
        "import numpy\n"
        "assert snapshot.take().find(id(text))\n"
        "os.write(1, b'x'); os.read(0, 1)\n"
    )
    child = waiting(
        [str(program), "-c", script, os.fsdecode(mapped)],
        env=os.environ | {"PYTHONPATH": ":".join(sys.path), "PYTHONHOME": sys.base_prefix},
    )
    assert look(audit("--secret-file", token, "--pid", str(child.pid), "--json"))["threads"] >= 1
    for verb in ("map", "doctor"):
        done = subprocess.run(
            [sys.executable, "-m", "malloc_arena", verb, "--pid", str(child.pid), "--json"],
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert (done.returncode in (0, 1), done.stderr) == (True, ""), verb
        assert json.loads(done.stdout)["pid"] == child.pid


def test_fifty_clean_runs_have_no_finding(tmp_path: Path) -> None:
    programs = (
        "import json, ssl",
        "import decimal, email.message, sqlite3, urllib.request",
        "import random; kept = [random.randbytes(1 << 19).hex() for _ in range(3)]",
        "import base64, os; kept = [base64.b64encode(os.urandom(999)) for _ in range(1000)]",
        "import sys; kept = [sys.intern(str(n) * 5) for n in range(20000)]",
    )
    makers = (
        secrets.token_urlsafe,
        secrets.token_hex,
        lambda size: str(secrets.randbits(8 * size)),
    )

    def clean_run(number: int) -> subprocess.CompletedProcess[str]:
        secret = tmp_path / f"secret{number}"  # another one each time
        secret.write_text(makers[number % 3]((8, 16, 32)[number % 3]))
        return audit(
            "--secret-file", secret, "--json", "--", sys.executable, "-c", programs[number % 5]
        )

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for done in pool.map(clean_run, range(50)):
            assert done.returncode == 0, done.stdout
            assert look(done)["findings"] == []


def test_a_report_that_cannot_be_written_is_told_before_the_program_runs(
    token: Path, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    for option in ("--output", "--html"):
        report = tmp_path / "none" / "report"
        done = audit("--secret-file", token, option, str(report), "--", "touch", str(ran))
        assert done.returncode == 3
        assert done.stderr == f"malloc-arena audit: {report}: No such file or directory\n"
        assert not ran.exists()


def test_a_report_may_go_to_a_pipe_with_a_name(token: Path, tmp_path: Path) -> None:
    """Opened once: who reads it is gone after the first end."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True) as reader:
        done = audit("--secret-file", token, "--output", str(pipe), "--", "true")
        told, _ = reader.communicate(timeout=60)
    assert done.returncode == 0
    assert "true" in told


def test_a_program_is_searched_at_the_signal_and_at_intervals(token: Path, tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(
        "import os, sys\n"
        "kept = bytes(map((0x5A).__xor__, bytes.fromhex(sys.argv[1])))\n"
        "os.write(1, b'x'); os.read(0, 1)\n"
        "sys.exit(7)\n"
    )
    command = [sys.executable, "-m", "malloc_arena", "audit", "--secret-file", str(token)]
    report = tmp_path / "report"
    command += ["--json", "--output", str(report), "--", sys.executable, str(script), MASKED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin
        assert child.stdout
        assert child.stdout.read(1) == b"x"
        child.send_signal(signal.SIGUSR1)
        time.sleep(4)
        child.stdin.write(b"y")
        child.stdin.close()
        assert child.wait(timeout=60) == 1
    data = json.loads(report.read_text())
    assert data["exit_status"] == 7
    assert [one["why"] for one in data["looks"]] == ["signal", "exit"]
    assert {one["state"] for one in data["looks"][0]["findings"]} >= {"live"}

    done = audit(
        "--secret-file", token, "--every", "0.2", "--json", "--",
        sys.executable, "-c", "import time; time.sleep(3)",
    )  # fmt: skip
    looks = json.loads(done.stdout)["looks"]
    assert len(looks) >= 2
    assert {one["why"] for one in looks[:-1]} == {"interval"}
    assert looks[-1]["why"] == "exit"


# A thread that nothing stops for longer than another's process is waited for.
WAITS = """
#include <pthread.h>
#include <unistd.h>
static void *start (void *unused)
{
  if (vfork () == 0)
    {
      sleep (7);
      _exit (0);
    }
  return unused;
}
int main (void)
{
  pthread_t thread;
  pthread_create (&thread, 0, start, 0);
  pthread_join (thread, 0);
  return 5;
}
"""


def test_looks_wait_for_a_thread_that_nothing_stops(tmp_path: Path, token: Path) -> None:
    program = tmp_path / "waits"
    subprocess.run(
        ["cc", "-pthread", "-w", "-x", "c", "-o", str(program), "-"],
        input=WAITS, text=True, check=True, timeout=60,
    )  # fmt: skip
    done = audit("--secret-file", token, "--every", "1", "--json", "--", str(program))
    report = json.loads(done.stdout)
    assert report["exit_status"] == 5
    assert [one["why"] for one in report["looks"]][-1] == "exit"


@pytest.mark.parametrize("trace", [False, True])
@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import sys; sys.exit(3)", 3),
        ("import os; os._exit(4)", 4),
        ("raise ValueError('boom')", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15),
        ("import subprocess, sys; sys.exit(subprocess.call(['sh', '-c', 'exit 5']))", 5),
        ("import threading, time; threading.Thread(target=time.sleep, args=(.5,)).start()", 0),
    ],
)
def test_every_way_to_end_is_seen(token: Path, code: str, status: int, trace: bool) -> None:
    options = ["--trace"] if trace else []
    done = audit("--secret-file", token, *options, "--json", "--", sys.executable, "-c", code)
    data = json.loads(done.stdout)
    assert data["exit_status"] == status
    assert [one["why"] for one in data["looks"]] == ["exit"]
    if "boom" in code:
        assert done.stderr.splitlines()[-1] == "ValueError: boom"
        assert "agent.py" not in done.stderr


@pytest.mark.parametrize(
    ("code", "has_others"),
    [
        ("import subprocess; subprocess.call(['true'])", True),
        ("import subprocess; subprocess.Popen(['sleep', '5'])", True),
        ("import threading; threading.Thread(target=print).start()", False),
    ],
)
def test_processes_that_it_started_are_told_to_be_left_out(
    token: Path, code: str, has_others: bool
) -> None:
    done = audit("--secret-file", token, "--", sys.executable, "-c", code)
    assert done.returncode == 0
    assert ("it started other processes, which were not searched" in done.stderr) == has_others


def test_the_secret_comes_by_each_way_and_not_to_the_program(token: Path, tmp_path: Path) -> None:
    clean = ["--json", "--", sys.executable, "-c", "pass"]
    assert (
        audit("--secret-env", "TOKEN", *clean, env=os.environ | {"TOKEN": SECRET}).returncode == 0
    )
    with token.open("rb") as file:
        done = audit("--secret-fd", str(file.fileno()), *clean, pass_fds=(file.fileno(),))
    assert done.returncode == 0
    raw = tmp_path / "raw"
    raw.write_bytes(SECRET.encode())
    terminal, device = os.openpty()
    # A session leader that opens the terminal gets it as its own, which is what getpass asks.
    name = os.ttyname(device)
    command = [sys.executable, "-m", "malloc_arena", "audit", "--core", str(raw), "--json"]
    asking = subprocess.Popen(
        ["sh", "-c", f'exec "$@" <{name} >{name} 2>&1', "sh", *command], start_new_session=True
    )
    said = b""
    while b"Secret to look for: " not in said:
        said += os.read(terminal, 1024)
    os.write(terminal, SECRET.encode() + b"\n")
    os.close(device)
    try:
        while piece := os.read(terminal, 4096):
            said += piece
    except OSError:  # EIO: it ended
        pass
    assert asking.wait(timeout=60) == 1
    os.close(terminal)
    assert b'"owner": "dump"' in said
    assert SECRET.encode() not in said


def test_usage_and_what_cannot_be_looked_at(token: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("short\n")
    given = ("--secret-file", token)
    for arguments in (
        given,
        (*given, "--pid", "1", "--core", "x"),
        (*given, "--pid", "no"),
        (*given, "--pid", "1", "--trace"),
        (*given, "--max-pause", "0", "--pid", "1"),
        ("--secret-file", empty, "--pid", "1"),
        ("--secret-file", tmp_path / "none", "--pid", "1"),
        ("--secret-env", "NOT_SET_HERE", "--pid", "1"),
    ):
        done = audit(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert "usage: malloc-arena audit" in done.stderr
    for option, value, said in (
        ("--pid", "no", "a process is a number from 1 up, not 'no'"),
        ("--pid", "0", "a process is a number from 1 up, not '0'"),
        ("--max-pause", "no", "at least 1 millisecond"),
        ("--every", "no", "at least 0.01 seconds"),
    ):
        done = audit(*given, option, value)
        assert done.returncode == 2
        assert f"argument {option}: {said}\n" in done.stderr
    for arguments, said in (
        ((*given, "--pid", str(2**22 - 1)), f"there is no process {2**22 - 1}: "),
        ((*given, "--core", tmp_path / "none"), "No such file"),
        ((*given, "--", str(tmp_path / "none")), "No such file"),
        ((*given, "--trace", "--", "true"), "--trace cannot look into true"),
    ):
        done = audit(*arguments)
        assert (done.returncode, done.stdout) == (3, ""), arguments
        assert said in done.stderr


def test_nobody_to_ask_and_an_empty_name_are_one_line(token: Path, tmp_path: Path) -> None:
    ask = [sys.executable, "-W", "ignore", "-m", "malloc_arena", "audit", "--core", str(tmp_path)]
    for stdin in ("</dev/null", "<&-"):
        done = subprocess.run(
            ["sh", "-c", f'"$@" {stdin}', "sh", *ask],
            capture_output=True,
            text=True,
            start_new_session=True,
            timeout=60,
        )
        assert done.returncode == 2
        assert "the secret: there is nobody to ask: say --secret-file" in done.stderr
        assert "Traceback" not in done.stderr
    done = audit("--secret-file", token, "--", "")
    assert (done.returncode, done.stdout) == (3, "")
    assert "argv first element cannot be empty: name a program" in done.stderr


def test_text_fits_a_terminal_and_page_needs_nothing_else(
    token: Path, tmp_path: Path, waiting: Any
) -> None:
    script = tmp_path / "plant.py"
    script.write_text(PLANT)
    page = tmp_path / "page.html"
    child = waiting([sys.executable, str(script), MASKED, "wait"])
    done = audit("--secret-file", token, "--pid", str(child.pid), "--html", page)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in done.stdout
    assert "copies of the secret" in lines[0]
    assert "live pymalloc, str of" in done.stdout
    html = page.read_text()
    for text in (done.stdout, html):
        assert SECRET not in text
        assert SECRET[9:21] not in text
    assert not re.search(r"\b(src|href)=|url\(|@import|https?://", html)
    assert html.count('<tbody class="finding"') == int(lines[0].split(": ")[1].split()[0])
    assert "<!--" not in html


def test_a_service_under_load_loses_no_request(token: Path, tmp_path: Path, waiting: Any) -> None:
    script = tmp_path / "service.py"
    script.write_text(
        "import http.server, os, sys\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.send_header('Content-Length', '2')\n"
        "        self.end_headers(); self.wfile.write(b'ok')\n"
        "    def log_message(self, *_): pass\n"
        "server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)\n"
        "kept = bytearray(100 << 20)\n"
        "kept[::4096] = b'k' * len(kept[::4096])\n"
        "print('x%d' % server.server_port, flush=True)\n"
        "server.serve_forever()\n"
    )
    child = waiting([sys.executable, str(script)])
    port = int(child.stdout.readline())
    failed: list[str] = []
    answered = 0
    stop = threading.Event()

    def load() -> None:
        nonlocal answered
        while not stop.is_set():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
                    if answer.read() != b"ok":
                        failed.append("wrong")
            except OSError as error:
                failed.append(str(error))
            answered += 1

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    done = audit("--secret-file", token, "--pid", str(child.pid), "--max-pause", "20", "--json")
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert answered > 20
    found = look(done)
    assert found["scanned_bytes"] > 100 << 20
    # The limit is what it aims at; the machine may be busy when it comes to letting go.
    assert found["longest_pause_ms"] < 200


def test_memory_use_is_bounded(token: Path, tmp_path: Path, waiting: Any) -> None:
    script = tmp_path / "large.py"
    script.write_text(
        "import os\nkept = bytearray(400 << 20)\nkept[::4096] = b'k' * len(kept[::4096])\n"
        "os.write(1, b'x'); os.read(0, 1)\n"
    )
    child = waiting([sys.executable, str(script)])
    code = (
        "import resource, sys; from malloc_arena import cli; code = cli.main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "audit", "--secret-file", str(token), "--pid", str(child.pid)],
        capture_output=True,
        text=True,
    )
    assert int(done.stdout.splitlines()[-1]) < 150 << 10, done.stdout + done.stderr
