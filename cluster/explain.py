"""`raycommend explain --warm`: reasons for the lists that are likely to be asked for, written before anybody asks.

The most active users' current lists give the evidence; what comes up most often is written first. Bounded by the
number of users and of reasons. Needs a running deployment, whose Ray and cache store it uses.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from cluster.config import Settings
from cluster.console import bars
from cluster.errors import OperatorError
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


def explain(settings: Settings, *, warm: bool, users: int, most: int, say: Say = lambda _: None) -> dict[str, Any]:
    """Do what the command was asked for and say what came of it; `warm` is the one thing there is. See `warm_cache`."""
    if not warm:
        raise OperatorError("raycommend explain needs --warm: it fills the reason cache ahead of time")
    report = warm_cache(settings, users=users, most=most, say=say)
    say(", ".join(f"{count} by {source}" for source, count in report["reasons"].items()) or "nothing to write")
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
