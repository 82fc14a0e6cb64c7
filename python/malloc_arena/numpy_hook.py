"""numpy's data in scopes: its default handler (NEP 49) is wrapped where it is.

Arrays carry the handler that made them, and ours routes by address, so that an array may be freed,
resized and handed on anywhere.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from . import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType


def hook(numpy: ModuleType) -> None:
    """Once and for good; a RuntimeWarning if this numpy is not as expected."""
    core = sys.modules.get("numpy._core.multiarray") or sys.modules.get("numpy.core.multiarray")
    capsule = getattr(core, "_ARRAY_API", None)
    handler = _core._numpy_handler(capsule) if capsule is not None else None
    if handler is None or not _is_writable(handler):
        warnings.warn(
            f"the data of arrays stays outside arenas: numpy {getattr(numpy, '__version__', '?')} "
            "has no default memory handler that is known here",
            RuntimeWarning,
            stacklevel=2,
        )
        return
    _core._hook_numpy(handler)


def _is_writable(address: int) -> bool:
    # As bytes: a file's name may have any.
    for line in Path("/proc/self/maps").read_bytes().split(b"\n")[:-1]:
        span, mode = line.split(maxsplit=2)[:2]
        start, end = (int(bound, 16) for bound in span.split(b"-"))
        if start <= address < end:
            return b"w" in mode
    return False
