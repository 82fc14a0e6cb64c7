"""The library preloaded into programs that know nothing of it: idle, in use, and out of luck."""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from malloc_arena.cli.config import library

CAP_IPC_LOCK = 14
MEMLOCK = 8 << 20

BASH = r"""
set -u
trap 'echo trapped $?' EXIT
declare -A words
while read -r word; do words[$word]=$(( ${words[$word]:-0} + 1 )); done < <(
  for i in {1..300}; do echo "w$((i % 17))"; done)
for word in "${!words[@]}"; do echo "$word ${words[$word]}"; done | sort -k2n -k1
big=$(printf '%*s' 300000 x); echo "${#big}" "${big: -1}"
cat <<END
$(echo "in a subshell" | tr a-z A-Z | sed 's/SHELL/process/')
END
(exit 5); echo $?
sh -c 'kill -TERM $$'; echo $?
(ulimit -v 300000; head -c 400000000 /dev/zero | tail -c 400000000 2>/dev/null | wc -c)
exit 37
"""

SQL = """
create table t(id integer primary key, name text, body blob);
with recursive c(x) as (select 1 union all select x + 1 from c where x < 20000)
  insert into t select x, printf('name %d', x * 7919 % 20011), zeroblob(x % 50) from c;
create index i on t(name);
select count(*), sum(length(body)), min(name), max(name) from t;
select length(group_concat(name, ',')) from t;
select id, name from t where name like '%99%' order by name desc limit 5;
begin; delete from t where id % 3 = 0; rollback;
delete from t where id % 2 = 0; vacuum; pragma integrity_check;
select * from no_such_table;
"""

GCC = r"""
cat > unit.c <<'END'
#include <stdio.h>
#include <string.h>
#define TWICE(n) int f##n (int x) { char b[64]; memset (b, x, sizeof b); return b[x & 63] + n; }
#define MANY(n) TWICE (n##0) TWICE (n##1) TWICE (n##2) TWICE (n##3) TWICE (n##4) TWICE (n##5)
MANY (1) MANY (2) MANY (3) MANY (4) MANY (5)
int main (void) { return printf ("%d\n", f10 (3) + f55 (4)) < 0; }
END
gcc -O2 -g -Wall -o unit unit.c && ./unit && cksum unit
echo 'int main (void) { return missing; }' | gcc -x c -c -o none -
"""

GIT = r"""
set -e
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_AUTHOR_DATE='2020-01-01T00:00:00Z'
export GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org GIT_COMMITTER_DATE=$GIT_AUTHOR_DATE
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null HOME=$PWD
git init -q -b main .
for i in $(seq 30); do seq "$i" 2000 > "file$((i % 7))"; git add .; git commit -qm "change $i"; done
git log --stat --format=%H%n%s
git diff HEAD~9 HEAD~2 | cksum
git checkout -q -b side HEAD~5; git rm -q file1; git commit -qm side; git merge -q main || true
git status --short
git gc -q --prune=now 2>&1; git fsck --full 2>&1
git blame file3 2>&1 | cksum
git checkout -q no-such-branch
"""

OPENSSL = r"""
openssl genrsa -out key.pem 2048 2>/dev/null && openssl rsa -in key.pem -check -noout 2>&1
openssl req -new -x509 -key key.pem -subj /CN=localhost -days 3 -out crt.pem && echo certificate
seq 100000 > data; openssl enc -aes-256-cbc -pbkdf2 -k word -in data -out coded
openssl enc -d -aes-256-cbc -pbkdf2 -k word -in coded | cmp - data && echo same
openssl dgst -sha256 data
"""

