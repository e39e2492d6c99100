"""The calls of the server-side functions: which keys and arguments they take (`functions.lua` reads them).

Called by `RedisStore` and what is built on it. Knows nothing of connections.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from models.events import Event
from models.ids import hash64
from models.store import codec
from models.store.checks import SESSION_PREFIX
from models.store.port import STREAM_ONLY, EventStatus, StoreLimits

if TYPE_CHECKING:
    from models.store.servers import Command

STATUSES = (EventStatus.duplicate, EventStatus.accepted, EventStatus.repeat, EventStatus.limited)
"""What the numbers mean that `append` answers with."""


OWNER_KEYS = ("r:", "s:", "p:", "i:", "a:", "w:")
"""An owner's keys, behind the tag: ring, seen set, profile, intent, declaration; and the window, for `append` alone."""
LINKED_KEYS = OWNER_KEYS[:5]
"""Those that a link carries over."""
FETCHED_KEYS = ("r:", "s:", "i:", "a:")
"""Those that a fetch reads."""
_SOURCES = ("functions.lua", "streams.lua")


@cache
def library() -> tuple[str, str]:
    """Return the function library's source and its version, a hash of that source."""
    parts = (files("models.store").joinpath(name).read_text(encoding="utf-8") for name in _SOURCES)
    source = "\n".join(parts)
    version = hashlib.sha256(source.encode()).hexdigest()[:12]
    return source.replace("@VERSION@", version), version


def tag_of(tenant: str, bucket: int) -> str:
    """Return what all keys of a bucket start with: it puts them into one slot."""
    return f"{{{tenant}:{bucket}}}"


def fcall(name: str, keys: Sequence[str | bytes], args: Sequence[Any], *, command: str = "FCALL") -> Command:
    """Return the call of one of our server-side functions."""
    return (command, f"{name}_{library()[1]}", len(keys), *keys, *args)


def append_call(
    tag: str, events: Sequence[Event], *, now_ms: int, limits: StoreLimits, to_stream: bool, backlog: bool
) -> tuple[str, Command]:
    """Return the call that stores events of one bucket, with the key it is routed by."""
    owners = {owner: i + 1 for i, owner in enumerate(dict.fromkeys(e.owner for e in events))}
    keys: list[str | bytes] = [tag + "ev"]
    keys += [tag + part + owner for owner in owners for part in OWNER_KEYS]
    keys += [(tag + "e:").encode() + codec.dedupe_digest(event) for event in events]
    args: list[Any] = [now_ms, max(1, int(limits.dedupe_s * 1000)), limits.recent_events, limits.seen_items]
    args += [limits.stream_events if to_stream else 0]
    args += [round(limits.repeat_window_s * 1000) if to_stream else 0]
    args += [limits.events_per_owner_s if to_stream and not backlog else 0]
    args += [round(limits.intent_s * 1000)]
    session_ms = int(limits.session_s * 1000)
    args += [len(owners), *(session_ms if owner.startswith(SESSION_PREFIX) else 0 for owner in owners)]
    for event in events:
        stored = event.type not in STREAM_ONLY
        args.append(owners[event.owner])
        args.append(codec.encode_record(event) if stored else b"")
        args.append(hash64(event.item_id or "").to_bytes(8, "little") if stored else b"")
        args.append(codec.encode_stream(event))
        args.append(codec.encode_intent(event, now_ms=now_ms))
    return tag, fcall("rc_append", keys, args)
