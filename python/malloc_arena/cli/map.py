"""What lies where in the arenas of a process, as a picture."""

from __future__ import annotations

import argparse
import os
import select
import sys
import time
from pathlib import Path

from .output import put

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rich.text import Text

    from ..snapshot import Snapshot


class Map:
    """Show the arenas of a process: heaps, slabs, slots, large blocks, guards.

      malloc-arena map --pid 1234                     now
      malloc-arena map --pid 1234 --watch             again every second
      malloc-arena map --pid 1234 --save before.json  kept
      malloc-arena map before.json --svg before.svg   what was kept, as SVG
      malloc-arena map --compare before.json now.json what is new, what is gone

    Of another process it needs the right to trace it, and stops it for some
    milliseconds. Without any of these: this process, which has arenas under
    MALLOC_ARENA_OPTIONS=active=secure. No picture has any contents of memory.

    Exit codes: 0 fine, 2 usage, 3 could not look.
    """

    name = "map"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        what = parser.add_argument_group("what to show").add_mutually_exclusive_group()
        what.add_argument("--pid", type=int, metavar="N", help="a process that runs")
        what.add_argument(
            "--compare", nargs=2, type=Path, metavar=("A", "B"), help="two saved snapshots"
        )
        what.add_argument("snapshot", nargs="?", type=Path, help="a saved snapshot")
        how = parser.add_argument_group("how")
        how.add_argument(
            "--watch",
            nargs="?",
            type=_seconds,
            const=1.0,
            metavar="S",
            help="again every S seconds (1), until the process ends or Ctrl-C",
        )
        how.add_argument("--all", action="store_true", help="every slab, however many")
        how.add_argument("--json", action="store_true", help="print JSON")
        how.add_argument("--svg", type=Path, metavar="FILE", help="write an SVG picture as well")
        how.add_argument("--save", type=Path, metavar="FILE", help="keep the snapshot as well")

    def __call__(self, options: argparse.Namespace) -> int:
        if options.watch is not None and options.pid is None:
            options.parser.error("--watch needs --pid")
        if options.save and options.compare:
            options.parser.error("--save is for one snapshot")
        from ..audit.process import CannotLook

        try:
            if options.watch is not None:
                return _watch(options)
            return _once(options)
        except CannotLook as error:
            return _refuse(str(error))
        except ValueError as error:
            return _refuse(str(error))
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            return _refuse(f"{error.filename}: {error.strerror}")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0.05 <= seconds <= 1e6:
        raise argparse.ArgumentTypeError("at least 0.05 seconds")
    return seconds


def _refuse(message: str) -> int:
    print(f"malloc-arena map: {message}", file=sys.stderr)
    return 3


def _look(options: argparse.Namespace) -> Snapshot:
    from .. import snapshot

    if options.pid is not None:
        from ..audit import layout

        return layout.of(options.pid)
    if options.snapshot is not None:
        return snapshot.load(options.snapshot)
    return snapshot.take()


def _once(options: argparse.Namespace) -> int:
    from .. import snapshot

    if options.compare:
        before, after = (snapshot.load(path) for path in options.compare)
        both = snapshot.compare(before, after)
        put(lambda: _write(options, both.both, both.to_json(), both))
        return 0
    found = _look(options)
    if options.save:
        found.save(options.save)
    put(lambda: _write(options, found, found.to_json(), None))
    return 0


def _write(
    options: argparse.Namespace,
    found: Snapshot,
    data: dict[str, object],
    both: object | None,
) -> None:
    if options.svg:
        from ..render import map_svg

        options.svg.write_text(map_svg.as_svg(found), "utf-8", "backslashreplace")
    if options.json:
        import json

        print(json.dumps(data))
        return
    from ..render import new_console

    console = new_console()
    console.print(_text(options, found, both, min(console.width, 120)), soft_wrap=True, end="")


def _text(options: argparse.Namespace, found: Snapshot, both: object | None, width: int) -> Text:
    from ..render import map as render
    from ..snapshot import Comparison

    if isinstance(both, Comparison):
        return render.compared(both, width, in_full=options.all)
    return render.as_text(found, width, in_full=options.all)


def _has_ended(pid: int) -> bool:
    """Whether it has, or does within a second: who ends cannot be looked at a little earlier."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    try:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        return bool(poll.poll(1000))
    finally:
        os.close(process)


def _watch(options: argparse.Namespace) -> int:
    """Until the process ends, which is no error once it was seen."""
    from ..audit.process import CannotLook

    found = _look(options)  # who cannot look says so before the screen is taken
    if options.json or not sys.stdout.isatty():
        while True:
            _write(options, found, found.to_json(), None)
            sys.stdout.flush()
            time.sleep(options.watch)
            try:
                found = _look(options)
            except CannotLook:
                if not _has_ended(options.pid):
                    raise
                return 0
    from rich.live import Live
    from rich.text import Text

    from ..render import new_console

    console = new_console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            text = _text(options, found, None, min(console.width, 120))
            lines = list(text.split("\n"))
            end = f"every {options.watch:g} s, Ctrl-C ends"
            if len(lines) >= console.height:
                end += f"; {len(lines) - console.height + 1} more lines: a taller window, or --svg"
                lines = lines[: console.height - 1]
            lines.append(Text(end, "dim"))
            live.update(Text("\n").join(lines), refresh=True)
            time.sleep(options.watch)
            try:
                found = _look(options)
            except CannotLook:
                if not _has_ended(options.pid):
                    raise
                break
    print(f"process {options.pid} has ended")
    return 0
