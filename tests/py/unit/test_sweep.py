"""sweep(): what Python's library keeps of a scope is gone, what is not the scope's stays."""

from __future__ import annotations

import _strptime
import functools
import gc
import importlib.util
import linecache
import os
import subprocess
import sys
import time
import types
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

import malloc_arena
import malloc_arena.sweep
from conftest import MAKE, SECRET, Child, hits, mappings, memory, with_a_stack
from malloc_arena import Arena

# Each keeps the secret after its last reference is gone, until something is cleared.
KEEPERS = {
    "pattern": "import re; re.search(text(), 'x')",
    "template": "import re; re.sub('y', text() + chr(92) + 'g<0>', 'xy')",
    "url": "import urllib.parse; urllib.parse.urlsplit('//' + text() + '/')",
    "date": "import time; time.strptime('2020' + text(), '%Y' + text())",
    "match": "import fnmatch; fnmatch.fnmatch('x', text())",
    "argument": "cached(text())",
    "arguments": "cached(1, key=[*map(str, [text()])][0])",
    "only argument": "unbounded(text())",
    "result": "keeper()",
    "attribute": "getattr(cached, text(), None)",
    "cycle": "a = [text()]; a.append(a)",
    "error": "sys.last_value = ValueError(text())",
    "float": "[float('31415926535.897' + str(n)) for n in range(9)]",
    "warning": "import warnings; warnings.simplefilter('default'); warnings.warn(text())",
    "displayed": "sys.displayhook(text())",
    "source": "import linecache; linecache.updatecache(path())",
    "path in a tree": "from xml.etree import ElementTree as E; E.XML('<a/>').find(path_to(text()))",
    "process that was dropped": "Popen(['cat', '-', text()], stdin=pipe[0], stderr=-3)",
}
if importlib.util.find_spec("regex"):  # no wheel for an emulated machine
    KEEPERS["pattern of the package regex"] = "import regex; regex.search(text(), 'x')"
    KEEPERS["its template"] = "import regex; regex.sub('y', text() + chr(92) + 'g<0>', 'xy')"
if sys.version_info[:2] != (3, 12):  # which interns it for ever
    KEEPERS["encoding"] = "unknown(make().hex())"
SETUP = (
    MAKE
    + """
import functools, re, urllib.parse, fnmatch, linecache, warnings, tempfile
from subprocess import Popen
pipe = os.pipe()
def path_to(value): return f"b[@c='{value}']"
def unknown(name):
    try: "x".encode(name)
    except LookupError: pass
@functools.lru_cache
def cached(*args, **kwargs): return len(args)
@functools.cache
def unbounded(key): return 1
@functools.cache
def keeper(): return text()
def text(): return make().decode("latin-1")
def path():
    file = tempfile.NamedTemporaryFile("wb", suffix=".py", delete=False)
    # Not linecache's own buffer, which is a matter of the file object.
    file.write(b"x = '" + make() + b"'\\n")
    file.close()
    return file.name
class Sink:  # a file would have buffers
    def write(self, text): pass
    def flush(self): pass
sys.stderr = Sink()
sys.stdout, shown = Sink(), sys.stdout
vault = get(HEAP_SECURE)
def found():
    sys.stdout = shown
    show()
"""
)


@pytest.mark.parametrize("keeper", [name for name in KEEPERS if name != "float"])
def test_sweep_reaches(child: Callable[..., Child], keeper: str) -> None:
    process = child(
        SETUP
        + f"""
def work():
    {KEEPERS[keeper]}
vault.call(work)
found()
vault.sweep()
show()
"""
    )
    process.shown()
    if keeper != "attribute":  # a name that is not found may or may not stay in the cache
        assert hits(process), "it would be kept"
    process.go_on()
    process.shown()
    assert hits(process) == ()
    process.ends()


def test_floats(own: Arena) -> None:
    """With a sweep floats of a scope are in the arena, and wiped."""
    for _ in range(2):
        before = [n / 7 for n in range(300)]
        del before  # the free list is full
        with own.scope(sweep=True):
            inside = [n / 3 for n in range(50)]
            addresses = [id(number) for number in inside]
            assert all(own.owns(address) for address in addresses)
            del inside
        assert not any(own.owns(address) and any(memory(address + 16, 8)) for address in addresses)


CARD, LONG = 4929717023585713, 31415926535897932384626433832795028


