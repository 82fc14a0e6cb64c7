"""The forms in which a secret lies in memory, as byte patterns to look for."""

from __future__ import annotations

import base64
import binascii
import urllib.parse
from dataclasses import dataclass

FRAGMENT = 8  # bytes of the secret; shorter runs turn up by chance


@dataclass(frozen=True, slots=True)
class Needle:
    """One encoding of the secret. A hit is a run of its pattern that holds FRAGMENT of its units.

    starts[i] is where unit i begins in the pattern; the last entry is the pattern's length. A unit
    is one byte of the secret, or one character where the encoding is by character (UTF-16), or one
    base64 digit.
    """

    encoding: str
    pattern: bytes
    starts: tuple[int, ...]
    fragment: int = FRAGMENT

    def units(self, begin: int, end: int) -> int:
        """How many whole units pattern[begin:end] holds."""
        whole = [i for i, start in enumerate(self.starts) if begin <= start <= end]
        return max(len(whole) - 1, 0)

    def grams(self) -> list[tuple[int, bytes]]:
        """(offset, bytes) such that every run that counts contains at least one of them whole."""
        shortest = min(
            self.starts[i + self.fragment] - self.starts[i]
            for i in range(len(self.starts) - self.fragment)
        )
        length = shortest // 2
        stride = shortest - length + 1
        last = len(self.pattern) - length
        offsets = [*range(0, last, stride), last]
        return [(offset, self.pattern[offset : offset + length]) for offset in offsets]


def _uniform(encoding: str, pattern: bytes, width: int = 1, fragment: int = FRAGMENT) -> Needle:
    return Needle(encoding, pattern, tuple(range(0, len(pattern) + 1, width)), fragment)


def _base64(secret: bytes) -> list[Needle]:
    # 8 bytes at an unknown bit offset determine 10 digits whole. Digits that also hold bits of
    # neighbouring text are cut off: 0, 2 or 3 in front, by alignment, and the last partial one.
    needles = []
    for shift, skip in ((0, 0), (1, 2), (2, 3)):
        digits = base64.b64encode(bytes(shift) + secret)[skip : (shift + len(secret)) * 8 // 6]
        if len(digits) < 10:
            continue
        needles.append(_uniform(f"base64+{shift}", digits, fragment=10))
        safe = digits.translate(bytes.maketrans(b"+/", b"-_"))
        if safe != digits:
            needles.append(_uniform(f"base64url+{shift}", safe, fragment=10))
    return needles


def _quoted(secret: bytes) -> Needle | None:
    parts = [urllib.parse.quote_from_bytes(bytes([byte]), safe="").encode() for byte in secret]
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + len(part))
    pattern = b"".join(parts)
    return None if pattern == secret else Needle("url-quoted", pattern, tuple(starts))


def needles(secret: bytes) -> tuple[Needle, ...]:
    """Every form of SECRET that is looked for; it must be at least FRAGMENT bytes long."""
    if len(secret) < FRAGMENT:
        raise ValueError(f"a secret shorter than {FRAGMENT} bytes turns up by chance")
    found = [_uniform("raw", secret), _uniform("reversed", secret[::-1])]
    try:
        text = secret.decode()
    except UnicodeDecodeError:
        pass
    else:
        if len(text) >= FRAGMENT and text.isprintable():
            found.append(_uniform("utf-16le", text.encode("utf-16-le"), 2))
            found.append(_uniform("utf-16be", text.encode("utf-16-be"), 2))
            found.append(_uniform("utf-32le", text.encode("utf-32-le"), 4))
            found.append(_uniform("utf-32be", text.encode("utf-32-be"), 4))
    digits = binascii.hexlify(secret)
    found.append(_uniform("hex", digits, 2))
    if digits.upper() != digits:
        found.append(_uniform("HEX", digits.upper(), 2))
    found += _base64(secret)
    quoted = _quoted(secret)
    if quoted:
        found.append(quoted)
    return tuple(found)
