"""Lists without a user: what is similar to an item, what is popular, what is popular of late.

The release is pinned at admission, and a list that is shorter or poorer than it should be says so. Knows nothing of
Ray, the web framework, users or the ranker; the HTTP edge calls it.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from models.bundle import ReleaseBundle
from models.candidates import source_names
from models.retrieval.query import AttributeFilter, RetrievalQuery
from serve.context import RequestContext
from serve.deadline import Deadline
from serve.degradation import DegradedReason, level_of
from serve.errors import InvalidRequest, NotFound
from serve.metrics import ServeMetrics
from serve.popular import popular_candidates
from serve.ports import Retriever
from serve.releases import ReleaseHolder
from serve.runner import run_stage
from serve.schemas import ListQuery
from serve.settings import ServeSettings

Ranking = Literal["popular", "trending"]


class ListService:
    """Answers lists. One per ingress replica; safe for concurrent use on its event loop."""

    def __init__(
        self,
        *,
        retriever: Retriever,
        releases: ReleaseHolder,
        metrics: ServeMetrics,
        settings: ServeSettings,
        executor: Executor,
    ) -> None:
        self._retriever = retriever
        self._releases = releases
        self._metrics = metrics
        self._settings = settings
        self._executor = executor

    async def similar(self, item_id: str, wanted: ListQuery, *, tenant: str, request_id: str) -> dict[str, Any]:
        """Return what is like `item_id` in content or was taken after it, and what was taken together with it.

        Raises NotFound for an unknown item and InvalidRequest for an attribute that the catalog does not have.
        While the retriever is away popular items stand in, flagged; `bought_together` does not depend on it.
        """
        started = time.perf_counter()
        ctx, bundle = self._admit(tenant, request_id)
        filters = _filters(wanted, bundle)
        row = bundle.catalog.row(item_id)
        if row is None or bundle.hidden(row):
            raise NotFound("the current release holds no item of this id")
        query = RetrievalQuery(
            n=wanted.k,
            now_ms=ctx.now_ms,
            seed_items=(item_id,),
            exclude_items=(item_id,),
            filters=filters,
            personal=False,
            about_seeds=True,
        )
        found = await run_stage(
            ctx,
            self._settings.pipeline.retrieve.policy("retrieve"),
            lambda call: self._retriever.retrieve(call, query),
            lambda: popular_candidates(bundle, query),
            self._metrics,
        )
        items = _items(bundle, found.rows, found.scores)
        for item, bits in zip(items, found.sources, strict=True):
            item["sources"] = source_names(int(bits))
        loop = asyncio.get_running_loop()
        together = await loop.run_in_executor(self._executor, _together, bundle, row, wanted.k, filters)
        extra = {"item_id": item_id, "bought_together": together}
        return self._answer(ctx, bundle, wanted, items, route="similar", started=started, **extra)

    async def ranking(self, by: Ranking, wanted: ListQuery, *, tenant: str, request_id: str) -> dict[str, Any]:
        """Return the items that were taken most (`popular`), or most of late (`trending`); nothing nobody took.

        Raises InvalidRequest for an attribute that the catalog does not have.
        """
        started = time.perf_counter()
        ctx, bundle = self._admit(tenant, request_id)
        filters = _filters(wanted, bundle)
        loop = asyncio.get_running_loop()
        rows, counts = await loop.run_in_executor(self._executor, _ranked, bundle, by, wanted.k, filters)
        return self._answer(ctx, bundle, wanted, _items(bundle, rows, counts), route=by, started=started)

    def _admit(self, tenant: str, request_id: str) -> tuple[RequestContext, ReleaseBundle]:
        ctx = RequestContext(
            request_id=request_id,
            tenant=tenant,
            release_id=self._releases.current(tenant),
            deadline=Deadline.after_ms(min(self._settings.default_deadline_ms, self._settings.max_deadline_ms)),
            now_ms=time.time_ns() // 1_000_000,
        )
        return ctx, self._releases.bundle(tenant, ctx.release_id)

    def _answer(
        self,
        ctx: RequestContext,
        bundle: ReleaseBundle,
        wanted: ListQuery,
        items: list[dict[str, Any]],
        *,
        route: str,
        started: float,
        **extra: Any,
    ) -> dict[str, Any]:
        if not len(bundle.catalog):
            ctx.degrade(DegradedReason.empty_catalog)
        if len(items) < wanted.k:
            ctx.degrade(DegradedReason.fewer_items)
        ctx.timings_ms["total"] = (time.perf_counter() - started) * 1000.0
        self._metrics.answer(route, level_of(ctx.degraded).name, ctx.timings_ms["total"])
        for reason in ctx.degraded:
            self._metrics.degraded(reason)
        return {
            "request_id": ctx.request_id,
            "release": ctx.release_id,
            "degraded": bool(ctx.degraded),
            "degraded_reasons": [str(r) for r in ctx.degraded],
            **extra,
            "items": items,
            "timings_ms": {name: round(value, 3) for name, value in ctx.timings_ms.items()},
        }


def _filters(wanted: ListQuery, bundle: ReleaseBundle) -> dict[str, AttributeFilter]:
    known = (*bundle.catalog.label_names, *bundle.catalog.number_names)
    if not wanted.filters.keys() <= set(known):
        # What was sent is not repeated; what may be sent is the fix.
        raise InvalidRequest(f"query parameters are k and the attributes of the catalog: {', '.join(known)}")
    return {name: AttributeFilter(any_of=tuple(values)) for name, values in wanted.filters.items()}


def _items(bundle: ReleaseBundle, rows: npt.NDArray[np.int32], scores: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
    catalog = bundle.catalog
    return [
        {"item_id": item_id, "title": catalog.title(int(row)), "score": round(float(score), 6), "rank": at}
        for at, (item_id, row, score) in enumerate(zip(catalog.item_ids(rows), rows, scores, strict=True), start=1)
    ]


def _together(bundle: ReleaseBundle, row: int, k: int, filters: dict[str, AttributeFilter]) -> list[dict[str, Any]]:
    allowed = bundle.masks.all_of(filters) & ~bundle.withheld
    return [
        {
            "item_id": bundle.catalog.item_id(rule.row),
            "title": bundle.catalog.title(rule.row),
            "support": rule.support,
            "confidence": round(rule.confidence, 6),
            "lift": round(rule.lift, 4),
        }
        for rule in bundle.behaviour.rules.of(row)
        if allowed[rule.row]
    ][:k]


def _ranked(
    bundle: ReleaseBundle, by: Ranking, k: int, filters: dict[str, AttributeFilter]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    counts = np.asarray(bundle.counted.popularity if by == "popular" else bundle.counted.recent)
    place = bundle.popularity_rank if by == "popular" else bundle.trending_rank
    allowed = bundle.masks.all_of(filters) & ~bundle.withheld
    rows = np.flatnonzero(allowed & (counts > 0)).astype(np.int32)
    if len(rows) > k:
        rows = rows[np.argpartition(place[rows], k - 1)[:k]]
    rows = rows[np.argsort(place[rows])]
    return rows, counts[rows]
