"""A thin HTTP/1.1 client connection: one request at a time, with a time stamp on every byte that matters.

It exists because a general client costs several times more processor time per request than the servers it measures.
It knows nothing of schedules, pools or recommendations; the open-loop client drives it through callbacks.
Understands Content-Length, chunked and read-to-close bodies, and server-sent events; nothing else is needed here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import IntEnum

now_ns = time.monotonic_ns
MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024


class Outcome(IntEnum):
    """How a request ended for the client, whatever the status says."""

    ANSWERED = 0
    """A complete response arrived."""
    TIMEOUT = 1
    """No complete response within the client's timeout, counted from the intended send time."""
    DROPPED = 2
    """Never sent: the bound on requests in flight was reached."""
    CONNECTION = 3
    """The connection could not be made or was lost."""
    PROTOCOL = 4
    """What came back was not HTTP/1.1 as understood here."""


class Exchange:
    """One request and what became of it. Times are monotonic ns, 0 where it never happened."""

    __slots__ = (
        "body", "bytes_in", "connection", "degraded", "done_ns", "events", "first_byte_ns", "index", "outcome",
        "payload", "release", "retried", "sent_ns", "server_timing", "sse", "status", "title_marks", "woke_ns",
    )  # fmt: skip

    def __init__(self, index: int, payload: bytes, *, sse: bool = False) -> None:
        self.index = index
        self.payload = payload
        self.sse = sse
        self.woke_ns = self.sent_ns = self.first_byte_ns = self.done_ns = 0
        self.status = self.bytes_in = 0
        self.outcome = Outcome.CONNECTION
        self.server_timing = b""
        self.body = self.release = self.title_marks = b""
        self.events: list[tuple[bytes, int]] = []
        self.retried = self.degraded = False
        self.connection: Connection | None = None


