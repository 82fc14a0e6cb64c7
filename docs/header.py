"""The directive ``malloc-arena-header``: include/malloc_arena.h as a reference.

The header's parts are separated by blank lines; each is a comment and the declarations it is about.
"""

from __future__ import annotations

import re
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

HEADER = Path(__file__).parents[1] / "include" / "malloc_arena.h"
PART = re.compile(r"(?:/\* (.*?) ?\*/\n)?(.*)", re.S)
NAME = re.compile(r"\b(\w+\(\)|malloc_arena\w*|(?:HEAP|MALLOC_ARENA)_(?:\w+|\.\.\.))")
IN_LINE = re.compile(r" */\* (.*?) ?\*/", re.S)


def text(comment: str) -> str:
    """A comment as reStructuredText; names are code."""
    flat = re.sub(r"\s*\n[ *]*", " ", comment)
    return re.sub(
        r"\b(\w+\(\)|malloc_arena\w*|(?:HEAP|MALLOC_ARENA)_(?:\w+|\.\.\.))", r"``\1``", flat
    )


def declaration(code: str) -> str:
    code = IN_LINE.sub("", code)
    code = re.sub(r"MALLOC_ARENA_NOTHROW|__attribute__ \(\(.*?\)\)\)?", "", code, flags=re.S)
    return " ".join(code.split()).replace(" (", "(").strip(" ;")


def directive(kind: str, signature: str, body: list[str]) -> list[str]:
    return [f".. c:{kind}:: {signature}", "", *(f"   {line}" if line else "" for line in body), ""]


def members(body: str, kind: str) -> list[str]:
    """Of a struct or an enum, each with the comment that stands behind it."""
    lines: list[str] = []
    separator = ";" if kind == "member" else ","
    comments: list[str] = []

    def keep(found: re.Match[str]) -> str:
        comments.append(text(found[1]))
        return f" @{len(comments) - 1} "

    # "size_t size; /* text */" becomes "size_t size; @0", which goes in front of the separator; a
    # comment on a line of its own is about what follows.
    marked = IN_LINE.sub(keep, body)
    marked = re.sub(rf"{separator} *(@\d+)", rf" \1{separator}", marked)
    for part in marked.split(separator):
        comment = [comments[int(number)] for number in re.findall(r"@(\d+)", part)]
        name = " ".join(re.sub(r"@\d+", " ", part).split())
        if name:
            lines += directive(kind, name, comment)
    return lines


def documented(comment: str, code: str) -> list[str]:
    body = [text(comment), ""]
    lines: list[str] = []
    typedefs = code.startswith("typedef ")
    if typedefs and "malloc_arena (ARENA, ROUTINE" in comment:
        return directive("macro", "malloc_arena(arena, routine, ...)", body)
    for kind, name, inner in re.findall(r"^(struct|enum) (\w+)\n\{\n(.*?)\n\};", code, re.S | re.M):
        inside = members(inner, "member" if kind == "struct" else "enumerator")
        lines += directive(kind, name, [*body, *inside])
        body = []
    code = re.sub(r"^(struct|enum) \w+\n\{\n.*?\n\};\n?", "", code, flags=re.S | re.M)
    for name, note in re.findall(r"^#define (\w+) \w+(?: +/\* (.*?) ?\*/)?$", code, re.S | re.M):
        if body:
            lines += [*body]
            body = []
        lines += directive("macro", name, [text(note)] if note else [])
    code = re.sub(r"^#.*?$", "", re.sub(r"/\*.*?\*/", "", code, flags=re.S), flags=re.M)
    for statement in filter(str.strip, code.split(";")):
        lines += directive("function", declaration(statement), body)
        body = []
    return lines


def reference(header: str) -> list[str]:
    """The reference's lines."""
    lines: list[str] = []
    # What comes later is how the macro picks its function.
    first, last = (header.index(text) for text in ("/* Kinds", "void *malloc_arena_call_size ("))
    for part in header[first:last].split("\n\n"):
        if match := PART.fullmatch(part.strip()):
            lines += documented(match[1] or "", match[2])
    return lines


class Header(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(HEADER))
        self.content = StringList(reference(HEADER.read_text()), source=str(HEADER))
        return self.parse_content_to_nodes()


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("malloc-arena-header", Header)
    return {"parallel_read_safe": True}
