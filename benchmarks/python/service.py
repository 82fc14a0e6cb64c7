"""A web service that holds a key: python service.py asyncio|prefork plain|scope.

It reads its key from standard input, prints {"port", "pids", "region"} and signs what is posted to
it, each request in a scope of its own or in none. GET /stats tells what lives in the arena, POST
/forget drops the key.
"""

from __future__ import annotations

import asyncio
import gc
import hmac
import json
import os
import signal
import socket
import sys
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

WORKERS = 2
config: dict[str, str] = {}
vault: Any = None


def sign(body: bytes) -> bytes:
    """What a service does with its key: the key itself, and what is made of it, is soon garbage."""
    order = json.loads(body)
    key = f"hmac:{config['key']}".encode()
    lines = [f"{name}={value}" for name, value in sorted(order.items())]
    signature = hmac.new(key, "\n".join(lines).encode(), "sha256").hexdigest()
    return json.dumps({"signed": order, "signature": signature}).encode()


def answer(method: str, path: str, body: bytes) -> bytes:
    if path == "/stats":
        gc.collect()
        live = vault.stats().live_blocks if vault is not None else 0
        return json.dumps({"pid": os.getpid(), "live_blocks": live}).encode()
    if path == "/forget":
        config.clear()
        return json.dumps({"pid": os.getpid()}).encode()
    return sign(body)


# ---- asyncio: one process, connections that stay ----


async def one_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split()
    fields = dict(line.split(": ", 1) for line in rest if line)
    body = await reader.readexactly(int(fields.get("Content-Length", 0)))
    text = answer(method, path, body)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
    await writer.drain()
    return True


async def serve(listener: socket.socket) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = one_request(reader, writer)
                await (request if vault is None else vault.run(request))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(connected, sock=listener)
    async with server:
        await server.serve_forever()


# ---- WSGI: workers forked from a process that has the key ----


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    text = answer(environ["REQUEST_METHOD"], environ["PATH_INFO"], body)
    start_response("200 OK", [("Content-Length", str(len(text)))])
    return [text]


class Server(WSGIServer):
    request_queue_size = 64

    def process_request(self, request: Any, client_address: Any) -> None:
        if vault is None:
            super().process_request(request, client_address)
        else:
            with vault:
                super().process_request(request, client_address)


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def address_string(self) -> str:
        return str(self.client_address[0])


def main(kind: str, mode: str) -> None:
    global vault
    region = [0, 0]
    if mode == "scope":
        import malloc_arena
        from malloc_arena import sources

        vault = malloc_arena.get(malloc_arena.HEAP_SECURE)
        region = list(malloc_arena.region())
        with vault:
            config["key"] = sources.from_fd(0, as_str=True)
    else:
        config["key"] = os.read(0, 1000).decode()
    pids = []
    if kind == "asyncio":
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        pids.append(os.getpid())
    else:
        server = make_server("127.0.0.1", 0, application, Server, Quiet)
        port = server.server_port
        for _ in range(WORKERS):
            pid = os.fork()
            if pid == 0:
                os.close(1)
                server.serve_forever(poll_interval=30)
            pids.append(pid)
    print(json.dumps({"port": port, "pids": pids, "region": region}), flush=True)
    if kind == "asyncio":
        asyncio.run(serve(listener))
        return

    def stop(*_: object) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