PYTHON = """
import asyncio, ctypes, decimal, hashlib, json, re, sqlite3, ssl, subprocess, sys, threading, zlib
data = json.loads(json.dumps({str(n): list(range(n % 50)) for n in range(5000)}))
print(len(data), hashlib.sha256(repr(data).encode()).hexdigest())
print(len(zlib.decompress(zlib.compress(repr(data).encode()))))
context = ssl.create_default_context()
print(sorted(cipher["name"] for cipher in context.get_ciphers())[:3])
total = []
threads = [threading.Thread(target=lambda n=n: total.append(sum(map(len, map(str, range(n))))))
           for n in range(1000, 9000, 1000)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sorted(total))
async def work(n): await asyncio.sleep(0); return bytes(n)
async def main(): print(sum(map(len, await asyncio.gather(*map(work, range(500))))))
asyncio.run(main())
db = sqlite3.connect(":memory:")
db.execute("create table t(x)")
db.executemany("insert into t values(?)", [(str(n),) for n in range(5000)])
print(db.execute("select sum(x), max(x) from t").fetchall())
print(subprocess.check_output([sys.executable, "-c", "print(2 ** 1000 % 12345)"]))
sys.exit(9)
"""


@dataclass(frozen=True)
class Program:
    command: Sequence[str]
    input: str = ""
    exit_code: int = 0
    environment: dict[str, str] = field(default_factory=dict)


PROGRAMS = {
    "bash": Program(["bash", "-c", BASH], exit_code=37),
    "sqlite3": Program(["sqlite3", "-batch", "t.db"], SQL, exit_code=1),
    "gcc": Program(["bash", "-c", GCC], exit_code=1),
    "git": Program(["bash", "-c", GIT], exit_code=1),
    "openssl": Program(["bash", "-c", OPENSSL]),
    "python": Program([sys.executable, "-c", PYTHON], exit_code=9),
    "python-malloc": Program(
        [sys.executable, "-c", PYTHON], exit_code=9, environment={"PYTHONMALLOC": "malloc"}
    ),
}
PRELOAD = {"LD_PRELOAD": str(library())}


def run(
    program: Program, directory: Path, *before: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    directory.mkdir()
    clean = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "MALLOC_ARENA_OPTIONS")}
    return subprocess.run(
        [*before, *program.command],
        input=program.input,
        capture_output=True,
        text=True,
        cwd=directory,
        # One name for the directory, however often the program runs: it is in what some of them
        # print, and in gcc's debug information.
        env=clean | {"LC_ALL": "C", "PWD": str(directory)} | program.environment | environment,
        timeout=240,
    )


