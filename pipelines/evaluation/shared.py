"""Many weightings of the same sources, asked in turn about one case: what no weight changes is computed once.

An ablation asks every case dozens of times. What each source thinks of the items and what may be returned are the same
each time; only the merge differs. Called by `cluster.evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from models.candidates import Source
from models.features import UserFeatures
from models.opinion import Mask, Opinion, Rows, Scores
from models.retrieval.engine import RetrievalEngine
from models.retrieval.query import RetrievalQuery
from models.retrieval.settings import RetrievalSettings
from models.retrieval.sources import DENSE_BELOW
from models.retrieval.state import UserState


class LastQuestion:
    """What engines found out about the last question. For one thread."""

    def __init__(self) -> None:
        self._user: UserFeatures | None = None
        self._asked: tuple[Any, ...] = ()
        self._found: dict[Any, Any] = {}

    def recall(self, query: RetrievalQuery, what: Any, find: Callable[[], Any]) -> Any:
        """Return `find()`, or what it returned before for the same question and the very same user object."""
        if query.filters or query.intent is not None:
            return find()  # not compared: nothing that is evaluated has them
        asked = (
            *(query.now_ms, query.exclude_seen, query.personal, query.about_seeds),
            *(query.exclude_items, query.seed_items, query.only_items, query.context),
        )
        if self._user is not query.user or self._asked != asked:
            self._user, self._asked, self._found = query.user, asked, {}
        if what not in self._found:
            self._found[what] = find()
        return self._found[what]


class SharedEngine(RetrievalEngine):
    """`like` under other weights, with a memory that it shares with the others made of the same engine."""

    def __init__(self, like: RetrievalEngine, settings: RetrievalSettings, memory: LastQuestion) -> None:
        """Raises ValueError where `settings` differ from those of `like` in more than weights."""
        self.__dict__.update(like.reweighted(settings).__dict__)
        self._memory = memory

    def _state(self, query: RetrievalQuery) -> UserState:
        state: UserState = self._memory.recall(query, "state", lambda: RetrievalEngine._state(self, query))
        return state

    def _allowed(self, query: RetrievalQuery, state: UserState) -> Mask:
        mask: Mask = self._memory.recall(query, "allowed", lambda: RetrievalEngine._allowed(self, query, state))
        return mask

    def _ask(self, source: Source, query: RetrievalQuery, state: UserState) -> Opinion | None:
        found: Opinion | None = self._memory.recall(
            query, source, lambda: RetrievalEngine._ask(self, source, query, state)
        )
        return found

    def _top(self, source: Source, opinion: Opinion, depth: int, allowed: Mask, query: RetrievalQuery) -> Rows:
        rows: Rows = self._memory.recall(query, (source, depth), lambda: opinion.top(depth, allowed))
        return rows

    def _columns(self, rows: Rows, opinions: dict[Source, Opinion], query: RetrievalQuery) -> dict[Source, Scores]:
        def find() -> dict[Source, Scores]:
            return RetrievalEngine._columns(self, rows, opinions, query)

        if len(self.catalog) > DENSE_BELOW:
            return find()  # there the rows that are merged depend on the weights
        columns: dict[Source, Scores] = self._memory.recall(query, ("columns", *opinions), find)
        return columns
