"""Every promise has a test, and the table of them tells a promise that does not hold."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import promises

TESTS = Path(__file__).resolve().parents[1]
MARK = re.compile(r'^@pytest\.mark\.promise\("([^"]+)"\)$', re.MULTILINE)


def test_every_row_has_a_test() -> None:
    """That every mark has a row, and shows a control, is checked wherever tests are collected."""
    rows = promises.rows()
    assert len(rows) == len(set(rows)) > 20
    tested = {row for file in TESTS.rglob("test_*.py") for row in MARK.findall(file.read_text())}
    assert tested == set(rows)


def run(tmp_path: Path, test: str) -> str:
    for name in ("conftest.py", "promises.py", "browser.py"):
        text = (TESTS / name).read_text()
        (tmp_path / name).write_text(
            text.replace(
                'Path(__file__).resolve().parents[2] / "docs" / "threat-model.md"',
                f"Path({str(promises.DOCUMENT)!r})",
            )
        )
    (tmp_path / "test_one.py").write_text("import pytest\n" + test)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  promise: x\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--threat-model"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    return done.stdout + done.stderr


def test_tests_that_show_nothing_are_refused(tmp_path: Path) -> None:
    """A test without a control, one whose control does not leak, one of no row."""
    mark = '@pytest.mark.promise("swap")\n'
    silent = run(tmp_path, mark + "def test_it(evidence): evidence.result('nothing')\n")
    assert "without showing a control that leaks" in silent
    tight = run(tmp_path, mark + "def test_it(evidence): evidence.control('0 copies', 0)\n")
    assert "the control does not leak (0 copies)" in tight
    assert "FAILS" in tight
    assert "1 failed" in tight
    unknown = run(tmp_path, mark.replace("swap", "moon") + "def test_it(evidence): pass\n")
    assert "('moon',) is no row of threat-model.md" in unknown
    bare = run(tmp_path, mark + "def test_it(): pass\n")
    assert "a promise needs the fixture evidence" in bare


def test_a_row_without_a_test_is_told(tmp_path: Path) -> None:
    good = (
        '@pytest.mark.promise("swap")\n'
        "def test_it(evidence): evidence.control('1 copy', 1); evidence.result('0 copies')\n"
    )
    shown = run(tmp_path, good)
    assert "1 passed" in shown
    assert "no test" in shown
