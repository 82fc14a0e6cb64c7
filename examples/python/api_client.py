"""An asyncio client of an HTTP API that holds a token and answers many requests at once.

    API_TOKEN=... python api_client.py HOST PORT PATH...

Plain HTTP, to show what asyncio does with the token. With TLS the token also passes through
OpenSSL: start the program with `malloc-arena run`.
"""

from __future__ import annotations

import asyncio
import sys

import malloc_arena
from malloc_arena import HEAP_SECURE, Secret, sources

vault = malloc_arena.get(HEAP_SECURE)


class Client:
    def __init__(self, host: str, port: int, token: Secret[str]) -> None:
        self.host, self.port = host, port
        self.token = token  # printed, logged and in a traceback it shows asterisks

    async def get(self, path: str) -> str:
        """The body of the answer. Only the steps that touch the token are in the scope: what the
        connection keeps for itself, and the answer, are ordinary memory."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            await vault.run(self._ask(writer, path))
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head.partition(b"\r\n")[0]:
                raise OSError(head.partition(b"\r\n")[0].decode())
            return (await reader.read()).decode()
        finally:
            writer.close()
            await writer.wait_closed()

    async def _ask(self, writer: asyncio.StreamWriter, path: str) -> None:
        # All of it is a copy of the token, so none of it gets a longer life than this step.
        request = (
            f"GET {path} HTTP/1.1\r\nHost: {self.host}\r\nConnection: close\r\n"
            f"Authorization: Bearer {self.token.reveal()}\r\n\r\n"
        )
        writer.write(request.encode())
        del request
        await writer.drain()


async def main(host: str, port: str, paths: list[str]) -> None:
    # The variable is gone from the environment then, and from what /proc shows of it.
    client = Client(host, int(port), Secret(sources.from_env("API_TOKEN", as_str=True)))
    for answer in await asyncio.gather(*map(client.get, paths)):
        print(answer, flush=True)
    # Here the client would go on; the test has a look while it waits.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
