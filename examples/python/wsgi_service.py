"""A WSGI service that signs: its key is read once, and lives in an arena.

    python wsgi_service.py KEYFILE [PORT]
    curl --data 'a message' http://127.0.0.1:8000/sign
    curl --data 'a message' http://127.0.0.1:8000/verify/SIGNATURE

`application(key)` is what a WSGI server is given; the one of the standard library is for trying.
Start the service with `malloc-arena run`, and OpenSSL's own copy of the key is in the arena too.
"""

from __future__ import annotations

import hmac
import sys
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import malloc_arena
from malloc_arena import HEAP_SECURE, SecretBuffer, sources

vault = malloc_arena.get(HEAP_SECURE)


def application(key: SecretBuffer) -> Callable[..., Iterable[bytes]]:
    def sign(message: bytes) -> str:
        # hmac wants bytes. They are in the arena, and wiped before this returns.
        with vault:
            return hmac.new(bytes(key), message, "sha256").hexdigest()

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        message = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        path = environ["PATH_INFO"]
        if path == "/sign":
            status, text = "200 OK", sign(message)
        elif path.startswith("/verify/"):
            good = hmac.compare_digest(sign(message), path.removeprefix("/verify/"))
            status, text = ("200 OK", "good") if good else ("403 Forbidden", "bad")
        else:
            status, text = "404 Not Found", "not found"
        start_response(status, [("Content-Type", "text/plain")])
        return [text.encode() + b"\n"]

    return answer


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def main(path: str, port: int) -> None:
    key = sources.from_file(path)
    if not vault.receipt.locked:
        print(f"the key is in memory that may be swapped: {vault.receipt}", file=sys.stderr)
    with make_server("127.0.0.1", port, application(key), handler_class=Quiet) as server:
        print(f"http://127.0.0.1:{server.server_port}/", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 8000)