class Connection(asyncio.Protocol):
    """One keep-alive connection.

    `on_done(connection, exchange)` is called exactly once per exchange that was begun, unless `abandon` came first;
    `on_lost(connection)` once when the connection is gone.
    """

    def __init__(self, on_done: Callable[[Connection, Exchange], None], on_lost: Callable[[Connection], None]) -> None:
        self._on_done, self._on_lost = on_done, on_lost
        self.transport: asyncio.Transport | None = None
        self.exchange: Exchange | None = None
        self.used = 0
        self._buffer = b""
        self._reset()

    def _reset(self) -> None:
        self._in_body = False
        self._remaining = 0  # bytes left of the body or of the chunk
        self._chunked = self._to_close = self._close_after = False
        self._parts: list[bytes] = []
        self._line = b""  # an unfinished line of an event stream
        self._event = b"message"
        self._has_data = False

    @property
    def usable(self) -> bool:
        """Whether a new request may be sent on it."""
        return self.transport is not None and not self.transport.is_closing() and self.exchange is None

    def begin(self, exchange: Exchange) -> None:
        """Write the request of `exchange` now; its answer is reported through `on_done`."""
        assert self.transport is not None
        self.exchange = exchange
        exchange.connection = self
        self.used += 1
        exchange.sent_ns = now_ns()
        self.transport.write(exchange.payload)

    def abandon(self) -> None:
        """Forget the exchange and close: the peer learns that nobody waits any more."""
        self.exchange = None
        if self.transport is not None:
            self.transport.abort()

    # asyncio.Protocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """End what was under way: complete if the body ran to the close, lost otherwise."""
        self.transport = None
        if self.exchange is not None:
            complete = exc is None and self._in_body and self._to_close
            self._finish(Outcome.ANSWERED if complete else Outcome.CONNECTION)
        self._on_lost(self)

    def data_received(self, data: bytes) -> None:
        """Take what came, stamp it, and finish the exchange when its body is complete."""
        exchange = self.exchange
        if exchange is None:  # bytes nobody asked for: the framing can no longer be trusted
            self.abandon()
            return
        moment = now_ns()
        if not exchange.first_byte_ns:
            exchange.first_byte_ns = moment
        exchange.bytes_in += len(data)
        self._buffer = self._buffer + data if self._buffer else data
        try:
            complete = self._parse(exchange, moment)
        except (ValueError, IndexError):
            self._close_after = True
            self._finish(Outcome.PROTOCOL)
            return
        if complete:
            self._finish(Outcome.ANSWERED)

    # parsing ----------------------------------------------------------------------------------------------------

    def _parse(self, exchange: Exchange, moment: int) -> bool:
        while not self._in_body:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > MAX_HEAD_BYTES:
                    raise ValueError("head too large")
                return False
            head, self._buffer = self._buffer[:end], self._buffer[end + 4 :]
            self._head(exchange, head)
        if exchange.bytes_in > MAX_BODY_BYTES:
            raise ValueError("body too large")
        if self._chunked:
            return self._chunks(exchange, moment)
        data, self._buffer = self._buffer, b""
        if self._to_close:
            self._body(exchange, data, moment)
            return False
        if len(data) > self._remaining:
            raise ValueError("more bytes than announced")
        self._remaining -= len(data)
        self._body(exchange, data, moment)
        return self._remaining == 0

    def _head(self, exchange: Exchange, head: bytes) -> None:
        lines = head.split(b"\r\n")
        version, status = lines[0].split(b" ", 2)[:2]
        if not version.startswith(b"HTTP/1."):
            raise ValueError("not HTTP/1")
        exchange.status = int(status)
        if 100 <= exchange.status < 200:
            return
        length: int | None = None
        self._close_after = version == b"HTTP/1.0"
        timings = []
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            name, value = name.lower(), value.strip()
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                self._chunked = b"chunked" in value.lower()
            elif name == b"connection":
                self._close_after = value.lower() == b"close"
            elif name == b"server-timing":
                timings.append(value)
        exchange.server_timing = b", ".join(timings)
        if exchange.status in (204, 304):
            length, self._chunked = 0, False
        self._in_body = True
        self._remaining = length or 0
        self._to_close = length is None and not self._chunked
        self._close_after = self._close_after or self._to_close

    def _chunks(self, exchange: Exchange, moment: int) -> bool:
        buffer, at = self._buffer, 0
        try:
            while True:
                end = buffer.find(b"\r\n", at)
                if end < 0:
                    return False
                size = int(buffer[at:end].split(b";", 1)[0], 16)
                if size == 0:
                    if buffer[end : end + 4] == b"\r\n\r\n":  # no trailers
                        at = end + 4
                        return True
                    stop = buffer.find(b"\r\n\r\n", end)
                    at = stop + 4 if stop >= 0 else at
                    return stop >= 0
                if len(buffer) < end + 2 + size + 2:
                    return False
                self._body(exchange, buffer[end + 2 : end + 2 + size], moment)
                at = end + 2 + size + 2
        finally:
            self._buffer = buffer[at:]

    def _body(self, exchange: Exchange, data: bytes, moment: int) -> None:
        if data:
            self._parts.append(data)
            if exchange.sse:
                self._stream(exchange, data, moment)

    def _stream(self, exchange: Exchange, data: bytes, moment: int) -> None:
        """Note when each server-sent event was complete (its blank line arrived)."""
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            line = line.rstrip(b"\r")
            if not line:
                if self._has_data:
                    exchange.events.append((self._event, moment))
                self._event, self._has_data = b"message", False
            elif line.startswith(b"event:"):
                self._event = line[6:].strip()
            elif line.startswith(b"data:"):
                self._has_data = True

    def _finish(self, outcome: Outcome) -> None:
        exchange = self.exchange
        assert exchange is not None
        exchange.outcome = outcome
        exchange.done_ns = now_ns()
        exchange.body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        close = self._close_after or outcome is not Outcome.ANSWERED or bool(self._buffer)
        self.exchange = None
        self._buffer = b""
        self._reset()
        if close and self.transport is not None:
            self.transport.close()
        self._on_done(self, exchange)


def request_bytes(
    method: str, path: str, host: str, body: bytes, *, accept: str = "application/json", extra: tuple[str, ...] = ()
) -> bytes:
    """Return a whole HTTP/1.1 request; `extra` are further header lines without line ends."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Accept: {accept}", *extra]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body
