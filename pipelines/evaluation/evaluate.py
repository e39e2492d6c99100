"""Evaluates methods on the same cases in the same run: metrics, intervals, paired comparisons.

A method is a function from the training log to `recommend(query, k) -> item ids`; so the serving pipeline is
driven through the very call that requests take. Called by the command line. Knows nothing of Serve or stores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt

from models.catalog import ItemCatalog
from models.retrieval.query import RetrievalQuery
from pipelines.evaluation.baselines import Build, Recommend
from pipelines.evaluation.bootstrap import Interval, interval, paired
from pipelines.evaluation.metrics import METRICS, coverage, novelty, score_list
from pipelines.evaluation.protocol import Case, Split

SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class MethodReport:
    """Figures of one method: `metrics` by name (mean over users and seeds, 95 % over users), list-level means."""

    metrics: Mapping[str, Interval]
    coverage: float
    novelty: float


@dataclass(frozen=True, slots=True)
class Report:
    """All methods on the same cases. `users` and `cases` count those of one seed."""

    k: int
    seeds: tuple[int, ...]
    users: int
    cases: int
    methods: Mapping[str, MethodReport]
    _ndcg: Mapping[str, npt.NDArray[np.float64]] = field(repr=False)

    def advantage(self, ours: str, theirs: str) -> Interval:
        """Return the paired NDCG advantage of one method over another. Raises KeyError on an unknown name."""
        return paired(self._ndcg[ours], self._ndcg[theirs])

    def per_user(self, name: str) -> npt.NDArray[np.float64]:
        """Return one method's NDCG per user, means over seeds, users in a fixed order."""
        return self._ndcg[name]

    def best_of(self, names: Sequence[str]) -> str:
        """Return the name with the highest NDCG."""
        return max(names, key=lambda n: self.methods[n].metrics["ndcg"].mean)

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        methods = {name: asdict(report) for name, report in self.methods.items()}
        return {"k": self.k, "seeds": list(self.seeds), "users": self.users, "cases": self.cases, "methods": methods}


@dataclass(slots=True)
class _Collected:
    by_user: dict[str, list[npt.NDArray[np.float64]]] = field(default_factory=dict)
    coverage: list[float] = field(default_factory=list)
    novelty: list[float] = field(default_factory=list)


def evaluate(
    split: Callable[[int], Split],
    catalog: ItemCatalog,
    methods: Mapping[str, Build],
    *,
    seeds: Sequence[int] = SEEDS,
    k: int = 10,
    progress: Callable[[str], None] = lambda line: None,
    bar: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Ask every method every case of `split(seed)` for each seed; figures are means over seeds, then users.

    All methods are asked about a case before the next, so that they may share what they find out. `bar(done, total)`
    hears of cases asked.

    Raises ValueError when a method returns an item twice in one list: it would score a hit twice.
    """
    collected = {name: _Collected() for name in methods}
    cases = 0
    for at, seed in enumerate(seeds):
        held = split(seed)
        cases = len(held.cases)
        taken = Counter(held.train.item_ids.tolist())
        recommend = {}
        for name, build in methods.items():
            progress(f"seed {seed}: {name}")
            recommend[name] = build(held.train)
        lists: dict[str, list[list[str]]] = {name: [] for name in methods}
        for done, case in enumerate(held.cases, start=1):
            for name in methods:
                lists[name].append(_ask(collected[name], recommend[name], case, k))
            bar(at * cases + done, len(seeds) * cases)
        for name, found in lists.items():
            collected[name].coverage.append(coverage(found, len(catalog)))
            collected[name].novelty.append(novelty(found, taken))
    users = sorted({u for c in collected.values() for u in c.by_user})
    scores = {
        name: np.array([np.mean(c.by_user[u], axis=0) for u in users]).reshape(len(users), len(METRICS))
        for name, c in collected.items()
    }
    reports = {
        name: MethodReport(
            {metric: interval(scores[name][:, at]) for at, metric in enumerate(METRICS)},
            float(np.mean(c.coverage)),
            float(np.mean(c.novelty)),
        )
        for name, c in collected.items()
    }
    ndcg = {name: values[:, METRICS.index("ndcg")] for name, values in scores.items()}
    return Report(k, tuple(seeds), len(users), cases, reports, ndcg)


def query_of(case: Case, k: int) -> RetrievalQuery:
    """Return the request that a case stands for."""
    return RetrievalQuery(n=k, now_ms=case.now_ms, user=case.user, exclude_seen=not case.repeats)


def _ask(into: _Collected, recommend: Recommend, case: Case, k: int) -> list[str]:
    answer = list(recommend(query_of(case, k), k))[:k]
    if len(set(answer)) != len(answer):
        raise ValueError("a method returned an item twice in one list")
    into.by_user.setdefault(case.user_id, []).append(score_list(answer, case.targets, k))
    return answer
