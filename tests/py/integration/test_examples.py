"""The examples that people copy: each does its job, and another process finds its secret in an
arena only. The control is the same program on ordinary memory, where the same search must find
it."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.server
import json
import os
import pty
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
COMMAND = [sys.executable, "-m", "malloc_arena"]

# A package of the same names without arenas.
ORDINARY = """
import contextlib, getpass, os
from pathlib import Path

HEAP_SECURE = 1

class SecretBuffer(bytearray):
    def __enter__(self): return self
    def __exit__(self, *error): pass

class Secret:
    def __init__(self, value): self.value = value
    def reveal(self): return self.value

class Vault(contextlib.nullcontext):
    def call(self, function, *arguments): return function(*arguments)
    def run(self, awaitable): return awaitable

def get(kind): return Vault()
Vault.receipt = type("Receipt", (), {"locked": True})

class sources:
    def prompt(text): return SecretBuffer(getpass.getpass(text).encode())
    def from_file(path): return SecretBuffer(Path(path).read_bytes())
    def from_env(name, as_str): return os.environ.pop(name)
"""
# How a program is started, and whether its secret must be in arenas only.
MODES = {"plain": ([], True), "run": ([*COMMAND, "run", "--"], True), "control": ([], False)}


@pytest.fixture
def environment(tmp_path: Path) -> Callable[..., dict[str, str]]:
    package = tmp_path / "ordinary"
    package.mkdir()
    (package / "malloc_arena.py").write_text(ORDINARY)

    def make(mode: str, **more: str) -> dict[str, str]:
        return os.environ | ({"PYTHONPATH": str(package)} if mode == "control" else {}) | more

    return make


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def begin(*command: str | Path, **options: object) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, **options)  # type: ignore[call-overload]
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def search(pid: int, secret: bytes, where: Path) -> tuple[int, int]:
    """Copies of the secret outside and inside arenas."""
    file = where / "searched"
    file.write_bytes(secret)
    command = [*COMMAND, "audit", "--json", "--secret-file", file, "--pid", str(pid)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120)
    look = json.loads(done.stdout)["looks"][-1]
    assert done.returncode == (1 if look["outside"] else 0)
    return look["outside"], look["inside"]


def check(found: tuple[int, int], protected: bool) -> None:
    outside, inside = found
    if protected:
        assert (outside, inside > 0) == (0, True), found
    else:
        assert outside > 0, found


@pytest.fixture
def api() -> Iterator[http.server.ThreadingHTTPServer]:
    """Answers who knows the token, and remembers no more of it than a digest."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen = hashlib.sha256(self.headers["Authorization"].encode()).hexdigest()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"{self.path} {seen}".encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("mode", MODES)
def test_api_client(
    mode: str,
    environment: Callable[..., dict[str, str]],
    start: Callable[..., subprocess.Popen[str]],
    api: http.server.ThreadingHTTPServer,
    tmp_path: Path,
) -> None:
    token = secrets.token_urlsafe(30)
    before, protected = MODES[mode]
    paths = [f"/{number}" for number in range(20)]
    client = start(
        *(*before, sys.executable, EXAMPLES / "python" / "api_client.py"),
        *("127.0.0.1", str(api.server_port), *paths),
        env=environment(mode, API_TOKEN=token),
    )
    assert client.stdout is not None
    seen = hashlib.sha256(f"Bearer {token}".encode()).hexdigest()
    for path in paths:
        assert client.stdout.readline() == f"{path} {seen}\n"
    check(search(client.pid, token.encode(), tmp_path), protected)
    client.communicate(timeout=60)
    assert client.returncode == 0


@pytest.mark.parametrize("mode", MODES)
def test_wsgi_service(
    mode: str,
    environment: Callable[..., dict[str, str]],
    start: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    key = secrets.token_bytes(32)
    (tmp_path / "key").write_bytes(key)
    before, protected = MODES[mode]
    service = start(
        *(*before, sys.executable, EXAMPLES / "python" / "wsgi_service.py", tmp_path / "key", "0"),
        env=environment(mode),
    )
    assert service.stdout is not None
    url = service.stdout.readline().strip()

    def post(path: str, message: bytes) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url + path, message, timeout=60) as answer:
                return answer.status, answer.read().decode().strip()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode().strip()

    for number in range(10):
        message = b"message %d" % number
        expected = hmac.new(key, message, "sha256").hexdigest()
        assert post("sign", message) == (200, expected)
        assert post(f"verify/{expected}", message) == (200, "good")
        assert post(f"verify/{expected}", message + b"!") == (403, "bad")
    assert post("else", b"")[0] == 404
    check(search(service.pid, key, tmp_path), protected)


