"""`raycommend explain`: what the language model writes before anybody asks.

With `--warm` reasons: the most active users' current lists give the evidence, what comes up most often is written
first, bounded by the number of users and of reasons. It needs a running deployment, whose Ray and cache store it uses.
With `--summaries` see `cluster.interests`, with `--reviews` `cluster.aspects`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.aspects import write_aspects
from cluster.config import Settings
from cluster.console import bars
from cluster.errors import OperatorError
from cluster.interests import write_summaries
from cluster.ray_job import job_ray
from cluster.reason_records import latest_release, most_active, records_of
from cluster.stack import running
from cluster.workspace import Workspace
from models.explain.evidence_json import evidence_to_json
from models.progress import Progress
from pipelines.embedding.runners import quiet_ray_data
from pipelines.warm import WarmOptions
from pipelines.warm import warm as written_ahead
from serve.deployments.replica import CACHE_URL

Say = Callable[[str], None]


def explain(
    settings: Settings,
    *,
    warm: bool,
    users: int,
    most: int,
    summaries: Path | None = None,
    reviews: str | None = None,
    before_test: bool = False,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """Do what the command was asked for, one of the three, and say what came of it.

    Raises OperatorError for more or none, and for `before_test` where no summaries are asked for.
    """
    if [warm, summaries is not None, reviews is not None].count(True) != 1:
        raise OperatorError(
            "raycommend explain needs one of --warm (fill the reason cache), --summaries FILE (users' interests in "
            "words) and --reviews DATASET (what its reviews praise)"
        )
    if summaries is None and before_test:
        raise OperatorError("--before-test goes with --summaries FILE: reasons are written about current lists")
    if reviews is not None:
        report = write_aspects(settings, reviews, say=say)
        counts = report["items_by"]
    elif summaries is not None:
        report = write_summaries(settings, summaries.resolve(), users=users, before_test=before_test, say=say)
        counts = report["summaries"]
    else:
        report = warm_cache(settings, users=users, most=most, say=say)
        counts = report["reasons"]
    say(", ".join(f"{count} by {source}" for source, count in counts.items()) or "nothing to write")
    return report


def warm_cache(
    settings: Settings, *, users: int, most: int, k: int = 10, language: str = "en", say: Say = lambda _: None
) -> dict[str, Any]:
    """Write up to `most` reasons for the `k` best items of the `users` most active users; return the counts.

    Raises OperatorError when nothing runs or no cache store is configured.
    """
    workspace = Workspace(settings)
    if not running(settings):
        raise OperatorError("nothing is running here: start `raycommend up` first, its cache is what gets filled")
    os.environ.update(workspace.secrets())
    if CACHE_URL not in os.environ:
        raise OperatorError(f"there is no cache store to fill: set {CACHE_URL}")
    bundle, dataset = latest_release(settings)
    counts: Counter[str] = Counter()
    with bars() as progress:
        ids = most_active(dataset.events, users)
        for record in records_of(settings, bundle, dataset.events, ids, k=k, done=_of(progress)):
            counts[evidence_to_json(record.evidence)] += 1
    wanted = [text for text, _ in counts.most_common(most)]
    say(f"{counts.total()} list places of {len(ids)} users, {len(counts)} different; writing {len(wanted)}")
    options = WarmOptions(
        folder=str(workspace.generator_folder()),
        generator=settings.models.generator,
        cache_variable=CACHE_URL,
        ttl_s=settings.serve.reason_cache.ttl_s,
        language=language,
    )
    sources: dict[str, int] = {}
    with job_ray(settings, say=say), bars() as progress:
        quiet_ray_data()
        for done in written_ahead(wanted, options):
            sources = dict(done)
            progress("reasons", sum(sources.values()), len(wanted))
    return {"users": len(ids), "places": counts.total(), "different": len(counts), "reasons": sources}


def _of(progress: Progress) -> Callable[[int, int], None]:
    return lambda at, of: progress("lists", at, of)
