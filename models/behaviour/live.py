"""Live item statistics of one bucket of users: folded event by event, exactly and in any batch size.

An item's decayed count is kept as the logarithm of a sum: log2 of Σ 2^(time / half-life). Adding is commutative up to
rounding, nothing has to be re-scaled as time passes, and the number stays small for any date (forward decay, Cormode et
al. 2009). Called by the event consumer. Knows nothing of stores; the bytes are those kept in a bucket's state.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from models.events import POSITIVE_TYPES, EventType
from models.ids import is_valid_id
from models.store.streams import StreamEntry

MAX_FOLLOWERS = 255
_VERSION = 1
_HEAD = struct.Struct("<BIqqBB")
_TYPE = struct.Struct("<BId")
_FOLLOWER = struct.Struct("<dB")
_NEVER = 2**63 - 1


def add_logs(a: float, b: float) -> float:
    """Return log2(2^a + 2^b)."""
    high, low = (a, b) if a >= b else (b, a)
    return high + math.log2(1.0 + 2.0 ** (low - high))


@dataclass(slots=True)
class ItemState:
    """What one bucket's users did with one item.

    `users`: distinct users who took it. `first_ms`: first positive event, `last_ms`: newest event. `counts` and
    `weights` by event type: number, and log2 of the decayed number. `followers`: the same logarithm for items taken
    next by the same user.
    """

    users: int = 0
    first_ms: int = _NEVER
    last_ms: int = 0
    counts: dict[int, int] = field(default_factory=dict)
    weights: dict[int, float] = field(default_factory=dict)
    followers: dict[str, float] = field(default_factory=dict)

    def count(self, kind: EventType, half_lives: float) -> None:
        """Count an event of a type at a time in half-lives since 1970."""
        before = self.weights.get(kind)
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.weights[kind] = half_lives if before is None else add_logs(before, half_lives)

    def follow(self, item_id: str, half_lives: float, *, limit: int) -> None:
        """Count a transition to `item_id`; beyond `limit` followers the weakest goes."""
        before = self.followers.get(item_id)
        self.followers[item_id] = half_lives if before is None else add_logs(before, half_lives)
        if len(self.followers) > limit:
            del self.followers[min(self.followers, key=lambda i: (self.followers[i], i))]

    def weight(self) -> float:
        """Return the logarithm of all decayed counts together: what an item must have to be kept."""
        weights = list(self.weights.values()) or list(self.followers.values())
        return max(weights, default=-math.inf)

    def encode(self) -> bytes:
        """Return the stored form."""
        parts = [_HEAD.pack(_VERSION, self.users, self.first_ms, self.last_ms, len(self.counts), len(self.followers))]
        parts += [_TYPE.pack(kind, count, self.weights[kind]) for kind, count in self.counts.items()]
        for item_id, weight in self.followers.items():
            parts.append(_FOLLOWER.pack(weight, len(item_id)) + item_id.encode())
        return b"".join(parts)


def decode_state(value: bytes) -> ItemState | None:
    """Return what `encode` wrote, or None where the bytes are not of this version."""
    try:
        version, users, first_ms, last_ms, types, followers = _HEAD.unpack_from(value)
        state, at = ItemState(users, first_ms, last_ms), _HEAD.size
        for _ in range(types):
            kind, count, weight = _TYPE.unpack_from(value, at)
            state.counts[EventType(kind)], state.weights[kind] = count, weight
            at += _TYPE.size
        for _ in range(followers):
            weight, length = _FOLLOWER.unpack_from(value, at)
            at += _FOLLOWER.size + length
            state.followers[value[at - length : at].decode("ascii")] = weight
    except (struct.error, ValueError):
        return None
    numbers = [*state.weights.values(), *state.followers.values()]
    sound = version == _VERSION and at == len(value) and all(map(math.isfinite, numbers))
    return state if sound and all(map(is_valid_id, state.followers)) else None


def items_of(entries: Iterable[StreamEntry]) -> list[str]:
    """Return every item whose state `fold` will touch, once."""
    found: dict[str, None] = {}
    for entry in entries:
        if entry.event is not None and entry.event.item_id is not None:
            found[entry.event.item_id] = None
            if entry.previous is not None:
                found[entry.previous.item_id] = None
    return list(found)


def fold(
    states: Mapping[str, ItemState], entries: Iterable[StreamEntry], *, half_life_ms: float, followers: int
) -> dict[str, ItemState]:
    """Fold entries, in order, into the states of their items, in place; return the states that changed.

    An event counts at its own time, but never later than it arrived: nobody can buy trending with a future date. Items
    nobody knows are counted like all others; they show as soon as a catalog has them.
    """
    changed: dict[str, ItemState] = {}

    def state_of(item_id: str) -> ItemState:
        found = changed.get(item_id)
        if found is None:
            found = changed[item_id] = states.get(item_id) or ItemState()
        return found

    for entry in entries:
        event = entry.event
        if event is None or event.item_id is None:
            continue
        time_ms = min(event.timestamp_ms, entry.arrived_ms)
        half_lives = time_ms / half_life_ms
        state = state_of(event.item_id)
        state.count(event.type, half_lives)
        state.last_ms = max(state.last_ms, time_ms)
        if event.type not in POSITIVE_TYPES:
            continue
        state.users += entry.new
        state.first_ms = min(state.first_ms, time_ms)
        if entry.previous is not None and entry.previous.item_id != event.item_id:
            state_of(entry.previous.item_id).follow(event.item_id, half_lives, limit=followers)
    return changed
