"""What is sent: recommend calls, streams and events, from a file or drawn from lists of ids.

Never needs a store or a model: a workload is made before the run and is the same for the same seed. Knows the paths
and bodies of the HTTP contract, version 1, and nothing of time. Called by the open-loop client and the benchmarks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from loadtests.http1 import request_bytes
from loadtests.schedule import LoadError

Kind = Literal["recommend", "stream", "event", "get"]
_PATHS: dict[Kind, str] = {"recommend": "/v1/recommend", "stream": "/v1/recommend", "event": "/v1/events", "get": "/"}
_EVENT_TYPES = ("view", "click", "like", "add_to_cart")
_EVENT_SHARES = (0.6, 0.3, 0.06, 0.04)
MAX_REQUESTS = 500_000


@dataclass(frozen=True, slots=True)
class Request:
    """One request, ready but for the host."""

    kind: Kind
    body: bytes = b""
    path: str = ""
    """Empty: the path of the kind."""

    @property
    def sse(self) -> bool:
        """Whether the answer is read as server-sent events."""
        return self.kind == "stream"

    def encode(self, host: str, *, extra: tuple[str, ...] = ()) -> bytes:
        """Return the bytes to write on a connection to `host`."""
        accept = "text/event-stream" if self.sse else "application/json"
        method = "GET" if self.kind == "get" else "POST"
        return request_bytes(method, self.path or _PATHS[self.kind], host, self.body, accept=accept, extra=extra)


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Shares and parameters of a generated workload."""

    event_share: float = 0.1
    stream_share: float = 0.0
    zipf: float = 1.1
    """Exponent of the users' popularity, 0 = all alike; items are drawn with the same."""
    k: int = 10
    deadline_ms: int = 800
    explain: bool = False
    """Whether JSON calls ask for reasons; streams always do."""

    def __post_init__(self) -> None:
        shares = (self.event_share, self.stream_share)
        if min(shares) < 0 or sum(shares) > 1:
            raise LoadError("event_share and stream_share must be 0 or more and at most 1 together")
        if self.zipf < 0 or self.k < 1 or self.deadline_ms < 1:
            raise LoadError("zipf must be 0 or more, k and deadline_ms at least 1")


def generate(
    users: Sequence[str],
    items: Sequence[str],
    count: int,
    *,
    mix: Mix | None = None,
    seed: int = 0,
    run_id: str = "",
    now_ms: int = 1_732_400_000_000,
) -> list[Request]:
    """Draw `count` requests. The same arguments give the same bytes.

    Args:
        users: User ids; which of them are busy is drawn from the seed, not from their order.
        items: Item ids that events name.
        count: Number of requests, at most 500,000.
        mix: Shares of kinds and parameters of the calls.
        seed: Seed of every draw.
        run_id: Prefix of the event ids. Give each run its own, or the server rightly answers `duplicate`.
        now_ms: Time stamped on the events, plus one millisecond each.
    """
    mix = mix or Mix()
    if not users or (mix.event_share > 0 and not items):
        raise LoadError("a workload needs at least one user id, and item ids when it holds events")
    if not 1 <= count <= MAX_REQUESTS:
        raise LoadError(f"count must be between 1 and {MAX_REQUESTS}, not {count}")
    rng = np.random.default_rng(seed)
    who = _zipf(rng, len(users), count, mix.zipf)
    what = _zipf(rng, max(1, len(items)), count, mix.zipf)
    draw = rng.random(count).tolist()
    types = rng.choice(len(_EVENT_TYPES), size=count, p=_EVENT_SHARES)
    prefix = run_id or f"load-{seed}"
    made = []
    for i in range(count):
        user = users[who[i]]
        if draw[i] < mix.event_share:
            kind, name = items[what[i]], _EVENT_TYPES[types[i]]
            made.append(_event(f"{prefix}-{i}", user, kind, name, now_ms + i))
        else:
            made.append(_recommend(user, mix, stream=draw[i] < mix.event_share + mix.stream_share))
    return made


def _zipf(rng: np.random.Generator, n: int, count: int, exponent: float) -> list[int]:
    weights = np.arange(1, n + 1, dtype=np.float64) ** -exponent
    order = rng.permutation(n)
    drawn: list[int] = order[rng.choice(n, size=count, p=weights / weights.sum())].tolist()
    return drawn


def _recommend(user: str, mix: Mix, *, stream: bool) -> Request:
    body = {"user_id": user, "k": mix.k, "deadline_ms": mix.deadline_ms, "explain": mix.explain or stream}
    return Request("stream" if stream else "recommend", _dumps(body))


def _event(event_id: str, user: str, item: str, kind: str, at_ms: int) -> Request:
    body = {"event_id": event_id, "user_id": user, "item_id": item, "type": kind, "timestamp_ms": at_ms, "value": 1.0}
    return Request("event", _dumps(body))


def _dumps(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def ids_from(text: str) -> list[str]:
    """Return ids: `"943"` means "1" … "943"; anything else is a file with one id a line. Raises LoadError."""
    if text.isdigit():
        if not 1 <= int(text) <= 10_000_000:
            raise LoadError("the number of ids must be between 1 and 10,000,000")
        return [str(i) for i in range(1, int(text) + 1)]
    try:
        ids = [line.strip() for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise LoadError(f"{text}: neither a number of ids nor a readable file of ids ({error.strerror})") from error
    if not ids:
        raise LoadError(f"{text} holds no id")
    return ids


def save(requests: Sequence[Request], path: Path) -> None:
    """Write one JSON object a line: kind, body, and path where it is not the kind's own."""
    with path.open("w", encoding="utf-8") as file:
        for request in requests:
            row: dict[str, Any] = {"kind": request.kind, "body": json.loads(request.body or b"null")}
            file.write(json.dumps(row | ({"path": request.path} if request.path else {})) + "\n")


def load(path: Path) -> list[Request]:
    """Read what `save` wrote; an error names the line. Raises LoadError."""
    made: list[Request] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if number > MAX_REQUESTS:
                raise LoadError(f"{path}: more than {MAX_REQUESTS} requests")
            try:
                row = json.loads(line)
                kind, body, where = row["kind"], row.get("body"), row.get("path", "")
                if kind not in _PATHS or not isinstance(where, str) or (where and not where.startswith("/")):
                    raise ValueError(f"kind must be one of {', '.join(_PATHS)} and path start with /")
                if any(c in where for c in "\r\n "):
                    raise ValueError("path must not hold spaces or line ends")
            except (ValueError, KeyError, TypeError) as error:
                raise LoadError(f"{path}, line {number}: {error}") from error
            made.append(Request(kind, b"" if body is None else _dumps(body), where))
    return made
