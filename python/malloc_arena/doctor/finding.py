"""What a check says: a result, what was found, what it means, and the fix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .target import Target

Result = Literal["ok", "warn", "fail", "unknown"]


@dataclass(frozen=True, slots=True)
class Fix:
    """Lines to type, or to put into a file. Where one fix is enough, there may be several: each for
    another way of running the program."""

    where: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    result: Result
    found: str
    meaning: str
    fixes: tuple[Fix, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    """For programs; the text has what a reader needs of it."""


@dataclass(frozen=True, slots=True)
class Check:
    """One named question about a process and its machine. An OSError means: could not look."""

    name: str
    title: str
    look: Callable[[Target], Finding]
