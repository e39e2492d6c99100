"""The degradation ladder: what is given up, in which order, when time or a dependency is missing.

A degraded answer is a 200 that says so. `DegradedReason` is the closed set of reasons; each maps to the rung
it costs. Planned is what admission decided before work began; actual is what the answer needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, StrEnum


class DegradationLevel(IntEnum):
    """The rungs, mildest first."""

    full = 0
    template_reasons = 1
    fewer_candidates = 2
    no_ranker = 3
    stale_profile = 4
    popular = 5


class DegradedReason(StrEnum):
    """Why an answer is less than full; listed in `degraded_reasons`."""

    explainer_unavailable = "explainer_unavailable"
    reasons_incomplete = "reasons_incomplete"
    language_unsupported = "language_unsupported"
    fewer_candidates = "fewer_candidates"
    fewer_items = "fewer_items"
    fewer_rankers = "fewer_rankers"
    unknown_attribute = "unknown_attribute"
    query_not_understood = "query_not_understood"
    rank_timeout = "rank_timeout"
    rank_unavailable = "rank_unavailable"
    rank_skipped = "rank_skipped"
    features_timeout = "features_timeout"
    features_unavailable = "features_unavailable"
    features_skipped = "features_skipped"
    retrieve_timeout = "retrieve_timeout"
    retrieve_unavailable = "retrieve_unavailable"
    retrieve_skipped = "retrieve_skipped"
    index_incomplete = "index_incomplete"
    empty_catalog = "empty_catalog"


_RUNG = {
    "explainer": DegradationLevel.template_reasons,
    "reasons": DegradationLevel.template_reasons,
    "language": DegradationLevel.template_reasons,
    "fewer": DegradationLevel.fewer_candidates,
    "index": DegradationLevel.fewer_candidates,
    "unknown": DegradationLevel.fewer_candidates,
    "query": DegradationLevel.fewer_candidates,
    "rank": DegradationLevel.no_ranker,
    "features": DegradationLevel.stale_profile,
    "retrieve": DegradationLevel.popular,
    "empty": DegradationLevel.popular,
}


def level_of(reasons: Iterable[DegradedReason]) -> DegradationLevel:
    """Return the lowest rung that `reasons` imply."""
    return max((_RUNG[str(r).split("_")[0]] for r in reasons), default=DegradationLevel.full)


def planned_level(in_flight: int, *, capacity: int) -> DegradationLevel:
    """Decide before work begins, from the share of `capacity` that is in use.

    Up to 70 % full answers; up to 85 % templates only; up to 95 % half the candidates; above, no ranker.
    """
    load = in_flight / max(1, capacity)
    if load <= 0.70:
        return DegradationLevel.full
    if load <= 0.85:
        return DegradationLevel.template_reasons
    if load <= 0.95:
        return DegradationLevel.fewer_candidates
    return DegradationLevel.no_ranker
