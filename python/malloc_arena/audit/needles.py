"""The forms in which a secret lies in memory, as byte patterns to look for."""

from __future__ import annotations

import base64
import binascii
import urllib.parse
from dataclasses import dataclass

FRAGMENT = 8  # bytes of the secret; shorter runs turn up by chance
_BY_CHANCE = 1 << 48  # so do smaller numbers
_HEX = set(b"0123456789abcdefABCDEF")
_TEXT_DIGITS = 4000  # CPython converts no more by default


@dataclass(frozen=True, slots=True)
class Needle:
    """One encoding of the secret. A hit is a run of its pattern that holds FRAGMENT of its units.

    starts[i] is where unit i begins in the pattern; the last entry is the pattern's length. A unit
    is one byte of the secret, or one character where the encoding is by character (UTF-16), or one
    digit of a number or of base64.
    """

    encoding: str
    pattern: bytes
    starts: tuple[int, ...]
    fragment: int = FRAGMENT

    def units(self, begin: int, end: int) -> int:
        """How many whole units pattern[begin:end] holds."""
        whole = [i for i, start in enumerate(self.starts) if begin <= start <= end]
        return max(len(whole) - 1, 0)

    def windows(self) -> list[tuple[int, int]]:
        """(offset, length) of every shortest run that counts."""
        pairs = zip(self.starts, self.starts[self.fragment :], strict=False)
        return [(start, end - start) for start, end in pairs]

    def grams(self) -> list[tuple[int, bytes]]:
        """(offset, bytes) such that every run that counts contains at least one of them whole."""
        shortest = min(length for _, length in self.windows())
        length = shortest // 2
        stride = shortest - length + 1
        last = len(self.pattern) - length
        if shortest == len(self.pattern):
            return [(0, self.pattern[:length])]
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


def _fragment(secret: bytes) -> int:
    """How much of SECRET is a fragment: more where a character tells less, as other numbers and
    other hex are in memory by the megabyte."""
    length = 15 if secret.isdigit() else 12 if set(secret) <= _HEX else FRAGMENT
    return min(length, len(secret))


def _numbers(secret: bytes) -> list[Needle]:
    # A number is made as a whole: it has no fragments, but for those of a decimal text.
    values = {"int": int.from_bytes(secret, "big"), "int-le": int.from_bytes(secret, "little")}
    found = []
    if secret.isdigit():
        values["int-10"] = value = int(secret) if len(secret) < _TEXT_DIGITS else 0
        if _BY_CHANCE <= value < 1 << 64:
            found.append(_uniform("int64", value.to_bytes(8, "little"), fragment=8))
    for name, value in values.items():
        if value < _BY_CHANCE:
            continue
        # CPython's int: digits of 30 bits in words of 32, the lowest first.
        count = -(-value.bit_length() // 30)
        digits = [value >> 30 * i & (1 << 30) - 1 for i in range(count)]
        pattern = b"".join(digit.to_bytes(4, "little") for digit in digits)
        found.append(_uniform(name, pattern, 4, count))
    if values["int"].bit_length() < 3 * _TEXT_DIGITS:
        text = str(values["int"]).encode()
        if len(text) >= 16:
            found.append(_uniform("decimal", text, fragment=min(20, len(text))))
    return found


def needles(secret: bytes) -> tuple[Needle, ...]:
    """Every form of SECRET that is looked for; it must be at least FRAGMENT bytes long."""
    if len(secret) < FRAGMENT:
        raise ValueError(f"a secret shorter than {FRAGMENT} bytes turns up by chance")
    length = _fragment(secret)
    found = [
        _uniform("raw", secret, fragment=length),
        _uniform("reversed", secret[::-1], fragment=length),
    ]
    try:
        text = secret.decode()
    except UnicodeDecodeError:
        pass
    else:
        if len(text) >= FRAGMENT and text.isprintable():
            for width in (2, 4):
                for end in ("le", "be"):
                    name = f"utf-{8 * width}{end}"
                    wide = text.encode(f"utf-{8 * width}-{end}")
                    found.append(_uniform(name, wide, width, length))
    digits = binascii.hexlify(secret)
    found.append(_uniform("hex", digits, 2))
    if digits.upper() != digits:
        found.append(_uniform("HEX", digits.upper(), 2))
    found += _base64(secret)
    quoted = _quoted(secret)
    if quoted:
        found.append(quoted)
    return tuple(found + _numbers(secret))
