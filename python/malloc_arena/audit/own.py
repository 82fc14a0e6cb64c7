"""Looks at the own process, through a helper: the search itself leaves no copies here."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import subprocess
import sys
import tracemalloc
from typing import Any

from .owner import Place
from .process import CannotLook, Process
from .scanner import Finding, Frame, Hit, Scan, Scanner
from .source import fetch

_PR_SET_PTRACER = 0x59616D61
_NO_SECRET = 4  # the helper's exit code where what it was given cannot be looked for
_libc = ctypes.CDLL(None, use_errno=True)


def scan(secret: Any) -> Scan:
    """Looks for SECRET in this process, all of its threads standing still meanwhile.

    SECRET is a str, or bytes, or anything with writable bytes, as a SecretBuffer. The helper reads
    it from where it lies: no copy of it is made here. That one place is not a finding. Where
    tracemalloc runs, each finding in a live block of Python's carries its traceback. ValueError: it
    is shorter than 8 bytes. CannotLook: this process may not be traced.
    """
    address, length, width, own = _where(secret)
    helper = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, str(address), str(length), str(width)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with helper:
        # Where Yama lets only ancestors trace; elsewhere EINVAL, which is as good.
        _libc.prctl(_PR_SET_PTRACER, helper.pid, 0, 0, 0)
        answer, errors = helper.communicate(b"go\n")
    if helper.returncode:
        last = errors.decode(errors="replace").strip().splitlines()[-1:] or ["no word"]
        if helper.returncode == _NO_SECRET:
            raise ValueError(last[0])
        raise CannotLook(last[0], "the helper must be allowed to trace this process")
    found = _from_json(json.loads(answer))
    findings = tuple(
        _with_traceback(one)
        for one in found.findings
        if not own[0] <= one.hit.address < own[1] or one.hit.owner == "register"
    )
    return dataclasses.replace(found, findings=findings)


def _where(secret: Any) -> tuple[int, int, int, tuple[int, int]]:
    """(address, length, width of a character or 0, the object's own range)"""
    if isinstance(secret, str):
        # The characters stand at the end, behind a header; the size alone does not tell their
        # width, because a cached UTF-8 text may be counted in.
        largest = max(map(ord, secret), default=0)
        width = 1 if largest < 1 << 8 else 2 if largest < 1 << 16 else 4
        header = sys.getsizeof("") - 1 if secret.isascii() else sys.getsizeof("\xe9") - 2
        size = header + (len(secret) + 1) * width
        return id(secret) + header, len(secret), width, (id(secret), id(secret) + size)
    if isinstance(secret, bytes):
        header = bytes.__basicsize__ - 1
        end = id(secret) + header + len(secret)
        return id(secret) + header, len(secret), 0, (id(secret), end)
    with memoryview(secret).cast("B") as view:
        array = (ctypes.c_char * len(view)).from_buffer(view)
        address = ctypes.addressof(array)
        del array
        return address, len(view), 0, (address, address + len(view))


def _with_traceback(finding: Finding) -> Finding:
    if not tracemalloc.is_tracing() or finding.place.state != "live" or not finding.place.block:
        return finding
    try:
        find = ctypes.pythonapi._PyTraceMalloc_GetTraceback
    except AttributeError:
        return finding
    find.argtypes = (ctypes.c_uint, ctypes.c_size_t)
    find.restype = ctypes.py_object
    lines = find(0, finding.place.block) or ()
    return dataclasses.replace(finding, traceback=tuple(Frame(*line[:2]) for line in lines))


def to_json(found: Scan) -> dict[str, Any]:
    return dataclasses.asdict(found)


def _from_json(data: dict[str, Any]) -> Scan:
    findings = tuple(
        Finding(Hit(**one["hit"]), Place(**one["place"]), one["before"], one["after"])
        for one in data.pop("findings")
    )
    return Scan(findings, **data)


def _help() -> int:
    """What the helper does: looks at its parent."""
    import os

    address, length, width = (int(argument) for argument in sys.argv[1:])
    pid = os.getppid()
    sys.stdin.readline()
    try:
        with Process(pid) as process:
            secret = fetch(process, address, length * (width or 1))
            if len(secret) != length * (width or 1):
                raise CannotLook("the secret itself cannot be read from outside", "scan a copy")
            if width:
                secret = secret.decode(("latin-1", "utf-16-le", "utf-32-le")[width // 2]).encode()
            found = Scanner(secret, remember=False).scan(process)
    except (CannotLook, ValueError) as error:
        print(error, file=sys.stderr)
        return _NO_SECRET if isinstance(error, ValueError) else 3
    print(json.dumps(to_json(found)))
    return 0


if __name__ == "__main__":
    sys.exit(_help())
