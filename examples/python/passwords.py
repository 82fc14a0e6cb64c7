"""A password manager: secrets in an encrypted file, one password for all of them.

    malloc-arena run passwords.py STORE add NAME              asks for the secret of NAME
    malloc-arena run passwords.py STORE use NAME -- COMMAND   which gets it on its standard input
    malloc-arena run passwords.py STORE list

Needs cryptography. Under `malloc-arena run` OpenSSL's memory is in the arena as well; plain Python
keeps what Python itself allocates there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

# Before the first scope: a module that is imported inside one stays in the arena.
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

import malloc_arena
from malloc_arena import HEAP_SECURE, sources

vault = malloc_arena.get(HEAP_SECURE)

# A store is a salt and entries; an entry is a line: name, nonce and ciphertext in hex.
Store = dict[str, tuple[bytes, bytes]]


def read(path: Path) -> tuple[bytes, Store]:
    if not path.exists():
        return os.urandom(16), {}
    salt, *lines = path.read_text().splitlines()
    entries = (line.split("\t") for line in lines)
    return bytes.fromhex(salt), {
        name: (bytes.fromhex(nonce), bytes.fromhex(data)) for name, nonce, data in entries
    }


def write(path: Path, salt: bytes, store: Store) -> None:
    lines = [salt.hex()]
    lines += [f"{name}\t{nonce.hex()}\t{data.hex()}" for name, (nonce, data) in store.items()]
    new = path.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text("\n".join(lines) + "\n")
    new.replace(path)


def cipher(salt: bytes) -> AESGCM:
    """From the password that is typed. It, the key and what lies between are in the arena, and all
    but the cipher is wiped when this returns."""
    with sources.prompt("Master password: ") as password:
        derivation = PBKDF2HMAC(SHA256(), length=32, salt=salt, iterations=600_000)
        return AESGCM(derivation.derive(memoryview(password)))


def add(path: Path, name: str) -> None:
    salt, store = read(path)
    with vault:
        locked = cipher(salt)
        for other, (nonce, data) in store.items():  # one password for all
            locked.decrypt(nonce, data, other.encode())
            break
    nonce = os.urandom(12)
    with sources.prompt(f"Secret of {name}: ") as secret:
        data = vault.call(locked.encrypt, nonce, memoryview(secret), name.encode())
    store[name] = nonce, data
    write(path, salt, store)


def use(path: Path, name: str, command: list[str]) -> int:
    salt, store = read(path)
    nonce, data = store[name]
    # Forked outside the scope; the pipe has no buffer of its own that would keep a copy.
    child = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0)
    assert child.stdin is not None
    with child.stdin as pipe, vault:
        pipe.write(cipher(salt).decrypt(nonce, data, name.encode()))
    return child.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description="Secrets in an encrypted file.")
    parser.add_argument("store", type=Path)
    parser.add_argument("verb", choices=("add", "use", "list"))
    parser.add_argument("name", nargs="?")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.verb == "list":
        print("\n".join(read(options.store)[1]))
        return 0
    if options.name is None:
        parser.error("the name of an entry is missing")
    try:
        if options.verb == "add":
            add(options.store, options.name)
            return 0
        command = options.command[options.command[:1] == ["--"] :]
        if not command:
            parser.error("say which command gets the secret")
        return use(options.store, options.name, command)
    except InvalidTag:
        print("wrong password", file=sys.stderr)
    except KeyError:
        print(f"no entry {options.name}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
