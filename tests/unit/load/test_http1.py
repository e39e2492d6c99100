"""The thin HTTP/1.1 connection: the same answer however the network cuts it."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.http1 import Connection, Exchange, Outcome, request_bytes

BODY = b'{"items":[1,2,3],"degraded":false}'
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nServer-Timing: a;dur=1\r\n\r\n" % len(BODY) + BODY
CHUNKED = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\nserver-timing: a;dur=1\r\n\r\n"
    b"5;x=y\r\n" + BODY[:5] + b"\r\n" + b"%X\r\n" % len(BODY[5:]) + BODY[5:] + b"\r\n0\r\n\r\n"
)
EVENTS = b": hello\n\nevent: items\ndata: 1\n\nevent: reason\r\ndata: 2\r\n\r\ndata: 3\n\nevent: done\ndata: 4\n\n"
STREAM = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(EVENTS) + EVENTS + b"\r\n0\r\nX: y\r\n\r\n"
)


class Wire(asyncio.Transport):
    """A transport that remembers what was written and whether it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.open = b"", True

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.written += data

    def is_closing(self) -> bool:
        return not self.open

    def close(self) -> None:
        self.open = False

    abort = close


def talk(answer: bytes, cuts: list[int], *, sse: bool = False, lost: bool = False) -> tuple[Exchange, Wire, int]:
    ended: list[Exchange] = []
    connection, wire = Connection(lambda _, e: ended.append(e), lambda _: None), Wire()
    connection.connection_made(wire)
    exchange = Exchange(0, b"GET", sse=sse)
    connection.begin(exchange)
    edges = [0, *sorted(cut % (len(answer) + 1) for cut in cuts), len(answer)]
    for start, end in itertools.pairwise(edges):
        if start < end and wire.open:
            connection.data_received(answer[start:end])
    if lost:
        connection.connection_lost(None)
    return exchange, wire, len(ended)


@given(st.sampled_from([PLAIN, CHUNKED]), st.lists(st.integers(0, 500), max_size=12))
def test_an_answer_is_read_alike_however_it_is_cut(answer: bytes, cuts: list[int]) -> None:
    exchange, wire, ended = talk(answer, cuts)
    assert (exchange.outcome, exchange.status, exchange.body, ended) == (Outcome.ANSWERED, 200, BODY, 1)
    assert exchange.server_timing == b"a;dur=1"
    assert exchange.bytes_in == len(answer) and 0 < exchange.sent_ns <= exchange.first_byte_ns <= exchange.done_ns
    assert wire.open and wire.written == b"GET"


@given(st.lists(st.integers(0, 500), max_size=12))
def test_events_of_a_stream_are_named_in_order_however_they_are_cut(cuts: list[int]) -> None:
    exchange, _, ended = talk(STREAM, cuts, sse=True)
    assert [name for name, _ in exchange.events] == [b"items", b"reason", b"message", b"done"]
    assert exchange.outcome is Outcome.ANSWERED and ended == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"x" * 70_000,
    ],
)
def test_what_is_not_http_ends_the_exchange_and_closes_the_connection(answer: bytes) -> None:
    exchange, wire, ended = talk(answer, [])
    assert exchange.outcome is Outcome.PROTOCOL and ended == 1 and not wire.open


def test_a_body_that_runs_to_the_close_is_complete_then_and_a_cut_one_is_lost() -> None:
    whole, _, ended = talk(b"HTTP/1.1 200 OK\r\n\r\nabc", [], lost=True)
    assert (whole.outcome, whole.body, ended) == (Outcome.ANSWERED, b"abc", 1)
    cut, _, ended = talk(PLAIN[:-3], [], lost=True)
    assert (cut.outcome, ended) == (Outcome.CONNECTION, 1)


def test_a_connection_the_server_wants_closed_is_not_used_again() -> None:
    _, wire, _ = talk(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", [])
    assert not wire.open
    _, wire, _ = talk(b"HTTP/1.1 204 No Content\r\n\r\n", [])
    assert wire.open


def test_a_request_carries_host_length_and_extra_headers() -> None:
    text = request_bytes("POST", "/x", "h:1", b"{}", extra=("X-Api-Key: k",))
    assert text.startswith(b"POST /x HTTP/1.1\r\nHost: h:1\r\n") and text.endswith(b"\r\nContent-Length: 2\r\n\r\n{}")
    assert b"\r\nX-Api-Key: k\r\n" in text
