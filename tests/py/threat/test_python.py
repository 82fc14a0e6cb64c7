"""Promises to Python programs. Each script runs in plain Python, where the secret must be seen, and
in an arena, where it must not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import gcore, kernel_dump, need_kernel_dumps

from conftest import MAKE, PRELUDE, SECRET, Child, copies, mappings
from malloc_arena.cli.config import library
from promises import Evidence

WIDE = SECRET.decode().encode("utf-16-le")

# The witness is in ordinary memory in any case: a look that misses it has seen nothing.
WITNESS = b"nothing else is like this"
WORK = (
    MAKE
    + f"""
import contextlib
witness = {WITNESS[:10]!r} + {WITNESS[10:]!r}
"""
    + """
story = os.environ["STORY"].split()
vault = get(HEAP_SECURE) if "arena" in story else None
def work():
    secret = make().decode()
    config = json.loads(json.dumps({"token": secret, "all": [secret * 3] * 5}))
    return config, bytearray(make() * 300), "\\u20ac" + secret, make() * 2
key = vault.buffer(100) if vault else bytearray(100)
with vault or contextlib.nullcontext():
    kept = work()
    key[:len(kept[3])] = kept[3]
if "dead" in story:
    del kept, key
    gc.collect()
"""
)


@pytest.mark.promise("dump-kernel")
@pytest.mark.parametrize("state", ["alive", "dead"])
def test_kernel_core(
    child: Callable[..., Child], evidence: Evidence, tmp_path: Path, state: str
) -> None:
    need_kernel_dumps()
    script = """
import resource
os.chdir(os.environ["WHERE"])
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
show()
"""
    for memory in ("plain", "arena"):
        process = child(WORK + script, WHERE=str(tmp_path), STORY=f"{memory} {state}")
        process.shown()
        os.kill(process.pid, signal.SIGABRT)
        assert process.process.wait(60) == -signal.SIGABRT
        compare(kernel_dump(tmp_path), memory, evidence)


def compare(data: bytes, memory: str, evidence: Evidence) -> None:
    assert WITNESS in data
    found = data.count(SECRET) + data.count(WIDE)
    evidence.copies(memory, found)


@pytest.mark.promise("dump-gcore")
@pytest.mark.parametrize("state", ["alive", "dead"])
def test_gcore(child: Callable[..., Child], evidence: Evidence, tmp_path: Path, state: str) -> None:
    for memory in ("plain", "arena"):
        process = child(WORK + "show()", STORY=f"{memory} {state}")
        process.shown()
        dump = gcore(process.pid, tmp_path)
        # The reserved address space is not written out as zeros.
        assert len(dump) < 200 << 20
        compare(dump, memory, evidence)
        process.ends()


# ---- children ----

METHODS = """
import multiprocessing
size = len(make())
def look(pipe, key):
    found = key is not None and make() in bytes(key)
    pipe.send((os.getpid(), found))
    pipe.recv()
def start(method, key):
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    worker = context.Process(target=look, args=(theirs, key))
    worker.start()
    pid, found = ours.recv()
    show(pid=pid, found=found)
    ours.send(None)
    worker.join()
    assert worker.exitcode == 0
"""


@pytest.mark.promise("fork-wipe")
def test_a_child_of_multiprocessing_finds_zeros(
    child: Callable[..., Child], evidence: Evidence
) -> None:
    for memory in ("plain", "arena"):
        process = child(
            MAKE
            + METHODS
            + """
if os.environ["STORY"] == "plain":
    key = bytearray(9000)
    key[-size:] = make()
else:
    key = SecretBuffer(9000)
    with get(HEAP_SECURE):
        key[-size:] = make()
start("fork", key)
assert make() in bytes(key)
""",
            STORY=memory,
        )
        shown = process.shown()
        found = len(copies(shown["pid"], SECRET))
        if memory == "plain":
            evidence.control(f"{found} copies", shown["found"] and found)
        else:
            assert (shown["found"], found) == (False, 0)
            # The parent has it all the while.
            assert process.copies(SECRET)
            evidence.result("0 copies")
        process.ends()


@pytest.mark.promise("fork-keep")
def test_what_a_python_child_keeps(child: Callable[..., Child], evidence: Evidence) -> None:
    """It is locked and undumped there as well, and wiped when it dies there, while the parent's
    lives on."""
    script = """
pid = os.fork()
if pid == 0:
    show(pid=os.getpid(), alive=make() in kept[1])
    del kept, key
    gc.collect()
    show(pid=os.getpid())
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
show()
"""
    for memory in ("plain", "arena"):
        process = child(WORK + script, STORY=memory)
        shown = process.shown()
        assert shown["alive"]
        maps = mappings(shown["pid"])
        places = copies(shown["pid"], SECRET)
        assert places
        protected = sum(
            {"lo", "dd"} <= set(each.flags)
            for at in places
            for each in maps
            if each.start <= at < each.end
        )
        process.go_on()
        process.shown()
        after = len(copies(shown["pid"], SECRET))
        process.go_on()
        process.shown()
        assert process.copies(SECRET)
        seen = f"{protected} of {len(places)} copies protected, {after} after their end"
        if memory == "plain":
            evidence.control(seen, protected == 0 and after)
        else:
            assert (protected, after) == (len(places), 0)
            evidence.result(seen)
        process.ends()


@pytest.mark.promise("exec")
def test_a_spawned_child_has_nothing(
    child: Callable[..., Child], evidence: Evidence, tmp_path: Path
) -> None:
    """The control is what people do: they hand the secret over."""
    # A file, as a spawned child imports its parent's main module.
    script = tmp_path / "script.py"
    script.write_text(
        PRELUDE
        + MAKE
        + METHODS
        + """
