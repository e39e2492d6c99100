"""What a text ranker learns from and is judged by: a request just before an event, its candidates, and what was taken.

The request and its candidates are those of serving; the sources must have been fitted without the events of the
cases. Knows nothing of models. Called by the text training and its evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.candidates import SCORED_SOURCES, Candidates
from models.catalog import ItemCatalog
from models.rankers.fusion import FusionFeatures
from models.retrieval.query import RetrievalQuery
from pipelines.training.examples import RankingLists, Retriever, empty_lists
from pipelines.training.shown import Shown
from pipelines.training.split import Example

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TextCase:
    """One request. `taken` is the row of the item that was taken, `place` where the candidates hold it or -1.

    Of a basket that is the first item that the candidates hold, and `right` are the rows of all of it: none of them is
    wrong. `shown` are the rows that the user saw just before and left.
    """

    user: int
    query: RetrievalQuery
    candidates: Candidates
    taken: int
    place: int
    right: tuple[int, ...] = ()
    shown: tuple[int, ...] = ()


def iter_cases(
    examples: Iterable[Example],
    retriever: Retriever,
    catalog: ItemCatalog,
    *,
    size: int,
    exclude_seen: bool,
    shown: Shown | None = None,
) -> Iterator[TextCase]:
    """Yield a case per example of which the catalog holds an item, in their order."""
    for example in examples:
        history = example.history
        query = RetrievalQuery(
            n=size,
            now_ms=int(history.timestamps_ms[example.position]),
            user=history.before(example.position),
            exclude_seen=exclude_seen,
        )
        right = catalog.rows(history.item_ids[example.position : example.position + example.basket].tolist())
        right = right[right >= 0]
        if not len(right):
            continue
        found = retriever.retrieve(query)
        at = np.flatnonzero(np.isin(found.rows, right))
        taken = int(found.rows[at[0]] if len(at) else right[0])
        place = int(at[0]) if len(at) else -1
        seen = () if shown is None else tuple(catalog.rows(shown.before(history, example.position)).tolist())
        yield TextCase(example.user, query, found, taken, place, tuple(right.tolist()), seen)


def with_found(cases: Iterable[TextCase], most: int) -> list[TextCase]:
    """Return as many cases, in their order, as hold `most` whose candidates include what was taken.

    Those that miss it come along: they count as 0 for every order, and cost nothing to score.
    """
    kept: list[TextCase] = []
    found = 0
    for case in cases:
        kept.append(case)
        found += case.place >= 0
        if found == most:
            break
    return kept


def lists_of(cases: Sequence[TextCase], fusion: FusionFeatures, size: int) -> RankingLists:
    """Return the cases as padded lists with the features of serving (histories are left empty)."""
    lists = empty_lists(len(cases), size)
    for at, case in enumerate(cases):
        n = len(case.candidates)
        lists.rows[at, :n] = case.candidates.rows
        lists.features[at, :n] = fusion.build(case.query, case.candidates)
        lists.merged[at, :n] = case.candidates.scores
        lists.target[at], lists.user[at] = case.place, case.user
        if case.place >= 0:
            lists.relevance[at, case.place] = 1.0
    return lists


def negatives(case: TextCase, items: int, hard: int, easy: int, rng: np.random.Generator) -> npt.NDArray[np.int32]:
    """Return rows: up to `hard` of the list, those that were shown first, filled up with items at random.

    Never what was taken; of the rest of a basket some, where the catalog has next to nothing else.
    """
    right = {case.taken, *case.right[: max(0, items - 1 - hard - easy)]}
    drawn = rng.permutation(case.candidates.rows[~np.isin(case.candidates.rows, list(right))])
    picked = drawn[np.argsort(~np.isin(drawn, case.shown), kind="stable")][:hard].tolist()
    wanted = min(hard + easy, items - 1)
    while len(picked) < wanted:
        row = int(rng.integers(items))
        if row not in right and row not in picked:
            picked.append(row)
    return np.array(picked, np.int32)


def given(rows: npt.NDArray[np.int32]) -> Candidates:
    """Return candidates that nothing is known of but their rows."""
    n = len(rows)
    nothing = np.zeros((n, len(SCORED_SOURCES)), np.float32)
    return Candidates(rows, np.zeros(n, np.uint16), nothing, np.zeros(n, np.float32))
