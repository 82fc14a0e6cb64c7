"""Operations on text, bytes, numbers and containers."""

from __future__ import annotations

import functools
import sys
from typing import Any

from operation import Inputs, Secret, operation, raw, text

# ---- text ----


@operation("text")
def str_concatenate(inputs: Inputs) -> Secret:
    secret = text(inputs)
    built = ""
    for character in secret:
        built += character
    assert "<" + built + ">" == f"<{secret}>"
    return built


@operation("text")
def str_format(inputs: Inputs) -> Secret:
    secret = text(inputs)
    lines = [f"user:{secret}", "user:%s" % secret, "user:{}".format(secret)]  # noqa: UP032
    assert len(set(lines)) == 1
    return lines[0].removeprefix("user:")


@operation("text")
def str_split_join(inputs: Inputs) -> Secret:
    secret = text(inputs)
    line = ":".join(["ada", secret, "1000", "/home/ada"])
    return line.split(":")[1]


@operation("text")
def str_case(inputs: Inputs) -> Secret:
    secret = text(inputs)
    assert secret.swapcase().casefold() == secret.lower()
    return secret.swapcase().swapcase()


@operation("text")
def str_replace(inputs: Inputs) -> Secret:
    secret = text(inputs)
    swap = str.maketrans({"a": "b", "b": "a"})
    replaced = secret.replace("e", "<e>").replace("<e>", "e")
    return replaced.translate(swap).translate(swap)


@operation("text", "encodings.utf_16", "encodings.utf_32", "encodings.latin_1")
def str_encode(inputs: Inputs) -> Secret:
    secret = text(inputs)
    for codec in ("utf-8", "utf-16", "utf-32", "latin-1"):
        secret = secret.encode(codec).decode(codec)
    return secret


@operation("text")
def str_slice(inputs: Inputs) -> Secret:
    secret = text(inputs)
    backwards = secret[::-1]
    half = len(secret) // 2
    assert secret[:half] + secret[half:] == secret
    return backwards[::-1]


@operation("text")
def str_wide(inputs: Inputs) -> Secret:
    wide = text(inputs) + "\N{OLD PERSIAN SIGN A}"
    two_bytes = wide[:-1] + "\N{EURO SIGN}"
    return two_bytes[:-1]


@operation("text")
def str_intern(inputs: Inputs) -> Secret:
    secret = sys.intern(text(inputs))
    assert sys.intern(secret + "") is secret
    return secret


@operation("text", "unicodedata")
def str_normalize(inputs: Inputs) -> Secret:
    import unicodedata

    accented = text(inputs) + "é"
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", accented))[:-1]


@operation("text", "string")
def string_template(inputs: Inputs) -> Secret:
    import string

    secret = text(inputs)
    line = string.Template("password=$password;").substitute(password=secret)
    return line.removeprefix("password=").removesuffix(";")


@operation("text", "textwrap")
def text_wrap(inputs: Inputs) -> Secret:
    import textwrap

    words = textwrap.wrap("the password is " + text(inputs) + " and nothing else", width=40)
    return next(word for word in " ".join(words).split() if len(word) == 32)


@operation("text", "io")
def string_io(inputs: Inputs) -> Secret:
    import io

    with io.StringIO() as stream:
        stream.write("first\n")
        stream.write(text(inputs))
        stream.write("\nlast\n")
        stream.seek(0)
        return list(stream)[1].strip()


@operation("text")
def str_repr_eval(inputs: Inputs) -> Secret:
    value = eval(compile(repr(text(inputs)), "<string>", "eval"))
    assert isinstance(value, str)
    return value


@operation("text", "ast")
def literal_eval(inputs: Inputs) -> Secret:
    import ast

    value = ast.literal_eval(f"{{'password': {text(inputs)!r}}}")
    return str(value["password"])


# ---- bytes ----


@operation("bytes")
def bytes_concatenate(inputs: Inputs) -> Secret:
    secret = raw(inputs)
    frame = b"\x00\x01" + secret + b"\xff"
    return frame[2:-1]


@operation("bytes")
def bytearray_grow(inputs: Inputs) -> Secret:
    grown = bytearray()
    for byte in raw(inputs):
        grown.append(byte)
    for _ in range(8):
        grown += bytes(grown)
    del grown[32:]
    return bytes(grown)


