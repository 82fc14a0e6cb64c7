"""What everyday jobs leave of a secret in memory; and a memory budget for a part of a program."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator

from .output import put


class Demo:
    """Count what everyday jobs leave of a secret in memory, without and with an arena.

    Each job (a config file, an API token, a private key, a typed password, ...)
    runs in a fresh process three ways: as plain Python, inside `with vault`, and
    the same under `malloc-arena run`. When it is done and has dropped its
    references, another process searches all of its memory and registers for the
    secret: raw, reversed, UTF-16, UTF-32, hex, base64, URL-quoted, and fragments
    of 8 bytes and more.

    Exit code 1 if the arena leaves more outside than it should.

    `malloc-arena demo budget` is the other demo: a program parses a JSON document
    of 16 MiB that becomes thirty times as large, first as it is, then in a
    HEAP_DEFAULT arena with a limit of 200 MiB, while another thread goes on with
    its own work. This process reads their memory from /proc.
    """

    name = "demo"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("what", nargs="?", choices=("secrets", "budget"), default="secrets")
        parser.add_argument("--jobs", metavar="NAME,...", help="only these jobs")
        parser.add_argument("--list", action="store_true", help="list the jobs")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def __call__(self, options: argparse.Namespace) -> int:
        from ..audit import CannotLook

        try:
            return self._budget(options) if options.what == "budget" else self._secrets(options)
        except CannotLook as error:
            print(f"malloc-arena demo: {error}", file=sys.stderr)
            return 3

    def _secrets(self, options: argparse.Namespace) -> int:
        from ..demo import measure
        from ..render import demo as render

        if options.list:
            for task in measure.TASKS:
                print(f"{task.name:<12}{task.title}")
            return 0
        known = [task.name for task in measure.TASKS]
        names = options.jobs.split(",") if options.jobs else known
        unknown = [name for name in names if name not in known]
        if unknown:
            options.parser.error(f"no job {unknown[0]!r}; there are {', '.join(known)}")
        with _progress(len(names) * len(measure.MODES)) as advance:
            demo = measure.measure(names, advance)
        if options.json:
            put(lambda: print(render.as_json(demo)))
        else:
            put(lambda: render.print_text(demo))
        if not demo.results:
            return 3
        return 1 if demo.unexpected() else 0

    def _budget(self, options: argparse.Namespace) -> int:
        from ..demo import budget
        from ..render import demo as render

        if options.jobs or options.list:
            options.parser.error("--jobs and --list are for the demo of secrets")
        with _progress(len(budget.MODES)) as advance:
            seen = budget.measure(progress=advance)
        if options.json:
            put(lambda: print(render.budget_as_json(seen)))
        else:
            put(lambda: render.print_budget(seen))
        return 1 if seen.unexpected() else 0


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("starting", total=total)

        def advance(finished: str) -> None:
            bar.update(line, advance=1, description=finished)

        yield advance
