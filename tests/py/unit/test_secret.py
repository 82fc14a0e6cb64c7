"""Secret does not show itself, and the recipes of docs/python.md do what they say."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any

import pytest

import malloc_arena
from conftest import MAKE, Child, hits
from malloc_arena import HEAP_SECURE, Secret, SecretBuffer, audit


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        ascii,
        "{}".format,
        "{!r:>40}".format,
        "{:20}".format,
        lambda secret: f"{secret}",
        lambda secret: f"{secret:x}",
        lambda secret: "%s %r" % (secret, secret),  # noqa: UP031
        lambda secret: str([secret]) + str({"key": secret}),
        lambda secret: json.dumps({"key": secret}, default=str),
        lambda secret: str(dir(secret)),
        lambda secret: "".join(traceback.format_exception_only(ValueError(secret))),
    ],
)
def test_does_not_show_itself(show: Callable[[object], str]) -> None:
    for value in ("hunter2 hunter2", b"hunter2 hunter2", bytearray(b"hunter2")):
        assert "hunter2" not in show(Secret(value))


def test_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("test").warning("the key is %s (%r)", Secret("hunter2"), Secret("hunter2"))
    assert "the key is **********" in caplog.text
    assert "hunter2" not in caplog.text


def test_gives_the_value_itself() -> None:
    for value in ("text", b"bytes", SecretBuffer(3), object()):
        assert Secret(value).reveal() is value


@pytest.mark.parametrize(
    "leak",
    [
        copy.copy,
        copy.deepcopy,
        lambda secret: [pickle.dumps(secret, protocol) for protocol in range(6)],
        lambda secret: secret.__reduce__(),
        lambda secret: secret.__getstate__(),
        hash,
        vars,
        lambda secret: {secret},
        lambda secret: secret < Secret("other"),
        json.dumps,
        iter,
        bytes,
    ],
)
def test_cannot_leave(leak: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError) as refused:
        leak(Secret("hunter2"))
    assert "hunter2" not in str(refused.value)


def test_does_not_change() -> None:
    secret = Secret("a")
    with pytest.raises(AttributeError):
        secret._value = "b"  # type: ignore[misc]
    with pytest.raises(AttributeError, match="does not change"):
        secret.__init__("b")  # type: ignore[misc]
    with pytest.raises(AttributeError):
        secret.other = "b"  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        del secret._value
    assert secret.reveal() == "a"


@pytest.mark.parametrize("text", ["", "a", "some text", "ä", "ä€", "ä€😀" * 10])
def test_equality(text: str) -> None:
    other = "".join(list(text))
    for a, b in ((text, other), (text.encode(), bytearray(other.encode()))):
        assert Secret(a) == Secret(b)
        assert Secret(a) == b
        assert b == Secret(a)
        assert not (Secret(a) != Secret(b))
        assert Secret(a) != Secret(b * 2 if b else "x")
    for changed in (text + "x", "x" + text, text + "€", text[:-1] + "\0" if text else "\0"):
        assert Secret(text) != Secret(changed)
        assert Secret(text.encode()) != Secret(changed.encode())
    assert Secret(text) != Secret(text.encode())
    assert Secret(text) != 1
    assert Secret(text) is not None
    with SecretBuffer(3) as buffer:
        buffer[:] = b"abc"
        assert Secret(buffer) == b"abc"
        assert Secret(buffer) != b"abd"


class Tells:
    """Compared, it says with what and where, and answers as it was told."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.seen: list[object] = []
        self.made: list[object] = []

    def __eq__(self, other: object) -> Any:
        self.seen.append(other)
        self.made.append(object())
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    __hash__ = None  # type: ignore[assignment]


VALUES: list[tuple[Any, Any, Any]] = [
    (5, 5, 6),
    (10**30, int("1" + "0" * 30), 10**30 + 1),
    (1.5, 1.5, 2.5),
    (5, 5.0, "5"),
    (None, None, 0),
    ([1, "a"], [1, "a"], [1, "b"]),
    (("a", b"b"), ("a", b"b"), ("a", "b")),
    ({"password": "a"}, {"password": "a"}, {}),
    ({1, 2}, {2, 1}, {1}),
]


@pytest.mark.parametrize(("value", "same", "other"), VALUES, ids=repr)
def test_equality_of_other_values(value: Any, same: Any, other: Any) -> None:
    for a, b in (
        (Secret(value), Secret(same)),
        (Secret(value), same),
        (value, Secret(same)),
        (Secret(Secret(value)), Secret(same)),
        (Secret(value), Secret(Secret(same))),
        ([Secret(value)], [Secret(same)]),
        (Secret([Secret(value)]), Secret([same])),
    ):
        assert a == b
        assert not (a != b)
    for a, b in (
        (Secret(value), Secret(other)),
        (Secret(value), other),
        (other, Secret(value)),
        (Secret(Secret(value)), Secret(other)),
        (Secret(value), Secret("**********")),
    ):
        assert a != b
        assert not (a == b)
    secret = Secret(value)
    assert secret == secret


def test_equality_is_the_values_own() -> None:
    """As plain values have it: what they raise, what is equal to nothing, what has no answer."""
    nothing = float("nan")
    assert Secret(nothing) != Secret(nothing)
    one = object()
    assert Secret(one) == Secret(one)
    assert Secret(one) != Secret(object())
    for secret in (Secret(Tells(NotImplemented)), Secret(Secret(Tells(NotImplemented)))):
        assert secret != Secret(1)
        assert secret == secret
    for answer in ([1], 2, "yes"):
        assert (Secret(Tells(answer)) == 1) is True
        assert (Secret(Tells(answer)) != 1) is False
    for answer in ([], 0, None):
        assert (Secret(Tells(answer)) == 1) is False
    told = Tells(True)
    assert Secret(1) == Secret(told)
    assert told.seen == [1]
    with pytest.raises(ValueError, match=r"^no$"):
        assert Secret(Tells(ValueError("no"))) == Secret(1)
    with pytest.raises(ValueError, match=r"^no$"):
        assert Secret(1) != Secret(Tells(ValueError("no")))


def test_equality_of_what_contains_itself() -> None:
    def endless() -> Secret[list[object]]:
        inner: list[object] = []
        secret = Secret(inner)
        inner.append(secret)
        return secret

    one = endless()
    assert one == one
    with pytest.raises(RecursionError):
        assert one == endless()


def test_text_is_not_asked_about_bytes() -> None:
    """It would be a warning, or under -bb an error, that == with a Secret never was."""
    done = subprocess.run(
        [
            sys.executable,
            "-bb",
            "-c",
            "from malloc_arena import Secret\n"
            "for a, b in (('a', b'a'), (b'a', 'a'), ('a', bytearray(b'a')), (b'a', 5),\n"
            "             (5, b'a')):\n"
            "    assert Secret(a) != Secret(b) and Secret(a) != b",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_equality_in_the_arena(own: malloc_arena.Arena) -> None:
    """What a comparison makes is where the value is."""
    with own:
        inside = Tells(True)
    outside = Tells(True)
    for a, b in ((inside, 1), (1, inside), (inside, Secret(1)), (Secret(inside), 1)):
        assert Secret(a) == b
    assert len(inside.made) == 4
    assert all(own.owns(id(each)) for each in inside.made)
    assert Secret(outside) == 1
    assert not own.owns(id(outside.made[0]))
    inside.answer = ValueError("no")
    with pytest.raises(ValueError, match=r"^no$"):
        assert Secret(inside) == 1
    assert not own.owns(id(object()))


def test_the_type_of_the_value_is_known() -> None:
    secret: Secret[str] = Secret("a")
    assert secret.reveal().upper() == "A"


def outside(process: Child) -> tuple[audit.Hit, ...]:
    return tuple(hit for hit in hits(process) if hit.owner != "arena")


def test_pydantic(child: Callable[..., Child]) -> None:
    pytest.importorskip("pydantic")
    process = child(
        MAKE
        + """
from pydantic import BaseModel, SecretStr
class Login(BaseModel):
    user: str
    password: SecretStr
vault = get(HEAP_SECURE)
def load():
    text = '{"user": "me", "password": "' + make().decode("latin-1") + '"}'
    return Login(**json.loads(text))
login = vault.call(load)
assert vault.owns(id(login.password.get_secret_value()))
assert "****" in repr(login)
show()
"""
    )
    process.shown()
    assert outside(process) == ()
    process.ends()


def test_keyring(child: Callable[..., Child]) -> None:
    pytest.importorskip("keyring")
    process = child(
        MAKE
        + """
import keyring, keyring.backend
class Backend(keyring.backend.KeyringBackend):
    priority = 1
    def get_password(self, service, user):
        return make().decode("latin-1")
    def set_password(self, service, user, password): raise NotImplementedError
    def delete_password(self, service, user): raise NotImplementedError
keyring.set_keyring(Backend())
vault = get(HEAP_SECURE)
with vault:
    password = Secret(keyring.get_password("service", "user"))
assert vault.owns(id(password.reveal()))
show()
"""
    )
    process.shown()
    assert outside(process) == ()
    process.ends()


def test_cryptography(child: Callable[..., Child]) -> None:
    pytest.importorskip("cryptography")
    process = child(
        MAKE
        + """
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
vault = get(HEAP_SECURE)
key = vault.buffer(32)
with vault:
    key[:25] = make()
cipher = AESGCM(key)
data = cipher.encrypt(bytes(12), b"message", None)
with vault:
    assert AESGCM(key).decrypt(bytes(12), data, None) == b"message"
del cipher
show()
"""
    )
    process.shown()
    assert outside(process) == ()
    process.ends()


def test_in_the_arena(own: malloc_arena.Arena) -> None:
    with own:
        secret = Secret("".join(["hunter", "2"]))
    assert own.owns(id(secret.reveal()))
    assert malloc_arena.get(HEAP_SECURE) is not own
