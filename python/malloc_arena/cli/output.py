"""What a verb prints when it is done, to a reader that may be gone or a disk that may be full."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def put(write: Callable[[], object]) -> None:
    """Calls WRITE, which prints, and sees that it is out. A reader that went away (| head) has what
    it wanted: the verb goes on, to the exit code of what it found. OSError where nobody has it."""
    try:
        write()
        if sys.stdout is not None:  # it is, where it was closed
            sys.stdout.flush()
    except BrokenPipeError:
        drop()
    except OSError as error:
        drop()
        name = error.filename or "standard output"
        raise OSError(error.errno, error.strerror, name) from error


def drop() -> None:
    """What is not printed yet cannot be, and must not be tried again at exit."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
