"""What this machine and a process can give to arenas, and how to get the rest."""

from __future__ import annotations

import argparse
import sys

from .output import put


class Doctor:
    """Say what this machine and process can give to arenas, with the fixes.

      malloc-arena doctor                        this machine, from this shell
      malloc-arena doctor memlock malloc         these checks only, in full
      malloc-arena doctor --pid 1234             another process
      malloc-arena run -- malloc-arena doctor    with the library preloaded

    It changes nothing. What only a try can tell is tried in a child of its own.

    Exit codes: 0 fine, 1 a finding (warn or fail), 3 something could not be
    looked at and the rest is fine.
    """

    name = "doctor"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("checks", nargs="*", metavar="CHECK", help="only these checks")
        parser.add_argument("--pid", type=int, metavar="N", help="look at another process")
        parser.add_argument("--list", action="store_true", help="list the checks")
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.add_argument(
            "-v", "--verbose", action="store_true", help="explain also what is fine"
        )

    def __call__(self, options: argparse.Namespace) -> int:
        from .. import doctor

        known = [check.name for check in doctor.CHECKS]
        for name in options.checks:
            if name not in known:
                options.parser.error(f"no check {name!r}; there are {', '.join(known)}")
        if options.list:
            return self._list(options)
        try:
            report = doctor.examine(doctor.Target(options.pid), options.checks)
        except OSError as error:
            what = (
                f"process {options.pid}" if options.pid is not None else "this process, in /proc,"
            )
            print(f"malloc-arena doctor: {what} cannot be seen: {error.strerror}", file=sys.stderr)
            return 3
        from ..render import doctor as render

        if options.json:
            put(lambda: print(render.as_json(report)))
        else:
            in_full = options.verbose or bool(options.checks)
            put(lambda: render.print_text(report, in_full=in_full))
        return report.exit_code

    def _list(self, options: argparse.Namespace) -> int:
        import json

        from ..doctor import CHECKS

        checks = [check for check in CHECKS if not options.checks or check.name in options.checks]
        if options.json:
            rows = [{"name": check.name, "title": check.title} for check in checks]
            print(json.dumps({"schema": "malloc-arena/doctor/1", "checks": rows}, indent=2))
        else:
            for check in checks:
                print(f"{check.name:<16}{check.title}")
        return 0
