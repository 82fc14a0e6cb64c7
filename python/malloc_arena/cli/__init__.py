"""malloc-arena VERB: one small class per verb; its docstring is the help.

Exit codes: 0 fine, 1 a finding, 2 usage, 3 could not look; under `run` the program's own.
A verb imports what it needs when it runs: `run` must start at once.
"""

from __future__ import annotations

import argparse
import os
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
    try:
        code: int = options.verb(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader went away: that is its business. Nothing more can be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    return code
