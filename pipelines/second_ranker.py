"""Takes a text ranker into an artifact as the second of a cascade, and judges the cascade against the first alone.

Judged on each sampled user's last event, with sources fitted on the events before. The first ranker may have been
trained on those events too, which favours it: a cascade that is switched on had the harder case. What comes of it is
compared with the cascade served now too, as a whole: a first ranker that beats the first one served may still be worse
than both of those together. Called by `build` and `train` where `models.ranker.cascade` asks for one. Knows nothing of
releases: it fills a folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.artifacts import Artifact
from models.behaviour.behaviour import BehaviourSettings, fit_behaviour
from models.behaviour.statistics import fit_statistics
from models.bundle import bundle_in_memory
from models.catalog import ItemCatalog
from models.events import EventLog
from models.media.layout import Layout
from models.rankers.cascade import best_of, blended
from models.rankers.load import load_ranker
from models.rankers.settings import RankerSettings
from models.retrieval.query import RetrievalQuery
from models.retrieval.settings import RetrievalSettings
from pipelines.evaluation.baselines import Build, Recommend
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.protocol import Split, leave_last
from pipelines.training.train import Incumbent

CANDIDATES = 100


@dataclass(frozen=True, slots=True)
class Served:
    """The two rankers of the cascade that is served now."""

    first: Artifact
    second: Artifact


def take_second_ranker(
    model: Path,
    first: Path,
    log: EventLog,
    catalog: ItemCatalog,
    embeddings: npt.NDArray[np.float32],
    folder: Path,
    *,
    ranking: RankerSettings,
    retrieval: RetrievalSettings,
    behaviour: BehaviourSettings,
    half_life_days: float,
    layout: Layout | None = None,
    cases: int,
    seed: int,
    served: Served | None = None,
) -> dict[str, Any]:
    """Copy `model` to `folder` and return metrics with `switch_on`; at most `cases` users are asked.

    `first` is the folder of the first ranker. The metrics hold `vs_served` where the cascade `served` now reads these
    vectors: how what would be served in its place, with the second ranker or without, compares with it. Raises
    RankerError when `model` is no text ranker.
    """
    shutil.copytree(model, folder, dirs_exist_ok=True)
    split = leave_last(log, held_out=1, tie_seed=seed)
    picked = np.random.default_rng(seed).permutation(len(split.cases))[:cases]
    split = Split(split.train, [split.cases[at] for at in sorted(picked)])
    if not split.cases:
        return {"switch_on": False, "reason": "no user has more than one event: nothing to judge the cascade on"}

    def method(first: Path, folder: Path | None) -> Build:
        def build(train: EventLog) -> Recommend:
            fitted = fit_behaviour(train, catalog, behaviour, vectors=embeddings)
            statistics = fit_statistics(train, catalog, half_life_days=half_life_days)
            bundle = bundle_in_memory(catalog, embeddings, fitted, statistics, settings=retrieval, layout=layout)
            ranker = load_ranker(first, catalog, embeddings, statistics, layout=layout)
            second = None
            if folder is not None:
                parts = (folder, catalog, embeddings, statistics)
                second = load_ranker(*parts, layout=layout, compute=ranking.compute)

            def recommend(query: RetrievalQuery, k: int) -> Sequence[str]:
                wide = RetrievalQuery(
                    n=CANDIDATES, now_ms=query.now_ms, user=query.user, exclude_seen=query.exclude_seen
                )
                found = bundle.engine.retrieve(wide)
                scores = ranker.score(wide, found)
                if second is not None and ranking.cascade.asks(wide):
                    best = best_of(scores, ranking.cascade.candidates)
                    again = second.score(wide, found.take(best))
                    scores = blended(scores, best, again, weight=ranking.cascade.weight)
                return catalog.item_ids(found.rows[np.argsort(-scores, kind="stable")[:k]])

            return recommend

        return build

    rows: dict[str, Callable[..., Any]] = {"first": method(first, None), "cascade": method(first, folder)}
    if served is not None and Incumbent(served.first.path).model(embeddings) is not None:
        rows["served"] = method(served.first.path, served.second.path)
    report = evaluate(lambda _: split, catalog, rows, seeds=(seed,))
    gap = report.advantage("cascade", "first")
    against = {}
    if "served" in rows:
        whole = report.advantage("cascade" if gap.mean > 0 else "first", "served")
        against["served_ndcg10"] = report.methods["served"].metrics["ndcg"].mean
        against["vs_served"] = {"mean": whole.mean, "lower": whole.low, "upper": whole.high}
    return {
        **against,
        "first_ndcg10": report.methods["first"].metrics["ndcg"].mean,
        "cascade_ndcg10": report.methods["cascade"].metrics["ndcg"].mean,
        "cascade_vs_first": {"mean": gap.mean, "lower": gap.low, "upper": gap.high},
        "validation_lists": len(split.cases),
        "switch_on": gap.mean > 0,
        "beyond_chance": gap.low > 0,
        "reason": "" if gap.mean > 0 else "the cascade does not beat its first ranker on later events",
    }
