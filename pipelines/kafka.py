"""`KafkaSource`: events from a Kafka topic, one JSON object a message; offsets are committed after the write.

The other implementation of `EventSource`; any number of processes share a topic through one consumer group. Called by
`ingest`. Knows nothing of what a message says: `decode` does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from models.consumer.source import Received
from models.events import Event
from models.store.checks import check_events
from models.store.streams import StreamEntry

log = logging.getLogger("raycommend.kafka")
_WAIT_S = 0.5


class SourceError(Exception):
    """Kafka cannot be read; the message names the fix."""


class KafkaSource:
    """An `EventSource` on one topic. Close it: an orderly goodbye hands its partitions over at once."""

    def __init__(
        self,
        servers: str,
        topic: str,
        *,
        group: str,
        decode: Callable[[bytes], Event],
        properties: Mapping[str, Any] | None = None,
        connect_timeout_s: float = 10.0,
    ) -> None:
        """`decode` raises ValueError with the reason. `properties` are librdkafka's (TLS, SASL).

        Raises:
            SourceError: the client is not installed, no broker answers, or there is no such topic.
        """
        try:
            from confluent_kafka import Consumer, KafkaException
        except ImportError as error:
            raise SourceError("install the Kafka client: pip install confluent-kafka") from error
        self._topic, self._decode, self._error = topic, decode, KafkaException
        ours = {"bootstrap.servers": servers, "group.id": group}
        ours |= {"enable.auto.commit": False, "auto.offset.reset": "earliest"}
        try:
            self._consumer = Consumer({"log_level": 2, **(properties or {}), **ours})
            found = self._consumer.list_topics(topic, timeout=connect_timeout_s).topics[topic].error
        except KafkaException as error:
            raise SourceError(f"Kafka at {servers} does not answer: {error.args[0].str()}") from None
        if found is not None:
            raise SourceError(f"Kafka at {servers}: topic {topic}: {found.str()}")
        self._consumer.subscribe([topic])
        self._read_to: dict[int, int] = {}

    async def read(self, count: int) -> list[Received]:
        """See `EventSource.read`; waits up to half a second. Raises SourceError."""
        try:
            messages = await asyncio.to_thread(self._consumer.consume, count, _WAIT_S)
        except self._error as error:
            raise SourceError(f"Kafka: {error.args[0].str()}") from None
        received = []
        for message in messages:
            problem = message.error()
            if problem is not None:
                # librdkafka retries by itself whatever is not fatal.
                if problem.fatal():
                    raise SourceError(f"Kafka: {problem.str()}")
                log.warning("Kafka: %s", problem.str())
                continue
            self._read_to[message.partition()] = message.offset() + 1
            received.append(Received(message.partition(), self._entry(message)))
        return received

    def _entry(self, message: Any) -> StreamEntry:
        payload = message.value() or b""
        entry_id = f"{max(0, message.timestamp()[1])}-{message.offset()}"
        try:
            event = self._decode(payload)
            check_events([event])
        except ValueError as error:
            return StreamEntry(entry_id, None, reason=str(error), payload=payload)
        return StreamEntry(entry_id, event, payload=payload)

    async def acknowledge(self) -> None:
        """See `EventSource.acknowledge`. What a rebalance took away comes again elsewhere."""
        from confluent_kafka import TopicPartition

        offsets = [TopicPartition(self._topic, partition, at) for partition, at in self._read_to.items()]
        if not offsets:
            return
        try:
            await asyncio.to_thread(self._consumer.commit, offsets=offsets, asynchronous=False)
        except self._error as error:
            log.warning("Kafka offsets were not committed, messages will come again: %s", error.args[0].str())
        self._read_to = {}

    async def lag(self) -> int:
        """Return how many messages of this process's partitions are not committed. Raises SourceError."""
        try:
            return await asyncio.to_thread(self._lag)
        except self._error as error:
            raise SourceError(f"Kafka: {error.args[0].str()}") from None

    def _lag(self) -> int:
        behind = 0
        for at in self._consumer.committed(self._consumer.assignment(), timeout=5):
            low, high = self._consumer.get_watermark_offsets(at, timeout=5)
            behind += high - (at.offset if at.offset >= 0 else low)
        return behind

    async def assigned(self) -> bool:
        """Return whether the group gave this process partitions yet."""
        return bool(await asyncio.to_thread(self._consumer.assignment))

    async def close(self) -> None:
        """Leave the group."""
        await asyncio.to_thread(self._consumer.close)
