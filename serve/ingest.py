"""The event service: cleans what applications post, and answers only when it is durable.

Statuses per event: accepted, duplicate, ignored (with why), invalid (with why). Whether an event is a repeat, or one
too many of its user, is decided by the store, in the step that would store it. The good events of a list land
whatever the bad ones are. The text of a search becomes a vector here and goes no further. Knows nothing of the web
framework; the ingress calls it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from models.bundle import ReleaseBundle
from models.events import Event, EventType, session_owner
from models.intent import pack
from models.store.port import EventStatus
from serve.context import StageCall
from serve.errors import ContractViolation, DeadlineExceeded, DependencyError, RecommendError
from serve.metrics import ServeMetrics
from serve.ports import EventSink, QueryEncoder
from serve.releases import ReleaseHolder
from serve.runner import Outcome
from serve.schemas import EventIn, EventResult
from serve.settings import ServeSettings
from serve.signing import Signer, TokenInvalid
from serve.texts import encoded


class EventService:
    """Takes posted events to the store."""

    def __init__(
        self,
        sink: EventSink,
        signer: Signer,
        metrics: ServeMetrics,
        settings: ServeSettings,
        *,
        encoder: QueryEncoder | None = None,
        releases: ReleaseHolder | None = None,
    ) -> None:
        """Without an `encoder` of the `releases`, searches are taken and steer nothing."""
        self._sink = sink
        self._encoder = encoder
        self._releases = releases
        self._signer = signer
        self._metrics = metrics
        self._settings = settings

    async def accept(self, events: Sequence[EventIn], *, tenant: str) -> list[EventResult]:
        """Return one result per event, in order.

        Raises DependencyError when the events could not all be made durable; sending them again is harmless.
        """
        now_ms = time.time_ns() // 1_000_000
        results: list[EventResult | None] = [self._refuse(e, tenant, now_ms) for e in events]
        good = [at for at, result in enumerate(results) if result is None]
        if good:
            stored = [_stored(events[at], now_ms) for at in good]
            stored = await self._intents(stored, [events[at].query for at in good], tenant)
            statuses = await self._sink.append(tenant, stored, now_ms=now_ms)
            if EventStatus.failed in statuses:
                raise DependencyError("some events could not be made durable; send all of them again")
            for at, status in zip(good, statuses, strict=True):
                results[at] = self._told(events[at], status)
        done = [r for r in results if r is not None]
        for status_name, count in Counter(r.status for r in done).items():
            self._metrics.event(status_name, count)
        return done

    async def _intents(self, events: Sequence[Event], texts: Sequence[str | None], tenant: str) -> list[Event]:
        """Give each owner's newest search its vector; no other one would be kept.

        All share one budget. A search whose vector is not there by then is stored without: an event like any other.
        """
        newest: dict[str, int] = {}
        for at, event in enumerate(events):
            held = newest.get(event.owner)
            if texts[at] is not None and (held is None or event.timestamp_ms >= events[held].timestamp_ms):
                newest[event.owner] = at
        given = list(events)
        if self._encoder is not None and self._releases is not None and self._settings.pipeline.intent_s > 0:
            bundle = self._releases.bundle(tenant, self._releases.current(tenant))
            found = await asyncio.gather(
                *(self._vector(self._encoder, texts[at] or "", tenant, bundle) for at in newest.values())
            )
            for at, vector in zip(newest.values(), found, strict=True):
                packed = None if vector is None else pack(vector, bundle.space.tag)
                given[at] = replace(events[at], intent=packed)
        return given

    async def _vector(
        self, encoder: QueryEncoder, text: str, tenant: str, bundle: ReleaseBundle
    ) -> npt.NDArray[np.float32] | None:
        budget_ms = self._settings.pipeline.query.budget_ms
        started = time.perf_counter()
        outcome: Outcome = "ok"
        vector = None
        try:
            async with asyncio.timeout(budget_ms / 1000.0):
                vector = await encoded(encoder, StageCall(tenant, bundle.release_id, budget_ms), text, bundle)
        except (TimeoutError, DeadlineExceeded):
            outcome = "timeout"
        except ContractViolation:
            raise
        except RecommendError:
            outcome = "unavailable"
        self._metrics.stage("intent", outcome, (time.perf_counter() - started) * 1000.0)
        return vector

    def _told(self, event: EventIn, status: EventStatus) -> EventResult:
        """Return what the contract says for what the store did."""
        if status is EventStatus.repeat:
            return _ignored(event, f"the same event again within {self._settings.repeat_window_s:g} s")
        if status is EventStatus.limited:
            return _ignored(event, "too many events of one user; send it again later")
        duplicate = status is EventStatus.duplicate
        return EventResult(event_id=event.event_id, status="duplicate" if duplicate else "accepted")

    def _refuse(self, event: EventIn, tenant: str, now_ms: int) -> EventResult | None:
        if event.timestamp_ms is not None:
            if event.timestamp_ms > now_ms + self._settings.future_events_s * 1000:
                return _invalid(event, "timestamp_ms lies in the future")
            if event.timestamp_ms < self._settings.oldest_event_ms:
                return _invalid(event, "timestamp_ms lies before the oldest accepted event")
        if event.impression is not None:
            try:
                self._signer.check_impression(
                    event.impression,
                    tenant,
                    event.user_id or event.session_id or "",
                    event.item_id or "",
                    event.decision_id or "",
                    now_s=now_ms // 1000,
                )
            except TokenInvalid as error:
                return _invalid(event, str(error))
        elif event.type == "impression":
            return _ignored(event, "an impression event needs its token")
        return None


def _stored(event: EventIn, now_ms: int) -> Event:
    owner = event.user_id if event.user_id is not None else session_owner(event.session_id or "")
    return Event(
        event_id=event.event_id,
        owner=owner,
        type=EventType[event.type],
        timestamp_ms=now_ms if event.timestamp_ms is None else event.timestamp_ms,
        item_id=event.item_id,
        value=float(event.value),
        decision_id=event.decision_id,
    )


def _ignored(event: EventIn, reason: str) -> EventResult:
    return EventResult(event_id=event.event_id, status="ignored", reason=reason)


def _invalid(event: EventIn, reason: str) -> EventResult:
    return EventResult(event_id=event.event_id, status="invalid", reason=reason)
