"""`make docs`: Sphinx over these pages, where a warning is an error."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from sphinx.application import Sphinx

from malloc_arena import cli
from malloc_arena.render.completion import verbs_of

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

project = "malloc-arena"
author = "malloc-arena contributors"
copyright = author  # noqa: A001
version = release = re.findall(r"^  version: '(.*)'", (ROOT / "meson.build").read_text(), re.M)[0]

extensions = ["myst_parser", "sphinx.ext.autodoc", "header"]
exclude_patterns = ["_build"]
# Headings get the names that GitHub gives them.
myst_heading_anchors = 4

# A struct and the function that fills it share a name; Sphinx knows no namespace of tags.
suppress_warnings = ["duplicate_declaration.c"]

html_theme = "furo"
html_title = f"malloc-arena {version}"
html_show_sourcelink = False

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"


def pages(app: Sphinx, page: str, source: list[str]) -> None:
    text = source[0]
    if page == "readme":
        # The links of a file that lies one directory up.
        text = re.sub(r"\]\((?!\w+:|#)(?:docs/)?", "](", (ROOT / "README.md").read_text())
        text = re.sub(r"\]\(([^):]+)\)", lambda m: f"]({_from_here(m[1])})", text)
    elif page == "index":
        # A new page is in the contents by itself.
        named = set(re.findall(r"^[\w-]+$", text, re.M)) | {"index"}
        found = (path.relative_to(HERE).with_suffix("") for path in HERE.rglob("*.md"))
        rest = sorted(str(path) for path in found if str(path) not in named)
        text = text.replace("@rest@", "\n".join(rest))
    elif page == "cli":
        text = text.replace("@help@", "\n\n".join(_help()))
    here = (HERE / page).parent
    # A file of the repository that is no page: its name. One that is not there is a warning.
    source[0] = re.sub(r"\[([^]]+)\]\(((?:\.\./)+[^)#]+)\)", lambda m: _outside(m, here), text)


def _help() -> Iterator[str]:
    os.environ["COLUMNS"] = "80"
    for verb, (_, parser) in verbs_of(cli.parser()).items():
        yield f"## {verb}\n\n```text\n{parser.format_help()}```"


def _from_here(target: str) -> str:
    return target if (HERE / target.split("#")[0]).exists() else f"../{target}"


def _outside(link: re.Match[str], here: Path) -> str:
    path = (here / link[2]).resolve()
    if path == ROOT / "README.md":
        return f"[{link[1]}](/readme.md)"
    if not path.exists() or path.is_relative_to(HERE):
        return link[0]
    name = f"`{path.relative_to(ROOT)}`"
    return name if link[1].strip("`") in name else f"{link[1]} ({name})"


def setup(app: Sphinx) -> None:
    app.connect("source-read", pages)
