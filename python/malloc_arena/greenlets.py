"""Scopes of greenlets, which change places within a thread.

A scope belongs to the greenlet that opened it: at each switch those of the one that stops are left,
and those of the one that goes on are entered again. One that is started inside a scope, by a switch
to it, is in that arena for its life; gevent's and eventlet's hub is not, as it starts others later.
"""

from __future__ import annotations

import sys
from weakref import WeakKeyDictionary

from . import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any


def hook(greenlet: ModuleType) -> None:
    """Scopes follow switches from now on, in each thread that opens one."""

    def follow() -> None:
        greenlet.settrace(_Tracer(greenlet.getcurrent(), greenlet.settrace(None)))

    _core._follow_greenlets(follow)


class _Tracer:
    """What greenlet calls after each switch of a thread, in the one that goes on."""

    def __init__(self, current: Any, previous: Callable[[str, Any], Any] | None) -> None:
        self.current = current
        self.previous = previous  # a tracer of someone else's, which was there before
        self.suspended: WeakKeyDictionary[Any, object] = WeakKeyDictionary()

    def __call__(self, event: str, args: Any) -> None:
        if event in ("switch", "throw"):
            origin, target = args
            if target is self.current:  # told twice, by a tracer that calls this one
                return
            self.current = target
            left = _core._suspend(origin.dead)
            # From here on outside of every arena.
            if left is not None or self.suspended:
                self._change(origin, left, target)
        if self.previous is not None:
            _core._outside(self.previous, event, args)

    def _change(self, origin: Any, left: object, target: Any) -> None:
        own = self.suspended.pop(target, None)
        if left is not None and not origin.dead:
            self.suspended[origin] = left
        if own is not None:
            _core._resume(own, False)
        # One that goes on does so in the function that had switched; one that begins has none yet.
        elif sys._getframe(1).f_back is None and not _is_hub(target):
            _core._resume(left, True)


def _is_hub(target: Any) -> bool:
    gevent = getattr(sys.modules.get("gevent.hub"), "Hub", None)
    if gevent is not None and isinstance(target, gevent):
        return True
    eventlet = getattr(sys.modules.get("eventlet.hubs"), "_threadlocal", None)
    return getattr(getattr(eventlet, "hub", None), "greenlet", None) is target
