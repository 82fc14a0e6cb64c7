"""Sources: the secret is in the arena and nowhere else, seen from outside."""

from __future__ import annotations

import errno
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import malloc_arena
from conftest import MAKE, SECRET, Child, hits, with_an_environment
from malloc_arena import ArenaError, SecretBuffer, sources

FORMS = [("", "bytes"), (", as_str=True", "str")]


def is_in_the_arena_alone(process: Child) -> bool:
    found = hits(process)
    return any(hit.whole for hit in found) and all(hit.owner == "arena" for hit in found)


def check(process: Child, kind: str) -> None:
    """The child has it in `got`, shows, drops it, shows."""
    process.shown()
    assert is_in_the_arena_alone(process)
    process.go_on()
    process.shown()
    assert hits(process) == ()
    process.ends()


END = """
show(kind=type(got).__name__, size=len(got))
if isinstance(got, SecretBuffer):
    got.close()
del got
show()
"""


@pytest.mark.parametrize(("options", "kind"), FORMS)
def test_from_file(tmp_path: Path, child: Callable[..., Child], options: str, kind: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(SECRET + b"\n")
    process = child(f"got = sources.from_file({str(file)!r}{options})" + END)
    check(process, kind)


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize(("options", "kind"), FORMS)
def test_from_fd(
    tmp_path: Path, child: Callable[..., Child], options: str, kind: str, blocking: bool
) -> None:
    """From a pipe, whose size is not known; it is read in more than one piece and has to grow."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = child(
        f"fd = os.open({str(pipe)!r}, os.O_RDONLY); os.set_blocking(fd, {blocking})\n"
        f"got = sources.from_fd(fd{options})\n"
        f"assert os.get_blocking(fd) is {blocking}" + END
    )
    with pipe.open("wb", buffering=0) as file:
        for _ in range(3):
            file.write(b"x" * 5000)
            time.sleep(0.05)
        file.write(SECRET)
    check(process, kind)


@with_an_environment
@pytest.mark.parametrize(("options", "kind"), FORMS)
def test_from_env(child: Callable[..., Child], options: str, kind: str) -> None:
    process = child(
        f"got = sources.from_env('THE_TOKEN'{options})"
        + """
import ctypes
libc = ctypes.CDLL(None)
libc.getenv.restype = ctypes.c_char_p
assert libc.getenv(b"THE_TOKEN") is None
assert "THE_TOKEN" not in os.environ and b"THE_TOKEN" not in os.environb
assert os.environ["THE_TOKEN_2"] == "kept"
with open("/proc/self/environ", "rb") as file:
    shown = file.read()
assert b"THE_TOKEN_2=kept" in shown and b"cherry" not in shown
try:
    sources.from_env("THE_TOKEN")
except KeyError as error:
    assert error.args == ("THE_TOKEN",)
else:
    raise AssertionError
"""
        + END,
        THE_TOKEN=os.fsdecode(SECRET),
        THE_TOKEN_2="kept",
    )
    check(process, kind)


@with_an_environment
def test_from_env_that_was_set_again(child: Callable[..., Child]) -> None:
    """Then the block that the process started with has the first value, and the heap the second."""
    process = child(
        """
with get(HEAP_SECURE):
    second = bytes(b ^ 0x5a for b in os.environb[b"OTHER"])
os.environb[b"THE_TOKEN"] = second[:]
del second
with sources.from_env("OTHER"):
    pass
got = sources.from_env("THE_TOKEN")
"""
        + END,
        THE_TOKEN="first " + os.fsdecode(SECRET),
        OTHER=os.fsdecode(bytes(b ^ 0x5A for b in SECRET)),
    )
    check(process, "bytes")


def test_from_env_of_c_alone(child: Callable[..., Child]) -> None:
    child(
        """
import ctypes
assert ctypes.CDLL(None).setenv(b"FROM_C", b"a value", 1) == 0
assert sources.from_env("FROM_C", as_str=True) == "a value"
assert sources.from_env("EMPTY", as_str=True) == ""
os.environ["SHORT"] = "x"
held = os.environb[b"SHORT"]
assert sources.from_env("SHORT") == b"x" and held == b"x"
os.environ["HELD"] = "somebody has it"
held = os.environb[b"HELD"]
assert sources.from_env("HELD") == b"somebody has it" and held == b"somebody has it"
""",
        EMPTY="",
    ).ends()


@pytest.mark.parametrize("name", ["", "TOK\0zz", "A=B", "=A"])
def test_from_env_of_what_is_no_name(child: Callable[..., Child], name: str) -> None:
    child(
        f"""
try:
    sources.from_env({name!r})
except KeyError as error:
    assert error.args == ({name!r},)
else:
    raise AssertionError
environ = open("/proc/self/environ", "rb").read().split(bytes(1))
assert b"TOK=value" in environ and b"A=B=C" in environ
assert (os.environ["TOK"], os.environ["A"]) == ("value", "B=C")
import subprocess
assert b"A=B=C" in subprocess.check_output(["env", "-0"]).split(bytes(1))
""",
        TOK="value",
        A="B=C",
    ).ends()


def test_from_env_that_fails_leaves_the_variable(child: Callable[..., Child]) -> None:
    child(
        """
import ctypes, gc
from malloc_arena import Arena
libc = ctypes.CDLL(None)
libc.getenv.restype = ctypes.c_char_p
def fails(error, name, **options):
    value = os.environb[name.encode()]
    try:
        sources.from_env(name, **options)
    except error:
        pass
    else:
        raise AssertionError(name)
    assert os.environb[name.encode()] == libc.getenv(name.encode()) == value
tiny = Arena(HEAP_SECURE, limit=16384)
os.environb[b"BYTES"] = b"not UTF-8: \\xff"
os.environ["LONG"] = "x" * 100_000
os.environ["HALF"] = "x" * 8_300  # there is room for the bytes, not for the text as well
fails(malloc_arena.ArenaError, "BYTES", as_str=True)
for as_str in (False, True): fails(MemoryError, "LONG", arena=tiny, as_str=as_str)
fails(MemoryError, "HALF", arena=tiny, as_str=True)
gc.collect()
tiny.close()
assert sources.from_env("BYTES") == b"not UTF-8: \\xff"
assert "BYTES" not in os.environ
"""
    ).ends()


@pytest.mark.parametrize(("options", "kind"), FORMS)
def test_from_command(tmp_path: Path, child: Callable[..., Child], options: str, kind: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(SECRET + b"\n")
    process = child(f"got = sources.from_command(['cat', {str(file)!r}]{options})" + END)
    check(process, kind)


@pytest.mark.parametrize("command", ["['true', text()]", "['/nonexistent/command', text()]"])
def test_words_of_a_command_are_the_scopes(child: Callable[..., Child], command: str) -> None:
    process = child(
        MAKE
        + f"""
def text(): return make().decode()
vault = get(HEAP_SECURE)
sources.from_command(["true"])
show()
with vault.scope(sweep=True):
    try: sources.from_command({command}).close()
    except OSError: pass
show()
"""
    )
    process.shown()
    process.go_on()
    process.shown()
    assert hits(process) == ()
    process.ends()


def test_from_command_that_fails() -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        sources.from_command(["sh", "-c", "echo output; exit 3"])
    assert failed.value.returncode == 3
    assert failed.value.output is None
    with pytest.raises(FileNotFoundError):
        sources.from_command(["/nonexistent/command"])
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(FileNotFoundError):
        sources.from_command(["/nonexistent/command"])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


class Terminal:
    """A pseudo terminal with a child process on it."""

    def __init__(self, script: str, child: Callable[..., Child], tty: bool) -> None:
        self.master, self.slave = pty.openpty()
        name = os.ttyname(self.slave)
        # In a session of its own the first terminal that is opened is the controlling one.
        opened = f"os.setsid(); tty = os.open({name!r}, os.O_RDWR)\n"
        if not tty:
            opened = f"tty = os.open({name!r}, os.O_RDWR | os.O_NOCTTY)\n"
        self.before = termios.tcgetattr(self.slave)
        self.process = child("import signal\n" + opened + script)

    def read(self, end: bytes) -> bytes:
        seen = b""
        while not seen.endswith(end):
            seen += os.read(self.master, 1000)
        return seen

    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self.slave)[3] & termios.ECHO)

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


@pytest.mark.parametrize("tty", [True, False])
@pytest.mark.parametrize(("options", "kind"), FORMS)
def test_prompt(child: Callable[..., Child], options: str, kind: str, tty: bool) -> None:
    fd = "" if tty else ", fd=tty"
    terminal = Terminal(f"got = sources.prompt('Key: '{fd}{options})" + END, child, tty)
    assert terminal.read(b"Key: ") == b"Key: "
    assert not terminal.echoes()
    os.write(terminal.master, SECRET + b"xy\x7f\x7f\n")
    assert terminal.process.shown()["size"] == len(SECRET)
    assert terminal.read(b"\r\n") == b"\r\n", "nothing is shown but the end of the line"
    assert termios.tcgetattr(terminal.slave) == terminal.before
    assert is_in_the_arena_alone(terminal.process)
    terminal.process.go_on()
    terminal.process.shown()
    assert hits(terminal.process) == ()
    terminal.process.ends()
    terminal.close()


@pytest.mark.parametrize("typed", [b"\x03", b"half of it\x03"])
def test_prompt_and_ctrl_c(child: Callable[..., Child], typed: bytes) -> None:
    terminal = Terminal(
        """
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    sources.prompt()
except KeyboardInterrupt:
    show(interrupted=True)
""",
        child,
        True,
    )
    terminal.read(b"Password: ")
    os.write(terminal.master, typed)
    assert terminal.process.shown()["interrupted"]
    assert termios.tcgetattr(terminal.slave) == terminal.before
    terminal.process.ends()
    terminal.close()


def test_prompt_goes_on_after_a_signal(child: Callable[..., Child]) -> None:
    terminal = Terminal(
        """
seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
got = sources.prompt(as_str=True)
show(got=got, seen=len(seen))
""",
        child,
        True,
    )
    terminal.read(b"Password: ")
    os.kill(terminal.process.pid, signal.SIGUSR1)
    time.sleep(0.1)
    os.write(terminal.master, b"h\xc3\xa4user\n")
    shown = terminal.process.shown()
    assert (shown["got"], shown["seen"]) == ("häuser", 1)
    terminal.process.ends()
    terminal.close()


def test_prompt_at_the_end_of_input(child: Callable[..., Child]) -> None:
    terminal = Terminal(
        """
try:
    sources.prompt()
except EOFError:
    assert sources.prompt("Again: ") == b""
    show()
""",
        child,
        True,
    )
    terminal.read(b"Password: ")
    os.write(terminal.master, b"\x04")
    terminal.read(b"Again: ")
    os.write(terminal.master, b"\n")
    terminal.process.shown()
    assert termios.tcgetattr(terminal.slave) == terminal.before
    terminal.process.ends()
    terminal.close()


def test_prompt_at_a_raw_terminal(child: Callable[..., Child]) -> None:
    terminal = Terminal(
        """
import tty as modes
modes.setraw(tty)
signal.signal(signal.SIGINT, signal.default_int_handler)
got = sources.prompt()
try:
    sources.prompt("Again: ")
except KeyboardInterrupt:
    show(got=bytes(got).hex())
""",
        child,
        True,
    )
    terminal.read(b"Password: ")
    os.write(terminal.master, b"secret\r")
    terminal.read(b"Again: ")
    os.write(terminal.master, b"half\x03")
    assert terminal.process.shown()["got"] == b"secret".hex()
    assert not termios.tcgetattr(terminal.slave)[3] & termios.ICANON, "as it was before"
    terminal.process.ends()
    terminal.close()


@pytest.mark.parametrize("handler", ["SIG_IGN", "default_int_handler"])
def test_prompt_at_a_terminal_that_goes_away(child: Callable[..., Child], handler: str) -> None:
    terminal = Terminal(
        f"""
signal.signal(signal.SIGHUP, signal.{handler})
try:
    sources.prompt()
except (OSError, EOFError, KeyboardInterrupt) as error:
    show(error=type(error).__name__)
""",
        child,
        True,
    )
    terminal.read(b"Password: ")
    terminal.close()
    expected = {"KeyboardInterrupt"} if handler != "SIG_IGN" else {"OSError", "EOFError"}
    assert terminal.process.shown()["error"] in expected
    terminal.process.ends()


def test_prompt_without_a_terminal(child: Callable[..., Child]) -> None:
    read, write = os.pipe()
    with pytest.raises(OSError, match="not a terminal") as refused:
        sources.prompt(fd=read)
    assert refused.value.errno == errno.ENOTTY
    os.close(read)
    os.close(write)
    child(
        """
os.setsid()
try:
    sources.prompt()
except OSError as error:
    assert error.filename == "/dev/tty"
else:
    raise AssertionError
"""
    ).ends()


@pytest.mark.parametrize(
    ("contents", "text"),
    [
        (b"", ""),
        (b"\n", ""),
        (b"a\n\n", "a\n"),
        (b"a\r\n", "a"),
        (b"a\r", "a\r"),
        ("ä€😀".encode(), "ä€😀"),
        (b"x" * 100_000 + b"\n", "x" * 100_000),
    ],
)
def test_bytes_are_exact_and_texts_lose_one_line_end(
    tmp_path: Path, contents: bytes, text: str
) -> None:
    file = tmp_path / "file"
    file.write_bytes(contents)
    vault = malloc_arena.get(malloc_arena.HEAP_SECURE)
    with sources.from_file(file) as buffer:
        assert isinstance(buffer, SecretBuffer)
        assert buffer == contents
        assert len(buffer) == len(contents)
    assert sources.from_file(file, as_str=True) == text
    got = sources.from_file(str(file), as_str=True)
    assert vault.owns(id(got)) or len(got) < 2


def test_a_descriptor_is_no_path(own: malloc_arena.Arena) -> None:
    with Path(__file__).open("rb") as file:
        with pytest.raises(TypeError):
            sources.from_file(file.fileno(), arena=own)  # type: ignore[call-overload]
        assert file.read(3) == b'"""'


def test_what_is_not_utf8(tmp_path: Path, own: malloc_arena.Arena) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"good" + b"\xff" + SECRET)
    with pytest.raises(ArenaError, match=f"byte 4 of {len(SECRET) + 5}") as error:
        sources.from_file(file, as_str=True, arena=own)
    assert error.value.__context__ is None


