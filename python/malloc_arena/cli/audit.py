"""Where copies of a secret are in a process, and whose memory they lie in."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .output import put

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..audit import Scanner
    from ..render.audit import Look, Report


class Audit:
    """Find the copies of a secret in a program, and say whose they are.

      malloc-arena audit --secret-file token --pid 1234
      malloc-arena audit --secret-file token -- python app.py arguments
      malloc-arena audit --secret-file token --core core.1234

    Searched are every readable page and every register, for the secret raw,
    reversed, as UTF-16 and UTF-32, hex, base64, URL-quoted, as a number, and for
    fragments of 8 bytes and more. The secret comes from a file, a descriptor, the
    environment or a prompt, never from the command line.

    A program that is started here is searched in its exit, when this command gets
    SIGUSR1, and every N seconds on request; what it starts itself is not. With
    --trace, which is for Python, its last search is before the interpreter is taken
    down, and the lines that allocated a live block are told.

    Exit codes: 0 nothing outside an arena, 1 a finding, 2 usage, 3 could not look.
    """

    name = "audit"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.usage = "malloc-arena audit [options] (--pid N | --core FILE | -- program ...)"
        what = parser.add_argument_group("what to search")
        what.add_argument("--pid", type=_process, metavar="N", help="a process that runs")
        what.add_argument(
            "--core", type=Path, metavar="FILE", help="a core file, or any file of raw memory"
        )
        what.add_argument("command", nargs="*", metavar="program", help="a program to start")
        secret = parser.add_argument_group("the secret (without any: a prompt)")
        one = secret.add_mutually_exclusive_group()
        one.add_argument("--secret-file", metavar="FILE", help="its contents, less one line end")
        one.add_argument("--secret-fd", type=int, metavar="N", help="what this descriptor gives")
        one.add_argument(
            "--secret-env", metavar="NAME", help="this variable; a program started here lacks it"
        )
        how = parser.add_argument_group("how")
        how.add_argument(
            "--max-pause",
            type=_milliseconds,
            default=0.1,
            metavar="MS",
            help="stop a running program for no longer at a time (default 100)",
        )
        how.add_argument(
            "--every", type=_seconds, default=0.0, metavar="S", help="search every S seconds"
        )
        how.add_argument(
            "--trace", action="store_true", help="tell the lines that allocated (Python programs)"
        )
        output = parser.add_argument_group("output")
        output.add_argument("--json", action="store_true", help="print JSON")
        output.add_argument("--html", type=Path, metavar="FILE", help="write a page as well")
        output.add_argument(
            "--output", type=Path, metavar="FILE", help="the report goes there, not to stdout"
        )

    def __call__(self, options: argparse.Namespace) -> int:
        from ..audit import CannotLook, Scanner
        from ..render import audit as render

        kinds = [options.pid is not None, options.core is not None, bool(options.command)]
        if sum(kinds) != 1:
            options.parser.error("say what to search: one of --pid, --core, or a program")
        if not options.command and (options.trace or options.every):
            options.parser.error("--trace and --every are for a program that is started here")
        try:
            scanner = Scanner(_secret(options), remember=False)
        except (OSError, ValueError) as error:
            options.parser.error(f"the secret: {error}")
        try:
            # Not when the program has run for hours, and nobody gets the report then.
            for path in filter(None, (options.html, options.output)):
                if path.is_file() or not path.exists():  # who reads a pipe takes this for its end
                    path.open("a").close()
        except OSError as error:
            return _unwritten(error)
        try:
            report = _report(options, scanner)
        except CannotLook as error:
            print(f"malloc-arena audit: {error}", file=sys.stderr)
            return 3
        try:
            if options.html:
                options.html.write_text(render.as_html(report), "utf-8", "backslashreplace")
            if options.output:
                with options.output.open("w", errors="backslashreplace") as file:
                    _write(report, options.json, file)
            else:
                put(lambda: _write(report, options.json, None))
        except OSError as error:
            return _unwritten(error)
        return 1 if report.outside() else 0


def _unwritten(error: OSError) -> int:
    print(f"malloc-arena audit: {error.filename}: {error.strerror}", file=sys.stderr)
    return 3


def _process(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a process is a number from 1 up, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    return _from(0.01, text, "at least 0.01 seconds")


def _milliseconds(text: str) -> float:
    return _from(1, text, "at least 1 millisecond") / 1000


def _from(least: float, text: str, rule: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not least <= value <= 1e6:
        raise argparse.ArgumentTypeError(rule)
    return value


def _secret(options: argparse.Namespace) -> bytes:
    if options.secret_env is not None:
        secret = os.environb.get(os.fsencode(options.secret_env))
        if secret is None:
            raise ValueError(f"there is no variable {options.secret_env}")
        return secret
    if options.secret_file is not None:
        data = Path(options.secret_file).read_bytes()
    elif options.secret_fd is not None:
        with open(options.secret_fd, "rb") as file:  # noqa: PTH123  a descriptor
            data = file.read()
    else:
        import getpass

        try:
            return os.fsencode(getpass.getpass("Secret to look for: "))
        except (EOFError, AttributeError):  # AttributeError: standard input is closed
            raise ValueError("there is nobody to ask: say --secret-file or --secret-fd") from None
    return data[:-1] if data.endswith(b"\n") else data


def _write(report: Report, as_json: bool, file: object) -> None:
    from ..render import audit as render

    if as_json:
        print(render.as_json(report), file=file)  # type: ignore[call-overload]
    else:
        render.print_text(report, file=file)


def _report(options: argparse.Namespace, scanner: Scanner) -> Report:
    from ..audit import CannotLook, Dump, Process
    from ..render.audit import Look, Report

    begun = time.monotonic()
    status = None
    if options.command:
        looks, status = _started(options, scanner)
        target = " ".join(options.command)
    elif options.core is not None:
        with Dump(options.core) as dump:
            scan = scanner.scan(dump)
            looks = (Look("file", scan),)
            if dump.damage:
                if not scan.outside():
                    raise CannotLook(
                        f"{options.core}: {dump.damage}", "no copy is in the rest, if there is one"
                    )
                print(f"malloc-arena audit: {options.core}: {dump.damage}", file=sys.stderr)
        target = str(options.core)
    else:
        with (
            _progress(f"searching process {options.pid}"),
            Process(options.pid, options.max_pause) as process,
        ):
            looks = (Look("request", scanner.scan(process)),)
        target = f"process {options.pid}"
    return Report(target, looks, time.monotonic() - begun, options.trace, status)


def _started(options: argparse.Namespace, scanner: Scanner) -> tuple[tuple[Look, ...], int]:
    from ..audit.launch import Program
    from ..render.audit import Look

    environment = {k: v for k, v in os.environ.items() if k != options.secret_env}
    program = Program(
        options.command,
        scanner,
        environment=environment,
        every=options.every,
        max_pause=options.max_pause,
        trace=options.trace,
    )
    looks = tuple(Look(why, scan) for why, scan in program.run())
    if program.has_others:
        print(
            "malloc-arena audit: it started other processes, which were not searched: give the "
            "command of the one that has the secret, or its --pid",
            file=sys.stderr,
        )
    return looks, os.waitstatus_to_exitcode(program.status)


@contextlib.contextmanager
def _progress(text: str) -> Iterator[None]:
    """A line on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield
