"""No file of the core includes what stands above it: src/core/README.md draws the order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "src" / "core"
PUBLIC = ROOT / "include"
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"', re.MULTILINE)


def ladder(text: str) -> dict[str, int]:
    """The height of each name; the lowest rung is 0."""
    block = re.search(r"^```ladder\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert block, "src/core/README.md has no ```ladder block"
    rungs = [line.split() for line in block[1].splitlines() if line.strip()]
    names = [name for rung in rungs for name in rung]
    assert len(names) == len(set(names)), "a name stands on two rungs"
    return {name: height for height, rung in enumerate(reversed(rungs)) for name in rung}


def wrong_includes(name: str, text: str, height: dict[str, int]) -> list[str]:
    """What NAME includes and may not."""
    wrong = []
    for target in INCLUDE.findall(text):
        # options.c and options.h; os_linux.c and os.h.
        own = re.fullmatch(Path(target).stem + r"(_[a-z]+)?", Path(name).stem)
        if target not in height:
            wrong.append(f"{name} includes {target}, which is not in the ladder")
        elif height[target] >= height[name] + (1 if own else 0):
            wrong.append(f"{name} includes {target}, which does not stand below it")
    return wrong


HEIGHT = ladder((CORE / "README.md").read_text())
SOURCES = sorted(p.name for p in CORE.iterdir() if p.suffix in {".c", ".h", ".def"})


def test_the_ladder_names_every_file_and_no_other() -> None:
    public = [p.name for p in PUBLIC.glob("*.h")]
    assert sorted(HEIGHT) == sorted([*SOURCES, *public])


@pytest.mark.parametrize("name", SOURCES)
def test_includes_go_down(name: str) -> None:
    assert name in HEIGHT, f"{name} is not in the ladder of src/core/README.md"
    assert wrong_includes(name, (CORE / name).read_text(), HEIGHT) == []


def test_an_upward_a_sideways_and_an_unknown_include_are_seen() -> None:
    height = ladder("```ladder\ntop.c\nleft.c right.h right_one.c\nleft.h\n```\n")
    assert wrong_includes("left.c", '#include "left.h"\n', height) == []
    assert wrong_includes("right_one.c", '#include "right.h"\n', height) == []
    assert wrong_includes("top.c", '#include "right.h"\n#include "left.h"\n', height) == []
    assert len(wrong_includes("left.h", '#include "left.c"\n', height)) == 1
    assert len(wrong_includes("left.h", '# include "right.h"\n', height)) == 1
    assert len(wrong_includes("left.c", '#include "right.h"\n', height)) == 1
    assert len(wrong_includes("top.c", '  #include "gone.h"\n', height)) == 1


def test_the_build_compiles_every_source() -> None:
    listed = re.findall(r"'([a-z_]+\.c)'", (CORE / "meson.build").read_text())
    assert sorted(listed) == [name for name in SOURCES if name.endswith(".c")]