if __name__ == "__main__":
    with get(HEAP_SECURE):
        kept = [make(), make().decode()]
    start("spawn", bytearray(make()) if os.environ["STORY"] == "plain" else None)
"""
    )
    for memory in ("plain", "arena"):
        process = child(
            f"os.execv(sys.executable, [sys.executable, {str(script)!r}])", STORY=memory
        )
        shown = process.shown()
        found = len(copies(shown["pid"], SECRET))
        if memory == "plain":
            evidence.control(f"handed over: {found} copies", shown["found"] and found)
        else:
            assert found == 0
            assert process.copies(SECRET)
            evidence.result("0 copies")
        process.ends()


# ---- what is left behind ----

EVERYDAY = """
import base64, contextlib, hashlib, io, re, urllib.parse
def everyday():
    secret = make().decode()
    config = json.loads(json.dumps({"user": "me", "token": secret, "list": [secret] * 20}))
    lines = "\\n".join(f"{n}: {secret}" for n in range(50)).splitlines()
    text = secret.upper() + secret.replace("-", "+") + base64.b64encode(secret.encode()).decode()
    url = urllib.parse.quote("https://" + secret) + hashlib.sha256(secret.encode()).hexdigest()
    data = io.BytesIO(secret.encode() * 100).read() + bytearray(secret.encode())
    table = {line: [secret + line] for line in lines}
    return sorted(table), config, text, url, data, sorted(secret)
def failing():
    secret = make() * 3
    raise ValueError(secret, secret.decode(), [secret])
vault = get(HEAP_SECURE) if os.environ["STORY"] == "arena" else contextlib.nullcontext()
"""


@pytest.mark.promise("python-scope")
def test_nothing_is_left_of_a_scope(child: Callable[..., Child], evidence: Evidence) -> None:
    script = """
with vault:
    kept = everyday()
del kept
gc.collect()
show()
"""
    after(child, evidence, MAKE + EVERYDAY + script)


@pytest.mark.promise("wipe-error")
def test_nothing_is_left_of_an_exception(child: Callable[..., Child], evidence: Evidence) -> None:
    script = """
caught = []
for _ in range(3):
    try:
        with vault:
            failing()
    except ValueError as error:
        caught.append(len(error.args))
assert caught == [3, 3, 3]
gc.collect()
show()
"""
    after(child, evidence, MAKE + EVERYDAY + script)


@pytest.mark.promise("wipe-free")
def test_nothing_is_left_of_a_closed_buffer(
    child: Callable[..., Child], evidence: Evidence
) -> None:
    script = """
key = SecretBuffer(500) if os.environ["STORY"] == "arena" else bytearray(500)
with vault:
    key[100:100 + len(make())] = make()
assert len(key) == 500
if os.environ["STORY"] == "arena":
    key.close()
del key
gc.collect()
show()
"""
    after(child, evidence, MAKE + EVERYDAY + script)


@pytest.mark.promise("python-run")
def test_nothing_is_left_of_a_librarys_memory(
    child: Callable[..., Child], evidence: Evidence
) -> None:
    """SQLite has its values in memory from malloc. The second control is a scope that is not
    preloaded: what the hooks cannot reach."""
    script = """
import sqlite3
with vault:
    database = sqlite3.connect(":memory:")
    database.execute("create table kept (value)")
    database.executemany("insert into kept values (?)", [(make().decode(),)] * 30)
    rows = database.execute("select value from kept order by value || 'x'").fetchall()
    assert len(rows) == 30
    database.close()
del rows, database
gc.collect()
show()
"""
    after(child, evidence, MAKE + EVERYDAY + script, LD_PRELOAD=str(library()))
    scope = child(MAKE + EVERYDAY + script, STORY="arena")
    scope.shown()
    found = len(scope.copies(SECRET))
    evidence.control(f"a scope alone: {found} copies", found)


def after(child: Callable[..., Child], evidence: Evidence, script: str, **environment: str) -> None:
    """What is left of the secret when the script shows."""
    for memory in ("plain", "arena"):
        process = child(script, STORY=memory, **environment)
        process.shown()
        found = len(process.copies(SECRET))
        evidence.copies(memory, found)
        process.ends()


@pytest.mark.promise("no-fallback")
def test_a_limit_is_an_error(child: Callable[..., Child], evidence: Evidence) -> None:
    """The control does the same without a limit: what then lies outside is what a fall-back is."""
    script = """