# The leader of a session gets the terminal that it opens first.
TAKE_TERMINAL = """
import os, sys
os.close(os.open(sys.argv[1], os.O_RDWR))
os.execv(sys.argv[2], sys.argv[2:])
"""


def at_terminal(
    command: list[str],
    typed: list[bytes],
    env: dict[str, str],
    look: Callable[[int], None] = lambda pid: None,
) -> tuple[int, bytes]:
    """Runs a command in a terminal of its own, types a line at each prompt, and looks at it when it
    says "waiting"."""
    terminal, theirs = pty.openpty()
    first = [sys.executable, "-c", TAKE_TERMINAL, os.ttyname(theirs)]
    process = subprocess.Popen(
        [*first, *command],
        env=env,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown, answered = b"", 0
    with contextlib.suppress(OSError):  # the terminal is gone
        while data := os.read(terminal, 4096):
            shown += data
            while answered < len(typed) and shown.count(b": ") > answered:
                os.write(terminal, typed[answered] + b"\n")
                answered += 1
            if b"waiting" in data:
                look(process.pid)
                os.write(terminal, b"\n")
    os.close(terminal)
    return process.wait(timeout=60), shown


# What gets the secret: it tells its digest, and keeps the password manager waiting.
USER = """
import hashlib, sys
print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest(), "waiting", flush=True)
open("/dev/tty").readline()
"""


@pytest.mark.parametrize("mode", ["run", "control"])
def test_passwords(mode: str, environment: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    # Long ones: ordinary memory soon hands a short one's block on, and the control would find none.
    secret, master = (secrets.token_urlsafe(120).encode() for _ in range(2))
    store = str(tmp_path / "store")
    env = environment(mode)
    program = [sys.executable, str(EXAMPLES / "python" / "passwords.py"), store]
    program = [*MODES[mode][0], *program]

    for name, value in (("mail", secret), ("bank", b"another secret")):
        status, shown = at_terminal([*program, "add", name], [master, value], env)
        assert status == 0, shown
        assert value not in shown
    assert secret not in Path(store).read_bytes()
    status, shown = at_terminal([*program, "add", "third"], [b"wrong", b"value"], env)
    assert (status, b"wrong password" in shown) == (1, True)

    copies = []

    def look(pid: int) -> None:
        copies.extend(search(pid, searched, tmp_path)[0] for searched in (secret, master))

    use = [*program, "use", "mail", "--", sys.executable, "-c", USER]
    status, shown = at_terminal(use, [master], env, look)
    assert status == 0, shown
    assert hashlib.sha256(secret).hexdigest().encode() in shown
    assert len(copies) == 2
    # Used and wiped, while the program goes on.
    assert any(copies) == (mode == "control"), copies


def test_keyd(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: apt-get install gcc")
    config = [*COMMAND, "config", "--cflags", "--libs"]
    flags = shlex.split(subprocess.run(config, capture_output=True, text=True, check=True).stdout)
    program, file, path = (tmp_path / name for name in ("keyd", "key", "socket"))
    subprocess.run(
        [
            *(compiler, "-std=gnu17", "-Wall", "-Wextra", "-Werror", "-O2"),
            *(EXAMPLES / "c" / "keyd.c", "-o", program, *flags),
        ],
        check=True,
    )
    old, new = secrets.token_bytes(32), secrets.token_bytes(32)
    file.write_bytes(old)
    # A region with smaller tables is searched sooner.
    daemon = start(program, file, path, env=os.environ | {"MALLOC_ARENA_OPTIONS": "region_size=1G"})
    assert daemon.stdout is not None
    if daemon.stdout.readline() != "ready\n":
        pytest.skip("the kernel gives no locked memory here: raise the memlock limit")

    def asked(key: bytes) -> str:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect(str(path))
            client.sendall(key)
            client.shutdown(socket.SHUT_WR)
            return client.recv(10).decode()

    answers = [asked(key) for key in (old, new, old[:31], b"", old)]
    assert answers == ["yes\n", "no\n", "no\n", "no\n", "yes\n"]
    check(search(daemon.pid, old, tmp_path), True)
    # What a client sent, and what was replaced, is nowhere.
    assert search(daemon.pid, new, tmp_path) == (0, 0)
    file.write_bytes(new)
    daemon.send_signal(signal.SIGHUP)
    assert asked(new) == "yes\n"
    assert search(daemon.pid, old, tmp_path) == (0, 0)
    check(search(daemon.pid, new, tmp_path), True)
    file.write_bytes(b"short")
    daemon.send_signal(signal.SIGHUP)
    assert asked(new) == "yes\n", "a bad file must not replace the key"
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(timeout=60) == 0
    assert not path.exists()
