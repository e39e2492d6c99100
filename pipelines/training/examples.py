"""Training examples: the list retrieval would have returned just before an event, and which candidate was taken.

Features and histories come from the code that serves. The sources are whatever retriever the caller passes; it
must have been fitted without the events of the examples. Called by `train_ranker`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from models.candidates import Candidates
from models.catalog import ItemCatalog
from models.rankers.fusion import FEATURE_NAMES, FusionFeatures
from models.rankers.history import HISTORY_EVENTS, recent_history
from models.rankers.inputs import history_columns
from models.retrieval.query import RetrievalQuery
from pipelines.training.shown import Shown
from pipelines.training.split import Example

Progress = Callable[[str, float], None]
"""Called with what is going on and which share of it is done (0 to 1)."""


NEW, ANY = "new", "any"
"""What a list is asked for: what the user does not have, or whatever is taken next."""


class Retriever(Protocol):
    """Anything that retrieves; `RetrievalEngine` in practice."""

    def retrieve(self, query: RetrievalQuery) -> Candidates:
        """Return candidates, best first."""
        ...


@dataclass(frozen=True, slots=True)
class RankingLists:
    """L lists of N candidates, padded at the end.

    `rows` int32[L, N], -1 is padding; `features` float32[L, N, F]; `merged` float32[L, N], -inf at padding;
    `target` int32[L], the position of the item that was taken (of a basket the first that is there), -1 when retrieval
    missed it; `relevance` float32[L, N], 1 for what was taken and less for what the user took soon after;
    `shown` bool[L, N], what the user saw just before and did not take; `history` int64[L, 4, H] as `history_columns`
    builds it; `user` int32[L] codes; `new` bool[L], whether what the user has was left out.
    """

    rows: npt.NDArray[np.int32]
    features: npt.NDArray[np.float32]
    merged: npt.NDArray[np.float32]
    target: npt.NDArray[np.int32]
    relevance: npt.NDArray[np.float32]
    shown: npt.NDArray[np.bool_]
    history: npt.NDArray[np.int64]
    user: npt.NDArray[np.int32]
    new: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.target)

    def take(self, index: npt.NDArray[Any]) -> RankingLists:
        """Return the lists of `index` (positions or a boolean mask)."""
        return RankingLists(*(getattr(self, f.name)[index] for f in fields(self)))

    def columns(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """Return the columns under `name.column`, for a file; `of` is the inverse."""
        return {f"{name}.{f.name}": getattr(self, f.name) for f in fields(self)}

    def questions(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Return, by what is asked for, which lists ask for it; one that no list asks is not there."""
        return {name: of for name, of in ((NEW, self.new), (ANY, ~self.new)) if of.any()}

    @classmethod
    def of(cls, columns: Mapping[str, npt.NDArray[Any]], name: str) -> RankingLists:
        """Return the lists that `columns` gave under `name`."""
        return cls(*(columns[f"{name}.{f.name}"] for f in fields(cls)))


def empty_lists(count: int, size: int) -> RankingLists:
    """Return `count` lists of padding."""
    return RankingLists(
        np.full((count, size), -1, np.int32),
        np.zeros((count, size, len(FEATURE_NAMES)), np.float32),
        np.full((count, size), -np.inf, np.float32),
        np.full(count, -1, np.int32),
        np.zeros((count, size), np.float32),
        np.zeros((count, size), np.bool_),
        np.zeros((count, 4, HISTORY_EVENTS), np.int64),
        np.zeros(count, np.int32),
        np.zeros(count, np.bool_),
    )


def build_lists(
    examples: Sequence[Example],
    retriever: Retriever,
    fusion: FusionFeatures,
    catalog: ItemCatalog,
    *,
    size: int,
    exclude_seen: bool = True,
    keep_missed: bool = False,
    near_future: int = 0,
    near_future_weight: float = 0.0,
    shown: Shown | None = None,
    progress: Progress | None = None,
) -> RankingLists:
    """Build one list of `size` candidates per example.

    Lists that miss the item taken teach no order: they are dropped, or kept with `target` -1 when `keep_missed`
    (validation needs them to be honest). What the user took up to `near_future` training events later is relevant
    too, by `near_future_weight` to the power of the distance. `shown` tells what the user saw and left.
    """
    lists = empty_lists(len(examples), size)
    used = 0
    for at, example in enumerate(examples):
        if progress is not None and at % 500 == 0:
            progress("building examples", at / len(examples))
        history = example.history
        query = RetrievalQuery(
            n=size,
            now_ms=int(history.timestamps_ms[example.position]),
            user=history.before(example.position),
            exclude_seen=exclude_seen,
        )
        candidates = retriever.retrieve(query)
        ahead = near_future + example.basket
        taken = catalog.rows(history.item_ids[example.position : example.last + 1][:ahead].tolist())
        place = _places(candidates.rows, taken)
        own = place[: example.basket]
        if own.max() >= 0 or keep_missed:
            lists.target[used] = own[own >= 0][0] if own.max() >= 0 else -1
            for at_place in np.flatnonzero(place >= 0)[::-1]:  # nearest last: it wins where an item returns
                distance = max(0, int(at_place) - example.basket + 1)
                lists.relevance[used, place[at_place]] = near_future_weight**distance
            if shown is not None:
                seen = _places(candidates.rows, catalog.rows(shown.before(history, example.position)))
                lists.shown[used, seen[seen >= 0]] = True
                lists.shown[used] &= lists.relevance[used] == 0
            lists.user[used], lists.new[used] = example.user, exclude_seen
            _fill(lists, used, query, candidates, fusion, catalog)
            used += 1
    return lists.take(np.arange(used))


def _places(rows: npt.NDArray[np.int32], wanted: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Return where each of `wanted` is in `rows`, -1 for those that are not there or unknown (negative)."""
    equal = (wanted[:, None] == rows[None, :]) & (wanted >= 0)[:, None]
    return np.where(equal.any(axis=1), equal.argmax(axis=1) if len(rows) else 0, -1)


def _fill(
    lists: RankingLists,
    at: int,
    query: RetrievalQuery,
    candidates: Candidates,
    fusion: FusionFeatures,
    catalog: ItemCatalog,
) -> None:
    n = len(candidates)
    history = recent_history(query, catalog)
    lists.rows[at, :n] = candidates.rows
    lists.features[at, :n] = fusion.build(query, candidates, history=history)
    lists.merged[at, :n] = candidates.scores
    lists.history[at] = history_columns(history, HISTORY_EVENTS)
