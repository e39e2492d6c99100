"""What something was made from, as digests: the same data gives the same artifact. Called by `build` and trainings."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from models.events import EventLog
from pipelines.dataset import Dataset
from pipelines.fold import Fold


def digest_fold(fold: Fold) -> dict[str, Any]:
    """Return what a fold adds to the inputs of a catalog; nothing where nothing changed."""
    states = [(name, live.hidden, live.available, live.removed, live.changed_ms) for name, live in fold.items.items()]
    return {"live": hashlib.sha256(json.dumps(states).encode()).hexdigest()} if states else {}


def digest_items(dataset: Dataset) -> str:
    """Return the sha256 of all items as hex."""
    digest = hashlib.sha256()
    for item in dataset.items:
        parts = [item.item_id, item.title, item.text, sorted(item.labels.items()), sorted(item.numbers.items())]
        if item.media:
            parts.append(sorted(item.media.items()))
        digest.update(json.dumps(parts, ensure_ascii=True).encode())
    return digest.hexdigest()


def digest_events(log: EventLog) -> str:
    """Return the sha256 of a log as hex: what tells whether something was made of the same events."""
    digest = hashlib.sha256()
    for column in (log.types, log.values, log.timestamps_ms):
        digest.update(column.tobytes())
    digest.update("\n".join(f"{u}\t{i}" for u, i in zip(log.user_ids, log.item_ids, strict=True)).encode())
    return digest.hexdigest()


def digest_event_set(log: EventLog) -> str:
    """Return the sha256 of events as hex, in whatever order they come; each counts as often as it is there."""
    columns = (log.timestamps_ms.tolist(), log.user_ids, log.item_ids, log.types.tolist(), log.values.tolist())
    digest = hashlib.sha256()
    for event in sorted(zip(*columns, strict=True)):
        digest.update("\t".join(map(str, event)).encode() + b"\n")
    return digest.hexdigest()
