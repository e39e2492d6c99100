"""Features mean one thing: a log replayed through a store and the same log offline give every feature alike.

Online is what a request sees: events appended to the store, fetched in one round trip just before the next one.
Offline is what training and evaluation see: `models.behaviour.replay` over the event log. Compared are all fields of
`UserFeatures`, all columns of the ranker's `FusionFeatures`, the profile text, and the list that retrieval makes of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import pytest

from models.behaviour.replay import histories
from models.bundle import ReleaseBundle
from models.candidates import Candidates
from models.events import Event, EventLog, EventType
from models.features import UserFeatures
from models.rankers.fusion import FEATURE_NAMES, FusionFeatures
from models.rankers.profile_text import profile_text
from models.retrieval.query import RetrievalQuery
from models.store.port import EventStatus, OnlineStore, StoreLimits

RING_EVENTS = 24
"""A short ring, so that a log of a few hundred events overflows it many times."""
NOW_MS = 1_700_000_000_000
USERS, EVENTS, ITEMS = 4, 320, 40


@dataclass(frozen=True)
class Moment:
    """What both sides knew of a user just before an event, and the candidates retrieval made of what was online."""

    user_id: str
    now_ms: int
    online: UserFeatures
    offline: UserFeatures
    candidates: Candidates
    candidates_offline: Candidates

    def queries(self) -> Iterator[RetrievalQuery]:
        for user in (self.online, self.offline):
            yield RetrievalQuery(n=30, now_ms=self.now_ms, user=user, exclude_seen=False)


def events_of(seed: int) -> list[Event]:
    """Events of every type by time, with equal times, unknown items, and ratings of both signs; seconds apart."""
    rng = np.random.default_rng(seed)
    times = NOW_MS + 60_000 * np.sort(rng.integers(0, EVENTS, EVENTS))
    kinds = [EventType(int(k)) for k in rng.choice([int(t) for t in EventType], EVENTS)]
    return [
        Event(
            event_id=f"{seed}-{at}",
            owner=f"p{at % USERS}",
            type=kind,
            timestamp_ms=int(times[at]),
            # i40 to i43 are not in the catalog: events on them are kept until the items arrive.
            item_id=None if kind == EventType.search else f"i{int(rng.integers(ITEMS + 4)):02}",
            value=float(np.float32(rng.integers(1, 6))),
        )
        for at, kind in enumerate(kinds)
    ]


def log_of(events: list[Event]) -> EventLog:
    return EventLog(
        np.array([e.owner for e in events], object),
        np.array([e.item_id or "" for e in events], object),
        np.array([e.type for e in events], np.uint8),
        np.array([e.value for e in events], np.float32),
        np.array([e.timestamp_ms for e in events], np.int64),
    )


async def replayed(store: OnlineStore, bundle: ReleaseBundle, events: list[Event]) -> list[Moment]:
    """Append event by event; before each that enters a history, fetch, and ask retrieval from both sides."""
    known = {history.user_id: history for history in histories(log_of(events))}
    position = dict.fromkeys(known, 0)
    found = []
    for event in events:
        if event.type not in (EventType.impression, EventType.search):
            online = await store.fetch("main", event.owner, None, timeout_s=5)
            offline = known[event.owner].before(position[event.owner], limit=RING_EVENTS)
            position[event.owner] += 1
            lists = [
                bundle.engine.retrieve(RetrievalQuery(n=30, now_ms=event.timestamp_ms, user=u, exclude_seen=False))
                for u in (online, offline)
            ]
            found.append(Moment(event.owner, event.timestamp_ms, online, offline, *lists))
        assert await store.append("main", [event], now_ms=event.timestamp_ms) == [EventStatus.accepted]
    return found


@pytest.fixture
async def moments(open_store, tiny) -> list[Moment]:
    store = await open_store(limits=StoreLimits(recent_events=RING_EVENTS))
    found = await replayed(store, tiny.bundle, events_of(seed=5))
    assert len(found) > 200 and max(len(m.online) for m in found) == RING_EVENTS
    return found


def test_every_feature_is_the_same_online_and_offline(moments: list[Moment], tiny) -> None:
    fusion = FusionFeatures(tiny.bundle.catalog, tiny.bundle.embeddings, tiny.bundle.statistics)
    told_apart = np.zeros(len(FEATURE_NAMES), bool)
    texts = set()
    for moment in moments:
        for field in fields(UserFeatures):
            left, right = getattr(moment.online, field.name), getattr(moment.offline, field.name)
            assert type(left) is type(right), field.name
            if isinstance(left, np.ndarray):
                assert left.dtype == right.dtype, field.name
            np.testing.assert_array_equal(left, right, err_msg=field.name)
        for field in fields(Candidates):
            left, right = getattr(moment.candidates, field.name), getattr(moment.candidates_offline, field.name)
            np.testing.assert_array_equal(left, right, err_msg=field.name)
        # Both over one list, so that a difference is one of the features and not of the list.
        online, offline = (fusion.build(query, moment.candidates) for query in moment.queries())
        for column, name in enumerate(FEATURE_NAMES):
            np.testing.assert_array_equal(online[:, column], offline[:, column], err_msg=name)
        told_apart |= np.ptp(online, axis=0) > 0
        first, second = (profile_text(query, tiny.bundle.catalog) for query in moment.queries())
        assert first == second
        texts.add(first)
    # A column that is always constant would be compared without saying anything.
    silent = {name for name, speaks in zip(FEATURE_NAMES, told_apart, strict=True) if not speaks}
    assert silent <= {"text_intent", "similar_z"}, silent
    assert len(texts) > 100 and any("Did not like" in text for text in texts)


def test_the_comparison_notices_one_event_out_of_place(moments: list[Moment], tiny) -> None:
    fusion = FusionFeatures(tiny.bundle.catalog, tiny.bundle.embeddings, tiny.bundle.statistics)
    moment = max(moments, key=lambda m: len(m.online))
    swapped = np.arange(len(moment.online))
    swapped[-3:] = swapped[-3:][::-1]
    query, _ = moment.queries()
    other = RetrievalQuery(n=30, now_ms=query.now_ms, user=moment.online.take(swapped), exclude_seen=False)
    assert other.user.item_ids != query.user.item_ids
    assert (fusion.build(query, moment.candidates) != fusion.build(other, moment.candidates)).any()


async def test_parallel_owners_do_not_change_what_either_side_sees(open_store, tiny) -> None:
    store = await open_store(limits=StoreLimits(recent_events=RING_EVENTS))
    events = events_of(seed=6)
    by_owner = [[e for e in events if e.owner == f"p{n}"] for n in range(USERS)]
    found = await asyncio.gather(*(replayed(store, tiny.bundle, mine) for mine in by_owner))
    for moment in (m for per_owner in found for m in per_owner):
        assert moment.online.item_ids == moment.offline.item_ids
        np.testing.assert_array_equal(moment.online.seen, moment.offline.seen)
