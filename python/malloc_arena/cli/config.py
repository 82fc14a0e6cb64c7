"""Where the installed package keeps what C programs need."""

from __future__ import annotations

import argparse
from pathlib import Path

from .output import put


def package() -> Path:
    return Path(__file__).resolve().parents[1]


def library() -> Path:
    return package() / "lib" / "libmalloc_arena.so"


class Config:
    """Print the paths and flags for building C programs against the installed library.

      cc $(malloc-arena config --cflags) program.c $(malloc-arena config --libs)
      LD_PRELOAD=$(malloc-arena config --preload) program
      PKG_CONFIG_PATH=$(malloc-arena config --pkgconfigdir) \\
        pkg-config --cflags --libs malloc_arena

    Several flags print on one line, in the order below, quoted for the shell.
    """

    name = "config"

    def values(self) -> dict[str, list[str]]:
        """What each flag prints, as arguments."""
        directory = library().parent
        include = package() / "include"
        return {
            "cflags": [f"-I{include}"],
            # The run path, because the loader does not look into site-packages by itself.
            "libs": [f"-L{directory}", "-lmalloc_arena", f"-Wl,-rpath,{directory}"],
            "preload": [str(library())],
            "includedir": [str(include)],
            "libdir": [str(directory)],
            "pkgconfigdir": [str(directory / "pkgconfig")],
        }

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        helps = {
            "cflags": "flags for the compiler",
            "libs": "flags for the linker",
            "preload": "the library's path, for LD_PRELOAD",
            "includedir": "the directory of malloc_arena.h",
            "libdir": "the directory of libmalloc_arena.so",
            "pkgconfigdir": "the directory of malloc_arena.pc",
        }
        for name, text in helps.items():
            parser.add_argument(f"--{name}", action="store_true", help=text)
        parser.add_argument("--json", action="store_true", help="all of it as JSON")

    def __call__(self, options: argparse.Namespace) -> int:
        import json
        import shlex
        import sys

        if not library().is_file():
            # pip install -e leaves it, and the header, in its build directory.
            print(
                f"malloc-arena config: {library()} is missing: install the package again "
                "(pip install -e leaves it out)",
                file=sys.stderr,
            )
            return 3
        values = self.values()
        if options.json:
            data = {"schema": "malloc-arena/config/1"}
            data |= {k: shlex.join(v) for k, v in values.items()}
            put(lambda: print(json.dumps(data, indent=2)))
            return 0
        wanted = [name for name in values if getattr(options, name)]
        if not wanted:
            options.parser.error("say what: " + ", ".join(f"--{name}" for name in values))
        words = [word for name in wanted for word in values[name]]
        put(lambda: print(shlex.join(words)))
        return 0
