"""The doctor from outside: each defect is made for real, is named, and is gone once the fix that
the doctor printed has been applied. What cannot be made here is read from a machine of files."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from malloc_arena import cli, doctor, elf
from malloc_arena.cli.config import library
from malloc_arena.doctor import Target, probe
from malloc_arena.doctor.ownership import FAMILY

Findings = dict[str, dict[str, Any]]
Setup = Callable[[], None]

IS_ROOT = os.geteuid() == 0
MEMLOCK = resource.RLIMIT_MEMLOCK
PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 22, 24, 38
CAP_IPC_LOCK = 14
SYS_MEMFD_SECRET = 447
SECCOMP_KILL_PROCESS, SECCOMP_ERRNO, SECCOMP_ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
EPERM, ENOSYS = 1, 38

libc = ctypes.CDLL(None, use_errno=True)


# ---- the defects, each made in the child before it starts ----


class Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("if_true", ctypes.c_ubyte),
        ("if_false", ctypes.c_ubyte),
        ("k", ctypes.c_uint),
    )


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.POINTER(Instruction)))


def denies(call: int, action: int) -> Setup:
    """A seccomp filter that answers one system call with ACTION."""

    def setup() -> None:
        code = (Instruction * 4)(
            Instruction(0x20, 0, 0, 0),  # load the call's number
            Instruction(0x15, 0, 1, call),  # not it: one further
            Instruction(0x06, 0, 0, action),
            Instruction(0x06, 0, 0, SECCOMP_ALLOW),
        )
        assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        assert libc.prctl(PR_SET_SECCOMP, 2, ctypes.byref(Program(4, code)), 0, 0) == 0

    return setup


def no_ipc_lock() -> None:
    if IS_ROOT:
        assert libc.prctl(PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0) == 0


def lock_limit(soft: int) -> Setup:
    def setup() -> None:
        no_ipc_lock()
        resource.setrlimit(MEMLOCK, (soft, resource.getrlimit(MEMLOCK)[1]))

    return setup


needs_hard_lock_limit = pytest.mark.skipif(
    0 <= resource.getrlimit(MEMLOCK)[1] < 8 << 20,
    reason="the hard limit of locked memory is below 8 MiB: no unprivileged fix",
)
needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root can make this")


@pytest.fixture(scope="session")
def cc(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compiles a C text into a file of that name."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: apt-get install gcc")

    def build(name: str, text: str, *flags: str) -> Path:
        directory = tmp_path_factory.mktemp("cc")
        source = directory / "source.c"
        source.write_text(text)
        shared = ("-shared", "-fPIC") if name.endswith(".so") else ()
        subprocess.run(
            [compiler, "-fno-builtin", *shared, source, "-o", directory / name, *flags], check=True
        )
        return directory / name

    return build


# A malloc that gives out and never takes back.
HEAP = r"""
#include <stddef.h>
#include <string.h>
static _Alignas (16) char memory[512 << 20];
static size_t used;
static void *take (size_t align, size_t size)
{
  size_t room = (size + align + 31) / 16 * 16;
  size_t at = __atomic_fetch_add (&used, room, __ATOMIC_RELAXED);
  if (size > sizeof memory || at + room > sizeof memory)
    return NULL;
  char *p = memory + at + 16;
  p += (align - (size_t)p % align) % align;
  memcpy (p - 16, &size, sizeof size);
  return p;
}
void *malloc (size_t size) { return take (16, size); }
void *calloc (size_t n, size_t size) { return take (16, n * size); }
void *realloc (void *p, size_t size)
{
  void *q = take (16, size);
  size_t old;
  if (p && q)
    {
      memcpy (&old, (char *)p - 16, sizeof old);
      memcpy (q, p, old < size ? old : size);
    }
  return q;
}
void free (void *p) { (void)p; }
"""
REST = r"""
size_t malloc_usable_size (void *p)
{
  size_t size = 0;
  if (p)
    memcpy (&size, (char *)p - 16, sizeof size);
  return size;
}
void *memalign (size_t align, size_t size) { return take (align < 16 ? 16 : align, size); }
void *aligned_alloc (size_t align, size_t size) { return memalign (align, size); }
int posix_memalign (void **out, size_t align, size_t size)
{
  *out = memalign (align, size);
  return *out ? 0 : 12;
}
void *valloc (size_t size) { return memalign (4096, size); }
void *pvalloc (size_t size) { return memalign (4096, (size + 4095) / 4096 * 4096); }
"""
# Counts the frees and passes them on: a common kind of shim.
FREE_ONLY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
static void (*next) (void *);
int frees;
void free (void *p)
{
  if (!next)
    next = (void (*) (void *))dlsym (RTLD_NEXT, "free");
  frees++;
  next (p);
}
"""
# Takes memory and gives it back, says so, and waits.
MAIN = r"""
#include <stdlib.h>
#include <unistd.h>
int main (void)
{
  free (malloc (100));
  write (1, "x", 1);
  return read (0, &(char){ 0 }, 1) < 0;
}
"""


# ---- looking ----