def test_an_arena_of_ones_own(tmp_path: Path, own: malloc_arena.Arena) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"contents")
    buffer = sources.from_file(file, arena=own)
    assert buffer.address is not None
    assert own.owns(buffer.address)
    text = sources.from_file(file, as_str=True, arena=own)
    assert own.owns(id(text))
    buffer.close()


def test_in_a_scope_nothing_is_imported_into_it(child: Callable[..., Child]) -> None:
    child(
        """
vault = get(HEAP_SECURE)
with vault:
    with malloc_arena.sources.from_command(["true"]) as got:
        assert len(got) == 0
    malloc_arena.Secret
assert "subprocess" in sys.modules
gc.collect()
assert vault.stats().live_bytes < 20_000, vault.stats()
"""
    ).ends()


def test_a_fault_while_reading_leaves_nothing(own: malloc_arena.Arena) -> None:
    small = malloc_arena.Arena(malloc_arena.HEAP_SECURE, name="small", limit=1 << 20)
    with open("/dev/zero", "rb") as file, pytest.raises(MemoryError, match="small"):
        sources.from_fd(file.fileno(), arena=small)
    small.close()
    with pytest.raises(IsADirectoryError):
        sources.from_file("/", arena=own)
    own.close()


def test_exports() -> None:
    assert malloc_arena.sources is sources
    assert sys.modules["malloc_arena.sources"] is sources
