"""Kafka as a source of events, on the client's own in-process broker; the command on a real store."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.config import load_settings
from cluster.ingest import decode_event
from cluster.valkey import start_valkey
from cluster.workspace import Workspace
from models.store.memory_streams import MemoryEventStreams
from pipelines.consumer import open_streams
from pipelines.ingest import Ingest
from pipelines.kafka import KafkaSource, SourceError
from serve.deployments.replica import STORE_URL
from serve.settings import ServeSettings

kafka = pytest.importorskip("confluent_kafka")
TOPIC = "events"


@dataclass
class Broker:
    servers: str
    producer: Any

    def send(self, *messages: bytes) -> None:
        for number, message in enumerate(messages):
            self.producer.produce(TOPIC, message, partition=number % 2)
        assert self.producer.flush(10) == 0


@pytest.fixture
def broker() -> Iterator[Broker]:
    producer = kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "", "log_level": 2})
    (one,) = producer.list_topics(timeout=10).brokers.values()
    found = Broker(f"{one.host}:{one.port}", producer)
    producer.list_topics(TOPIC, timeout=10)
    yield found


def source_of(broker: Broker) -> KafkaSource:
    # The broker waits for a member that left until its session times out.
    options = {"session.timeout.ms": 6000}
    return KafkaSource(
        broker.servers, TOPIC, group="g", decode=lambda m: decode_event(m, ServeSettings()), properties=options
    )


def committed(broker: Broker) -> list[int]:
    asking = kafka.Consumer({"bootstrap.servers": broker.servers, "group.id": "g"})
    try:
        return [at.offset for at in asking.committed([kafka.TopicPartition(TOPIC, p) for p in (0, 1)], timeout=10)]
    finally:
        asking.close()


def click(number: int) -> bytes:
    return json.dumps(
        {"event_id": f"e{number}", "user_id": f"u{number % 7}", "item_id": f"i{number}", "type": "click"}
    ).encode()


async def read(source: KafkaSource, count: int) -> list[Any]:
    """Read until `count` messages came; joining the group takes the broker a few seconds."""
    found, deadline = [], time.monotonic() + 30
    while len(found) < count:
        assert time.monotonic() < deadline, f"only {len(found)} of {count} came"
        found += await source.read(500)
    return found


async def test_offsets_are_committed_after_the_write_and_only_then(broker: Broker) -> None:
    broker.send(*(click(i) for i in range(20)), b"no event")
    crashed = source_of(broker)
    assert len(await read(crashed, 21)) == 21
    assert await crashed.lag() == 21 and committed(broker) == [kafka.OFFSET_INVALID] * 2
    await crashed.close()  # without acknowledging: what a crash between read and write leaves behind
    source, store = source_of(broker), MemoryEventStreams(require_durable=False)
    ingest, deadline = Ingest(source, store, tenant="main", name="kafka"), time.monotonic() + 30
    while ingest.counts.accepted + ingest.counts.dead < 21:
        assert time.monotonic() < deadline
        await ingest.step()
    assert (ingest.counts.accepted, ingest.counts.dead, await source.lag()) == (20, 1, 0)
    (letter,) = await store.dead_letters("main")
    assert letter.payload == b"no event" and "JSON" in letter.reason
    await source.close()
    assert committed(broker) == [11, 10]


def test_a_broker_nobody_runs_is_said_in_one_sentence() -> None:
    with pytest.raises(SourceError, match="does not answer"):
        KafkaSource("127.0.0.1:1", TOPIC, group="g", decode=lambda _: None, connect_timeout_s=1)  # type: ignore[arg-type, return-value]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_the_command_ingests_what_there_is_and_reports_the_lag(broker: Broker, tmp_path: Path) -> None:
    overrides = [f"cluster.state={tmp_path / 'state'}", f"cluster.store.port={free_port()}"]
    settings = load_settings("local", overrides)
    workspace = Workspace(settings)
    server = start_valkey(
        tmp_path / "store", port=settings.cluster.store.port, role="store", password=workspace.store_password()
    )
    broker.send(*(click(i) for i in range(300)), click(5), b"{}")
    command = [sys.executable, "-m", "cluster.cli", "ingest", "--kafka", broker.servers, "--topic", TOPIC]
    command += ["--until-empty", "--json", *(f"--set={o}" for o in overrides)]
    try:
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        state = json.loads(done.stdout)
        assert (state["ok"], state["accepted"], state["duplicate"], state["dead"], state["lag"]) == (True, 300, 1, 1, 0)
        streams = open_streams(workspace.secrets()[STORE_URL])
        assert len((await streams.fetch("main", "u1", None, timeout_s=5)).item_ids) == 43
        assert len(await streams.dead_letters("main")) == 1
        await streams.close()
    finally:
        server.stop()
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "is `raycommend up` running?" in done.stderr.replace("\n", " ")