def run(
    *arguments: str, shell: str = "", setup: Setup | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The doctor, in a shell that has typed the lines of SHELL before."""
    return subprocess.run(
        ["sh", "-c", f'{shell}\nexec "$0" -m malloc_arena doctor "$@"', sys.executable, *arguments],
        capture_output=True,
        text=True,
        preexec_fn=setup,
        env={k: v for k, v in os.environ.items() if k != "LD_PRELOAD"} | environment,
        timeout=120,
    )


def look(
    *arguments: str, shell: str = "", setup: Setup | None = None, **environment: str
) -> Findings:
    done = run(*arguments, "--json", shell=shell, setup=setup, **environment)
    assert done.stderr == ""
    data = json.loads(done.stdout)
    assert data["schema"] == "malloc-arena/doctor/1"
    found = {check["name"]: check for check in data["checks"]}
    results = {check["result"] for check in found.values()}
    expected = 1 if results & {"warn", "fail"} else 3 if "unknown" in results else 0
    assert done.returncode == expected
    assert data["ok"] == (expected == 0)
    return found


def fix(check: Mapping[str, Any], where: str) -> str:
    """The lines of a fix, for a shell."""
    for one in check["fixes"]:
        if one["where"].startswith(where):
            return "\n".join(one["lines"])
    raise AssertionError(f"no fix for {where!r} in {check['fixes']}")


@pytest.fixture
def start() -> Iterator[Callable[..., int]]:
    """Starts a program that says something and then waits; its PID."""
    started = []

    def go(*command: str | Path, setup: Setup | None = None, **environment: str) -> int:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=setup,
            env={k: v for k, v in os.environ.items() if k != "LD_PRELOAD"} | environment,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.read(1) == b"x"
        return process.pid

    yield go
    for process in started:
        process.kill()
        process.communicate()


PYTHON_WAITS = "import sys; sys.stdout.write('x'); sys.stdout.flush(); sys.stdin.read(1)"


# ---- the command ----


def test_this_machine() -> None:
    found = look()
    assert list(found) == [check.name for check in doctor.CHECKS]
    for check in found.values():
        assert check["found"]
        assert check["meaning"]
        assert check["result"] in ("ok", "warn", "fail", "unknown")
        # Each defect has a way out.
        assert bool(check["fixes"]) or check["result"] in ("ok", "unknown"), check
        assert all(one["where"] and one["lines"] for one in check["fixes"])
    assert found["receipt"]["result"] != "unknown"
    assert found["malloc"]["details"]["owners"].keys() == set(FAMILY)
    assert found["glibc"]["found"] == os.confstr("CS_GNU_LIBC_VERSION")
    assert os.uname().release in found["kernel"]["found"]


def test_names_choose_and_exit_codes_tell() -> None:
    assert list(look("kernel", "glibc")) == ["kernel", "glibc"]
    assert run("glibc").returncode == 0
    assert run("pythonmalloc", PYTHONMALLOC="debug").returncode == 1
    done = run("nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no check 'nonsense'" in done.stderr
    assert "memlock" in done.stderr
    done = run("--pid", "nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    done = run("--pid", str(1 << 30))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"malloc-arena doctor: process {1 << 30} cannot be seen: ")


def test_list() -> None:
    done = run("--list")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        check.name for check in doctor.CHECKS
    ]
    names = json.loads(run("--list", "--json").stdout)
    assert [row["name"] for row in names["checks"]] == [check.name for check in doctor.CHECKS]


def test_text_is_readable_at_80_columns_without_colour() -> None:
    setup = lock_limit(0)
    done = run("-v", setup=setup, COLUMNS="80", PYTHONMALLOC="debug", FORCE_COLOR="")
    assert done.returncode == 1
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    command = " " * 13
    # A command or a path is never broken.
    assert not [x for x in lines if len(x) > 80 and not x.startswith(command) and "/" not in x]
    names = [line.split()[1].rstrip(":") for line in lines if line[:1] not in (" ", "")]
    assert names[1:-1] == [check.name for check in doctor.CHECKS]
    words = {line.split()[0] for line in lines[1:-2] if not line.startswith(" ")}
    assert words <= {"ok", "warn", "fail", "unknown"}
    short = run(setup=setup, COLUMNS="80").stdout
    assert len(short.splitlines()) < len(lines)
    assert "LimitMEMLOCK=64M" in short


def test_colour_adds_nothing_but_colour() -> None:
    plain = run("memlock", setup=lock_limit(0), COLUMNS="80").stdout
    colour = run("memlock", setup=lock_limit(0), COLUMNS="80", FORCE_COLOR="1").stdout
    assert "\x1b[" in colour
    import re

    def text(of: str) -> list[str]:
        return re.sub(r"\x1b\[[\d;]*m", "", of).splitlines()[1:]  # the first line has the PID

    assert text(colour) == text(plain)


def test_rich_is_imported_for_text_only() -> None:
    program = (
        "import sys; from malloc_arena import cli; cli.main(['doctor', '--json', *sys.argv[1:]]);"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert not {"rich", "rich.console"} & set(done.stderr.split())


def test_an_ended_process_cannot_be_looked_at() -> None:
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    try:
        found = look("--pid", str(ended.pid), "malloc", "glibc", "kernel")
    finally:
        ended.wait()
    assert [check["result"] for check in found.values()] == ["unknown", "ok", "unknown"]


# ---- locking ----


@needs_hard_lock_limit
def test_no_lock_limit_and_no_capability() -> None:
    found = look("memlock", "ipc-lock", "receipt", setup=lock_limit(0))
    assert found["memlock"]["result"] == "fail"
    assert "RLIMIT_MEMLOCK is 0" in found["memlock"]["found"]
    assert found["ipc-lock"]["result"] == "warn"
    assert "CAP_IPC_LOCK is not held" in found["ipc-lock"]["found"]
    assert found["receipt"]["result"] == "fail"
    assert found["receipt"]["found"].startswith("not locked: ")
    for where in ("this shell", "systemd", "Docker", "Kubernetes"):
        assert fix(found["memlock"], where)
    typed = fix(found["memlock"], "this shell")
    found = look("memlock", "ipc-lock", "receipt", setup=lock_limit(0), shell=typed)
    assert [check["result"] for check in found.values()] == ["ok", "ok", "ok"]


@needs_hard_lock_limit
def test_a_small_lock_limit_is_a_warning() -> None:
    found = look("memlock", "ipc-lock", setup=lock_limit(64 << 10))
    assert (found["memlock"]["result"], found["ipc-lock"]["result"]) == ("warn", "warn")
    assert found["memlock"]["found"] == "64 KiB may be locked"


@needs_hard_lock_limit
def test_the_lock_limit_of_another_process(start: Callable[..., int]) -> None:
    if shutil.which("prlimit") is None:
        pytest.skip("no prlimit: apt-get install util-linux")
    pid = start(sys.executable, "-c", PYTHON_WAITS, setup=lock_limit(0))
    found = look("--pid", str(pid), "memlock")["memlock"]
    assert found["result"] == "fail"
    command = fix(found, "the running process").splitlines()[0]
    subprocess.run(["sh", "-c", command], check=True)
    assert look("--pid", str(pid), "memlock")["memlock"]["result"] == "ok"


@needs_root
def test_the_capability_is_given_to_one_program(start: Callable[..., int]) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv: apt-get install util-linux")
    zero = lock_limit(0)
    pid = start("sh", "-c", "printf x; read line", setup=zero)
    found = look("--pid", str(pid), "ipc-lock")["ipc-lock"]
    assert found["result"] == "warn"
    command = fix(found, "one program, as root").replace("\\\n", " ").split()
    assert command[-2:] == ["program", "..."]
    words = {"--reuid=USER": "--reuid=65534", "--regid=GROUP": "--regid=65534"}
    command = [words.get(word, word) for word in command[:-2]]

    def limit_only() -> None:
        resource.setrlimit(MEMLOCK, (0, 0))

    pid = start(*command, "sh", "-c", "printf x; read line", setup=limit_only)
    checks = look("--pid", str(pid), "ipc-lock", "memlock", "at-secure", "ptrace")
    assert checks["ipc-lock"]["result"] == checks["memlock"]["result"] == "ok"
    # Unlike a file's, these capabilities leave LD_PRELOAD in force.
    assert checks["at-secure"]["result"] == "ok"
    # It runs as a user of its own now, which was that check's fix.
    assert "as root itself" not in checks["ptrace"]["found"]


def test_units_take_the_lines(tmp_path: Path) -> None:
    """What is for a unit file is something systemd knows."""
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("no systemd-analyze: apt-get install systemd")
    limits = look(setup=lock_limit(0))
    denied = look("memfd-secret", setup=denies(SYS_MEMFD_SECRET, SECCOMP_ERRNO | EPERM))
    lines = [
        line
        for check in (*limits.values(), *denied.values())
        for one in check["fixes"]
        if "[Service]" in one["lines"]
        for line in one["lines"][one["lines"].index("[Service]") + 1 :]
        if line.partition("=")[0].isalpha()
    ]
    assert {"LimitMEMLOCK=64M", "AmbientCapabilities=CAP_IPC_LOCK"} <= set(lines)
    unit = tmp_path / "doctor-test.service"
    for extra, is_known in (([], True), (["LimitNONSENSE=64M"], False)):
        unit.write_text("\n".join(["[Service]", "ExecStart=/bin/true", *lines, *extra]))
        said = subprocess.run([verify, "verify", unit], capture_output=True, text=True).stderr
        bad = [line for line in said.splitlines() if "doctor-test.service:" in line]
        assert (bad == []) == is_known, said


# ---- seccomp ----


def test_memfd_secret_denied() -> None:
    if look("memfd-secret")["memfd-secret"]["result"] != "ok":
        pytest.skip("this kernel has no memfd_secret to deny")
    for action, result, says in (
        (SECCOMP_ERRNO | EPERM, "warn", "seccomp"),
        (SECCOMP_ERRNO | ENOSYS, "warn", "seccomp"),
        (SECCOMP_KILL_PROCESS, "fail", "SIGSYS"),
    ):
        checks = look("memfd-secret", "receipt", setup=denies(SYS_MEMFD_SECRET, action))
        found = checks["memfd-secret"]
        assert (found["result"], says in found["found"]) == (result, True), found
        assert "SystemCallFilter=memfd_secret" in fix(found, "systemd")
        assert "seccomp=profile.json" in fix(found, "Docker")
        # Only the kind that needs it is concerned: nothing else calls it.
        assert "SIGSYS" not in checks["receipt"]["found"]
    allowed = denies(SYS_MEMFD_SECRET, SECCOMP_ALLOW)
    assert look("memfd-secret", setup=allowed)["memfd-secret"]["result"] == "ok"


def test_memfd_secret_under_the_lock_limit() -> None:
    if look("memfd-secret")["memfd-secret"]["result"] != "ok":
        pytest.skip("this kernel has no memfd_secret")
    found = look("memfd-secret", setup=lock_limit(0))["memfd-secret"]
    assert found["result"] == "warn"
    assert "over the lock limit" in found["found"]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number is x86-64's")
def test_a_filter_that_kills_what_the_library_needs() -> None:
    sys_mlock, sys_mlock2, sys_madvise = 149, 325, 28
    found = look("receipt", setup=denies(sys_mlock2, SECCOMP_KILL_PROCESS))["receipt"]
    assert (found["result"], "SIGSYS" in found["found"]) == ("fail", True)
    for error in EPERM, ENOSYS:

        def denied(error: int = error) -> None:
            denies(sys_mlock2, SECCOMP_ERRNO | error)()
            denies(sys_mlock, SECCOMP_ERRNO | error)()

        found = look("receipt", setup=denied)["receipt"]
        assert (found["result"], "seccomp" in found["found"]) == ("fail", True)
        assert "RLIMIT_MEMLOCK" not in found["found"]
        assert "SystemCallFilter=mlock2" in fix(found, "systemd")
    found = look("guards", setup=denies(sys_madvise, SECCOMP_ERRNO | EPERM))["guards"]
    assert (found["result"], "seccomp" in found["found"]) == ("ok", True)


def test_a_filter_of_another_process_cannot_be_read(start: Callable[..., int]) -> None:
    pid = start(
        sys.executable, "-c", PYTHON_WAITS, setup=denies(SYS_MEMFD_SECRET, SECCOMP_KILL_PROCESS)
    )
    found = look("--pid", str(pid), "memfd-secret", "guards")
    assert [check["result"] for check in found.values()] == ["unknown", "unknown"]


# ---- who owns malloc ----


def test_plain_and_preloaded() -> None:
    found = look("malloc")["malloc"]
    assert found["result"] == "ok"
    assert "libc.so.6 owns malloc" in found["found"]
    objects = {Path(one["path"]).name: one for one in found["details"]["objects"]}
    assert objects["libmalloc_arena.so"]["place"] == "later"
    assert set(objects["libmalloc_arena.so"]["defines"]) == set(FAMILY)
    preloaded = look("malloc", LD_PRELOAD=str(library()))["malloc"]
    assert preloaded["result"] == "ok"
    assert preloaded["found"].startswith("libmalloc_arena.so owns malloc")
    assert set(preloaded["details"]["owners"].values()) == {str(library())}
    for one in preloaded["details"]["objects"]:
        assert set(one["binds"].values()) <= {str(library())}, one


def test_a_foreign_malloc_preloaded(cc: Callable[..., Path]) -> None:
    foreign = cc("libforeign.so", HEAP + REST)
    found = look("malloc", LD_PRELOAD=str(foreign))["malloc"]
    assert found["result"] == "warn"
    assert str(foreign) in found["found"]
    typed = fix(found, "this shell")
    assert typed == f"export LD_PRELOAD='{library()} {foreign}'"
    fixed = look("malloc", shell=typed, LD_PRELOAD=str(foreign))["malloc"]
    assert fixed["result"] == "ok"
    assert f"ordinary memory comes from {foreign}" in fixed["found"]

    # In front of the library, as `malloc-arena run` has it.
    both = f"{foreign} {library()}"
    found = look("malloc", LD_PRELOAD=both)["malloc"]
    assert found["result"] == "fail"
    assert f"the malloc of {foreign} stands in front of {library()}" in found["found"]
    fixed = look("malloc", shell=fix(found, "this shell"), LD_PRELOAD=both)["malloc"]
    assert fixed["result"] == "ok"


def test_run_names_a_foreign_malloc_in_front(cc: Callable[..., Path]) -> None:
    foreign, other = cc("libforeign.so", HEAP + REST), cc("libother.so", "int other = 1;")
    command = [sys.executable, "-m", "malloc_arena", "run", "--", "true"]

    def said(preloaded: str) -> str:
        environment = os.environ | {"LD_PRELOAD": preloaded}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stderr

    line = said(f"{other}:{foreign}")
    assert f"run: the malloc of {foreign}, which LD_PRELOAD names, is in front" in line
    assert f"LD_PRELOAD='{library()} {other}:{foreign}' has both" in line
    assert said(f"{library()} {foreign}") == said(str(other)) == ""


def test_what_malloc_arena_says_of_a_foreign_malloc(cc: Callable[..., Path]) -> None:
    """The defect that the doctor names is one, and its fix is one: the library agrees."""
    foreign = cc("libforeign.so", HEAP + REST)
    text = r"""
    #include <malloc_arena.h>
    int main (void)
    {
      malloc_arena *arena = malloc_arena_get (HEAP_DEFAULT);
      free (malloc_arena (arena, malloc, 10));
      return 0;
    }
    """
    header = library().parents[1] / "include"
    flags = (f"-I{header}", f"-L{library().parent}", "-lmalloc_arena")
    program = cc("program", text, *flags, f"-Wl,-rpath,{library().parent}")
    in_front = subprocess.run(
        [program], env={"LD_PRELOAD": str(foreign)}, capture_output=True, text=True
    )
    assert in_front.returncode == -signal.SIGABRT
    assert str(foreign) in in_front.stderr
    behind = subprocess.run([program], env={"LD_PRELOAD": f"{library()} {foreign}"})
    assert behind.returncode == 0


def test_a_foreign_malloc_that_is_not_whole(cc: Callable[..., Path]) -> None:
    foreign = cc("libpart.so", HEAP)
    for preload in (str(foreign), f"{library()}:{foreign}"):
        found = look("malloc", LD_PRELOAD=preload)["malloc"]
        assert found["result"] == "fail", found
        assert str(foreign) in found["found"]
        assert "malloc_usable_size" in found["found"]
        assert "memalign" in fix(found, "or in libpart.so")
        fixed = look("malloc", shell=fix(found, "this shell"), LD_PRELOAD=preload)["malloc"]
        assert fixed["result"] == "ok"
    assert look("malloc", LD_PRELOAD=str(cc("libwhole.so", HEAP + REST)))["malloc"]["found"]


def test_a_shim_that_defines_free_only(cc: Callable[..., Path]) -> None:
    shim = cc("libshim.so", FREE_ONLY)
    for preload in (str(shim), f"{shim} {library()}", f"{library()} {shim}"):
        found = look("malloc", LD_PRELOAD=preload)["malloc"]
        assert found["result"] == "fail"
        assert "malloc is split" in found["found"]
        assert f"free: {shim}" in found["found"]
        assert "malloc, " in found["found"] or "malloc and " in found["found"]
        typed = fix(found, "this shell")
        assert "libshim.so" not in typed
        assert look("malloc", shell=typed, LD_PRELOAD=preload)["malloc"]["result"] == "ok"
    # The other fix: hidden, it is the shim's own business.
    hidden = cc("libshim.so", FREE_ONLY, "-fvisibility=hidden")
    assert look("malloc", LD_PRELOAD=str(hidden))["malloc"]["result"] == "ok"


def test_a_partially_interposed_program(cc: Callable[..., Path], start: Callable[..., int]) -> None:
    program = cc("program", MAIN + FREE_ONLY.replace("#define _GNU_SOURCE", ""), "-D_GNU_SOURCE")
    for environment in ({}, {"LD_PRELOAD": str(library())}):
        found = look("--pid", str(start(program, **environment)), "malloc")["malloc"]
        assert found["result"] == "fail"
        assert f"free: {program}" in found["found"]
        assert "calloc, realloc" in fix(found, "in program")
    hidden = cc(
        "program",
        MAIN + FREE_ONLY.replace("#define _GNU_SOURCE", ""),
        "-D_GNU_SOURCE",
        "-fvisibility=hidden",
    )
    pid = start(hidden, LD_PRELOAD=str(library()))
    assert look("--pid", str(pid), "malloc")["malloc"]["result"] == "ok"


def test_a_program_with_a_malloc_of_its_own(
    cc: Callable[..., Path], start: Callable[..., int]
) -> None:
    program = cc("program", HEAP + REST + MAIN)
    pid = start(program, LD_PRELOAD=str(library()))
    found = look("--pid", str(pid), "malloc")["malloc"]
    assert found["result"] == "fail"
    assert f"the malloc of {program} stands in front" in found["found"]
    assert "without a malloc of its own" in fix(found, "the program")
    pid = start(cc("program", MAIN), LD_PRELOAD=str(library()))
    assert look("--pid", str(pid), "malloc")["malloc"]["result"] == "ok"


def test_a_needed_malloc_is_fine_behind_the_library(
    cc: Callable[..., Path], start: Callable[..., int]
) -> None:
    foreign = cc("libforeign.so", HEAP + REST, "-Wl,-soname,libforeign.so")
    program = cc(
        "program", MAIN, f"-L{foreign.parent}", "-lforeign", f"-Wl,-rpath,{foreign.parent}"
    )
    found = look("--pid", str(start(program)), "malloc")["malloc"]
    assert (found["result"], str(foreign) in found["found"]) == ("ok", True)
    found = look("--pid", str(start(program, LD_PRELOAD=str(library()))), "malloc")["malloc"]
    assert found["result"] == "ok"
    assert f"ordinary memory comes from {foreign}" in found["found"]


def test_a_static_program(cc: Callable[..., Path], start: Callable[..., int]) -> None:
    try:
        program = cc("program", MAIN, "-static")
    except subprocess.CalledProcessError:
        pytest.skip("no static C library")
    found = look("--pid", str(start(program, LD_PRELOAD=str(library()))), "malloc", "glibc")
    assert [check["result"] for check in found.values()] == ["fail", "fail"]
    assert "static" in found["malloc"]["found"]


def test_two_copies_of_the_library(tmp_path: Path, start: Callable[..., int]) -> None:
    copy = tmp_path / library().name
    shutil.copy(library(), copy)
    script = f"import ctypes, malloc_arena; ctypes.CDLL({{!r}}); {PYTHON_WAITS}"
    pid = start(sys.executable, "-c", script.format(str(copy)))
    found = look("--pid", str(pid), "malloc")["malloc"]
    assert found["result"] == "fail"
    assert "loaded 2 times" in found["found"]
    assert str(copy) in found["found"]
    assert f'dlopen ("{library().name}"' in fix(found, "where the program opens it")
    # Python's way of that dlopen, as the fix says.
    pid = start(sys.executable, "-c", script.format(library().name))
    assert look("--pid", str(pid), "malloc")["malloc"]["result"] == "ok"


def test_a_file_that_was_replaced_since_it_was_loaded(
    cc: Callable[..., Path], start: Callable[..., int]
) -> None:
    shim = cc("libshim.so", FREE_ONLY)
    pid = start(cc("program", MAIN), LD_PRELOAD=str(shim))
    other = cc("other.so", "int x;")
    other.replace(shim)
    found = look("--pid", str(pid), "malloc")["malloc"]
    # The file that it mapped is for root to read; the one that is there now is another.
    assert found["result"] == ("fail" if IS_ROOT else "unknown")
    assert "libshim.so" in found["found"]


def test_a_program_started_by_the_loader(start: Callable[..., int]) -> None:
    loader = next(file.path for file in Target().mapped if "/ld-linux-" in file.path)
    python = os.path.realpath(sys.executable)
    for environment, option in (
        ({"LD_PRELOAD": str(library())}, ()),
        ({}, ("--preload", str(library()))),
    ):
        pid = start(loader, *option, python, "-c", PYTHON_WAITS, **environment)
        found = look("--pid", str(pid), "malloc")["malloc"]
        assert found["found"].startswith("libmalloc_arena.so owns malloc")
    pid = start(loader, python, "-c", PYTHON_WAITS)
    assert "libc.so.6 owns malloc" in look("--pid", str(pid), "malloc")["malloc"]["found"]


def test_symbols_as_the_binutils_see_them() -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm: apt-get install binutils")
    for file in Target().mapped:
        parsed = elf.read(Path(file.path), FAMILY)
        table = subprocess.run(
            [nm, "-D", "-P", file.path], capture_output=True, text=True, check=True
        )
        defines: set[str] = set()
        calls: set[str] = set()
        for line in table.stdout.splitlines():
            name, kind = line.split()[:2]
            if name.partition("@")[0] in FAMILY:
                (calls if kind in "Uwv" else defines).add(name.partition("@")[0])
        assert (set(parsed.defines), set(parsed.calls)) == (defines, calls), file


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = library().read_bytes()
    for number, data in enumerate(
        (b"", b"#!/bin/sh\n" * 10, whole[:64], whole[:1000], whole[:4] + b"\1" + whole[5:])
    ):
        file = tmp_path / str(number)
        file.write_bytes(data)
        with pytest.raises(elf.NotElf):
            elf.read(file, FAMILY)


# ---- the process ----


def test_pythonmalloc() -> None:
    found = look("pythonmalloc", PYTHONMALLOC="debug")["pythonmalloc"]
    assert (found["result"], "PYTHONMALLOC=debug" in found["found"]) == ("warn", True)
    fixed = look("pythonmalloc", shell=fix(found, "this shell"), PYTHONMALLOC="debug")
    assert fixed["pythonmalloc"]["result"] == "ok"
    assert look("pythonmalloc", PYTHONMALLOC="malloc")["pythonmalloc"]["result"] == "ok"


def test_a_free_threaded_python(tmp_path: Path, start: Callable[..., int]) -> None:
    for name, result in (("python3.13t", "fail"), ("python3.13", "ok")):
        shutil.copy(shutil.which("sh") or "/bin/sh", tmp_path / name)
        pid = start(tmp_path / name, "-c", "printf x; read line")
        found = look("--pid", str(pid), "free-threading")["free-threading"]
        assert found["result"] == result


@needs_root
def test_at_secure(tmp_path: Path, start: Callable[..., int]) -> None:
    program = tmp_path / "shell"
    shutil.copy(shutil.which("sh") or "/bin/sh", program)
    os.chown(program, 65534, -1)
    program.chmod(0o4755)
    command = (program, "-p", "-c", "printf x; read line")
    found = look("--pid", str(start(*command)), "at-secure")["at-secure"]
    if found["result"] == "ok":
        pytest.skip("set-user-ID has no effect here (nosuid)")
    assert found["result"] == "warn"
    subprocess.run(fix(found, "set-user-ID").removeprefix("sudo ").split(), check=True)
    assert look("--pid", str(start(*command)), "at-secure")["at-secure"]["result"] == "ok"


def test_address_space() -> None:
    def small() -> None:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (90 << 20, hard))

    found = look("overcommit", setup=small)["overcommit"]
    assert found["result"] == "fail"
    typed = fix(found, "this shell")
    fixed = look("overcommit", "receipt", setup=small, shell=typed)
    assert [check["result"] for check in fixed.values()] == ["ok", "ok"]


def test_core_dumps() -> None:
    def wanted() -> None:
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        if hard == 0:
            pytest.skip("the hard limit of core files is 0")
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))

    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("the hard limit of core files is 0")
    found = look("core-dumps", setup=wanted)["core-dumps"]
    if found["result"] == "ok":
        pytest.skip(f"this machine writes none: {found['found']}")
    fixed = look("core-dumps", setup=wanted, shell=fix(found, "this shell"))["core-dumps"]
    assert fixed["result"] == "ok"


ARENA = """
import os, malloc_arena
arena = malloc_arena.Arena(malloc_arena.HEAP_SECURE, name="seen")
key = arena.buffer(100)
key[0] = 1
"""


def test_the_arenas_of_another_process(start: Callable[..., int]) -> None:
    setup = lock_limit(8 << 20) if 0 <= resource.getrlimit(MEMLOCK)[1] < 8 << 20 else None
    pid = start(sys.executable, "-c", ARENA + PYTHON_WAITS, setup=setup)
    found = look("--pid", str(pid), "receipt")["receipt"]
    details = found["details"]
    assert found["result"] == "ok"
    assert details["held"] == details["locked"] == details["undumped"] > 0
    script = ARENA.replace('name="seen"', 'lock="off"') + PYTHON_WAITS
    found = look("--pid", str(start(sys.executable, "-c", script)), "receipt")["receipt"]
    assert found["result"] == "warn"
    assert found["details"]["locked"] == 0 < found["details"]["held"]
    pid = start(sys.executable, "-c", PYTHON_WAITS)
    assert "has no arena" in look("--pid", str(pid), "receipt")["receipt"]["found"]


def test_looking_reserves_and_locks_nothing_in_the_doctor() -> None:
    program = (
        "import malloc_arena, pathlib; from malloc_arena import doctor;"
        "doctor.examine(); print(malloc_arena.region(),"
        "[x for x in pathlib.Path('/proc/self/status').read_text().splitlines() if 'VmLck' in x])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.startswith("(0, 0) ")
    assert done.stdout.split()[-2:] == ["0", "kB']"]


# ---- machines of files ----


def machine(tmp_path: Path, **files: str) -> Target:
    """A process on a machine that has these files, "__" standing for a slash."""
    base = {
        "proc__7__status": "Name:\tserver\nUid:\t7\t7\t7\t7\nCapEff:\t0000000000000000\n"
        "VmLck:\t       0 kB\nVmSize:\t    1000 kB\nSeccomp:\t0\n",
        "proc__7__limits": "Limit                     Soft Limit           Hard Limit   Units\n"
        "Max core file size        unlimited            unlimited            bytes\n"
        "Max locked memory         8388608              8388608              bytes\n"
        "Max address space         unlimited            unlimited            bytes\n",
        "proc__7__cgroup": "0::/system.slice/server.service\n",
        "proc__7__maps": "",
        "proc__sys__kernel__osrelease": "6.18.0\n",
        "proc__swaps": "Filename Type Size Used Priority\n",
        "proc__sys__fs__suid_dumpable": "0\n",
        "proc__sys__kernel__core_pattern": "core\n",
    }
    for name, text in (base | files).items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    ns = tmp_path / "proc/7/ns"
    ns.mkdir()
    (ns / "user").symlink_to("user:[4026531837]")
    return Target(7, tmp_path)


def one(name: str, target: Target) -> doctor.Finding:
    return doctor.examine(target, [name]).findings[name]


@pytest.fixture
def swap_file(tmp_path: Path) -> tuple[str, Path]:
    """The line of /proc/swaps for a file, and the directory of /sys of the disk it is on."""
    (tmp_path / "swapfile").write_text("")
    number = (tmp_path / "swapfile").stat().st_dev
    disk = tmp_path / f"sys/dev/block/{os.major(number)}:{os.minor(number)}"
    disk.mkdir(parents=True)
    return "Filename Type Size Used Priority\n/swapfile file 1000 0 -2\n", disk


def test_swap(tmp_path: Path, swap_file: tuple[str, Path]) -> None:
    swaps, disk = swap_file
    target = machine(tmp_path, proc__swaps=swaps)
    found = one("swap", target)
    assert (found.result, found.found) == ("warn", "/swapfile is not encrypted")
    for below in ("a", "b"):
        (disk / "slaves" / below / "dm").mkdir(parents=True)
    (disk / "slaves/a/dm/uuid").write_text("CRYPT-LUKS2-1-luks")
    (disk / "slaves/b/dm/uuid").write_text("LVM-1")
    assert one("swap", target).result == "warn"
    (disk / "slaves/b/dm/uuid").write_text("CRYPT-PLAIN-swap")
    assert one("swap", target).result == "ok"


def test_swap_that_the_unit_may_not_use(tmp_path: Path, swap_file: tuple[str, Path]) -> None:
    target = machine(tmp_path, proc__swaps=swap_file[0])
    group = tmp_path / "sys/fs/cgroup/system.slice"
    (group / "server.service").mkdir(parents=True)
    (group / "server.service/memory.swap.max").write_text("max\n")
    assert one("swap", target).result == "warn"
    (group / "memory.swap.max").write_text("0\n")  # of the slice that it is in
    assert one("swap", target).result == "ok"


def test_swap_to_memory(tmp_path: Path) -> None:
    swaps = "Filename Type Size Used Priority\n/dev/zram0 partition 1000 0 100\n"
    target = machine(tmp_path, proc__swaps=swaps, dev__zram0="")
    assert one("swap", target).result == "ok"
    backing = tmp_path / "sys/block/zram0/backing_dev"
    backing.parent.mkdir(parents=True)
    backing.write_text("/dev/sda3\n")
    assert one("swap", target).result == "warn"


def test_hibernation(tmp_path: Path, swap_file: tuple[str, Path]) -> None:
    swaps, disk = swap_file
    files = {"sys__power__state": "freeze mem disk\n", "sys__power__disk": "[platform] shutdown\n"}
    target = machine(tmp_path, **files)
    assert one("hibernation", target).result == "ok"  # to nowhere
    (tmp_path / "proc/swaps").write_text(swaps)
    found = one("hibernation", target)
    assert (found.result, found.fixes[0].lines) == ("warn", ("nohibernate",))
    (tmp_path / "sys/power/disk").write_text("[disabled]\n")  # what that makes of it
    assert one("hibernation", target).result == "ok"
    (tmp_path / "sys/power/disk").write_text("[platform] shutdown\n")
    (disk / "dm").mkdir()
    (disk / "dm/uuid").write_text("CRYPT-PLAIN-swap")
    assert one("hibernation", target).result == "ok"


def of_user(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files belong to whoever runs the test; the process is his."""
    monkeypatch.setattr(Target, "user", property(lambda self: self.proc("").stat().st_uid))


@pytest.mark.parametrize(
    ("pattern", "limit", "result"),
    [
        ("core", "unlimited", "warn"),
        ("core", "0", "ok"),
        ("", "unlimited", "ok"),
        ("|/usr/share/apport/apport %p", "0", "warn"),
        ("|/usr/share/apport/apport %p", "1", "ok"),
        ("|/usr/lib/systemd/systemd-coredump %P", "0", "ok"),
        ("|/usr/lib/systemd/systemd-coredump %P", "unlimited", "warn"),
        ("|/bin/false", "unlimited", "ok"),
    ],
)
def test_core_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, limit: str, result: str
) -> None:
    target = machine(
        tmp_path,
        proc__sys__kernel__core_pattern=pattern + "\n",
        proc__7__limits=f"Max core file size        {limit}   unlimited   bytes\n",
    )
    of_user(target, monkeypatch)
    found = one("core-dumps", target)
    assert found.result == result
    assert bool(found.fixes) == (result == "warn")


