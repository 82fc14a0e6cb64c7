"""Data in, picture out: each renderer takes dataclasses and makes text or JSON of them."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_LEAST = 40  # columns: a narrower window wraps what is laid out for these


def new_console(file: IO[str] | Any = None) -> Console:
    """Where a verb prints: FILE, or standard output."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            """Not rich's, which ends the process with 1: the exit code is the verb's."""
            raise  # it is called where the error is handled

    made = Plain(highlight=False, file=file)
    if made.width < _LEAST:
        made.width = _LEAST  # from then on it does not follow the window
    return made
