"""Where CPython and its library keep values that are dead, or that nobody asked them to keep.

Cleared is what may hold a secret of a scope: what was made by somebody else stays, as far as it can
be told apart by where it lies.
"""

from __future__ import annotations

import contextlib
import gc
import sys

from . import _core
from .arena import get
from .errors import ArenaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_VALUES = (str, bytes, bytearray, int, float, complex)


def sweep() -> None:
    """Collects the garbage, which is nearly all of the time that it takes, and empties everything
    below. Finalizers may copy what they refer to, so that they run in an arena: get(HEAP_SECURE),
    which has no limit that they would meet, and is not closed, whatever they keep there."""
    try:
        get(_core.HEAP_SECURE).call(_collect)
    except (MemoryError, ArenaError):  # it cannot be had
        _core._outside(_collect)
    _core._outside(_sweep)


def sweep_budget() -> None:
    """The same for an arena without secrets: its program may have no other."""
    _core._outside(_collect)
    _core._outside(_sweep)


def _collect() -> None:
    _last_error()
    gc.collect()  # before the caches are emptied, as finalizers may fill them


def clear_free_lists() -> None:
    """Gives the dead floats, tuples, lists and dicts that CPython keeps for reuse back, so that the
    next ones are made anew; microseconds, as nothing is collected, unless something is frozen."""
    # A full collection clears them, but tells others, who would fill the lists again.
    _core._without_callbacks(gc.callbacks, _collect_nothing)


def _collect_nothing() -> None:
    if gc.get_freeze_count():
        # What the program has frozen must not come back; what CPython 3.12 has, cannot.
        gc.collect()
    else:
        # With everything set aside there is nothing else for it to do.
        try:
            gc.freeze()
            gc.collect()
        finally:
            gc.unfreeze()


def _sweep() -> None:
    """One that fails, at an object of the program's or a module that is not what it seems, does not
    keep the others from their work."""
    failed = None
    for empty in (
        _patterns_and_urls,
        _dates,
        _paths_in_trees,
        _encodings,
        _processes,
        _lru_caches,
        _sources,
        _warnings,
        _displayed,
        _types,
        _numpy,
        _digits,
        clear_free_lists,
        _core._wipe_freed,  # last: what is emptied above is freed, too
    ):
        try:
            empty()
        except Exception as error:
            failed = error if failed is None else failed
    if failed is not None:
        try:
            raise failed
        finally:
            failed = None  # or its traceback would be garbage


def _is_ours(value: object) -> bool:
    base, size = _core.region()
    return 0 <= id(value) - base < size


def _is_any(value: object, kinds: type | tuple[type, ...]) -> bool:
    """isinstance(), without the object's own __class__, which runs code: a proxy's, of what may be
    dead, or not loaded yet."""
    return issubclass(type(value), kinds)


def _names(name: str) -> dict[str, Any]:
    """The names in a module, none if it is not loaded. Without its own __getattribute__, which
    would execute one that waits to be used (importlib.util.LazyLoader); and a name of sys.modules
    may stand for anything."""
    module = sys.modules.get(name)
    return object.__getattribute__(module, "__dict__") if _is_any(module, type(sys)) else {}


def _last_error() -> None:
    """The traceback of an interactive session's last error, and all that its frames hold."""
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        if hasattr(sys, name):
            delattr(sys, name)


def _patterns_and_urls() -> None:
    for module, name in (("re", "purge"), ("urllib.parse", "clear_cache")):
        _names(module).get(name, bool)()  # bool() does nothing
    # The package regex, whose own purge() leaves the texts of patterns and all replacements.
    for name in ("_cache", "_named_args", "_replacement_cache", "_locale_sensitive"):
        _names("regex._main").get(name, {}).clear()


def _dates() -> None:
    """The formats of time.strptime, each with its pattern."""
    # Not under the module's lock, which this thread may hold: in a finalizer, or a signal handler.
    # What is under it looks a format up, and puts it in, in one step each.
    cache = _names("_strptime").get("_regex_cache", {})
    for form, pattern in list(cache.items()):
        if _is_ours(form) or _is_ours(pattern):
            cache.pop(form, None)


def _paths_in_trees() -> None:
    """What find() and its like of xml.etree were asked for, [@token='...'] too."""
    _names("xml.etree.ElementPath").get("_cache", {}).clear()


def _encodings() -> None:
    """The names that an encoding was looked for by, those that are none too."""
    cache = _names("encodings").get("_cache", {})
    for name in list(cache):
        if _is_ours(name):
            cache.pop(name, None)


def _processes() -> None:
    """The arguments of processes that the program has dropped while they ran. subprocess keeps
    these, to wait for them when the next is started."""
    for process in list(_names("subprocess").get("_active") or ()):
        arguments = process.args
        each = arguments if _is_any(arguments, (list, tuple)) else (arguments,)
        if any(map(_is_ours, each)):
            process.args = ()