@pytest.mark.parametrize(
    ("scope", "user", "result", "says"),
    [
        ("0", 7, "warn", "ptrace_scope is 0"),
        ("1", 7, "ok", "ancestors"),
        ("2", 7, "ok", "CAP_SYS_PTRACE"),
        ("3", 0, "ok", "nobody"),
        ("1", 0, "warn", "as root itself"),
        (None, 7, "warn", "no Yama"),
    ],
)
def test_ptrace_scope(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scope: str | None,
    user: int,
    result: str,
    says: str,
) -> None:
    files = {} if scope is None else {"proc__sys__kernel__yama__ptrace_scope": f"{scope}\n"}
    target = machine(tmp_path, **files)
    monkeypatch.setattr(Target, "user", property(lambda _: user))
    monkeypatch.setattr("malloc_arena.doctor.exposure._is_dumpable", lambda _: True)
    found = one("ptrace", target)
    assert (found.result, says in found.found) == (result, True), found


def test_a_capability_of_a_user_namespace_does_not_count(tmp_path: Path) -> None:
    target = machine(tmp_path, proc__7__limits="Max locked memory         65536  65536  bytes\n")
    status = tmp_path / "proc/7/status"
    status.write_text(
        status.read_text().replace("CapEff:\t0000000000000000", "CapEff:\t000001ffffffffff")
    )
    assert one("memlock", Target(7, tmp_path)).result == "ok"
    user = tmp_path / "proc/7/ns/user"
    user.unlink()
    user.symlink_to("user:[4026532000]")
    inside = Target(7, tmp_path)
    assert one("memlock", inside).result == "warn"
    assert "does not count" in one("ipc-lock", inside).found
    assert target.home == "systemd server.service"
    assert any(
        "sudo systemctl edit server.service" in x.where for x in one("memlock", inside).fixes
    )
    assert one("memlock", inside).fixes[0].where.startswith("systemd")


