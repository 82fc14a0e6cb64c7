"""Why something is left: the causes that were found, and whose remnants each explains."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    key: str
    what: str
    helps: str
    remnants: tuple[tuple[str, str, str], ...]  # operation, modes, outside or inside


CAUSES: tuple[Cause, ...] = ()


def find(operation: str, mode: str, where: str) -> Cause | None:
    for cause in CAUSES:
        for name, modes, place in cause.remnants:
            if name == operation and place == where and mode in modes.split():
                return cause
    return None


HEAD = ""
