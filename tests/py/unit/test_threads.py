"""Threads that are started in a scope are in it; of pools the tasks are, the workers are not."""

from __future__ import annotations

import _thread
import asyncio
import concurrent.futures
import contextvars
import gc
import importlib
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import malloc_arena
import malloc_arena.threads
from conftest import Child, empty
from malloc_arena import HEAP_DEFAULT, HEAP_SECURE, Arena


def where(*arenas: Arena) -> str:
    """The name of the arena that this thread allocates in."""
    made = bytes(100)
    return next((arena.name for arena in arenas if arena.owns(id(made))), "none")


def test_a_thread_inherits_for_its_life(own: Arena) -> None:
    seen: list[str] = []
    started, go = threading.Event(), threading.Event()

    def work() -> None:
        seen.append(where(own))
        started.set()
        go.wait()
        seen.append(where(own))

    with own:
        thread = threading.Thread(target=work)
        thread.start()
        assert started.wait(60)
    assert where(own) == "none"
    go.set()
    thread.join()
    assert seen == ["own", "own"]
    assert "run" not in vars(thread)


def test_the_innermost_scope_is_inherited(own: Arena) -> None:
    other = Arena(HEAP_SECURE, name="other")
    seen: list[str] = []

    def work(deep: int) -> None:
        seen.append(where(own, other))
        if deep:
            thread = threading.Thread(target=work, args=(deep - 1,))
            thread.start()
            thread.join()
        with own:
            seen.append(where(own, other))
        seen.append(where(own, other))

    with own, other:
        work(2)
        last = threading.Thread(target=work, args=(0,))
        last.start()
    last.join()
    assert len(seen) == 12
    assert seen[:3] == ["other"] * 3
    assert sorted(seen) == ["other"] * 8 + ["own"] * 4
    del last
    seen.clear()
    gc.collect()
    assert "builtins.bytes" not in {escape.type for escape in other.escapes()}


class Overridden(threading.Thread):
    def __init__(self, own: Arena) -> None:
        super().__init__()
        self.own = own
        self.seen = ""
        self.local = threading.local()

    def start(self) -> None:
        self.started = True
        super().start()

    def run(self) -> None:
        self.seen = where(self.own)
        assert self.run.__func__ is Overridden.run  # type: ignore[attr-defined]


def test_subclasses(own: Arena) -> None:
    with own:
        thread = Overridden(own)
        thread.start()
        timer = threading.Timer(0.01, lambda: None)
        timer.start()
    thread.join()
    timer.join()
    assert thread.seen == "own"
    thread = Overridden(own)
    thread.start()
    thread.join()
    assert thread.seen == "none"
    with pytest.raises(RuntimeError, match="once"), own:
        thread.start()
    assert "run" not in vars(thread)


def test_a_run_of_the_instance_comes_back(own: Arena) -> None:
    thread = threading.Thread()
    seen: list[str] = []

    def run() -> None:
        seen.append(where(own))

    thread.run = run  # type: ignore[method-assign]
    with own:
        thread.start()
    thread.join()
    assert seen == ["own"]
    assert vars(thread)["run"] is run


def test_the_bare_module(own: Arena) -> None:
    seen: list[Any] = []
    done = threading.Semaphore(0)

    def work(*args: Any, **kwargs: Any) -> None:
        seen.append((where(own), args, kwargs))
        done.release()

    with own:
        _thread.start_new_thread(work, (1, 2), {"key": 3})
        _thread.start_new_thread(work, ())
    _thread.start_new_thread(work, ())
    for _ in range(3):
        done.acquire()
    assert sorted(map(str, seen)) == [
        "('none', (), {})",
        "('own', (), {})",
        "('own', (1, 2), {'key': 3})",
    ]
    with own:
        for wrong in ((), (1,), (work, 1), (1, ())):
            with pytest.raises(TypeError):
                _thread.start_new_thread(*wrong)  # type: ignore[arg-type]
    seen.clear()


