"""First-class malloc arenas: secrets in locked memory, wiped when their last reference goes.

>>> vault = malloc_arena.get(HEAP_SECURE)
>>> with vault:
...     config = json.loads(fetch_secret())

Nothing is reserved, locked or hooked before the first arena is asked for.
"""

from __future__ import annotations

from ._core import (
    HEAP_DEFAULT,
    HEAP_ISOLATED,
    HEAP_SECRETMEM,
    HEAP_SECURE,
    HEAP_TAGGED,
    SecretBuffer,
    __version__,
    region,
)
from .arena import Arena, get
from .errors import ArenaError, ArenaUnavailable, HooksLost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

    from . import audit

__all__ = [
    "HEAP_DEFAULT",
    "HEAP_ISOLATED",
    "HEAP_SECRETMEM",
    "HEAP_SECURE",
    "HEAP_TAGGED",
    "Arena",
    "ArenaError",
    "ArenaUnavailable",
    "HooksLost",
    "SecretBuffer",
    "__version__",
    "audit",
    "get",
    "region",
]


def __getattr__(name: str) -> ModuleType:
    if name == "audit":  # loaded by those who use it
        import importlib

        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
