"""`raycommend explain --summaries`: what the most active users are interested in, in two sentences each.

The facts come from the imported events of the latest release's data set, or with `before_test` from those that
`raycommend evaluate` lets a method know. The Parquet file says in words what users did, so its owner alone may read it.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.config import Settings
from cluster.console import bars
from cluster.errors import OperatorError
from cluster.ray_job import job_ray
from cluster.reason_records import features_of, latest_release, most_active
from cluster.stack import running
from cluster.workspace import Workspace
from models.catalog import ItemCatalog
from models.events import EventLog
from models.explain.interests import Interests, genre_shares, interests_of
from models.explain.positives import positives_of
from models.explain.summary_book import SummaryBook
from models.store.cache_store import RedisCache
from models.store.port import StoreError
from pipelines.embedding.runners import quiet_ray_data
from pipelines.evaluation.protocol import drop_last
from pipelines.interests import summaries
from pipelines.writers import WriterOptions, Written
from serve.auth import DEFAULT_TENANT
from serve.deployments.replica import CACHE_URL

HELD_OUT = 3
"""Events per user that the evaluation asks for."""
Say = Callable[[str], None]


def write_summaries(
    settings: Settings, out: Path, *, users: int, before_test: bool = False, say: Say = lambda _: None
) -> dict[str, Any]:
    """Write the summaries of the `users` most active users to `out` (columns user, summary, source); return counts.

    They are also kept in the cache store of a running deployment that reads them, for `summaries_ttl_s`.
    Raises OperatorError without a release, or where `out` has no folder. Effect: `out` appears whole or not at all.
    """
    if not out.parent.is_dir():
        raise OperatorError(f"{out.parent} is no folder: make it first, summaries take minutes to write")
    bundle, dataset = latest_release(settings)
    events = drop_last(dataset.events, HELD_OUT, tie_seed=0) if before_test else dataset.events
    facts = facts_of(events, bundle.catalog, most_active(events, users))
    options = WriterOptions(str(Workspace(settings).generator_folder()), settings.models.generator)
    say(f"writing what {len(facts)} users are interested in")
    rows: list[Written] = []
    with job_ray(settings, say=say), bars() as progress:
        quiet_ray_data()
        for batch in summaries(facts, options):
            rows += batch
            progress("summaries", len(rows), len(facts))
    save_summaries(out, rows, dataset=dataset.name, before_test=before_test)
    kept = 0 if before_test else asyncio.run(_kept(settings, rows, say))
    if kept:
        say(f"{kept} kept for the running deployment")
    return {
        "users": len(rows),
        "summaries": dict(Counter(source for _, _, source in rows)),
        "before_test": before_test,
        "kept": kept,
    }


async def _kept(settings: Settings, rows: Sequence[Written], say: Say) -> int:
    """Put the summaries where the running deployment reads them; returns how many, 0 where it does not."""
    ttl_s = settings.serve.reason_cache.summaries_ttl_s
    if ttl_s <= 0 or not running(settings):
        return 0
    os.environ.update(Workspace(settings).secrets())
    if CACHE_URL not in os.environ:
        return 0
    store = RedisCache(os.environ[CACHE_URL], timeout_s=2.0)
    book, kept = SummaryBook(store, ttl_s=ttl_s), 0
    try:
        for user, text, _ in rows:
            if text:
                await book.keep(DEFAULT_TENANT, user, text)
                kept += 1
    except StoreError as error:
        say(f"the cache store took {kept} and failed ({error}); the file is whole")
    finally:
        await store.close()
    return kept


def facts_of(events: EventLog, catalog: ItemCatalog, user_ids: list[str]) -> dict[str, Interests]:
    """Return what may be said about each of the users, from these events alone."""
    features, shares = features_of(events, user_ids), genre_shares(catalog)
    return {user: interests_of(positives_of(features[user], catalog), shares) for user in user_ids}


def summaries_before_test(file: Path, *, dataset: str) -> Mapping[str, str]:
    """Return summary by user id from a file made with `before_test` of this data set; users without one are left out.

    Raises OperatorError for any other file: it would tell a method what it is asked for.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file, columns=["user", "summary"])
    except (OSError, KeyError, pa.ArrowException) as error:
        raise OperatorError(f"{file}: not a file of `raycommend explain --summaries` ({error})") from error
    wanted = {b"dataset": dataset.encode(), b"before_test": b"True"}
    if not wanted.items() <= dict(table.schema.metadata or {}).items():
        raise OperatorError(f"{file}: make it with `explain --summaries FILE --before-test` for a release of {dataset}")
    rows = table.to_pydict()
    return {user: text for user, text in zip(rows["user"], rows["summary"], strict=True) if text}


def summary_vectors(texts: Mapping[str, str], encode: Callable[[list[str]], np.ndarray]) -> dict[str, np.ndarray]:
    """Return the unit vector of every summary; equal texts are encoded once."""
    distinct = sorted(set(texts.values()))
    vectors = dict(zip(distinct, encode(distinct), strict=True)) if distinct else {}
    return {user: vectors[text] for user, text in texts.items()}


def save_summaries(out: Path, rows: Sequence[Written], *, dataset: str, before_test: bool) -> None:
    """Write summaries and what they were made of. Effect: `out` appears whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    names = ("user", "summary", "source")
    table = pa.table({name: pa.array(column, pa.string()) for name, column in zip(names, columns, strict=True)})
    table = table.replace_schema_metadata({"dataset": dataset, "before_test": str(before_test)})
    draft = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        pq.write_table(table, draft)
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
