"""pytest plugin: a test fails when a secret that it watches is left outside the arena.

    def test_login(residue, vault):
        token = residue.secret()          # random, in the vault, and watched
        with vault:
            login(token)

    @pytest.mark.no_residue(env="API_TOKEN")        # or file=path, or call=function
    def test_report(): ...

    @pytest.mark.arena_limit("1 MiB")
    def test_small(vault): ...

Nothing but pytest is imported before a test asks for one of these.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from . import Arena, SecretBuffer
    from .audit import Finding

_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_FRAMES = 25
_SHOWN = 20


class Residue:
    """The secrets that one test watches. They are kept in the vault."""

    def __init__(self) -> None:
        self._watched: list[SecretBuffer] = []
        self._before: dict[int, set[int]] = {}  # watched secret: where it was before the test

    def secret(self, size: int = 32) -> str:
        """A new random text of SIZE letters and digits, made in the vault, and watched."""
        import secrets
        import string

        from . import HEAP_SECURE, get

        with get(HEAP_SECURE):
            letters = string.ascii_letters + string.digits
            text = "".join(secrets.choice(letters) for _ in range(size))
            self.watch(text)
        return text

    def watch(self, secret: str | bytes | bytearray | memoryview | SecretBuffer) -> None:
        """Watches SECRET, of which a copy is kept in the vault. Where it lies now, outside the
        vault, is a finding if it is still there after the test."""
        from . import HEAP_SECURE, get

        vault = get(HEAP_SECURE)
        with vault:
            data = memoryview(secret.encode() if isinstance(secret, str) else secret)
            copy = vault.buffer(len(data))
            copy[:] = data
            data.release()
        self._watched.append(copy)

    def baseline(self) -> None:
        """What there is of the watched secrets now was not left by the test."""
        from . import audit

        for number, copy in enumerate(self._watched):
            self._before[number] = {hit.address for hit in audit.scan(copy).outside()}

    def check(self) -> str:
        """What was found outside the vault, as the text of the failure; "" if nothing was."""
        from . import audit

        left = []
        for number, copy in enumerate(self._watched):
            before = self._before.get(number, set())
            left += [
                finding
                for finding in audit.scan(copy).findings
                if finding.hit.owner != "arena" and finding.hit.address not in before
            ]
        return _text(left) if left else ""

    def close(self) -> None:
        for copy in self._watched:
            copy.close()
        self._watched.clear()
        self._before.clear()

    def __bool__(self) -> bool:
        return bool(self._watched)


_PROPERTY = "malloc_arena residue"  # of a report, so that it comes from other processes as well
_tally: collections.Counter[str] = collections.Counter()
_residue = pytest.StashKey[Residue]()


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "no_residue(env=, file=, call=): fail if that secret is left outside the arena",
        'arena_limit(size): the fixture vault may hold no more, as in arena_limit("1 MiB")',
    ):
        config.addinivalue_line("markers", line)


@pytest.fixture
def vault(request: pytest.FixtureRequest) -> Generator[Arena]:
    """An arena of HEAP_SECURE; one of its own, with that limit, where arena_limit is marked."""
    from . import HEAP_SECURE, Arena, ArenaError, get

    mark = request.node.get_closest_marker("arena_limit")
    if mark is None:
        yield get(HEAP_SECURE)
        return
    arena = Arena(HEAP_SECURE, name="arena_limit", limit=_limit(mark))
    yield arena
    with contextlib.suppress(ArenaError, OSError):
        arena.close()  # refused where a fixture of a wider scope keeps something of it alive


@pytest.fixture
def residue(request: pytest.FixtureRequest) -> Residue:
    """Watches secrets: `residue.secret()` makes one, `residue.watch(secret)` takes one."""
    return _of(request.node)


def _of(item: Any) -> Residue:
    found: Residue = item.stash.setdefault(_residue, Residue())
    return found


def _limit(mark: pytest.Mark) -> int:
    try:
        return _bytes(*mark.args, **mark.kwargs)
    except TypeError:
        raise pytest.UsageError('arena_limit takes one size, as "1 MiB"') from None


def _bytes(size: int | str) -> int:
    """A number of bytes, as 4096, "64 KiB" or "1 MiB"."""
    match = re.fullmatch(r"(\d+)\s*([kmg]?i?b?)", str(size).strip().lower())
    if not match or match[2] not in _UNITS:
        raise pytest.UsageError(f'arena_limit takes a size as "1 MiB", not {size!r}')
    return int(match[1]) * _UNITS[match[2]]


def _marked(item: pytest.Item) -> None:
    for mark in item.iter_markers("no_residue"):
        residue = _of(item)
        if mark.args or not mark.kwargs:
            # A secret in the mark would be in the source, the code and pytest's own objects.
            raise pytest.UsageError("no_residue takes env=, file= or call=, not the secret")
        for kind, given in mark.kwargs.items():
            if kind not in ("env", "file", "call"):
                raise pytest.UsageError(f"no_residue knows env=, file= and call=, not {kind}=")
            _watch(residue, given if kind == "call" else functools.partial(_given, kind, given))
        residue.baseline()
    if item.get_closest_marker("arena_limit") and "vault" not in getattr(item, "fixturenames", ()):
        raise pytest.UsageError(f"{item.nodeid}: arena_limit needs the fixture vault")


def _watch(residue: Residue, function: Callable[[], Any]) -> None:
    from . import HEAP_SECURE, get

    with get(HEAP_SECURE):
        residue.watch(function())


def _given(kind: str, name: str) -> bytes:
    if kind == "env":
        if name not in os.environ:
            pytest.skip(f"no_residue: there is no variable {name}")
        return os.environb[os.fsencode(name)]
    with open(name, "rb", buffering=0) as file:  # noqa: PTH123  no buffer outside the vault
        return (file.read() or b"").rstrip(b"\n")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    with _watching(pyfuncitem):
        return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Methods of a unittest.TestCase, which pytest_pyfunc_call is not called for."""
    with _watching(item) if _is_of_unittest(item) else contextlib.nullcontext():
        return (yield)


