"""The last rung: popular items from the mapped statistics, when no retriever answers in time."""

from __future__ import annotations

import numpy as np

from models.bundle import ReleaseBundle
from models.candidates import COLUMN_OF, SCORED_SOURCES, Candidates, Source
from models.retrieval.query import RetrievalQuery


def popular_candidates(bundle: ReleaseBundle, query: RetrievalQuery) -> Candidates:
    """Return up to `query.n` allowed items by popularity (the given list where the caller brought one)."""
    catalog, popularity = bundle.catalog, np.asarray(bundle.popularity, dtype=np.float32)
    allowed = ~bundle.withheld
    if query.only_items is not None:
        rows = catalog.rows(query.only_items)
        given = np.zeros(len(catalog), dtype=bool)
        given[rows[rows >= 0]] = True
        allowed &= given
    if query.filters:
        allowed &= bundle.masks.all_of(query.filters)
    excluded = catalog.rows(query.exclude_items)
    allowed[excluded[excluded >= 0]] = False
    if query.exclude_seen and query.personal and len(query.user.seen):
        allowed &= ~np.isin(catalog.hashes, query.user.seen)
    open_rows = np.flatnonzero(allowed)
    best = open_rows[np.argsort(-popularity[open_rows], kind="stable")[: query.n]].astype(np.int32)
    scores = popularity[best]
    by_source = np.zeros((len(best), len(SCORED_SOURCES)), np.float32)
    by_source[:, COLUMN_OF[Source.popular]] = scores
    bits = Source.popular if query.only_items is None else Source.popular | Source.given
    return Candidates(best, np.full(len(best), int(bits), np.uint16), by_source, scores)
