"""The everyday jobs, each as a program of its own: python jobs.py NAME plain|vault.

A job gets its secret the way real code does (a file, a socket, a terminal), uses it, and forgets
it. This file is run by path, so that the plain column is a Python that never saw the package. All
imports come first: a module imported inside a scope would live in the arena for ever.
"""

from __future__ import annotations

import dataclasses
import encodings.idna  # noqa: F401  the codec that every host name goes through
import gc
import getpass
import hashlib
import hmac
import importlib
import json
import netrc  # noqa: F401  requests looks for one at its first request
import os
import socket
import sqlite3
import ssl
import subprocess
import sys
import tomllib
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

Inputs = dict[str, Any]


def fingerprint(secret: str | bytes) -> int:
    """Proves to the watcher that the job had the secret; makes no further copy of it."""
    value = 0
    for byte in secret if isinstance(secret, bytes) else map(ord, secret):
        value = (value * 257 + byte) % (2**61 - 1)
    return value


def json_file(inputs: Inputs) -> int:
    config = json.loads(Path(inputs["path"]).read_text())
    database = config["database"]
    login = f"{database['user']}:{database['password']}@{database['host']}"
    return fingerprint(login.partition(":")[2].rpartition("@")[0])


def http_token(inputs: Inputs) -> int:
    import requests

    with requests.Session() as session:
        answer = session.post(inputs["url"] + "/token", data={"grant_type": "client_credentials"})
        answer.raise_for_status()
        token = answer.json()["access_token"]
        answer = session.get(inputs["url"] + "/me", headers={"Authorization": f"Bearer {token}"})
        answer.raise_for_status()
    return fingerprint(token)


def pem_key(inputs: Inputs) -> int:
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = serialization.load_pem_private_key(Path(inputs["path"]).read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = key.sign(b"a message", ec.ECDSA(hashes.SHA256()))
    key.public_key().verify(signature, b"a message", ec.ECDSA(hashes.SHA256()))
    return fingerprint(
        key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
    )


def typed_password(inputs: Inputs) -> int:
    password = getpass.getpass("Password: ")
    stored = bytes.fromhex(inputs["stored"])
    typed = hashlib.scrypt(password.encode(), salt=b"salt", n=1 << 10, r=8, p=1)
    if not hmac.compare_digest(typed, stored):
        raise ValueError("not the password")
    return fingerprint(password)


def env_file(inputs: Inputs) -> int:
    settings = {}
    with Path(inputs["path"]).open() as file:
        for line in file:
            name, _, value = line.strip().partition("=")
            settings[name] = value.strip("'\"")
    return fingerprint(settings["SECRET_KEY"])


def toml_file(inputs: Inputs) -> int:
    with Path(inputs["path"]).open("rb") as file:
        settings = tomllib.load(file)
    return fingerprint(settings["service"]["api_key"])


def sqlite_row(inputs: Inputs) -> int:
    connection = sqlite3.connect(inputs["path"])
    try:
        row = connection.execute("SELECT secret FROM login WHERE name = ?", ("api",)).fetchone()
    finally:
        connection.close()
    return fingerprint(row[0])


def tls_token(inputs: Inputs) -> int:
    context = ssl.create_default_context(cafile=inputs["certificate"])
    with (
        socket.create_connection((inputs["host"], inputs["port"])) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as channel,
    ):
        channel.sendall(b"TOKEN\n")
        token = channel.recv(4096).strip()
        channel.sendall(b"USE " + token + b"\n")
        if channel.recv(4096) != b"OK\n":
            raise ValueError("the server refused the token")
    return fingerprint(token)


def hash_and_hmac(inputs: Inputs) -> int:
    key = Path(inputs["path"]).read_bytes()
    signed = hmac.new(key, b"a message", "sha256").hexdigest()
    hashed = hashlib.sha256(b"salt" + key).hexdigest()
    if [signed, hashed] != inputs["expected"]:
        raise ValueError("wrong digest")
    return fingerprint(key)


def subprocess_stdin(inputs: Inputs) -> int:
    passphrase = Path(inputs["path"]).read_text()
    done = subprocess.run(
        ["sha256sum"], input=passphrase, capture_output=True, text=True, check=True
    )
    if done.stdout.split()[0] != inputs["expected"]:
        raise ValueError("the program got something else")
    return fingerprint(passphrase)


def login_form(inputs: Inputs) -> int:
    password = Path(inputs["path"]).read_text()
    form = urllib.parse.urlencode({"user": "ada", "password": password}).encode()
    with urllib.request.urlopen(inputs["url"] + "/login", data=form) as answer:
        if answer.read() != b"welcome":
            raise ValueError("the server refused the login")
    return fingerprint(password)


# Name: the job, and the modules that it imports by itself.
JOBS: dict[str, tuple[Callable[[Inputs], int], tuple[str, ...]]] = {
    "json": (json_file, ()),
    "token": (http_token, ("requests",)),
    "pem": (
        pem_key,
        (
            "cryptography.hazmat.primitives.asymmetric.ec",
            "cryptography.hazmat.primitives.hashes",
            "cryptography.hazmat.primitives.serialization",
        ),
    ),
    "getpass": (typed_password, ()),
    "env": (env_file, ()),
    "toml": (toml_file, ()),
    "sqlite": (sqlite_row, ()),
    "tls": (tls_token, ()),
    "hmac": (hash_and_hmac, ()),
    "subprocess": (subprocess_stdin, ()),
    "form": (login_form, ()),
}


def main(name: str, mode: str) -> None:
    """Runs one job, reports on standard output, and stands still until standard input ends."""
    job, modules = JOBS[name]
    for module in modules:
        importlib.import_module(module)
    # Reports and inputs go through bare descriptors: a stream's buffer would be one more place.
    inputs = json.loads(os.read(0, 1 << 16))
    if "terminal" in inputs:
        os.open(inputs["terminal"], os.O_RDWR)  # of a session leader: this is now its /dev/tty
    report: dict[str, Any] = {}
    if mode == "plain":
        report["fingerprint"] = job(inputs)
    else:
        import malloc_arena

        vault = malloc_arena.get(malloc_arena.HEAP_SECURE)
        with vault:
            report["fingerprint"] = job(inputs)
    gc.collect()
    if mode != "plain":
        report["region"] = list(malloc_arena.region())
        receipt = vault.receipt
        report["receipt"] = dataclasses.asdict(receipt)
        report["receipt_text"] = str(receipt)
    os.write(1, json.dumps(report).encode() + b"\n")
    os.read(0, 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