def test_mappings_and_memory_of_the_machine(tmp_path: Path) -> None:
    target = machine(
        tmp_path,
        proc__sys__vm__max_map_count="65530\n",
        proc__sys__vm__overcommit_memory="2\n",
        proc__meminfo="CommitLimit:  4000000 kB\nCommitted_AS:  3500000 kB\n",
    )
    assert one("max-map-count", target).result == "ok"
    assert one("overcommit", target).result == "warn"
    (tmp_path / "proc/7/maps").write_text("x\n" * 60_000)
    found = one("max-map-count", target)
    assert found.result == "warn"
    # As `sysctl -w` would.
    value = found.fixes[0].lines[0].partition("=")[2]
    (tmp_path / "proc/sys/vm/max_map_count").write_text(value)
    assert one("max-map-count", target).result == "ok"
    (tmp_path / "proc/sys/vm/overcommit_memory").write_text("0")
    assert one("overcommit", target).result == "ok"


@pytest.mark.parametrize(
    ("release", "result", "says"),
    [
        ("6.18.0-1-amd64", "ok", "has all"),
        ("6.1.0-18-amd64", "ok", "MADV_GUARD_INSTALL"),
        ("5.10.0", "ok", "HEAP_SECRETMEM"),
        ("4.9.0", "fail", "MADV_WIPEONFORK"),
    ],
)
def test_kernel_versions(tmp_path: Path, release: str, result: str, says: str) -> None:
    found = one("kernel", machine(tmp_path, proc__sys__kernel__osrelease=release + "\n"))
    assert (found.result, says in found.found) == (result, True), found


