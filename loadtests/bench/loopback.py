"""The cheapest HTTP server asyncio can be: a fixed answer to every request.

What the client's own ceiling is measured against, in a process of its own. Knows nothing of recommendations. Started
by the `client` benchmark.
"""

import asyncio
import os
import sys

_BODY = b'{"items":[],"degraded":false}'
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nServer-Timing: total;dur=0.01\r\n" + (
    b"Content-Length: %d\r\n\r\n" % len(_BODY) + _BODY
)


class _Fixed(asyncio.Protocol):
    """Answers each complete request; understands Content-Length and pipelining, and nothing else."""

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            self._transport.write(_ANSWER)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Fixed, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)  # the parent reads the port
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110 - ends with its parent, however that ended; nothing signals it
        await asyncio.sleep(0.5)


if __name__ == "__main__":
    try:
        asyncio.run(_serve())
    except KeyboardInterrupt:
        sys.exit(0)
