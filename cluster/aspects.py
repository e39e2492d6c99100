"""`raycommend explain --reviews`: what the reviews of an imported data set praise and criticise, item by item.

Verdicts are kept beside the data set, each under a digest of what it was made of: a run that was interrupted goes on,
and one after new reviews judges what changed. `build` checks them against the reviews again and makes them labels.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.config import Settings
from cluster.console import bars
from cluster.errors import OperatorError
from cluster.ray_job import job_ray
from cluster.workspace import Workspace
from models.explain.aspects import Aspects, Judged, aspects_of, aspects_to_json, review_labels
from models.explain.generator import model_of
from models.explain.prompt import PROMPT_VERSION
from models.reviews import ReviewsByItem
from pipelines.aspects import verdicts
from pipelines.dataset import Dataset
from pipelines.embedding.runners import quiet_ray_data
from pipelines.writers import WriterOptions

_SAVE_EVERY_S = 10.0
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Kept:
    """A verdict as it is kept: `key` is the digest of facts, model and prompt it was made of."""

    key: str
    judged: Judged
    source: str


def write_aspects(settings: Settings, name: str, *, say: Say = lambda _: None) -> dict[str, Any]:
    """Judge what the reviews of the imported data set `name` say and keep it beside it; return counts.

    Raises OperatorError for a data set without reviews.
    """
    workspace = Workspace(settings)
    dataset = workspace.dataset(name)
    if not dataset.reviews:
        raise OperatorError(f"{name} has no reviews: import it with `raycommend import generic … --reviews FILE`")
    with bars() as progress:
        facts = facts_of(dataset.reviews, done=lambda at, of: progress("reviews", at, of))
    folder = workspace.generator_folder()
    keys = {item: key_of(aspects, model_of(folder)) for item, aspects in facts.items()}
    file = verdict_file(workspace, name)
    kept = {item: row for item, row in read_verdicts(file).items() if keys.get(item) == row.key}
    # What the counts stood in for is asked again: the engine may have been away.
    missing = {item: one for item, one in facts.items() if item not in kept or kept[item].source != "llm"}
    say(f"{len(facts)} of {len(dataset.reviews)} reviewed items have aspects; {len(missing)} to judge")
    if missing:
        options = WriterOptions(str(folder), settings.models.generator)
        saved, judged = time.monotonic(), 0
        with job_ray(settings, say=say), bars() as progress:
            quiet_ray_data()
            for batch in verdicts(missing, options):
                kept |= {one.item_id: Kept(keys[one.item_id], one.judged, one.source) for one in batch}
                judged += len(batch)
                progress("items", judged, len(missing))
                if time.monotonic() - saved > _SAVE_EVERY_S:
                    save_verdicts(file, kept)
                    saved = time.monotonic()
    save_verdicts(file, kept)
    say(f"`raycommend build --dataset {name}` makes a release that knows them")
    return {
        "dataset": name,
        "items": len(kept),
        "judged_now": len(missing),
        "items_by": dict(Counter(row.source for row in kept.values())),
        "aspects": dict(Counter(polarity for row in kept.values() for polarity in row.judged.values())),
    }


def facts_of(reviews: ReviewsByItem, *, done: Callable[[int, int], None] = lambda at, of: None) -> dict[str, Aspects]:
    """Return the aspects of every item whose reviews agree on something worth asking about."""
    found: dict[str, Aspects] = {}
    for at, (item, own) in enumerate(reviews.items(), start=1):
        if aspects := aspects_of(own):
            found[item] = aspects
        if at % 100 == 0 or at == len(reviews):
            done(at, len(reviews))
    return found


def labels_from_reviews(workspace: Workspace, dataset: Dataset) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """Return the labels that items get from kept verdicts, as far as the reviews still back them; by item id."""
    kept = read_verdicts(verdict_file(workspace, dataset.name)) if dataset.reviews else {}
    found = {item: review_labels(row.judged, dataset.reviews.get(item, ())) for item, row in kept.items()}
    return {item: labels for item, labels in found.items() if labels}


def key_of(aspects: Aspects, model: str) -> str:
    """Return the digest of everything that decides a verdict, 32 hex digits."""
    made_of = json.dumps([aspects_to_json(aspects), model, PROMPT_VERSION])
    return hashlib.blake2b(made_of.encode(), digest_size=16).hexdigest()


def verdict_file(workspace: Workspace, name: str) -> Path:
    """Return where the verdicts on a data set are kept; an import of the data set leaves it alone."""
    return workspace.data / f"{name}.aspects.parquet"


def read_verdicts(file: Path) -> dict[str, Kept]:
    """Return kept verdicts by item id; nothing where there is no file. Raises OperatorError for another file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.is_file():
        return {}
    try:
        rows = pq.read_table(file, columns=["item", "key", "judged", "source"]).to_pylist()
        return {row["item"]: Kept(row["key"], dict(json.loads(row["judged"])), row["source"]) for row in rows}
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        raise OperatorError(f"{file}: no verdicts on reviews ({error}); remove it to have them made anew") from error


def save_verdicts(file: Path, kept: Mapping[str, Kept]) -> None:
    """Write verdicts. Effect: `file` appears whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = list(kept.items())
    columns = {
        "item": [item for item, _ in rows],
        "key": [row.key for _, row in rows],
        "judged": [json.dumps(dict(row.judged)) for _, row in rows],
        "source": [row.source for _, row in rows],
    }
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    draft = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    try:
        pq.write_table(table, draft)
        os.replace(draft, file)
    finally:
        draft.unlink(missing_ok=True)
