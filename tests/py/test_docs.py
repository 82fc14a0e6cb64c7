"""The documents: the pages build without a warning, and what their examples say is run."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What each page's examples take for granted; they are then run one after the other. The other pages
# have no examples of Python, or tests of their own (test_guides.py).
STAGE = {
    "README.md": """
        path = Path("config.json")
        path.write_text('{"token": "4711"}')
        def load_token(path): return json.loads(path.read_text())["token"]
        async def handle(request): return request
        request = object()
        def rows(): yield from range(3)
        def use(row): pass
    """,
    "docs/python.md": """
        import logging, pty, threading
        import malloc_arena
        from malloc_arena import HEAP_SECURE, Secret
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        vault = malloc_arena.get(HEAP_SECURE)
        log = logging.getLogger()
        Path("key").write_bytes(b"k" * 32)
        config, upload = {"password": "4711"}, "[1, 2, 3]"
        def connect(password): assert password == "4711"
        ours, terminal = pty.openpty()
        def type_it():
            seen = b""
            while b"Password: " not in seen:
                seen += os.read(ours, 100)
            os.write(ours, b"4711\\n")
        threading.Thread(target=type_it).start()
    """,
    "docs/map.md": """
        import malloc_arena
        vault = malloc_arena.get(malloc_arena.HEAP_SECURE)
        kept = []
        def handle(request):
            with vault: kept.append(str(request) * 100)
        request, token = 4711, "token"
    """,
    "docs/audit.md": """
        Path("config.json").write_text('{"password": "' + os.urandom(16).hex() + '"}')
        token = os.urandom(16).hex()
        KEPT = []
    """,
}
# Words of an example that stand for something of the reader's machine.
STAND_INS = {
    '"/run/secrets/key"': '"key"',
    '["pass", "show", "x"]': '["printf", "x"]',
    'sources.prompt("Password: "': 'sources.prompt("Password: ", fd=terminal',
}
# Libraries that the tests do not install: such an example is compiled only.
NOT_RUN = ("BaseModel", "keyring")


def examples(page: str) -> list[tuple[int, str]]:
    """The line and the text of each block of Python."""
    text = (ROOT / page).read_text()
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S)
    return [(text.count("\n", 0, block.start()) + 2, block[1]) for block in found]


def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-q",
            "-W",
            "--keep-going",
            "-b",
            "html",
            "docs",
            tmp_path,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "api-c.html").read_text() + (tmp_path / "api-python.html").read_text()
    symbols = (ROOT / "tests/abi/symbols.txt").read_text()
    for name in re.findall(r"^malloc_arena_(?!call)\w+$", symbols, re.M):
        assert f'id="c.{name}"' in text, name
    for name in ("Arena.bind", "SecretBuffer.close", "Secret.reveal", "sources.prompt"):
        assert f'id="malloc_arena.{name}"' in text, name
    contents = (tmp_path / "index.html").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix(".html")
        assert f'href="{name}"' in contents or page.stem == "index", page


@pytest.mark.parametrize("page", STAGE)
def test_the_examples_run(page: str, tmp_path: Path) -> None:
    lines = ["import asyncio, inspect, json, os", "from pathlib import Path"]
    lines += [line.removeprefix("        ") for line in STAGE[page].splitlines()]
    found = examples(page)
    assert found
    for at, text in found:
        for word, stand_in in STAND_INS.items():
            text = text.replace(word, stand_in)
        code = compile(text, page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if not any(word in text for word in NOT_RUN):
            # Lines of an error are the page's.
            lines.append(
                f"code = compile({chr(10) * (at - 1) + text!r}, {page!r}, 'exec', "
                f"{ast.PyCF_ALLOW_TOP_LEVEL_AWAIT})"
            )
            awaits = bool(code.co_flags & 0x80)
            lines.append("asyncio.run(eval(code))" if awaits else "exec(code)")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=tmp_path,
        input="rest",
        env=os.environ | {"API_TOKEN": "4711"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_the_first_two_screens_of_the_readme_have_it_all() -> None:
    screens = "\n".join((ROOT / "README.md").read_text().splitlines()[:80])
    for needed in (
        *("First-class malloc arenas", "Why not just call mmap", "make demo", "make test"),
        *("```python", "```c", "## What it does not do", "threat-model.md"),
    ):
        assert needed in screens


def test_every_relative_link_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\((?!\w+:|#)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)
