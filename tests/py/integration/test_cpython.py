"""CPython's own tests, with everything that the interpreter allocates in an arena: the quick part
of the list of cpython_suites.py, which runs all of it."""

from __future__ import annotations

import sys

import cpython_suites
import pytest

pytestmark = pytest.mark.timeout(1800)

# Most of the time of the others is sleep.
SUITES = (*cpython_suites.QUICK[:10], ("test_pickletools",), ("test_tracemalloc",))


@pytest.fixture(scope="module")
def available() -> list[str]:
    found = cpython_suites.modules(sys.executable, SUITES)
    if not found:
        pytest.skip("this interpreter comes without CPython's test package (Debian: none has it)")
    return found


@pytest.mark.parametrize("suite", SUITES, ids=lambda names: names[-1])
def test_everything_in_an_arena(suite: tuple[str, ...], available: list[str]) -> None:
    module = next((name for name in suite if name in available), None)
    if module is None:
        pytest.skip(f"this Python has no {suite}")
    found = cpython_suites.compare(sys.executable, module)
    assert found.differences == {"hooks": {}, "preload": {}}, found.outcomes["hooks"].output
    for mode in ("hooks", "preload"):
        outcome = found.outcomes[mode]
        assert "malloc_arena:" not in outcome.output
        # What the interpreter made before the import is outside, without preload.
        assert outcome.inside > (1000 * outcome.outside if mode == "preload" else outcome.outside)
    # A suite that passes nothing compares nothing.
    assert list(found.outcomes["plain"].tests.values()).count("ok") > 1