@operation("bytes")
def bytearray_insert(inputs: Inputs) -> Secret:
    data = bytearray(raw(inputs))
    data[:0] = b"x" * 700
    del data[:700]
    return bytes(data)


@operation("bytes")
def memory_view(inputs: Inputs) -> Secret:
    view = memoryview(raw(inputs)).cast("Q")
    assert view.tolist()[0] == view[0]
    return view.tobytes()


@operation("bytes")
def bytes_hex(inputs: Inputs) -> Secret:
    return bytes.fromhex(raw(inputs).hex())


@operation("bytes", "base64")
def base_64(inputs: Inputs) -> Secret:
    import base64

    secret = raw(inputs)
    assert base64.b85decode(base64.b85encode(secret)) == secret
    return base64.urlsafe_b64decode(
        base64.urlsafe_b64encode(base64.b64decode(base64.b64encode(secret)))
    )


@operation("bytes", "quopri", "binascii")
def quoted_printable(inputs: Inputs) -> Secret:
    import binascii
    import quopri

    secret = raw(inputs)
    assert binascii.a2b_uu(binascii.b2a_uu(secret)) == secret
    return quopri.decodestring(quopri.encodestring(secret))


@operation("bytes", "io")
def bytes_io(inputs: Inputs) -> Secret:
    import io

    stream = io.BytesIO()
    stream.write(b"header\n")
    stream.write(raw(inputs) + b"\n")
    stream.seek(0)
    return stream.readlines()[1].strip()


@operation("bytes", "array")
def array_array(inputs: Inputs) -> Secret:
    import array

    numbers = array.array("B", raw(inputs))
    numbers.extend(numbers)
    numbers.reverse()
    return bytes(reversed(numbers))[:32]


@operation("bytes", "struct")
def struct_pack(inputs: Inputs) -> Secret:
    import struct

    packed = struct.pack("<H32sI", 7, raw(inputs), 9)
    return bytes(struct.unpack("<H32sI", packed)[1])


@operation("bytes", "ctypes")
def ctypes_buffer(inputs: Inputs) -> Secret:
    import ctypes

    secret = raw(inputs)
    buffer = ctypes.create_string_buffer(secret, 64)
    other = (ctypes.c_char * 64)()
    ctypes.memmove(other, buffer, 64)
    return bytes(other.value)


# ---- numbers ----


@operation("numbers", forms=("digits",))
def int_from_bytes(inputs: Inputs) -> Secret:
    number = int.from_bytes(raw(inputs), "big")
    return number.to_bytes(32, "big")


@operation("numbers", forms=("digits",))
def int_arithmetic(inputs: Inputs) -> Secret:
    number = int.from_bytes(raw(inputs), "big")
    modulus = 2**521 - 1
    masked = (number * 3 + (1 << 300)) % modulus
    inverse = pow(3, -1, modulus)
    return ((masked - (1 << 300)) * inverse % modulus).to_bytes(32, "big")


@operation("numbers", forms=("digits", "decimal"))
def int_decimal(inputs: Inputs) -> Secret:
    written = str(int.from_bytes(raw(inputs), "big"))
    return int(written).to_bytes(32, "big")


@operation("numbers", forms=("digits", "decimal"))
def int_format(inputs: Inputs) -> Secret:
    number = int.from_bytes(raw(inputs), "big")
    return int(f"{number:x}", 16).to_bytes(32, "big")


@operation("numbers", "struct")
def float_values(inputs: Inputs) -> Secret:
    import struct

    numbers = list(struct.unpack("<4d", raw(inputs)))
    numbers = [-(-number) for number in numbers]
    return struct.pack("<4d", *numbers)


@operation("numbers", "struct", forms=("floats",))
def float_text(inputs: Inputs) -> Secret:
    import struct

    numbers = [repr(number) for number in struct.unpack("<4d", raw(inputs))]
    return struct.pack("<4d", *map(float, numbers))


@operation("numbers", forms=("integers",))
def float_digits(inputs: Inputs) -> Secret:
    """As the number of a card, or of an account, becomes a float in a table."""
    secret = raw(inputs)
    halves = [int.from_bytes(secret[:16], "big"), int.from_bytes(secret[16:], "big")]
    for half in halves:
        f"{float(str(half)):.2f}"
    return b"".join(half.to_bytes(16, "big") for half in halves)


