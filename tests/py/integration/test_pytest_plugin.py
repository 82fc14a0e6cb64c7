"""The pytest plugin, in test runs of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
def keep(text):
    KEPT.append("prefix " + text)  # the leak
KEPT = []
"""


def run(
    tmp_path: Path, tests: str, *options: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    (tmp_path / "code_under_test.py").write_text(CODE)
    (tmp_path / "test_it.py").write_text("import pytest\n" + tests)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | environment,
        timeout=300,
    )


def test_a_leak_fails_with_its_line(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
from code_under_test import keep

def test_leak(residue):
    keep(residue.secret())
""",
    )
    assert done.returncode == 1, done.stdout
    assert "1 failed" in done.stdout
    assert "the secret is left outside the arena once" in done.stdout
    assert "live pymalloc, str of" in done.stdout
    assert f"{tmp_path}/code_under_test.py:3" in done.stdout
    assert "malloc-arena: 1 test watched for residue, 1 left copies" in done.stdout


def test_the_summary_counts_tests_of_other_processes(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    done = run(
        tmp_path,
        """
from code_under_test import keep

@pytest.mark.parametrize("number", range(4))
def test_leak(residue, number):
    secret = residue.secret()
    if number == 1:
        keep(secret)
""",
        "--numprocesses=2",
    )
    assert done.returncode == 1, done.stdout
    assert "malloc-arena: 4 tests watched for residue, 1 left copies" in done.stdout


def test_work_inside_the_vault_passes(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
import json
def test_clean(residue, vault):
    token = residue.secret()
    with vault:
        text = json.dumps({"token": token, "n": 1})
        assert json.loads(text)["token"] == token
""",
    )
    assert done.returncode == 0, done.stdout
    assert "malloc-arena: 1 test watched for residue, no copies left" in done.stdout


def test_watching_sees_what_is_not_in_the_vault(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
import secrets
KEPT = []
def test_kept(residue):
    KEPT.append(secrets.token_hex(16))
    residue.watch(KEPT[0])
""",
    )
    assert done.returncode == 1, done.stdout
    assert "left outside the arena" in done.stdout


def test_marks_count_what_the_test_left_only(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
import os
KEPT = []
@pytest.mark.no_residue(env="TOKEN_OF_TEST")
def test_untouched():
    pass
@pytest.mark.no_residue(env="TOKEN_OF_TEST")
def test_copies():
    KEPT.append("Bearer " + os.environ["TOKEN_OF_TEST"])
@pytest.mark.no_residue(env="NOT_SET")
def test_skipped():
    pass
""",
        TOKEN_OF_TEST="k2J8vQx71LmZpWc0RfGh",
    )
    assert "1 failed, 1 passed, 1 skipped" in done.stdout, done.stdout
    assert "test_copies" in done.stdout
    assert "k2J8vQx71LmZpWc0RfGh" not in done.stdout
    assert "malloc-arena: 2 tests watched for residue, 1 left copies" in done.stdout


def test_a_file_and_a_function_give_the_secret(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("q1w2e3r4t5y6u7i8o9p0\n")
    done = run(
        tmp_path,
        """
KEPT = []
def given():
    return bytes(b ^ 0x55 for b in b"01234567" * 2)
@pytest.mark.no_residue(file="token")
def test_file():
    KEPT.append(open("token").read())
@pytest.mark.no_residue(call=given)
def test_function():
    KEPT.append(given())
""",
    )
    assert "2 failed" in done.stdout, done.stdout
    assert "q1w2e3r4" not in done.stdout


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ('no_residue("a literal secret")', "no_residue takes env="),
        ('no_residue(url="x")', "no_residue knows env="),
        ("no_residue", "no_residue takes env="),
        ("arena_limit()", "arena_limit takes one size"),
        ('arena_limit("a lot")', "arena_limit takes a size"),
        ('arena_limit("1 MiB")', "arena_limit needs the fixture vault"),
    ],
)
def test_wrong_marks_are_named(tmp_path: Path, mark: str, said: str) -> None:
    fixture = "vault" if "arena_limit" in mark and "MiB" not in mark else ""
    done = run(tmp_path, f"@pytest.mark.{mark}\ndef test_it({fixture}):\n    pass\n")
    assert done.returncode == 1
    assert said in done.stdout


def test_arena_limit(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
@pytest.mark.arena_limit("256 KiB")
def test_small(vault):
    with vault:
        kept = bytearray(1000)
@pytest.mark.arena_limit("256 KiB")
def test_large(vault):
    with pytest.raises(MemoryError, match="limit of 262144 bytes"), vault:
        bytearray(1 << 20)
def test_without(vault):
    with vault:
        bytearray(1 << 20)
""",
    )
    assert "3 passed" in done.stdout, done.stdout
    assert "malloc-arena:" not in done.stdout


def test_the_plugin_is_light() -> None:
    program = (
        "import sys, pytest; before = set(sys.modules)\n"
        "import malloc_arena.pytest_plugin\n"
        "print([m for m in set(sys.modules) - before if m.split('.')[0] in"
        " ('ctypes', 'rich', 'json', 'socket') or m.startswith('malloc_arena.audit')])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_methods_of_unittest_are_watched_as_well(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(os.urandom(16).hex().encode())
    done = run(
        tmp_path,
        f"""
import unittest
from code_under_test import keep
class TestOfUnittest(unittest.TestCase):
    @pytest.mark.no_residue(file={str(secret)!r})
    def test_marked(self):
        keep(open({str(secret)!r}).read())
    @pytest.mark.no_residue(file={str(secret)!r})
    def test_clean(self):
        pass
    @pytest.fixture(autouse=True)
    def _use(self, residue, vault):
        self.residue, self.vault = residue, vault
    def test_with_the_fixture(self):
        keep(self.residue.secret())
    def test_in_the_vault(self):
        with self.vault:
            self.kept = "prefix " + self.residue.secret()
    @pytest.mark.no_residue(file={str(secret)!r})
    def test_fails(self):
        self.fail("of itself")
class TestAsync(unittest.IsolatedAsyncioTestCase):
    @pytest.mark.no_residue(file={str(secret)!r})
    async def test_async(self):
        keep(open({str(secret)!r}).read())
""",
    )
    for name, failed in (
        ("TestOfUnittest::test_marked", True),
        ("TestOfUnittest::test_with_the_fixture", True),
        ("TestAsync::test_async", True),
        ("TestOfUnittest::test_clean", False),
        ("TestOfUnittest::test_in_the_vault", False),
    ):
        assert (f"{name} - Failed: the secret" in done.stdout) == failed, (name, done.stdout)
    assert "test_fails - AssertionError: of itself" in done.stdout
    assert "4 failed, 2 passed" in done.stdout


def test_a_secret_that_is_too_short_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, "def test_short(residue):\n    residue.watch('abc')\n")
    assert done.returncode == 1
    assert "ValueError: a secret shorter than 8 bytes turns up by chance\n" in done.stdout
    assert "must be allowed" not in done.stdout
