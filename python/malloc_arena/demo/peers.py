"""The other end of each job: the files it reads, the servers and the terminal it talks to.

All of it lives in the watching process, which is never searched. A peer is a context manager that
yields the job's inputs (paths and addresses, never the secret) and the fingerprint that the job
must report.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.server
import json
import os
import secrets
import socket
import sqlite3
import ssl
import string
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .jobs import Inputs, fingerprint


@dataclass(frozen=True)
class Peer:
    """What a job is given, what it must prove, and which bytes are then looked for."""

    inputs: Inputs
    fingerprint: int
    secret: bytes


PeerFactory = Callable[[str, Path], contextlib.AbstractContextManager[Peer]]


def new_secret() -> str:
    """A random password that urlencode must quote in places and no file format must escape."""
    marks = "/+=&@%"
    letters = string.ascii_letters + string.digits
    chosen = [secrets.choice(letters) for _ in range(26)] + list(marks)
    secrets.SystemRandom().shuffle(chosen)
    return "".join(chosen)


def _peer(secret: str, **inputs: Any) -> Peer:
    return Peer(inputs, fingerprint(secret), secret.encode())


@contextlib.contextmanager
def json_file(secret: str, directory: Path) -> Iterator[Peer]:
    path = directory / "config.json"
    database = {"host": "db.internal", "user": "app", "password": secret}
    path.write_text(json.dumps({"debug": False, "database": database}, indent=2))
    yield _peer(secret, path=str(path))


@contextlib.contextmanager
def env_file(secret: str, directory: Path) -> Iterator[Peer]:
    path = directory / "settings.env"
    path.write_text(f"DEBUG=0\nSECRET_KEY='{secret}'\nLOG_LEVEL=info\n")
    yield _peer(secret, path=str(path))


@contextlib.contextmanager
def toml_file(secret: str, directory: Path) -> Iterator[Peer]:
    path = directory / "settings.toml"
    path.write_text(f'[service]\nname = "billing"\napi_key = "{secret}"\n')
    yield _peer(secret, path=str(path))


@contextlib.contextmanager
def text_file(secret: str, directory: Path) -> Iterator[Peer]:
    path = directory / "passphrase"
    path.write_text(secret)
    yield _peer(secret, path=str(path), expected=hashlib.sha256(secret.encode()).hexdigest())


@contextlib.contextmanager
def key_file(secret: str, directory: Path) -> Iterator[Peer]:
    path = directory / "key"
    path.write_text(secret)
    key = secret.encode()
    expected = [
        hmac.new(key, b"a message", "sha256").hexdigest(),
        hashlib.sha256(b"salt" + key).hexdigest(),
    ]
    yield _peer(secret, path=str(path), expected=expected)


@contextlib.contextmanager
def sqlite_file(secret: str, directory: Path) -> Iterator[Peer]:
    path = directory / "logins.sqlite"
    path.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE login (name TEXT, secret TEXT)")
        connection.execute("INSERT INTO login VALUES ('api', ?)", (secret,))
        connection.commit()
    yield _peer(secret, path=str(path))


@contextlib.contextmanager
def pem_file(_: str, directory: Path) -> Iterator[Peer]:
    # The secret is the private number of a new key, which the PEM text holds in base64.
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    path = directory / "key.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    private = key.private_numbers().private_value.to_bytes(32, "big")
    yield Peer({"path": str(path)}, fingerprint(public), private)


@contextlib.contextmanager
def terminal(secret: str, _: Path) -> Iterator[Peer]:
    controller, device = os.openpty()
    stored = hashlib.scrypt(secret.encode(), salt=b"salt", n=1 << 10, r=8, p=1)

    def types() -> None:
        seen = b""
        with contextlib.suppress(OSError):  # EIO: the job ended
            while b"Password: " not in seen:
                seen += os.read(controller, 1024)
            os.write(controller, secret.encode() + b"\n")

    typist = threading.Thread(target=types, daemon=True)
    typist.start()
    try:
        yield _peer(secret, terminal=os.ttyname(device), stored=stored.hex())
    finally:
        os.close(device)
        typist.join(timeout=5)
        os.close(controller)


@contextlib.contextmanager
def http_server(secret: str, directory: Path) -> Iterator[Peer]:
    path = directory / "password"
    path.write_text(secret)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            known = self.headers["Authorization"] == f"Bearer {secret}"
            self._answer(200 if known else 401, b'{"name": "ada"}')

        def do_POST(self) -> None:
            form = urllib.parse.parse_qs(
                self.rfile.read(int(self.headers["Content-Length"])).decode()
            )
            if self.path == "/token":
                token = {"access_token": secret, "token_type": "Bearer", "expires_in": 3600}
                self._answer(200, json.dumps(token).encode())
            else:
                known = form.get("password") == [secret]
                self._answer(200 if known else 403, b"welcome")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base's name
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield _peer(secret, url=f"http://127.0.0.1:{server.server_port}", path=str(path))
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def tls_server(secret: str, directory: Path) -> Iterator[Peer]:
    certificate, key = _self_signed(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            plain, _ = listener.accept()
            plain.settimeout(30)
            with context.wrap_socket(plain, server_side=True) as channel:
                channel.recv(4096)
                channel.sendall(secret.encode() + b"\n")
                used = channel.recv(4096) == b"USE " + secret.encode() + b"\n"
                channel.sendall(b"OK\n" if used else b"NO\n")
                channel.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        host, port = listener.getsockname()
        yield _peer(secret, host=host, port=port, certificate=str(certificate))


def _self_signed(directory: Path) -> tuple[Path, Path]:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    hour = datetime.timedelta(hours=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - hour)
        .not_valid_after(now + hour)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate_path = directory / "certificate.pem"
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path = directory / "server.pem"
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate_path, key_path
