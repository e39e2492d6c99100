"""The open-loop client against a real asyncio HTTP server whose delays and faults are known."""

import asyncio
import contextlib
import gc
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from loadtests.http1 import Outcome
from loadtests.open_loop import OpenLoopOptions, open_loop
from loadtests.report import client_lag_ms, invalid_because
from loadtests.schedule import Arrivals, LoadError
from loadtests.workload import Mix, Request, generate

Writer = asyncio.StreamWriter
USERS, ITEMS = [str(i) for i in range(20)], [str(i) for i in range(50)]


@dataclass
class Server:
    """Answers every request through `handler`; counts what it saw."""

    handler: Callable[["Server", bytes, Writer], Awaitable[None]]
    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    connections: int = 0
    running: int = 0
    most_running: int = 0
    stalled_until: float = 0.0
    tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    async def talk(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        with (
            contextlib.closing(writer),
            contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError),
        ):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0
                )
                body = await reader.readexactly(length)
                self.heads.append(head)
                self.bodies.append(body)
                self.running += 1
                self.most_running = max(self.most_running, self.running)
                try:
                    await self.handler(self, body, writer)
                    await writer.drain()
                finally:
                    self.running -= 1


def answer(body: bytes = b'{"items":[]}', *, status: str = "200 OK", extra: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


@contextlib.asynccontextmanager
async def serving(handler: Callable[[Server, bytes, Writer], Awaitable[None]]) -> AsyncIterator[Server]:
    server = Server(handler)
    listener = await asyncio.start_server(server.talk, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listener.close()
        for task in server.tasks:
            task.cancel()
        await asyncio.gather(*server.tasks, return_exceptions=True)
        await asyncio.sleep(0)


async def at_once(server: Server, body: bytes, writer: Writer) -> None:
    writer.write(answer(extra="Server-Timing: features;dur=1.5, rank;desc=x;dur=2\r\n"))


def options(url: str, rate: float = 100, seconds: float = 0.5, **more: object) -> OpenLoopOptions:
    defaults: dict[str, object] = {"warmup_s": 0.1, "arrivals": Arrivals.CONSTANT, "timeout_s": 3.0}
    return OpenLoopOptions(url=url, rate_rps=rate, duration_s=seconds, **(defaults | more))  # type: ignore[arg-type]


def column(result: object, name: str) -> np.ndarray:
    table = result.table  # type: ignore[attr-defined]
    return table[name].to_numpy()[table["measured"].to_numpy()]


async def test_a_stall_is_felt_by_every_request_that_should_have_been_sent_during_it() -> None:
    answered = 0

    async def stalls_once(server: Server, body: bytes, writer: Writer) -> None:
        nonlocal answered
        answered += 1
        # Counted in requests, not in time since some start: a client slow to begin must not move the stall into the
        # warm-up, which is not measured.
        if not server.stalled_until and answered > 30:
            server.stalled_until = time.monotonic() + 1.0
        await asyncio.sleep(max(0.0, server.stalled_until - time.monotonic()))
        writer.write(answer())

    async with serving(stalls_once) as server:
        result = await open_loop(options(server.url, 100, 1.6), generate(USERS, ITEMS, 300))
    latency = (column(result, "done_ns") - column(result, "intended_ns")) / 1e9
    assert len(latency) == 160
    assert (latency > 0.1).sum() == pytest.approx(90, abs=8)  # 1 s of arrivals, less those in its last 0.1 s
    assert np.quantile(latency, 0.99) == pytest.approx(1.0, abs=0.08)
    assert np.quantile(latency, 0.3) < 0.1  # before and after it, all is well


async def test_the_time_waited_for_a_slot_is_part_of_the_latency_not_hidden_by_the_client() -> None:
    async def slow(server: Server, body: bytes, writer: Writer) -> None:
        await asyncio.sleep(0.05)
        writer.write(answer())

    async with serving(slow) as server:
        result = await open_loop(options(server.url), generate(USERS, ITEMS, 100))
    assert column(result, "done_ns").min() > 0
    assert ((column(result, "done_ns") - column(result, "intended_ns")) / 1e6).min() >= 49
    assert server.connections <= 10  # kept alive and used again


async def test_stage_times_and_bytes_come_from_the_answer() -> None:
    async with serving(at_once) as server:
        result = await open_loop(options(server.url), generate(USERS, ITEMS, 100))
    assert set(column(result, "stage_features_ms")) == {1.5}
    assert set(column(result, "stage_rank_ms")) == {2.0}
    assert set(column(result, "status")) == {200}
    assert column(result, "bytes").min() > 60


async def test_arrivals_beyond_the_bound_are_counted_as_dropped_and_never_sent() -> None:
    async def slow(server: Server, body: bytes, writer: Writer) -> None:
        await asyncio.sleep(0.3)
        writer.write(answer())

    async with serving(slow) as server:
        result = await open_loop(options(server.url, max_in_flight=4), generate(USERS, ITEMS, 100))
    outcomes = result.table["outcome"].to_numpy()
    assert server.most_running <= 4
    assert len(server.bodies) == (outcomes == Outcome.ANSWERED).sum()
    assert (outcomes == Outcome.DROPPED).sum() == len(outcomes) - len(server.bodies) > 0


async def test_an_answer_that_never_comes_is_a_timeout_and_the_run_ends() -> None:
    async def silent(server: Server, body: bytes, writer: Writer) -> None:
        await asyncio.sleep(1)

    gc.freeze()  # the run collects garbage before it sends; what other tests left in memory is none of its time
    try:
        async with serving(silent) as server:
            began = time.monotonic()
            result = await open_loop(options(server.url, 50, 0.3, timeout_s=0.2), generate(USERS, ITEMS, 100))
            took = time.monotonic() - began
    finally:
        gc.unfreeze()
    assert set(column(result, "outcome")) == {Outcome.TIMEOUT}
    assert took < 1.2


async def test_what_is_not_http_is_a_protocol_error_and_a_closed_door_a_connection_error() -> None:
    async def nonsense(server: Server, body: bytes, writer: Writer) -> None:
        writer.write(b"no such protocol\r\n\r\n")

    async with serving(nonsense) as server:
        broken = await open_loop(options(server.url, 50, 0.2), generate(USERS, ITEMS, 100))
    closed = await open_loop(options(server.url, 50, 0.2), generate(USERS, ITEMS, 100))
    assert set(column(broken, "outcome")) == {Outcome.PROTOCOL}
    assert set(column(closed, "outcome")) == {Outcome.CONNECTION}


async def test_a_connection_the_server_closed_while_idle_is_replaced_and_the_retry_is_on_record() -> None:
    async def one_each(server: Server, body: bytes, writer: Writer) -> None:
        if len(server.bodies) % 2:
            writer.write(answer())
        else:
            writer.transport.abort()

    async with serving(one_each) as server:
        result = await open_loop(options(server.url, 20, 0.5), generate(USERS, ITEMS, 100))
    assert set(column(result, "outcome")) == {Outcome.ANSWERED}
    assert column(result, "retried").any()


async def test_a_stream_gives_the_time_of_the_items_of_each_reason_and_of_done() -> None:
    async def streams(server: Server, body: bytes, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for name in ("items", "reason", "reason", "done"):
            data = json.dumps({"degraded": False}, separators=(",", ":"))
            text = f"event: {name}\r\ndata: {data}\r\n\r\n".encode()
            for part in (text[:9], text[9:]):  # events are cut where the network likes
                writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.03)
        writer.write(b"0\r\n\r\n")

    async with serving(streams) as server:
        work = generate(USERS, ITEMS, 10, mix=Mix(event_share=0, stream_share=1))
        result = await open_loop(options(server.url, 20, 0.4), work)
    items, done = column(result, "items_ns"), column(result, "stream_done_ns")
    reasons = column(result, "reasons_ns")
    assert b"text/event-stream" in server.heads[0] and json.loads(server.bodies[0])["explain"] is True
    assert {len(r) for r in reasons} == {2}
    assert not column(result, "degraded").any()
    for first, (one, two), last, end in zip(items, reasons, done, column(result, "done_ns"), strict=True):
        assert min(one - first, two - one, last - two) > 0.025e9 and last < end


async def test_degraded_answers_are_flagged_one_by_one() -> None:
    async def every_second(server: Server, body: bytes, writer: Writer) -> None:
        writer.write(answer(b'{"degraded": true}' if len(server.bodies) % 2 else b'{"degraded":false}'))

    async with serving(every_second) as server:
        result = await open_loop(options(server.url), generate(USERS, ITEMS, 100))
    assert result.table["degraded"].to_numpy().sum() == len(server.bodies) // 2


async def test_the_credential_is_sent_and_never_written_down() -> None:
    async with serving(at_once) as server:
        chosen = options(server.url, 20, 0.2, api_key="s3cret-s3cret")
        result = await open_loop(chosen, generate(USERS, ITEMS, 100))
    assert b"Authorization: Bearer s3cret-s3cret" in server.heads[0]
    assert "s3cret" not in repr(chosen) + json.dumps(dict(result.spec))


async def test_a_client_that_cannot_keep_its_own_schedule_makes_the_run_invalid() -> None:
    loop, busy = asyncio.get_running_loop(), True

    def block() -> None:
        time.sleep(0.03)
        if busy:
            loop.call_later(0.03, block)

    async with serving(at_once) as server:
        fine = await open_loop(options(server.url), generate(USERS, ITEMS, 100))
        block()
        late = await open_loop(options(server.url), generate(USERS, ITEMS, 100))
        busy = False
    assert any("lagged" in reason for reason in invalid_because(late))
    assert not late.table["woke_ns"].to_numpy().min() < 0
    assert np.quantile(client_lag_ms(fine.table), 0.5) < np.quantile(client_lag_ms(late.table), 0.5)


async def test_two_runs_of_the_same_seed_intend_the_same_and_send_the_same() -> None:
    sent = []
    for _ in range(2):
        async with serving(at_once) as server:
            chosen = options(server.url, 150, 0.4, arrivals=Arrivals.POISSON, seed=11, max_in_flight=1000)
            result = await open_loop(chosen, generate(USERS, ITEMS, 100, seed=11))
        sent.append((result.table["intended_ns"].to_pylist(), sorted(server.bodies)))
    assert sent[0] == sent[1]


async def test_another_machine_is_refused_unless_allowed() -> None:
    with pytest.raises(LoadError, match="--allow-remote"):
        await open_loop(options("http://192.0.2.1:80"), [Request("get")])


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"max_in_flight": 10**9}, "ulimit"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"warmup_s": -1}, "warmup_s"),
        ({"api_key": "a\r\nX: y"}, "credential"),
    ],
)
async def test_a_run_without_bounds_is_refused_before_anything_is_sent(wrong: dict[str, object], word: str) -> None:
    with pytest.raises(LoadError, match=word):
        await open_loop(options("http://127.0.0.1:9", **wrong), [Request("get")])  # type: ignore[arg-type]
