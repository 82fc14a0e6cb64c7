"""First-class malloc arenas: secrets in locked memory, wiped when their last reference goes.

>>> vault = malloc_arena.get(HEAP_SECURE)
>>> with vault:
...     config = json.loads(fetch_secret())

Nothing is reserved, locked or hooked before the first arena is asked for.
"""

from __future__ import annotations

try:
    from ._core import (
        HEAP_DEFAULT,
        HEAP_ISOLATED,
        HEAP_SECRETMEM,
        HEAP_SECURE,
        HEAP_TAGGED,
        SecretBuffer,
        __version__,
        _outside,
        region,
    )
except ModuleNotFoundError as error:
    if error.name != f"{__name__}._core":
        raise
    import sys

    # The source tree on the path, or a package that another Python installed.
    raise ImportError(
        f"malloc_arena in {__path__[0]} has not been built for Python "
        f"{sys.version_info[0]}.{sys.version_info[1]}: install it with this one's pip",
        name=__name__,
    ) from None
from .arena import Arena, get
from .errors import ArenaError, ArenaUnavailable, HooksLost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import audit as audit
    from . import sources
    from .secret import Secret

# Not audit: `import *` would load it, and what an interpreter with a GIL of its own may not have.
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
    "Secret",
    "SecretBuffer",
    "__version__",
    "get",
    "region",
    "sources",
]


def __getattr__(name: str) -> object:
    if name not in ("Secret", "audit", "sources"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Loaded by those who use it, and not into an arena, if that is in a scope.
    return _outside(_load, name)


def _load(name: str) -> object:
    import importlib

    module = importlib.import_module(f"{__name__}.{name.lower()}")
    globals()[name] = getattr(module, name, module)
    return globals()[name]