import contextlib
vault = Arena(HEAP_SECURE, name="small", limit=1 << 20) if os.environ["STORY"] == "arena" else None
kept, refused = [], 0
with vault or contextlib.nullcontext():
    key = make()
    # CPython 3.12 forgets to keep the code of a function or generator that it has no memory for.
    for _ in range(250):
        try:
            kept.append(key * 400)
        except MemoryError as error:
            refused += 1
show(refused=refused, kept=len(kept), bytes=vault.stats().mapped_bytes if vault else 0)
"""
    for memory in ("plain", "arena"):
        process = child(MAKE + script, STORY=memory)
        shown = process.shown()
        found = process.copies(SECRET)
        outside = sum(not process.owns(at) for at in found)
        if memory == "plain":
            evidence.control(f"{outside} copies outside", outside)
        else:
            assert shown["refused"] > 100
            assert shown["kept"] > 20
            assert shown["bytes"] <= 1 << 20
            assert outside == 0
            evidence.result(f"{shown['refused']} errors, 0 copies outside")
        process.ends()


@pytest.mark.promise("lock-told")
def test_a_refused_lock_is_told(child: Callable[..., Child], evidence: Evidence) -> None:
    """Of ordinary memory nobody tells that it is not locked: the same program says nothing."""
    limited = """
import ctypes, resource
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
if os.geteuid() == 0:
    assert ctypes.CDLL(None).prctl(24, 14, 0, 0, 0) == 0  # CAP_IPC_LOCK out of the bounding set
os.execv(sys.executable, [sys.executable, "-c", os.environ["SCRIPT"]])
"""
    script = """
import os
from malloc_arena import *
if os.environ["STORY"] == "plain":
    kept = bytes(1000)
    raise SystemExit
arena = Arena(HEAP_SECURE, name="unlocked")
with arena:
    kept = bytes(1000)
assert not arena.receipt.locked and "locked" in arena.receipt.reasons
try:
    Arena(HEAP_SECURE, lock="require")
except ArenaUnavailable as error:
    print("refused")
"""
    for memory in ("plain", "arena"):
        process = child(limited, SCRIPT=script, STORY=memory)
        out, err = process.process.communicate(timeout=60)
        assert process.process.returncode == 0
        lines = [line for line in err.splitlines() if line.startswith("malloc_arena: lock")]
        if memory == "plain":
            evidence.control("unlocked, and nothing is said", (out, lines) == ("", []))
        else:
            assert (out, len(lines)) == ("refused\n", 1)
            evidence.result("in the receipt, on standard error, refused under require")


@pytest.mark.promise("not-shown")
def test_values_do_not_show(evidence: Evidence) -> None:
    import copy
    import logging
    import pickle
    import traceback

    from malloc_arena import Secret, SecretBuffer

    def shows(value: object) -> int:
        """In how many of these ways the value is shown."""

        def raised() -> str:
            try:
                raise ValueError(value)
            except ValueError:
                return traceback.format_exc()

        def logged() -> str:
            return logging.makeLogRecord({"msg": "%s %r", "args": (value, value)}).getMessage()

        ways: list[Callable[[], object]] = [
            lambda: repr(value),
            lambda: f"{value} {value!r} {value:>40}",
            lambda: "%s" % (value,),  # noqa: UP031
            lambda: str({"key": [value]}),
            lambda: pickle.dumps(value),
            lambda: repr(copy.deepcopy(value)),
            raised,
            logged,
        ]
        shown = 0
        for way in ways:
            try:
                text = way()
            except (TypeError, ValueError):
                continue
            data = text if isinstance(text, bytes) else str(text).encode()
            shown += SECRET in data
        return shown

    evidence.control(f"a str: in {shows(SECRET.decode())} of 8 ways", shows(SECRET.decode()) == 8)
    evidence.control(f"bytearray: in {shows(bytearray(SECRET))} of 8", shows(bytearray(SECRET)))
    buffer = SecretBuffer(len(SECRET))
    buffer[:] = SECRET
    for value in (Secret(SECRET.decode()), Secret(SECRET), Secret(bytearray(SECRET)), buffer):
        assert shows(value) == 0
    evidence.result("in 0 of 8 ways")


@pytest.mark.promise("from-env")
def test_a_variable_is_removed(child: Callable[..., Child], evidence: Evidence) -> None:
    """The control removes it as one does: os.environ.pop."""
    script = """
if os.environ["STORY"] == "plain":
    got = os.environ.pop("THE_TOKEN")
else:
    got = sources.from_env("THE_TOKEN")
assert "THE_TOKEN" not in os.environ
del got
gc.collect()
show()
"""
    for memory in ("plain", "arena"):
        process = child(script, STORY=memory, THE_TOKEN=os.fsdecode(SECRET))
        process.shown()
        found = len(process.copies(SECRET))
        listed = SECRET in Path(f"/proc/{process.pid}/environ").read_bytes()
        seen = f"{found} copies, {'' if listed else 'not '}in /proc/PID/environ"
        if memory == "plain":
            evidence.control(seen, found and listed)
        else:
            assert (found, listed) == (0, False)
            evidence.result(seen)
        process.ends()
