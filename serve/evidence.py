"""Evidence for a slate: what may be said about each chosen item, from the pinned release and the user's events.

Runs in an executor of the ingress (some 4 ms for ten items on a slow core). Knows nothing of engines or HTTP.
"""

from __future__ import annotations

from dataclasses import replace

from models.bundle import ReleaseBundle
from models.explain.evidence import Evidence, build_evidence
from models.explain.positives import positives_of
from serve.pipeline import Slate


def slate_evidence(bundle: ReleaseBundle, slate: Slate) -> list[Evidence]:
    """Return one evidence record per chosen item, in order."""
    query = slate.query
    seeds = bundle.catalog.rows(query.seed_items)
    positives = positives_of(query.user, bundle.catalog, seed_rows=[int(r) for r in seeds[seeds >= 0]])
    popularity, trending = bundle.popularity_rank, bundle.trending_rank
    weighed = _weighed(bundle, slate)
    records = [
        build_evidence(
            positives,
            int(row),
            catalog=bundle.catalog,
            embeddings=bundle.embeddings,
            text_dimension=bundle.text_dimension,
            link=bundle.behaviour.link,
            sources=int(slate.chosen.sources[at]),
            source_scores=slate.chosen.source_scores[at],
            popularity_rank=lambda r: int(popularity[r]),
            trending_rank=lambda r: int(trending[r]),
        )
        for at, row in enumerate(slate.chosen.rows)
    ]
    return [replace(record, weighed=name) for record, name in zip(records, weighed, strict=True)]


def _weighed(bundle: ReleaseBundle, slate: Slate) -> list[str | None]:
    """Return per chosen item the feature that raised its score most; None where the ranker's score was not used."""
    weights = bundle.feature_weights if slate.score_kind == "probability" else None
    if weights is None:
        return [None] * len(slate.chosen.rows)
    return weights.strongest(slate.query, slate.candidates, slate.picked)
