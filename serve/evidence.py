"""Evidence for a slate: what may be said about each chosen item, from the pinned release and the user's events.

Runs in an executor of the ingress (about a millisecond for ten items). Knows nothing of engines or HTTP.
"""

from __future__ import annotations

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
    return [
        build_evidence(
            positives,
            int(row),
            catalog=bundle.catalog,
            embeddings=bundle.embeddings,
            link=bundle.behaviour.link,
            sources=int(slate.chosen.sources[at]),
            source_scores=slate.chosen.source_scores[at],
            popularity_rank=lambda r: int(popularity[r]),
            trending_rank=lambda r: int(trending[r]),
        )
        for at, row in enumerate(slate.chosen.rows)
    ]
