"""What both stores refuse before they touch anything, and how a user's and a session's features become one.

Called by `MemoryStore` and `RedisStore`. Knows nothing of servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from models.declared import Declaration, later
from models.events import Event, EventType, session_owner
from models.features import UserFeatures
from models.ids import is_valid_id
from models.intent import is_packed
from models.store.port import MAX_EVENTS_PER_CALL, STREAM_ONLY

SESSION_PREFIX = session_owner("")


def check_tenant(tenant: str) -> None:
    """Raise ValueError unless `tenant` is a valid id: it becomes part of every key."""
    if not is_valid_id(tenant):
        raise ValueError("the tenant is not a valid id")


def check_events(events: Sequence[Event]) -> None:
    """Raise ValueError when there are too many events, or one that no profile could hold."""
    if len(events) > MAX_EVENTS_PER_CALL:
        raise ValueError(f"{len(events)} events in one call; at most {MAX_EVENTS_PER_CALL} are taken")
    for position, event in enumerate(events):
        if not is_valid_id(event.owner.removeprefix(SESSION_PREFIX)) or not is_valid_id(event.event_id):
            raise ValueError(f"event {position}: owner and event id must be valid ids")
        if event.item_id is None and event.type not in STREAM_ONLY:
            raise ValueError(f"event {position}: a {event.type.name} needs an item")
        if event.item_id is not None and not is_valid_id(event.item_id):
            raise ValueError(f"event {position}: the item id is not valid")
        if event.intent is not None and (event.type is not EventType.search or not is_packed(event.intent)):
            raise ValueError(f"event {position}: an intent is the vector of a search")
        if not 0 <= event.timestamp_ms < 2**53:
            raise ValueError(f"event {position}: the time must be milliseconds since 1970")


def merge_features(user: UserFeatures, session: UserFeatures, *, limit: int) -> UserFeatures:
    """Merge two profiles by time; at equal times the user's events come first. Keeps the last `limit` events.

    Of two intents the newer one stays, and of two declarations.
    """
    said = later(user.declared, session.declared)
    newer = session.intent is not None and (user.intent is None or session.intent_ms > user.intent_ms)
    latest = session if newer else user
    if not session.known:
        return _with_wishes(user, latest, said)
    if not user.known:
        return _with_wishes(session, latest, said)
    times = np.concatenate([user.timestamps_ms, session.timestamps_ms])
    order = np.argsort(times, kind="stable")[-limit:]
    item_ids = user.item_ids + session.item_ids
    return UserFeatures(
        item_ids=tuple(item_ids[i] for i in order),
        types=np.concatenate([user.types, session.types])[order],
        values=np.concatenate([user.values, session.values])[order],
        timestamps_ms=times[order],
        seen=np.union1d(user.seen, session.seen),
        known=True,
        intent=latest.intent,
        intent_ms=latest.intent_ms,
        intent_tag=latest.intent_tag,
        declared=said,
    )


def _with_wishes(features: UserFeatures, latest: UserFeatures, said: Declaration | None) -> UserFeatures:
    if features.intent is latest.intent and features.declared is said:
        return features
    return replace(
        features, intent=latest.intent, intent_ms=latest.intent_ms, intent_tag=latest.intent_tag, declared=said
    )
