"""Takes a pretrained text ranker into an artifact and judges it: switched on only when not below retrieval order.

Judged on each sampled user's last event, with sources fitted on the events before. Called by `build` where
`models.ranker.backend` is `text`. Knows nothing of artifacts or releases: it fills a folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.behaviour.behaviour import BehaviourSettings, fit_behaviour
from models.behaviour.statistics import fit_statistics
from models.bundle import bundle_in_memory
from models.catalog import ItemCatalog
from models.events import EventLog
from models.media.layout import Layout
from models.rankers.load import load_ranker
from models.rankers.port import CrossEncoder, RetrievalOrder
from models.retrieval.query import RetrievalQuery
from models.retrieval.settings import RetrievalSettings
from pipelines.evaluation.baselines import Build, Recommend
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.protocol import Split, leave_last

CANDIDATES = 100


def take_text_ranker(
    model: Path,
    log: EventLog,
    catalog: ItemCatalog,
    embeddings: npt.NDArray[np.float32],
    folder: Path,
    *,
    retrieval: RetrievalSettings,
    behaviour: BehaviourSettings,
    half_life_days: float,
    cases: int,
    seed: int,
    layout: Layout | None = None,
) -> dict[str, Any]:
    """Copy the model folder to `folder` and return metrics with `switch_on`; at most `cases` users are asked.

    Raises RankerError when the folder holds no sequence-classification model with one label.
    """
    shutil.copytree(model, folder, dirs_exist_ok=True)
    split = _sampled(leave_last(log, held_out=1, tie_seed=seed), cases, seed)
    if not split.cases:
        return {"switch_on": False, "reason": "no user has more than one event: nothing to judge the ranker on"}

    def method(ranker_of: Callable[[Any], CrossEncoder]) -> Build:
        def build(train: EventLog) -> Recommend:
            fitted = fit_behaviour(train, catalog, behaviour, vectors=embeddings)
            statistics = fit_statistics(train, catalog, half_life_days=half_life_days)
            bundle = bundle_in_memory(catalog, embeddings, fitted, statistics, settings=retrieval, layout=layout)
            ranker = ranker_of(statistics)

            def recommend(query: RetrievalQuery, k: int) -> Sequence[str]:
                wide = RetrievalQuery(
                    n=CANDIDATES, now_ms=query.now_ms, user=query.user, exclude_seen=query.exclude_seen
                )
                found = bundle.engine.retrieve(wide)
                order = np.argsort(-ranker.score(wide, found), kind="stable")[:k]
                return catalog.item_ids(found.rows[order])

            return recommend

        return build

    report = evaluate(
        lambda _: split,
        catalog,
        {
            "retrieval": method(lambda _: RetrievalOrder()),
            "text": method(lambda statistics: load_ranker(folder, catalog, embeddings, statistics, layout=layout)),
        },
        seeds=(seed,),
    )
    gap = report.advantage("text", "retrieval")
    return {
        "retrieval_ndcg10": report.methods["retrieval"].metrics["ndcg"].mean,
        "fused_ndcg10": report.methods["text"].metrics["ndcg"].mean,
        "fused_vs_retrieval": {"mean": gap.mean, "lower": gap.low, "upper": gap.high},
        "validation_lists": len(split.cases),
        "switch_on": gap.mean >= 0,
        "beyond_chance": gap.low > 0,
        "reason": "" if gap.mean >= 0 else "the text ranker is below retrieval order on later events",
    }


def _sampled(split: Split, cases: int, seed: int) -> Split:
    picked = np.random.default_rng(seed).permutation(len(split.cases))[:cases]
    return Split(split.train, [split.cases[i] for i in sorted(picked)])