@operation("numbers", "struct")
def complex_values(inputs: Inputs) -> Secret:
    import struct

    a, b, c, d = struct.unpack("<4d", raw(inputs))
    numbers = [complex(a, b).conjugate().conjugate(), complex(c, d)]
    return struct.pack("<4d", *(part for n in numbers for part in (n.real, n.imag)))


@operation("numbers", "decimal", forms=("digits", "decimal"))
def decimal_number(inputs: Inputs) -> Secret:
    import decimal

    number = decimal.Decimal(int.from_bytes(raw(inputs), "big"))
    with decimal.localcontext(prec=200):
        number = (number + 5) * 7 / 7 - 5
    return int(str(number.to_integral_value())).to_bytes(32, "big")


@operation("numbers", "fractions", forms=("digits",))
def fraction(inputs: Inputs) -> Secret:
    import fractions

    number = fractions.Fraction(int.from_bytes(raw(inputs), "big"), 3)
    return int((number + 1) * 3 - 3).to_bytes(32, "big")


@operation("numbers", "uuid")
def uuid_pair(inputs: Inputs) -> Secret:
    import uuid

    secret = raw(inputs)
    pair = [uuid.UUID(bytes=secret[:16]), uuid.UUID(hex=secret[16:].hex())]
    return pair[0].bytes + uuid.UUID(str(pair[1])).bytes


# ---- containers and objects ----


@operation("containers")
def dict_values(inputs: Inputs) -> Secret:
    secret = text(inputs)
    known = {secret: "key", "value": secret, **{f"{secret}{i}": i for i in range(50)}}
    merged = {**known, **dict(zip("abc", "def", strict=True))}
    assert merged[secret] == "key"
    return next(iter(merged))


@operation("containers")
def list_sort(inputs: Inputs) -> Secret:
    secret = text(inputs)
    rows = [f"{i:02}{secret}" for i in range(40)]
    rows.sort(key=lambda row: row[::-1], reverse=True)
    return sorted(rows)[0][2:]


@operation("containers")
def set_algebra(inputs: Inputs) -> Secret:
    secret = text(inputs)
    left = frozenset({secret, "a", "b"})
    return (left & {secret, "c"}).__iter__().__next__()


@operation("containers", "collections", "heapq")
def deque_and_heap(inputs: Inputs) -> Secret:
    import collections
    import heapq

    secret = text(inputs)
    waiting = collections.deque(secret[i : i + 8] for i in range(0, 32, 8))
    heap: list[tuple[int, str]] = []
    while waiting:
        heapq.heappush(heap, (len(waiting), waiting.pop()))
    return "".join(heapq.heappop(heap)[1] for _ in range(4))


@operation("containers", "collections", "dataclasses")
def records(inputs: Inputs) -> Secret:
    import collections
    import dataclasses

    make = collections.namedtuple("make", "user password")
    login: Any = make("ada", text(inputs))
    kind = dataclasses.make_dataclass("Login", ["user", "password"])
    value: Any = kind(**login._asdict())
    assert login.password in repr(value)
    return str(dataclasses.astuple(value)[1])


@operation("containers")
def attribute_name(inputs: Inputs) -> Secret:
    class Settings:
        pass

    secret = text(inputs)
    settings = Settings()
    setattr(settings, secret, 1)
    setattr(Settings, secret + "x", 2)
    assert getattr(settings, secret + "x") == 2
    return next(iter(vars(settings)))


@operation("containers")
def generator_chain(inputs: Inputs) -> Secret:
    def parts(whole: str) -> Any:
        while whole:
            yield whole[:3]
            whole = whole[3:]

    return "".join(map(str, (part for part in parts(text(inputs)))))


@operation("containers", "copy")
def copy_deep(inputs: Inputs) -> Secret:
    import copy

    tree = {"login": [{"password": bytearray(raw(inputs))}]}
    twin = copy.deepcopy(tree)
    return bytes(twin["login"][0]["password"])


@functools.lru_cache(maxsize=16)
def _derived(secret: str) -> str:
    return secret[::-1]


@operation("containers")
def cached_call(inputs: Inputs) -> Secret:
    return _derived(_derived(text(inputs)))


@operation("containers", "contextvars")
def context_variable(inputs: Inputs) -> Secret:
    import contextvars

    current: contextvars.ContextVar[str] = contextvars.ContextVar("current", default="")
    token = current.set(text(inputs))
    try:
        return contextvars.copy_context()[current]
    finally:
        current.reset(token)