@pytest.mark.parametrize(
    ("number", "work"),
    [
        (CARD, "float(text())"),
        (CARD, "repr(float(text()))"),
        (CARD, "'%.2f' % float(text())"),
        (CARD, "'%.17g' % float(text())"),
        (CARD, "float(text() + 'e-30')"),
        (LONG, "float(text())"),
        (LONG, "float('0.' + text())"),
        (LONG * 10**5 + 76543, "float(text())"),
    ],
)
def test_digits_of_floats(child: Callable[..., Child], number: int, work: str) -> None:
    masked = bytes(ord(digit) ^ 0x5A for digit in str(number))
    process = child(
        f"""
def text():
    return bytes(b ^ 0x5a for b in {masked!r}).decode()
vault = get(HEAP_SECURE)
with vault:
    {work}
show()
with vault.scope(sweep=True):
    {work}
show()
"""
    )
    binary = number.to_bytes((number.bit_length() + 7) // 8, "little")
    process.shown()
    assert process.copies(binary), "it would be kept"
    process.go_on()
    process.shown()
    assert process.copies(binary) == []
    process.ends()


def test_free_lists_are_cleared(own: Arena) -> None:
    floats = [n / 7 for n in range(300)]
    del floats
    frozen = gc.get_freeze_count()
    malloc_arena.sweep.clear_free_lists()
    assert gc.get_freeze_count() == frozen
    with own:
        inside = [n / 3 for n in range(50)]
    assert all(own.owns(id(number)) for number in inside)


@pytest.mark.parametrize("kind", [lambda: [None], lambda: {None: None}, lambda: (id(gc),)])
def test_clearing_the_free_lists_leaves_nothing_in_them(
    own: Arena, kind: Callable[[], object]
) -> None:
    with own:
        malloc_arena._core._outside(malloc_arena.sweep.clear_free_lists)
        inside = kind()
    assert own.owns(id(inside))


def test_those_who_watch_collections_do_not_fill_the_lists_again(own: Arena) -> None:
    seen = []

    def watch(phase: str, info: dict[str, int]) -> None:
        seen.append(phase)
        floats = [n / 7 for n in range(20)]
        del floats

    gc.callbacks.append(watch)
    try:
        with own.scope(sweep=True):
            inside = [n / 3 for n in range(50)]
        assert watch in gc.callbacks
    finally:
        gc.callbacks.remove(watch)
    assert all(own.owns(id(number)) for number in inside)
    assert seen


def test_free_lists_are_cleared_and_nothing_is_collected(child: Callable[..., Child]) -> None:
    """As far as nothing is frozen; CPython 3.12 has frozen objects of its own."""
    child(
        """
from malloc_arena.sweep import clear_free_lists
class Thing: pass
gc.collect()
frozen = gc.get_freeze_count()
thing = Thing(); thing.me = thing
address = id(thing)
del thing
clear_free_lists()
assert gc.get_freeze_count() == frozen
assert any(id(each) == address for each in gc.get_objects()) == (not frozen)
gc.freeze()
frozen = gc.get_freeze_count()
assert frozen > 1000
clear_free_lists()
assert gc.get_freeze_count() >= frozen - 10
"""
    ).ends()


def test_what_is_not_of_an_arena_stays(own: Arena) -> None:
    calls: list[object] = []

    @functools.cache
    def settings() -> object:
        calls.append(object())
        return calls[-1]

    @functools.lru_cache(2)
    def length(text: str) -> int:
        calls.append(text)
        return len(text)

    with own:
        first = settings()  # made inside, but an object of the program's
    length("outside")
    linecache.getlines(__file__)
    time.strptime("2020", "%Y")
    warnings.warn("a warning of the test's", stacklevel=1)
    own.sweep()
    assert settings() is first
    length("outside")
    assert len(calls) == 2
    assert __file__ in linecache.cache
    assert "%Y" in _strptime._regex_cache  # type: ignore[attr-defined]
    with own:
        length("".join(["in", "side"]))
    own.sweep()
    length("outside")
    assert len(calls) == 4
    calls.clear()


@pytest.mark.parametrize(
    ("source", "versions"),
    [
        ("setattr(type('T', (), {}), name, 1)", {12}),
        ("import sys; sys.intern(name)", {12}),
        ("import pathlib; pathlib.PurePath('/' + name).name", {12}),
        ("exec(f'{name} = 1', {})", {12, 13}),
        ("eval(repr(name), {})", {12}),
        ("import marshal; marshal.loads(marshal.dumps(compile(repr(name), '', 'eval')))", {12, 13}),
        ("eval(repr(name + ' '), {})", set()),
        ("import ast; ast.literal_eval(repr(name))", set()),
        ('import json; json.loads(\'{"%s": "%s"}\' % (name, name))', set()),
    ],
)
def test_what_is_interned_for_ever(
    child: Callable[..., Child], source: str, versions: set[int]
) -> None:
    """No sweep reaches it: docs/threat-model.md says in which Python."""
    process = child(
        MAKE
        + f"""
import gc, sys
vault = get(HEAP_SECURE)
def work(name):
    {source}
for text in (lambda: "warm", lambda: "n" + make().hex()):
    before = vault.stats().live_blocks
    with vault.scope(sweep=True): work(text())
    gc.collect()
show(left=vault.stats().live_blocks - before)
"""
    )
    assert (process.shown()["left"] > 0) == (sys.version_info[1] in versions)
    process.ends()


def test_hash_modules_have_a_malloc_of_their_own(child: Callable[..., Child]) -> None:
    """CPython's, from 3.12 on; random.Random uses one: docs/threat-model.md says so."""
    process = child(
        MAKE
        + """
import hashlib, random
vault = get(HEAP_SECURE)
def work(function):
    text = "x" * 24 + make().decode() + "x" * 24
    function(text)
random.Random("warm"); hashlib.sha512(b"warm").digest()
with vault: work(lambda text: hashlib.sha512(text.encode()).digest())
show()
with vault: work(random.Random)
show()
with vault.scope(sweep=True): work(random.Random)
show()
"""
    )
    process.shown()
    assert hits(process) == ()
    process.go_on()
    process.shown()
    assert bool(hits(process)) == (sys.version_info >= (3, 12))
    process.go_on()
    process.shown()
    assert hits(process) == ()
    process.ends()


@pytest.mark.parametrize("count", [1, 5])
def test_sweep_wipes_what_c_libraries_have_freed(child: Callable[..., Child], count: int) -> None:
    """COUNT blocks of each size, fewer than the 7 that glibc keeps for a thread: of what is joined
    to larger ones a part may be left."""
    process = child(
        MAKE
        + f"""
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
vault = get(HEAP_SECURE)
def work():
    secret = make()
    for size in (64, 136, 200, 520, 1032):
        blocks = [libc.malloc(size) for _ in range({count})]
        for block in blocks: ctypes.memmove(block + size - len(secret), secret, len(secret))
        for block in blocks: libc.free(block)
with vault: work()
show()
with vault.scope(sweep=True): work()
show()
"""
    )
    process.shown()
    found = hits(process)
    assert found
    assert all(hit.owner != "arena" for hit in found)
    process.go_on()
    process.shown()
    assert hits(process) == ()
    process.ends()


def test_sweep_while_a_date_is_read(own: Arena) -> None:
    """As in a signal handler, or a finalizer: the lock of that module is this thread's."""
    form = "%Y inside"
    with own:
        time.strptime("2020 inside", form)
        kept = _strptime._regex_cache[form]  # type: ignore[attr-defined]
    assert own.owns(id(kept))
    with _strptime._cache_lock:  # type: ignore[attr-defined]
        own.sweep()
    assert form not in _strptime._regex_cache  # type: ignore[attr-defined]


def test_sweep_in_a_scope_makes_nothing_there(own: Arena) -> None:
    own.sweep()
    with own:
        before = own.stats().live_blocks
        own.sweep()
        assert own.stats().live_blocks <= before + 2


def test_every_scope_sweeps_when_told(child: Callable[..., Child]) -> None:
    process = child(
        SETUP
        + """
def work():
    cached(text())
    re.search(text(), 'x')
    a = [text()]; a.append(a)
    return [n / 3 for n in range(90)]
gc.collect()
warm = [n / 7 for n in range(300)]; del warm
kept = vault.call(work)
assert all(vault.owns(id(number)) for number in kept)
with vault:
    with vault:
        work()
    pattern = re.compile("a" + "b")
    assert pattern is re.compile("a" + "b"), "an inner scope does not sweep"
class Late:
    def __del__(self):
        with vault: cached(text())
late = Late(); late.me = late; del late
with vault: pass
del kept
found()
""",
        MALLOC_ARENA_SWEEP="1",
    )
    process.shown()
    assert hits(process) == ()
    process.ends()


@pytest.mark.parametrize("swept", ["with vault.scope(sweep=True)", "always", "vault.sweep()"])
def test_finalizers_of_garbage_run_in_the_arena(child: Callable[..., Child], swept: str) -> None:
    """What they make of what they refer to would be left outside."""
    process = child(
        MAKE
        + f"""
class Node:
    def __init__(self): self.me, self.text = self, make()
    def __del__(self): kept.append(vault.owns(id(self.text * 20)))
kept = []
vault = get(HEAP_SECURE)
def work(): Node()
vault.sweep()
if {swept!r}.startswith("with"):
    with vault.scope(sweep=True): work()
else:
    with vault: work()
    vault.sweep()
assert kept == [True], kept
show()
""",
        **({"MALLOC_ARENA_SWEEP": "1"} if swept == "always" else {}),
    )
    process.shown()
    assert hits(process) == ()
    process.ends()


def test_finalizers_of_a_budget_do_not_run_in_it(child: Callable[..., Child]) -> None:
    """It has no secrets, and may be full."""
    child(
        """
class Node:
    def __init__(self): self.me = self
    def __del__(self): kept.append(budget.owns(id("x" * ord("z"))))
kept = []
budget = Arena(HEAP_DEFAULT, name="budget")
def work(): Node()
budget.sweep()
with budget: work()
budget.sweep()
assert kept == [False], kept
with budget.scope(sweep=True): work()
assert kept == [False, False], kept
""",
        MALLOC_ARENA_SWEEP="1",
    ).ends()


@pytest.mark.parametrize("swept", ["always", "vault.sweep()"])
@pytest.mark.parametrize("kind", ["HEAP_SECURE", "HEAP_SECURE | HEAP_ISOLATED"])
def test_finalizers_do_not_run_in_an_arena_that_is_full(
    child: Callable[..., Child], kind: str, swept: str
) -> None:
    child(
        f"""
class Node:
    def __init__(self): self.me = self
    def __del__(self): kept.append(len(bytes(1000) * 300))
kept, full = [], []
vault = Arena({kind}, name="full", limit=1 << 20)
def fill():
    try:
        while True: full.append(bytes(1000))
    except MemoryError: pass
with vault: fill()
del full[-20:]
Node()
if {swept!r} == "always":
    with vault: pass
else:
    vault.sweep()
assert kept == [300000], kept
""",
        **({"MALLOC_ARENA_SWEEP": "1"} if swept == "always" else {}),
    ).ends()


def test_what_finalizers_keep_keeps_no_arena_open(child: Callable[..., Child]) -> None:
    child(
        """
class Node:
    def __init__(self): self.me = self
    def __del__(self): kept.append(bytes(300))
kept = []
own = Arena(HEAP_SECURE, name="own")
def work(): Node()
own.sweep()  # whose import could set off the collector
gc.disable()
with own: work()
own.sweep()
assert get(HEAP_SECURE).owns(id(kept[0]))
own.close()
"""
    ).ends()


@pytest.mark.parametrize("way", ["vault.__exit__(None, None, None)", "other.__enter__()"])
def test_finalizers_leave_the_scope_that_ends_as_it_is(
    child: Callable[..., Child], way: str
) -> None:
    child(
        f"""
class Node:
    def __init__(self): self.me = self
    def __del__(self): kept.append(None); {way}
kept = []
vault, other = get(HEAP_SECURE), Arena(HEAP_SECURE, name="other")
sys.unraisablehook = lambda unraisable: None
def work(): Node()
with vault: work()
assert kept == [None]
assert not vault.owns(id("x" * ord("z"))) and not other.owns(id("x" * ord("z")))
""",
        MALLOC_ARENA_SWEEP="1",
    ).ends()


def test_an_error_in_the_sweep_is_said_and_not_raised(child: Callable[..., Child]) -> None:
    process = child(
        """
import malloc_arena.sweep
def fail(): raise KeyError("of the sweep")
malloc_arena.sweep._last_error = fail
seen = []
sys.unraisablehook = lambda unraisable: seen.append(unraisable.exc_type)
vault = get(HEAP_SECURE)
try:
    with vault: raise ValueError
except ValueError:
    pass
assert vault.call(lambda: 1) == 1
assert seen == [KeyError] * 2
""",
        MALLOC_ARENA_SWEEP="1",
    )
    process.ends()


@pytest.mark.parametrize(("options", "expected"), [([], "None"), (["--sweep"], "1")])
@pytest.mark.parametrize("separator", [[], ["--"]])
def test_run_sweep(tmp_path: Path, options: list[str], expected: str, separator: list[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text("import os, sys; print(os.environ.get('MALLOC_ARENA_SWEEP'), *sys.argv[1:])")
    command = [sys.executable, "-m", "malloc_arena", "run", *options, *separator]
    environment = {k: v for k, v in os.environ.items() if k != "MALLOC_ARENA_SWEEP"}
    done = subprocess.run(
        [*command, str(script), "--sweep", "-x"], capture_output=True, text=True, env=environment
    )
    assert done.stdout == f"{expected} --sweep -x\n", done.stderr


def test_sweep_runs_no_code_of_what_it_looks_at(
    own: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxies in caches of what is dead, modules that wait to be executed, and such as are none."""

    class Lazy(types.ModuleType):
        def __getattribute__(self, name: str) -> object:
            raise ModuleNotFoundError(name)

    @functools.lru_cache
    def proxy(key: str) -> object:
        return weakref.proxy(set(key))  # which nobody else has

    with own:
        proxy("".join(["k", "ey"]))
    monkeypatch.setitem(sys.modules, "lazy", Lazy("lazy"))
    monkeypatch.setitem(sys.modules, "re", None)  # type: ignore[arg-type]
    own.sweep()
    assert proxy.cache_info().currsize == 0


def test_what_fails_in_a_sweep_keeps_nothing_else_from_it(
    own: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("of the program")

    monkeypatch.setattr(malloc_arena.sweep, "_dates", fail)

    @functools.lru_cache
    def length(text: str) -> int:
        return len(text)

    with own:
        length("".join(["a", "b"]))
    with pytest.raises(OSError, match="of the program"):
        own.sweep()
    assert length.cache_info().currsize == 0
    with pytest.raises(OSError, match="of the program"), own.scope(sweep=True):
        raise AssertionError("not reached")


def test_what_fails_in_a_sweep_does_not_hide_what_the_block_raised(
    own: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("of the program")

    said: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda seen: said.append(seen.exc_type))
    with pytest.raises(KeyError), own.scope(sweep=True):
        monkeypatch.setattr(malloc_arena.sweep, "_dates", fail)
        raise KeyError
    assert said == [OSError]
    monkeypatch.undo()
    with pytest.raises(OSError, match="of the program"), own.scope(sweep=True):
        monkeypatch.setattr(malloc_arena.sweep, "_dates", fail)


def test_an_interrupt_leaves_callbacks_of_the_collector(
    own: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watch(phase: str, info: object) -> None:
        pass

    def interrupted() -> None:
        gc.unfreeze()
        raise KeyboardInterrupt

    monkeypatch.setattr(gc, "callbacks", gc.callbacks)
    monkeypatch.setattr(malloc_arena.sweep, "_collect_nothing", interrupted)
    gc.callbacks[:0] = [watch, len]
    try:
        with pytest.raises(KeyboardInterrupt):
            malloc_arena.sweep.clear_free_lists()
        assert gc.callbacks[:2] == [watch, len]
    finally:
        del gc.callbacks[:2]


@with_a_stack
@pytest.mark.parametrize("swept", [False, True])
def test_what_lies_below_a_frame_that_is_hardly_written(
    child: Callable[..., Child], tmp_path: Path, swept: bool
) -> None:
    """A scrub stops where nothing of the stack was written for long; a sweep goes by its pages."""
    source, library = tmp_path / "frame.c", tmp_path / "frame.so"
    source.write_text(
        "void leave (const char *text, unsigned long n) { volatile char room[300 << 10];"
        " while (n--) room[n] = text[n]; }"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    process = child(
        MAKE
        + f"""
import ctypes
leave = ctypes.CDLL({str(library)!r}).leave
def work():
    leave(make(), len(make()))
vault = get(HEAP_SECURE)
with vault.scope(sweep={swept}):
    work()
show()
"""
    )
    process.shown()
    stack = next(m for m in mappings(process.pid) if m.name == "[stack]")
    found = [at for at in process.copies(SECRET) if stack.start <= at < stack.end]
    assert bool(found) == (not swept)
    process.ends()
