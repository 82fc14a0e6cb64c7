"""Scopes over the borders of threads.

A thread that is started inside a scope is in it for its life. What is given to a thread pool inside
a scope runs in it, and the pool's workers, which outlive it, do not.
"""

from __future__ import annotations

import _thread
import sys

from . import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from threading import Thread
    from types import ModuleType
    from typing import Any

_MARK = "_inherits_arena"  # of what is wrapped already, also by a copy of this module

# By name in _thread; threading has its own references to them, with an underscore in front.
_STARTS = ("start_new_thread", "start_new", "start_joinable_thread")


def install() -> None:
    """For good, as an arena lives as long as something in it does; again without effect."""
    threading = sys.modules.get("threading")
    for name in _STARTS:
        original = getattr(_thread, name, None)
        if original is None or hasattr(original, _MARK):
            continue
        started = _inheriting_start(original)
        setattr(_thread, name, started)
        if getattr(threading, f"_{name}", None) is original:
            setattr(threading, f"_{name}", started)
    _AfterImport.call("concurrent.futures.thread", _wrap_submit)
    _AfterImport.call("numpy", _hook_numpy)
    _AfterImport.call("greenlet", _hook_greenlet)


def _inheriting_start(original: Callable[..., Any]) -> Callable[..., Any]:
    def start(*args: Any, **kwargs: Any) -> Any:
        if not _core._is_inside() or not args or not callable(args[0]):
            return original(*args, **kwargs)
        threading = sys.modules.get("threading")
        method = getattr(args[0], "__func__", None)
        if threading is not None and method is threading.Thread._bootstrap:
            # Its run() alone: what comes before must not fail in an arena that is full, as start()
            # waits for it, and would put tables of threading's into the arena.
            thread = args[0].__self__
            run = _run_of(thread, vars(thread).get("run"))
            inherited = _core._inherit(run)
            return _core._outside(_start_thread, original, thread, inherited, args, kwargs)
        inherited = _core._inherit_start(args[0])
        return _core._outside(original, inherited, *args[1:], **kwargs)

    return _wrapping(original, start)


def _start_thread(
    original: Callable[..., Any],
    thread: Thread,
    run: Callable[[], None],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    before = vars(thread).get("run")
    vars(thread)["run"] = run
    try:
        return original(*args, **kwargs)
    except BaseException:
        _restore(thread, before)
        raise


def _restore(thread: Thread, run: Any) -> None:
    if run is None:
        vars(thread).pop("run", None)
    else:
        vars(thread)["run"] = run


def _run_of(thread: Thread, before: Any) -> Callable[[], None]:
    """What the thread's run() is for one call; then whatever its class says again."""

    def run() -> None:
        _restore(thread, before)
        try:
            thread.run()
        except MemoryError:
            raise  # of the arena, perhaps, which then has no room for its traceback
        except BaseException:
            # As threading does a moment later, but in the scope: a traceback holds values.
            tell = getattr(thread, "_invoke_excepthook", None)
            if tell is None:
                raise
            tell(thread)

    return run


def _wrapping(original: Any, wrapper: Any) -> Callable[..., Any]:
    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(wrapper, name, getattr(original, name, None))
    wrapper.__wrapped__ = original
    setattr(wrapper, _MARK, True)
    made: Callable[..., Any] = wrapper
    return made


def _wrap_submit(module: ModuleType) -> None:
    pool = module.ThreadPoolExecutor
    original = pool.submit
    if hasattr(original, _MARK):
        return

    def submit(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        inherited = _core._inherit(fn)
        if inherited is fn:
            return original(self, fn, *args, **kwargs)
        return _core._outside(original, self, inherited, *args, **kwargs)

    pool.submit = _wrapping(original, submit)


def _hook_numpy(module: ModuleType) -> None:
    from .numpy_hook import hook

    hook(module)


def _hook_greenlet(module: ModuleType) -> None:
    from .greenlets import hook

    hook(module)


class _AfterImport:
    """A finder that finds nothing, and calls a function when a module has been imported."""

    def __init__(self) -> None:
        self.waiting: dict[str, Callable[[ModuleType], None]] = {}

    @classmethod
    def call(cls, name: str, function: Callable[[ModuleType], None]) -> None:
        """FUNCTION with the module of that NAME: now, or when it is imported."""
        module = sys.modules.get(name)
        if module is not None and not getattr(module.__spec__, "_initializing", False):
            function(module)
            return
        finder: Any = next((each for each in sys.meta_path if hasattr(each, _MARK)), None)
        if finder is None:
            finder = cls()
            setattr(finder, _MARK, True)
            sys.meta_path.insert(0, finder)
        finder.waiting[name] = function

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        function = self.waiting.get(name)
        if function is None:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    self._follow(spec.loader, name, function)
                return spec
        return None

    def _follow(self, loader: Any, name: str, function: Callable[[ModuleType], None]) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            # Not before: a failed import may be tried again. A loader may serve other modules.
            if module.__name__ == name and self.waiting.pop(name, None) is not None:
                _core._outside(function, module)
            if not self.waiting and self in sys.meta_path:
                sys.meta_path.remove(self)

        loader.exec_module = exec_module