def may_lock() -> bool:
    """Whether this process locks as much as it likes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:") and int(line.split()[1], 16) >> CAP_IPC_LOCK & 1:
            return True
    return resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize("options", ["", "active=secure"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_behave_as_without(name: str, options: str, tmp_path: Path) -> None:
    program = PROGRAMS[name]
    if name not in ("python", "python-malloc") and shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    if options and not may_lock():
        pytest.skip("active=secure without a warning needs root, or ulimit -l unlimited")
    # In the same place one after the other.
    directory = tmp_path / "here"
    plain = run(program, directory)
    assert plain.returncode == program.exit_code, plain
    shutil.rmtree(directory)
    environment = PRELOAD | ({"MALLOC_ARENA_OPTIONS": options} if options else {})
    loaded = run(program, directory, **environment)
    assert (loaded.returncode, loaded.stdout, loaded.stderr) == (
        plain.returncode,
        plain.stdout,
        plain.stderr,
    )


def test_ten_of_cpythons_modules_behave_as_without(tmp_path: Path) -> None:
    if importlib.util.find_spec("test.test_list") is None:
        pytest.skip("this interpreter comes without CPython's test package (Debian: none has it)")
    names = "list generators coroutines struct base64 zlib fork1 hashlib csv configparser".split()
    program = Program([sys.executable, "-m", "test", *(f"test_{name}" for name in names)])
    told = []
    for mode, environment in (("plain", {}), ("preload", PRELOAD)):
        done = run(program, tmp_path / mode, **environment)
        # Without times, load averages and seeds; with what ran and how it ended.
        lines = [re.sub(r"^[0-9:]+ load avg: \S+ ", "", each) for each in done.stdout.splitlines()]
        kept = [each for each in lines if re.match(r"\[|Total tests|All|test |Result|==", each)]
        assert any("[10/10" in each for each in kept), (mode, done)
        told.append((done.returncode, kept, done.stderr))
    assert told[0] == told[1]


def test_preload_is_there_and_reserves_only_when_active(tmp_path: Path) -> None:
    """So that the two tests above have compared something."""
    program = Program(["cat", "/proc/self/smaps"])
    idle = run(program, tmp_path / "idle", **PRELOAD)
    assert idle.stderr == ""
    assert str(library()) in idle.stdout
    flags = re.findall(r"^VmFlags: (.*)$", idle.stdout, re.MULTILINE)
    assert flags
    assert not any({"lo", "wf"} & set(each.split()) for each in flags)
    sizes = [int(size) for size in re.findall(r"^Size: +(\d+) kB$", idle.stdout, re.MULTILINE)]
    assert max(sizes) < 64 << 10
    if not may_lock():
        return
    active = run(program, tmp_path / "active", MALLOC_ARENA_OPTIONS="active=secure", **PRELOAD)
    flags = re.findall(r"^VmFlags: (.*)$", active.stdout, re.MULTILINE)
    assert any({"lo", "dd"} <= set(each.split()) for each in flags)


# More memory than may be locked, in one process: the warning is one for each.
GREEDY = {
    "bash": (["bash", "-c", "printf -v big '%*s' 12000000 x; echo ${#big}"], "12000000"),
    "sqlite3": (["sqlite3", ":memory:", "select length(randomblob(20000000))"], "20000000"),
    "python": ([sys.executable, "-c", "print(len(bytes(20 << 20)))"], str(20 << 20)),
}


def limited(limit: int) -> list[str]:
    """A command's first words, that make it one of an ordinary user with that memlock limit."""
    if shutil.which("setpriv") is None or shutil.which("prlimit") is None:
        pytest.skip("setpriv and prlimit (util-linux) are not installed")
    words = ["prlimit", f"--memlock={limit}:{limit}"]
    if os.geteuid() == 0:
        words = ["setpriv", "--inh-caps=-ipc_lock", "--bounding-set=-ipc_lock", *words]
        probe = subprocess.run([*words, "true"], capture_output=True, text=True)
        if probe.returncode != 0:
            pytest.skip(f"CAP_IPC_LOCK cannot be dropped here: {probe.stderr.strip()}")
    elif may_lock():
        pytest.skip("CAP_IPC_LOCK can be dropped by root only")
    return words


@pytest.mark.parametrize("limit", [MEMLOCK, 0])
@pytest.mark.parametrize("name", GREEDY)
def test_more_than_may_be_locked(name: str, limit: int, tmp_path: Path) -> None:
    command, output = GREEDY[name]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{name} is not installed")
    # env comes last: the words before it are not to be in an arena themselves.
    before = [*limited(limit), "env", f"LD_PRELOAD={library()}"]
    program = Program(command, environment={"PYTHONMALLOC": "malloc"})

    def attempt(lock: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        done = run(
            program, tmp_path / lock, *before, MALLOC_ARENA_OPTIONS=f"active=secure,lock={lock}"
        )
        lines = done.stderr.splitlines()
        return done, [line for line in lines if line.startswith("malloc_arena: lock refused: ")]

    done, lines = attempt("prefer")
    assert (done.returncode, done.stdout) == (0, output + "\n"), done
    assert len(lines) == 1, done
    assert done.stderr == lines[0] + "\n"
    assert f"the memlock limit is {limit} bytes): raise it with ulimit -l" in lines[0]
    assert "lock=require" in lines[0]

    done, lines = attempt("require")
    assert done.returncode != 0, done
    assert output not in done.stdout
    # Not by a crash; without any arena at all there is nothing but to abort.
    assert done.returncode > 0 or (limit == 0 and done.returncode == -6), done
    assert len(lines) == 1, done
    assert f"the memlock limit is {limit} bytes): raise it with ulimit -l" in lines[0]
    assert "lock=prefer" in lines[0]
