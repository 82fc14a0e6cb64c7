"""Web services that hold a key and answer each request in a scope: what is left, and what grows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).resolve().parents[3] / "benchmarks" / "python" / "soak.py"


@pytest.mark.parametrize("kind", ["asyncio", "prefork"])
def test_a_service_keeps_its_key_to_itself(kind: str, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, SOAK, "--kind", kind, "--requests", "1500", "--json", result],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout
    (found,) = json.loads(result.read_text())["results"]
    assert found["requests"] >= 1500
    # A worker's key was searched for, and found, in each.
    assert found["held_inside"] >= (2 if kind == "prefork" else 1), found
    assert found["held_outside"] == 0, found
    assert found["forgotten"] == 0, found
    assert found["growth"] <= 8, found
    assert found["live_blocks"] > 0