def test_an_error_in_a_thread(own: Arena) -> None:
    errors: list[Any] = []
    hook, threading.excepthook = threading.excepthook, lambda args: errors.append(args.exc_type)
    try:
        with own:
            thread = threading.Thread(target=lambda: 1 // 0)
            thread.start()
        thread.join()
    finally:
        threading.excepthook = hook
    assert errors == [ZeroDivisionError]


class Token:
    pass


def fail(error: type[BaseException], token: Token) -> None:
    raise error("secret")


def leave_open(own: Arena, token: Token) -> None:
    own.__enter__()


@pytest.fixture
def unraisable(own: Arena, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is given to the hook, and where it is called."""
    seen: list[tuple[Any, ...]] = []

    def hook(error: sys.UnraisableHookArgs) -> None:
        seen.append((where(own), error.exc_type, error.err_msg, error.object))

    monkeypatch.setattr(sys, "unraisablehook", hook)
    return seen


def to_its_end(start: Callable[..., Any], function: Callable[..., None], *args: Any) -> None:
    token, ended = Token(), threading.Event()
    weakref.finalize(token, ended.set)
    start(function, (*args, token))
    del token
    assert ended.wait(60)


@pytest.mark.parametrize(
    ("error", "place"), [(ValueError, "own"), (MemoryError, "none"), (SystemExit, "")]
)
def test_an_error_in_a_bare_thread_is_said_of_its_function(
    own: Arena, unraisable: list[tuple[Any, ...]], error: type[BaseException], place: str
) -> None:
    """As outside of scopes. Where it is said is in the scope, as a traceback holds values, unless
    it may have no room for it."""
    to_its_end(_thread.start_new_thread, fail, error)
    with own:
        to_its_end(_thread.start_new_thread, fail, error)
    if not place:
        assert unraisable == []
        return
    outside, inside = unraisable
    assert outside[1:] == inside[1:]
    assert (outside[0], inside[0]) == ("none", place)
    if sys.version_info < (3, 13):
        assert inside[3] is fail
    else:
        assert inside[2].endswith(f"thread started by {fail!r}")
    unraisable.clear()


def test_a_bare_thread_that_leaves_a_scope_open(
    own: Arena, unraisable: list[tuple[Any, ...]]
) -> None:
    with own:
        to_its_end(_thread.start_new_thread, leave_open, own)
    assert [error[:2] for error in unraisable] == [("none", malloc_arena.ArenaError)]
    unraisable.clear()


def test_an_error_in_a_task_goes_to_its_future(
    own: Arena, unraisable: list[tuple[Any, ...]]
) -> None:
    with ThreadPoolExecutor(1) as pool, own:
        future = pool.submit(fail, SystemExit, Token())
        assert isinstance(future.exception(), SystemExit)
        del future
    assert unraisable == []


def test_a_thread_that_cannot_start(own: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no more threads")

    name = "_start_joinable_thread"
    if not hasattr(threading, name):
        name = "_start_new_thread"
    monkeypatch.setattr(threading, name, malloc_arena.threads._inheriting_start(fail))
    thread = threading.Thread(target=print)
    with own, pytest.raises(RuntimeError, match="no more threads"):
        thread.start()
    assert "run" not in vars(thread)


def test_a_full_arena_fails_a_thread_and_does_not_hang_it() -> None:
    small = Arena(HEAP_SECURE, name="small", limit=256 << 10)
    errors: list[str] = []
    hook, threading.excepthook = (
        threading.excepthook,
        lambda args: errors.append(args.exc_type.__name__),
    )
    try:
        kept: list[bytes] = []
        with pytest.raises(MemoryError, match="small"), small:
            for size in (4000, 1000, 200, 100, 50, 32, 16):
                while True:
                    try:
                        kept.append(bytes(size - 33 if size > 33 else 0))
                    except MemoryError:
                        break
                    if len(kept) > 100_000:
                        break
            threading.Thread(target=print).start()
            raise MemoryError('arena "small" had room for it')
    finally:
        threading.excepthook = hook
    kept.clear()


def test_an_arena_lives_as_long_as_its_threads() -> None:
    own = Arena(HEAP_SECURE, name="threaded")
    go = threading.Event()
    seen: list[bool] = []

    def work() -> None:
        go.wait()
        base, size = malloc_arena.region()
        seen.append(base <= id(bytes(100)) < base + size)

    with own:
        thread = threading.Thread(target=work)
        thread.start()
    with pytest.raises(malloc_arena.ArenaError, match="cannot be closed"):
        own.close()
    del own
    gc.collect()
    Arena(HEAP_SECURE).close()  # ends what can be ended
    go.set()
    thread.join()
    assert seen == [True]
    del thread, work


def test_nothing_is_left_of_a_thread(own: Arena) -> None:
    """Nothing but tables of threading's own that happened to grow inside."""

    def work() -> None:
        made.append(bytes(100))

    made: list[bytes] = []
    blocks = []
    for _ in range(3):
        for _ in range(30):
            with own:
                thread = threading.Thread(target=work)
                thread.start()
                thread.join()
                del thread
            made.clear()
        gc.collect()
        assert own.escapes() == []
        blocks.append(own.stats().live_blocks)
    assert blocks[2] <= blocks[1] <= blocks[0] + 8
    assert blocks[2] < 20


def test_a_pool_inherits_by_task(own: Arena) -> None:
    other = Arena(HEAP_SECURE, name="other")
    with ThreadPoolExecutor(1) as pool:
        with own:
            first = pool.submit(where, own, other)  # and the worker starts here
        outside = pool.submit(where, own, other)
        with other:
            second = pool.submit(where, own, other)
        with own:
            many = list(pool.map(lambda n: (n, where(own, other)), range(5)))
            failed = pool.submit(divmod, 1, 0)
            named = pool.submit(dict, key=where(own, other))
        after = pool.submit(where, own, other)
        assert first.result() == "own"
        assert outside.result() == "none"
        assert second.result() == "other"
        assert many == [(n, "own") for n in range(5)]
        assert isinstance(failed.exception(), ZeroDivisionError)
        assert named.result() == {"key": "own"}
        assert after.result() == "none"
        del first, second, many, failed, named
    gc.collect()
    other.close()


def test_a_pool_inside_a_scope(own: Arena) -> None:
    with own:
        pool = ThreadPoolExecutor(2, initializer=lambda: None)
        assert pool.submit(where, own).result() == "own"
    assert pool.submit(where, own).result() == "none"
    pool.shutdown()
    del pool


def test_a_task_that_is_cancelled(own: Arena) -> None:
    go = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(go.wait)
        with own:
            waiting = pool.submit(where, own)
        assert waiting.cancel()
        go.set()
    del waiting
    assert empty(own)


def test_a_pool_of_a_subclass(own: Arena) -> None:
    class Pool(ThreadPoolExecutor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            return super().submit(lambda: (fn(*args, **kwargs), where(own)))

    with Pool() as pool:
        with own:
            inside = pool.submit(where, own)
        assert inside.result() == ("own", "own")
        assert pool.submit(where, own).result() == ("none", "none")
        del inside


async def in_thread(own: Arena) -> list[str]:
    loop = asyncio.get_running_loop()
    return [
        await asyncio.to_thread(where, own),
        await loop.run_in_executor(None, where, own),
    ]


def test_asyncio_threads(own: Arena) -> None:
    async def main() -> list[str]:
        bound, free = await asyncio.gather(own.run(in_thread(own)), in_thread(own))
        return bound + free + await in_thread(own)

    assert asyncio.run(main()) == ["own", "own", "none", "none", "none", "none"]


def test_context_variables_are_untouched(own: Arena) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    async def work(n: int) -> int:
        variable.set(n)
        await asyncio.sleep(0)
        return variable.get()

    async def main() -> list[int]:
        before = set(contextvars.copy_context())
        found = await asyncio.gather(own.run(work(1)), work(2), own.run(work(3)))
        assert await own.run(work(4)) == 4
        assert variable.get() == 4, "a coroutine that is awaited runs in the caller's context"
        with own:
            assert set(contextvars.copy_context()) == before | {variable}
        return found

    assert asyncio.run(main()) == [1, 2, 3]


def test_installed_once_and_for_good(own: Arena) -> None:
    starts = _thread.start_new_thread, threading.Thread.start, ThreadPoolExecutor.submit
    malloc_arena.threads.install()
    again = importlib.reload(malloc_arena.threads)
    again.install()
    assert starts == (_thread.start_new_thread, threading.Thread.start, ThreadPoolExecutor.submit)
    Arena(HEAP_DEFAULT).close()
    assert concurrent.futures.ThreadPoolExecutor is ThreadPoolExecutor


@pytest.mark.parametrize("when", ["before", "after", "inside"])
def test_modules_imported_before_and_after(child: Callable[..., Child], when: str) -> None:
    imports = "import threading, concurrent.futures.thread, importlib.util\n"
    process = child(
        (imports if when == "before" else "")
        + """
vault = get(HEAP_SECURE)
before = len(sys.meta_path)
if "inside" == WHEN:
    with vault:
        exec(imports)
else:
    exec(imports)
def where(): return vault.owns(id(bytes(100)))
seen = []
with vault:
    thread = threading.Thread(target=lambda: seen.append(where()))
    thread.start(); thread.join()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        assert pool.submit(where).result()
assert seen == [True]
assert importlib.util.find_spec("numpy") is None or True
assert concurrent.futures.thread.__spec__.loader.get_source("concurrent.futures.thread")
""".replace("WHEN", repr(when)).replace("imports", repr(imports))
    )
    process.ends()


def test_nothing_is_wrapped_before_the_first_arena(child: Callable[..., Child]) -> None:
    child(
        """
import _thread, concurrent.futures.thread as pools
before = _thread.start_new_thread, pools.ThreadPoolExecutor.submit, list(sys.meta_path)
malloc_arena.SecretBuffer(10)
assert before == (_thread.start_new_thread, pools.ThreadPoolExecutor.submit, sys.meta_path)
get(HEAP_SECURE)
assert before[0] is not _thread.start_new_thread
"""
    ).ends()


def test_processes(child: Callable[..., Child]) -> None:
    """A process that multiprocessing forks inside a scope is in it, one that it spawns is not."""
    child(
        """
import multiprocessing, tempfile, textwrap, subprocess
with tempfile.TemporaryDirectory() as there:
    path = os.path.join(there, "script.py")
    open(path, "w").write(textwrap.dedent('''
        import multiprocessing, sys, malloc_arena
        def work(queue):
            base, size = malloc_arena.region()
            vault = malloc_arena.get(malloc_arena.HEAP_SECURE)
            inside = vault.owns(id(bytes(100)))
            with vault:
                made = [b"x" * n for n in range(1000)]
            queue.put((inside, len(made), vault.receipt.locked))
        if __name__ == "__main__":
            vault = malloc_arena.get(malloc_arena.HEAP_SECURE)
            for method in ("fork", "forkserver", "spawn"):
                context = multiprocessing.get_context(method)
                with vault:
                    queue = context.SimpleQueue()
                    process = context.Process(target=work, args=(queue,))
                    process.start()
                    got = queue.get()
                    process.join()
                assert process.exitcode == 0, method
                assert got == (method == "fork", 1000, True), (method, got)
                with context.Pool(2) as pool:
                    with vault:
                        assert pool.map(abs, range(-50, 0)) == list(range(50, 0, -1))
    '''))
    subprocess.run([sys.executable, path], check=True)
"""
    ).ends()


def test_pre_forked_workers(child: Callable[..., Child]) -> None:
    """A master that holds a key in the vault, and workers that serve with it, as gunicorn's do."""
    process = child(
        """
import signal, socket, threading
vault = get(HEAP_SECURE)
with vault:
    key = b"".join([b"the ", b"key"]) * 10
listener = socket.create_server(("127.0.0.1", 0))
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
workers = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        while True:
            connection, _ = listener.accept()
            with vault:
                import_free = connection.recv(100) + key
                connection.sendall(b"%d %d" % (len(import_free), vault.receipt.locked))
            del import_free
            connection.close()
    workers.append(pid)
for _ in range(60):
    with socket.create_connection(listener.getsockname()) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"75 1"
for pid in workers:
    os.kill(pid, signal.SIGTERM)
    assert os.waitpid(pid, 0)[1] == 0
assert vault.owns(id(key)) and key[:7] == b"the key"
"""
    )
    process.ends()


def test_signal_handlers(own: Arena) -> None:
    """One that runs in the middle of a block is in its scope; one that raises ends it."""
    import signal

    seen: list[str] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(where(own)))
    try:
        with own:
            signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)

        def fail(*_: Any) -> None:
            with own:
                raise KeyError("handler")

        signal.signal(signal.SIGUSR1, fail)
        for _ in range(3):
            with pytest.raises(KeyError), own:
                signal.raise_signal(signal.SIGUSR1)
            assert where(own) == "none"
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == ["own", "none"]