def _lru_caches() -> None:
    """functools.lru_cache of any function that was called with, or returned, a text, bytes or
    number of an arena."""
    kind = _names("functools").get("_lru_cache_wrapper")
    for cache in gc.get_objects():
        if type(cache) is kind and cache.cache_info().currsize and _holds(cache):
            cache.cache_clear()


def _holds(cache: Any) -> bool:
    # Keys are values, tuples of values or, where the order matters, lists of them.
    wrapped = getattr(cache, "__wrapped__", None)
    pending = [each for each in gc.get_referents(cache) if each is not wrapped]
    for depth in range(3):
        found = []
        for each in pending:
            if _is_any(each, _VALUES):
                if _is_ours(each):
                    return True
            elif _is_any(each, (tuple, list)):
                found += gc.get_referents(each)
            elif depth == 0 and type(each) is dict:
                found += [*each.keys(), *each.values()]  # the collector is not shown keys
        pending = found
    return False


def _sources() -> None:
    """Lines of source that a traceback was printed with: a file that was read inside a scope, which
    tells where a secret literal is, or what was typed in a shell."""
    cache = _names("linecache").get("cache", {})
    for name, entry in list(cache.items()):
        if len(entry) > 2 and any(map(_is_ours, entry[2])):
            cache.pop(name, None)


def _warnings() -> None:
    """The texts of warnings, kept by each module so as not to be shown twice."""
    for module in list(sys.modules):
        registry: Any = _names(module).get("__warningregistry__")
        for key in list(registry) if type(registry) is dict else ():
            if type(key) is tuple and any(map(_is_ours, key)):
                registry.pop(key, None)


class _Index:
    """An index that makes arrays when it is asked for, DEPTH within each other: then numpy holds
    memory for as many shapes of LENGTH."""

    def __init__(self, empty: Any, length: int, depth: int) -> None:
        self.arguments = empty, length, depth

    def __index__(self) -> int:
        empty, length, depth = self.arguments
        if depth:
            empty((_Index(empty, length, depth - 1),) + (0,) * (length - 1))
        return 0


def _numpy() -> None:
    """What numpy keeps for the next arrays and ufuncs: memory for shapes, up to 7 blocks of 2
    numbers, of 3, and so on to 15, and 5 for loops. They hold no secret, but an arena open. New
    ones outside take their place. And the digits of the last number that it made a text of."""
    numpy = _names("numpy")
    empty, ufunc = numpy.get("empty"), numpy.get("frompyfunc")
    if empty is None or ufunc is None:
        return
    if _core._stack_room() > 128 << 10:  # of which some dozen calls within each other take 40
        for length in range(2, 16):
            _Index(empty, length, 15).__index__()
        # By an argument, as a function that knows itself would be garbage in a cycle.
        loop = ufunc(lambda loop, depth: loop(loop, depth - 1) if depth else 0, 2, 1)
        loop(loop, 11)
    # The digits of the last number that was printed, in 16 KiB of this thread's, and the integers
    # that they were made of: the largest number takes their place.
    digits = numpy.get("format_float_positional")
    if digits is not None:
        with contextlib.suppress(RuntimeError):  # a numpy with less room
            digits(sys.float_info.max, unique=False, precision=16_000)


def _digits() -> None:
    """The integers, of as many words as they need, that the texts of floats are read and written
    by. CPython keeps dead ones in lists of its own, by their size, and uses the last one first: so
    numbers that need as many, and as long ones, take their place."""
    for length in (17, 18, 19, 27, 28, 36, 37, 40, 80, 768):
        nines = "9" * length
        for text in (nines, f"0.{nines}", f"{nines}e{max(0, 270 - length)}"):
            float(text)
        for below in (30, 150, 290):
            float(f"{nines}e-{length + below}")
    for number in (2.0**53 - 1, sys.float_info.max, 0.1 + 0.2, 1e200 / 3, 1e-16 / 3, 1e-300 / 3):
        for form in ("%r", "%.2f", "%.17g", "%.60f", "%.340f"):
            form % number
    for places in (20, 24, 26, 30, 31, 38, 54, 86, 150, 278, 534):
        f"{1e-300 / 3:.{places}e}"


def _displayed() -> None:
    """An interactive session's last value."""
    import builtins

    last = vars(builtins).get("_")
    if _is_any(last, _VALUES) and _is_ours(last):
        del builtins._  # type: ignore[attr-defined]


def _types() -> None:
    """The cache of attributes by type and name keeps names."""
    getattr(sys, "_clear_internal_caches", sys._clear_type_cache)()
