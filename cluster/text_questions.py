"""What a text ranker is asked on later rows of amazon-industrial, one request a user.

Two questions: candidates like the user's past of which one was taken, where nothing but the order tells methods apart;
and the list of all sources that is served, whether it holds what was taken or not. Called by `evaluate_text`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from models.behaviour.replay import UserHistory, histories
from models.candidates import Candidates
from models.catalog import ItemCatalog
from models.events import EventLog
from models.retrieval.engine import RetrievalEngine
from models.retrieval.query import RetrievalQuery
from pipelines.training.measures import gains as ndcg

DEPTH = 50
Floats = npt.NDArray[np.float64]
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Question:
    """One request, its candidates in retrieval order, and where they hold what was taken, or -1."""

    query: RetrievalQuery
    candidates: Candidates
    place: int
    similarity: Scores | None = None
    """The bi-encoder's scores of the candidates, where they are its choice."""


@dataclass(frozen=True)
class Asker:
    """Asks for the next item of users after a moment, in a seeded order of users."""

    catalog: ItemCatalog
    similar: RetrievalEngine
    """Candidates by likeness to the past alone."""
    merged: RetrievalEngine
    """Candidates of all sources."""
    log: EventLog
    since_ms: int
    seed: int

    def like_the_past(self, users: int) -> list[Question]:
        """Return the first request of each of `users` users whose next item the bi-encoder finds."""
        asked: list[Question] = []
        for history, positions in self._later():
            if len(asked) == users:
                break
            found = (self._like(history, position) for position in positions)
            asked += [q for q in [next((q for q in found if q is not None), None)] if q is not None]
        return asked

    def served(self, users: int) -> list[Question]:
        """Return the first request of each of `users` users as serving answers it: some answers miss what was taken."""
        asked: list[Question] = []
        for history, positions in self._later():
            if len(asked) == users:
                break
            if positions:
                query = _query(history, positions[0])
                found = self.merged.retrieve(query)
                asked.append(Question(query, found, _place(found, self._taken(history, positions[0]))))
        return asked

    def _later(self) -> Iterator[tuple[UserHistory, range]]:
        """Yield every user's history and the positions of later events that have a past."""
        past = list(histories(self.log))
        for at in np.random.default_rng(self.seed).permutation(len(past)):
            first = int(np.searchsorted(past[at].timestamps_ms, self.since_ms))
            yield past[at], range(max(first, 1), len(past[at]))

    def _like(self, history: UserHistory, position: int) -> Question | None:
        query = _query(history, position)
        found = self.similar.retrieve(query)
        taken = self._taken(history, position)
        if taken not in found.rows:
            return None
        ordered = self.merged.retrieve(replace(query, only_items=tuple(self.catalog.item_ids(found.rows))))
        scores = dict(zip(found.rows.tolist(), found.scores.tolist(), strict=True))
        similarity = np.array([scores[row] for row in ordered.rows.tolist()], np.float32)
        return Question(query, ordered, _place(ordered, taken), similarity)

    def _taken(self, history: UserHistory, position: int) -> int:
        return int(self.catalog.rows([str(history.item_ids[position])])[0])


def gains(asked: Sequence[Question], scores: Sequence[Scores]) -> Floats:
    """Return NDCG@10 per question, as trainings are judged; a miss is 0 and needs no scores."""
    places = (np.array([question.place], np.int32) for question in asked)
    return np.array([ndcg(own[None], place)[0] for own, place in zip(scores, places, strict=True)])


def _query(history: UserHistory, position: int) -> RetrievalQuery:
    return RetrievalQuery(n=DEPTH, now_ms=int(history.timestamps_ms[position]), user=history.before(position))


def _place(candidates: Candidates, taken: int) -> int:
    at = np.flatnonzero(candidates.rows == taken)
    return int(at[0]) if len(at) else -1
