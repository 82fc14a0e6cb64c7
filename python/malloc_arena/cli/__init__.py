"""malloc-arena VERB: one small class per verb; its docstring is the help.

Exit codes: 0 fine, 1 a finding, 2 usage, 3 could not look; under `run` the program's own.
A verb imports what it needs when it runs: `run` must start at once.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence

from .. import __version__
from .audit import Audit
from .completion import Completion
from .config import Config
from .demo import Demo
from .doctor import Doctor
from .map import Map
from .output import drop, put
from .run import Run

VERBS: tuple[Demo | Doctor | Run | Audit | Map | Config | Completion, ...] = (
    Demo(),
    Doctor(),
    Run(),
    Audit(),
    Map(),
    Config(),
    Completion(),
)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="malloc-arena",
        description="First-class malloc arenas: secrets in locked memory, wiped when freed.",
        epilog="Exit codes: 0 fine, 1 a finding, 2 usage, 3 could not look.",
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = top.add_subparsers(metavar="VERB", required=True)
    for verb in VERBS:
        first, _, rest = (verb.__doc__ or "").partition("\n")
        one = verbs.add_parser(
            verb.name,
            help=first,
            description=f"{first}\n{textwrap.dedent(rest)}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.arguments(one)
        one.set_defaults(verb=verb, parser=one)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if sys.stdout is not None and sys.stdout.errors == "strict":
        # A file's name may have any bytes: to be shown as it can be, not to end in a traceback.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code: int = options.verb(options)
        put(lambda: None)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        drop()
        return 0
    except OSError as error:
        # Above all, no room for what is printed.
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"malloc-arena {options.verb.name}: {what}", file=sys.stderr)
        drop()
        return 3
    return code
