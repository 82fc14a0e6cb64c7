"""The register of operations: what is done with the secret, and what must be imported before."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Inputs = dict[str, Any]
Secret = str | bytes


@dataclass(frozen=True)
class Operation:
    """One use of a secret. The function gets it, works with it, and returns what came out, which
    must be the secret again; whatever it made on the way it has dropped."""

    name: str
    group: str
    function: Callable[[Inputs], Secret]
    modules: tuple[str, ...]
    needs: str  # a distribution that is not in the standard library
    peer: str  # who is at the other end
    forms: tuple[str, ...]  # forms of the secret that are looked for besides the scanner's own


OPERATIONS: dict[str, Operation] = {}


def operation(
    group: str,
    *modules: str,
    needs: str = "",
    peer: str = "file",
    forms: tuple[str, ...] = (),
) -> Callable[[Callable[[Inputs], Secret]], Callable[[Inputs], Secret]]:
    """Registers the function. MODULES are imported before the scope: it then finds them loaded."""

    def register(function: Callable[[Inputs], Secret]) -> Callable[[Inputs], Secret]:
        name = function.__name__
        assert name not in OPERATIONS, name
        OPERATIONS[name] = Operation(name, group, function, modules, needs, peer, forms)
        return function

    return register


def raw(inputs: Inputs) -> bytes:
    """The secret, by the shortest way: one read of its file."""
    descriptor = os.open(inputs["path"], os.O_RDONLY)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


def text(inputs: Inputs) -> str:
    return raw(inputs).decode()


def fingerprint(secret: Secret) -> int:
    """Proves to the watcher that the operation had the secret; makes no further copy of it."""
    value = 0
    for byte in secret if isinstance(secret, bytes) else map(ord, secret):
        value = (value * 257 + byte) % (2**61 - 1)
    return value