SECCOMP = "systemd, behind the SystemCallFilter="


@pytest.mark.parametrize(
    ("release", "line", "error", "is_filtered", "where"),
    [
        ("5.10.0", "quiet", ENOSYS, False, "the kernel"),
        ("6.1.0", "quiet", ENOSYS, False, "the kernel's command line"),
        ("6.1.0", "quiet secretmem.enable=1", ENOSYS, True, SECCOMP),
        ("6.8.0", "secretmem.enable=0", ENOSYS, False, "the kernel's command line, instead"),
        ("6.8.0", "quiet", ENOSYS, False, "the kernel"),
        ("6.8.0", "quiet", EPERM, True, SECCOMP),
    ],
)
def test_why_there_is_no_memfd_secret(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    release: str,
    line: str,
    error: int,
    is_filtered: bool,
    where: str,
) -> None:
    target = machine(tmp_path, proc__sys__kernel__osrelease=release, proc__cmdline=line)
    monkeypatch.setattr(target, "is_self", True)
    monkeypatch.setattr(Target, "is_filtered", property(lambda _: is_filtered))
    answer = probe.Answer(["memfd_secret", error])
    monkeypatch.setattr(probe, "in_child", lambda _: answer)
    found = one("memfd-secret", target)
    assert found.result == "warn"
    assert found.fixes[0].where.startswith(where)
    if "command line" in where:
        assert found.fixes[0].lines == ("secretmem.enable=1",)


def test_musl(tmp_path: Path) -> None:
    maps = "7f0000-7f1000 r-xp 00000000 00:1f 9                /lib/ld-musl-x86_64.so.1\n"
    found = one("glibc", machine(tmp_path, proc__7__maps=maps))
    assert (found.result, "musl" in found.found) == ("fail", True)


def test_exit_3_without_a_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(_: Target) -> doctor.Finding:
        raise PermissionError(13, "Permission denied", "/proc/1/maps")

    monkeypatch.setattr(doctor, "CHECKS", (doctor.Check("malloc", "who owns it", refused),))
    assert cli.main(["doctor", "--pid", "1"]) == 3
    text = capsys.readouterr().out
    assert "unknown" in text
    assert "/proc/1/maps: Permission denied" in text
    assert "sudo malloc-arena doctor --pid 1" in text