def _is_of_unittest(item: pytest.Item) -> bool:
    unittest = sys.modules.get("unittest")  # who has not imported it has no such test
    kind = getattr(item, "cls", None)
    return unittest is not None and kind is not None and issubclass(kind, unittest.TestCase)


@contextlib.contextmanager
def _watching(item: pytest.Item) -> Generator[None]:
    """The search when the test has returned."""
    _marked(item)
    traced = False
    if _residue in item.stash:
        import tracemalloc

        if not tracemalloc.is_tracing():
            tracemalloc.start(_FRAMES)
            traced = True
    try:
        yield
        residue = item.stash.get(_residue, None)
        if residue:
            failure = residue.check()
            item.user_properties[:] = [
                *(one for one in item.user_properties if one[0] != _PROPERTY),  # of a run before
                (_PROPERTY, "copies left" if failure else "none"),
            ]
            if failure:
                pytest.fail(failure, pytrace=False)
    finally:
        if _residue in item.stash:
            item.stash[_residue].close()
        if traced:
            tracemalloc.stop()


def _text(left: list[Finding]) -> str:
    from .render.audit import alike, describe

    times = "once" if len(left) == 1 else f"{len(left)} times"
    lines = [f"the secret is left outside the arena {times}:"]
    shown = alike(left)[:_SHOWN]
    for finding, count in shown:
        lines += ["", *describe(finding, count)]
    if rest := len(left) - sum(count for _, count in shown):
        lines += ["", f"and {rest} more"]
    return "\n".join(lines)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        _tally.update(str(value) for name, value in report.user_properties if name == _PROPERTY)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _tally:
        tests = "1 test" if _tally.total() == 1 else f"{_tally.total()} tests"
        left = f"{_tally['copies left']} left copies" if _tally["copies left"] else "no copies left"
        terminalreporter.write_line(f"malloc-arena: {tests} watched for residue, {left}")
