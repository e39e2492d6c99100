"""Open-loop HTTP client: sends when the schedule says so, whether or not earlier requests were answered.

Latency counts from the *intended* send time, so a stall of the server is felt by every request that should have been
sent during it (no coordinated omission; Gil Tene, "How NOT to measure latency"). Requests in flight, their number and
the time are bounded; what the bounds cut is a row in the samples, never silence. Knows nothing of recommendations
beyond the words `"degraded":true`, `"release":` and `"title":`, found in the bytes without parsing the document.
Called by `python -m loadtests run` and by the benchmarks.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import re
import resource
import socket
import ssl
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

from loadtests.http1 import Connection, Exchange, Outcome, now_ns
from loadtests.precise_loop import new_precise_loop
from loadtests.samples import RunResult, to_table
from loadtests.schedule import NS, Arrivals, LoadError, arrivals_ns
from loadtests.workload import Request

_BURST = 32
"""Arrivals taken up in one turn of the loop when behind, so that answers are still read in between."""
_SWEEP_S = 0.02
_SPARE_FILES = 64
_RELEASE = re.compile(rb'"release": ?"([^"\\]{1,64})"')
"""Inside a string the first quote would follow a backslash and the second be one, so this is a key wherever it is."""
UNMARKED = "-"
"""Stands for a title without a mark in the column `title_marks`."""


@dataclass(frozen=True, kw_only=True)
class OpenLoopOptions:
    """One run. Every bound is explicit; the credential is kept out of `repr`, samples and specs."""

    url: str
    """`http://host:port`, loopback unless `allow_remote`."""
    rate_rps: float
    duration_s: float = 10.0
    """Measured time; the warm-up comes before it."""
    warmup_s: float = 2.0
    arrivals: Arrivals = Arrivals.POISSON
    seed: int = 0
    max_in_flight: int = 256
    """An arrival beyond it is not sent and counted as dropped by the client."""
    timeout_s: float = 5.0
    """From the intended send time; then the connection is closed."""
    lag_p99_bound_ms: float = 5.0
    """A run in which the client itself took arrivals up later than this (p99) is invalid."""
    allow_remote: bool = False
    title_mark: str | None = None
    """With it the marks at the end of an answer's titles are kept: what follows this text, up to the next `]`."""
    api_key: str | None = field(default=None, repr=False)

    def spec(self) -> dict[str, Any]:
        """Return what may be written down."""
        return {k: v for k, v in asdict(self).items() if k != "api_key"}


@dataclass(frozen=True)
class _Target:
    address: str
    port: int
    host: str
    """As in the Host header, with the port."""
    name: str
    tls: ssl.SSLContext | None


def run_open_loop(options: OpenLoopOptions, requests: Sequence[Request]) -> RunResult:
    """Run to the end on a loop of its own with microsecond timers; blocks. See `open_loop`."""
    with asyncio.Runner(loop_factory=new_precise_loop) as runner:
        return runner.run(open_loop(options, requests))


async def open_loop(options: OpenLoopOptions, requests: Sequence[Request]) -> RunResult:
    """Send `requests` (from the start again when they run out) by the schedule; returns one row per arrival.

    Raises LoadError before anything is sent when the options are not runnable.
    """
    _check(options)
    if not requests:
        raise LoadError("the workload holds no request")
    target = await asyncio.to_thread(_resolve, options.url, allow_remote=options.allow_remote)
    total_s = options.warmup_s + options.duration_s
    offsets = arrivals_ns(options.rate_rps, total_s, process=options.arrivals, seed=options.seed).tolist()
    warm = sum(1 for offset in offsets if offset < options.warmup_s * NS)
    extra = (f"Authorization: Bearer {options.api_key}",) if options.api_key else ()
    payloads = [r.encode(target.host, extra=extra) for r in requests[: len(offsets)]]
    exchanges = [
        Exchange(i, payloads[i % len(payloads)], sse=requests[i % len(payloads)].sse) for i in range(len(offsets))
    ]
    run = _Run(options, target, offsets, exchanges)
    gc.collect()
    gc.disable()  # a full collection over the samples would be the client's own stall
    try:
        await run.to_the_end()
    finally:
        gc.enable()
        await run.close()
    kinds = [requests[i % len(payloads)].kind for i in range(len(offsets))]
    table = to_table(exchanges, kinds, offsets, run.start, warm)
    return RunResult(table, options.spec() | {"measured_s": options.duration_s})


def _check(options: OpenLoopOptions) -> None:
    if options.max_in_flight < 1 or options.timeout_s <= 0:
        raise LoadError("max_in_flight must be at least 1 and timeout_s above 0")
    if options.warmup_s < 0:
        raise LoadError("warmup_s must not be negative")
    if options.api_key is not None and not (options.api_key.isascii() and options.api_key.isprintable()):
        raise LoadError("the credential holds characters that no header can carry")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and options.max_in_flight + _SPARE_FILES > files:
        raise LoadError(f"max_in_flight {options.max_in_flight} needs more than the {files} open files of `ulimit -n`")


