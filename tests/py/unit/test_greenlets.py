"""The tests of greenlets.py, in a process of their own: where greenlet is imported, threads that
open a scope are followed, and the other tests are to see them as they are without."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest


def test_greenlets() -> None:
    if importlib.util.find_spec("greenlet") is None:
        pytest.skip("greenlet is not installed")
    tests = Path(__file__).with_name("greenlets.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
