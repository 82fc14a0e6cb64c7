"""The manual pages say what the header and the command say, and are well formed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "man" / "malloc_arena.3", ROOT / "man" / "malloc-arena.1"]


def plain(page: Path) -> str:
    """The text of a page without its fonts."""
    text = re.sub(r"^\.[BI][BIR]? ", "", page.read_text(), flags=re.M)
    return text.replace(r"\-", "-")


def test_the_command_page_is_that_of_the_parser() -> None:
    path = ROOT / "man" / "generate.py"
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=True)
    assert done.stdout == PAGES[1].read_text(), "run: make man"


def test_the_library_page_has_every_prototype_of_the_header() -> None:
    header = (ROOT / "include" / "malloc_arena.h").read_text()
    # The typed entry points behind the macro are not for callers.
    declared = re.findall(
        r"^((?:const )?\w+ \*?)(malloc_arena_(?!call_)\w+) \(([^)]*)\)\s*MALLOC_ARENA_NOTHROW",
        header,
        re.M,
    )
    assert len(declared) >= 11
    page = re.sub(r'["\s]', "", plain(PAGES[0]))
    for result, name, arguments in declared:
        prototype = re.sub(r"\s", "", f"{result}{name}({arguments});")
        assert prototype in page, name
    aliases = (ROOT / "man" / "meson.build").read_text()
    named = re.findall(r"'(\w+)'", re.findall(r"foreach name : \[(.*?)\]", aliases, re.S)[0])
    assert sorted(named) == sorted(name.removeprefix("malloc_arena_") for _, name, _ in declared)


def test_the_library_page_has_every_routine_kind_and_option() -> None:
    page = PAGES[0].read_text()
    header = (ROOT / "include" / "malloc_arena.h").read_text()
    options = re.findall(
        r"^(?:WORD|SIZE) \((\w+)", (ROOT / "src/core/options.def").read_text(), re.M
    )
    assert len(options) >= 10
    keys = page[page.index("The keys:") :]
    for option in options:
        assert re.search(rf"^\.BR {option} [,.]", keys, re.M), option
    kinds = re.findall(r"^#define (HEAP_\w+)", header, re.M)
    errors = re.findall(r"^ .*\b(E[A-Z]{3,})\b", header, re.M)
    for word in [*kinds, *errors]:
        assert word in page, word
    routines = re.findall(r"ROUTINE is (.*?)\(whose", re.sub(r"[\s*]+", " ", header))[0]
    for routine in re.findall(
        r"\b(\w*(?:alloc\w*|align|dup|printf|getline|getdelim|path|stream))\b", routines
    ):
        assert f".BR {routine} (3)" in page, routine


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lint(page: Path) -> None:
    mandoc, man = shutil.which("mandoc"), shutil.which("man")
    if mandoc is None and man is None:
        pytest.skip("no mandoc and no man: apt-get install mandoc")
    if mandoc is not None:
        done = subprocess.run(
            [mandoc, "-T", "lint", "-W", "warning", page], capture_output=True, text=True
        )
        assert done.stdout == ""
    if man is not None:
        done = subprocess.run(
            [man, "--warnings", "-E", "UTF-8", "-l", page], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "NAME" in done.stdout
