"""What each retrieval source is worth, and whether weights that follow the user's state pay.

Variants of the retrieval settings (one source alone, all but one, one weighting for everybody) and slices of the
cases (histories cut short, fresh and stale sessions), to be asked through the same pipeline as everything else.
Called by `cluster.evaluate`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from models.candidates import SCORED_SOURCES, Source
from models.retrieval.settings import RetrievalSettings, SourceWeights
from pipelines.evaluation.protocol import Case, Split

BY_STATE, ONE_WEIGHTING = "weights by state", "one weighting"
ALWAYS = ("weights", "short_weights", "cold_weights", "search_weights", "declared_weights")
OPTIONAL = ("unseen_weights", "stale_weights")
LENGTHS: dict[str, tuple[int, int | None]] = {
    "no events": (0, 0),
    "1-4 events": (1, 4),
    "5-9 events": (5, 9),
    "10+ events": (10, None),
}
"""How many events are known of a user, and what that is called."""


def only(settings: RetrievalSettings, source: Source) -> RetrievalSettings:
    """Return the settings with one source alone, whatever the state."""
    return uniform(settings, SourceWeights(**{str(s.name): float(s == source) for s in SCORED_SOURCES}))


def without(settings: RetrievalSettings, source: Source) -> RetrievalSettings:
    """Return the settings with one source switched off in every state."""
    changed = {
        name: weights.model_copy(update={str(source.name): 0.0})
        for name in (*ALWAYS, *OPTIONAL)
        if (weights := getattr(settings, name)) is not None
    }
    return settings.model_copy(update=changed)


def uniform(settings: RetrievalSettings, weights: SourceWeights | None = None) -> RetrievalSettings:
    """Return the settings with the same weights for everybody, by default those for long histories."""
    weights = weights or settings.weights
    return settings.model_copy(update={**dict.fromkeys(ALWAYS, weights), **dict.fromkeys(OPTIONAL)})


def used(settings: RetrievalSettings, source: Source) -> bool:
    """Return whether a source has a weight in any state."""
    kept = [getattr(settings, name) for name in (*ALWAYS, *OPTIONAL)]
    return any(weights.of(source) > 0 for weights in kept if weights is not None)


def variants(settings: RetrievalSettings, *, repeats: bool) -> dict[str, RetrievalSettings]:
    """Return each source alone, then the merged settings without each source that has a weight.

    Left out is what has nothing to say: `similar` without seeds, `declared` without declarations, and `repeat` where
    touched items are not returned.
    """
    silent = {Source.similar, Source.declared} | (set() if repeats else {Source.repeat})
    speaking = [s for s in SCORED_SOURCES if s not in silent]
    found = {f"only {s.name}": only(settings, s) for s in speaking}
    return found | {f"without {s.name}": without(settings, s) for s in speaking if used(settings, s)}


def slices(split: Split, *, stale_after_s: float) -> Iterator[tuple[str, Split]]:
    """Yield the cases by how much is known of the user (cut to that much) and by how fresh that is.

    Slices without cases are left out. The targets stay, and so does what the user has touched: the question is the
    same, only less is known.
    """
    for name, (low, high) in LENGTHS.items():
        cases = [_cut(case, low, high, at) for at, case in enumerate(split.cases) if len(case.user) >= low]
        if cases:
            yield name, Split(split.train, cases)
    long = [case for case in split.cases if len(case.user) >= 5]
    for name, wanted in (("fresh session", False), ("stale session", True)):
        cases = [case for case in long if _is_stale(case, stale_after_s) == wanted]
        if cases:
            yield name, Split(split.train, cases)


def _cut(case: Case, low: int, high: int | None, at: int) -> Case:
    if high is None:
        return case
    length = min(len(case.user), low + at % (high - low + 1))
    newest = np.arange(len(case.user) - length, len(case.user))
    return Case(case.user_id, case.user.take(newest), case.now_ms, case.targets, case.repeats)


def _is_stale(case: Case, stale_after_s: float) -> bool:
    return case.now_ms - (case.user.last_event_ms() or 0) > stale_after_s * 1000