def _resolve(url: str, *, allow_remote: bool) -> _Target:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise LoadError(f"url must look like http://127.0.0.1:8000, not {url!r}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise LoadError(f"host {parts.hostname!r} of the url does not resolve: {error}") from error
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)  # a server on this machine often listens on IPv4 only
    address = str(found[0][4][0])
    if not allow_remote and not ipaddress.ip_address(address).is_loopback:
        raise LoadError(f"{parts.hostname} is not this machine: pass --allow-remote if its owner agreed to the load")
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    return _Target(address, port, parts.netloc.rpartition("@")[2], parts.hostname, tls)


def _at_end_of_titles(mark: str) -> re.Pattern[bytes]:
    """Return what finds the mark of each title of a JSON document, b"" where a title has none."""
    return re.compile(rb'"title": ?"(?:[^"\\]|\\.)*?(?:' + re.escape(mark.encode()) + rb'([0-9A-Za-z-]+)\])?"')


class _Run:
    """The moving parts of one run; every method is called on the loop's thread."""

    def __init__(
        self, options: OpenLoopOptions, target: _Target, offsets: list[int], exchanges: list[Exchange]
    ) -> None:
        self._options, self._target = options, target
        self._offsets, self._exchanges = offsets, exchanges
        self._timeout = int(options.timeout_s * NS)
        self._marks = None if options.title_mark is None else _at_end_of_titles(options.title_mark)
        self._next = 0
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._in_flight: dict[int, Exchange] = {}  # in order of intended time
        self._connecting: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self.start = 0

    async def to_the_end(self) -> None:
        """Send everything and wait for the last answer, at most the timeout beyond the schedule."""
        self.start = now_ns() + NS // 50
        self._tick()
        self._sweep()
        await self._ended

    async def close(self) -> None:
        """Close every connection and wait until they are."""
        pending = list(self._connecting)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for connection in list(self._open):
            connection.abandon()
        await asyncio.sleep(0)  # transports close their sockets one turn later

    def _tick(self) -> None:
        for _ in range(_BURST):
            if self._next == len(self._offsets):
                self._check_ended()
                return
            intended = self.start + self._offsets[self._next]
            moment = now_ns()
            if moment < intended:
                self._loop.call_at(intended / NS, self._tick)
                return
            exchange = self._exchanges[self._next]
            self._next += 1
            exchange.woke_ns = moment
            self._dispatch(exchange)
        self._loop.call_soon(self._tick)

    def _dispatch(self, exchange: Exchange) -> None:
        if len(self._in_flight) >= self._options.max_in_flight:
            exchange.outcome = Outcome.DROPPED
            return
        self._in_flight[exchange.index] = exchange
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                connection.begin(exchange)
                return
        self._send_on_new(exchange)

    def _send_on_new(self, exchange: Exchange) -> None:
        task = self._loop.create_task(self._connect(exchange))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, exchange: Exchange) -> None:
        target = self._target
        name = target.name if target.tls else None
        try:
            _, connection = await self._loop.create_connection(
                lambda: Connection(self._on_done, self._on_lost),
                target.address, target.port, ssl=target.tls, server_hostname=name,
            )  # fmt: skip
        except OSError:
            exchange.done_ns = now_ns()
            self._end(exchange, Outcome.CONNECTION)
            return
        self._open.add(connection)
        if exchange.index in self._in_flight:
            connection.begin(exchange)
        else:  # timed out while connecting
            self._idle.append(connection)

    def _on_done(self, connection: Connection, exchange: Exchange) -> None:
        stale = exchange.outcome is Outcome.CONNECTION and not exchange.first_byte_ns and connection.used > 1
        if stale and not exchange.retried:  # the server closed an idle connection at the moment we used it
            exchange.retried = True
            self._send_on_new(exchange)
            return
        exchange.degraded = b'"degraded":true' in exchange.body or b'"degraded": true' in exchange.body
        if exchange.outcome is Outcome.ANSWERED and 200 <= exchange.status < 300:
            self._note_release(exchange)
        if connection.usable:
            self._idle.append(connection)
        self._end(exchange, exchange.outcome)

    def _note_release(self, exchange: Exchange) -> None:
        if (found := _RELEASE.search(exchange.body)) is not None:
            exchange.release = found[1]
        if self._marks is not None:
            marks = {mark or UNMARKED.encode() for mark in self._marks.findall(exchange.body)}
            exchange.title_marks = b" ".join(sorted(marks))

    def _on_lost(self, connection: Connection) -> None:
        self._open.discard(connection)

    def _end(self, exchange: Exchange, outcome: Outcome) -> None:
        if self._in_flight.pop(exchange.index, None) is None:
            return
        exchange.outcome = outcome
        exchange.body = exchange.payload = b""
        exchange.connection = None
        self._check_ended()

    def _check_ended(self) -> None:
        if self._next == len(self._offsets) and not self._in_flight and not self._ended.done():
            self._ended.set_result(None)

    def _sweep(self) -> None:
        """End what is overdue; the oldest come first, so the walk stops at the first one that is not."""
        limit = now_ns() - self._timeout - self.start
        for index, exchange in list(self._in_flight.items()):
            if self._offsets[index] > limit:
                break
            if exchange.connection is not None:
                exchange.connection.abandon()
            self._end(exchange, Outcome.TIMEOUT)
        if not self._ended.done():
            self._loop.call_later(_SWEEP_S, self._sweep)
