"""The request path, readable top to bottom: features → retrieve → filter → rank → select.

`RecommendationPipeline.recommend` knows nothing of Ray, HTTP or stores: it calls ports. The ingress runs it
with clients of deployments, evaluation with in-process stages, tests with fakes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.bundle import ReleaseBundle
from models.candidates import Candidates
from models.features import ANONYMOUS, UserFeatures
from models.ids import hash64_array
from models.intent import faded
from models.retrieval.query import AttributeFilter, RetrievalQuery
from serve.context import RequestContext, StageCall
from serve.degradation import DegradationLevel, DegradedReason
from serve.errors import ContractViolation
from serve.filters import AttributesFilter, Filter, HashFilter, WithheldFilter, apply_filters
from serve.popular import popular_candidates
from serve.ports import FeatureFetcher, QueryEncoder, Ranker, Retriever, Scores
from serve.profiles import StaleProfiles
from serve.runner import StageRecorder, run_stage
from serve.schemas import FilterSpec, RecommendRequest
from serve.selector import capped, diversify, order
from serve.settings import PipelineSettings
from serve.texts import encoded

Hashes = npt.NDArray[np.uint64]
Intent = npt.NDArray[np.float32]
NOTHING_SHOWN: Hashes = np.empty(0, np.uint64)


@dataclass(frozen=True, slots=True)
class Slate:
    """The chosen items in order, with everything that reasons, the answer and the record need."""

    chosen: Candidates
    item_ids: list[str]
    scores: npt.NDArray[np.float32]
    score_kind: str
    query: RetrievalQuery
    considered: int
    dropped: dict[str, int]
    candidates: Candidates
    """All that were ranked, filtered, in the order of retrieval."""
    picked: npt.NDArray[np.int64]
    """Where in `candidates` the chosen ones are."""

    @property
    def user(self) -> UserFeatures:
        """The features the answer was computed from."""
        return self.query.user


class RecommendationPipeline:
    """Runs one request through the stages. Stateless but for the last-known profiles; safe for concurrent use."""

    def __init__(
        self,
        *,
        fetcher: FeatureFetcher,
        encoder: QueryEncoder,
        retriever: Retriever,
        ranker: Ranker,
        bundle_of: Callable[[str, str], ReleaseBundle],
        settings: PipelineSettings,
        recorder: StageRecorder,
    ) -> None:
        """`bundle_of(tenant, release_id)` returns the mapped catalog and embeddings of a pinned release."""
        self._fetcher = fetcher
        self._encoder = encoder
        self._retriever = retriever
        self._ranker = ranker
        self._bundle_of = bundle_of
        self._settings = settings
        self._recorder = recorder
        self._stale = StaleProfiles(settings.stale_profiles)

    def tune(self, settings: PipelineSettings) -> None:
        """Use other tunables from the next request on; requests under way keep theirs stage by stage."""
        self._settings = settings

    async def recommend(
        self, ctx: RequestContext, request: RecommendRequest, *, shown: Hashes = NOTHING_SHOWN
    ) -> Slate:
        """Return the slate for one request; `shown` are hashes of items on earlier pages.

        Raises only ClientError, ContractViolation and ReleaseMissing: whatever else fails degrades the answer.
        """
        bundle = self._bundle_of(ctx.tenant, ctx.release_id)
        user = bundle.space.understood(await self._features(ctx, request))
        query = await self._query(ctx, request, user, bundle, extra=len(shown))
        candidates = await self._retrieve(ctx, query, bundle)
        candidates, dropped = apply_filters(candidates, self._filters(query, bundle, shown))
        scores = await self._rank(ctx, query, candidates)
        return self._select(ctx, request, query, bundle, candidates, scores, dropped)

    async def _features(self, ctx: RequestContext, request: RecommendRequest) -> UserFeatures:
        if not request.profiling or (request.user_id is None and request.session_id is None):
            return ANONYMOUS
        key = (ctx.tenant, request.user_id, request.session_id)
        user = await run_stage(
            ctx,
            self._settings.features.policy("features"),
            lambda call: self._fetcher.fetch(call, request.user_id, request.session_id),
            lambda: self._stale.get(key),
            self._recorder,
        )
        if not user.stale:
            self._stale.put(key, user)
        return user

    async def _query(
        self, ctx: RequestContext, request: RecommendRequest, user: UserFeatures, bundle: ReleaseBundle, *, extra: int
    ) -> RetrievalQuery:
        intent = await self._intent(ctx, request, user, bundle)
        if intent is not None:
            intent = bundle.asked(intent)
        wanted = max(self._settings.candidates, 2 * request.k)
        if ctx.planned >= DegradationLevel.fewer_candidates:
            wanted = max(wanted // 2, request.k)
            ctx.degrade(DegradedReason.fewer_candidates)
        given = None if request.candidates is None else tuple(dict.fromkeys(request.candidates))
        return RetrievalQuery(
            n=(wanted if given is None else len(given)) + extra,
            now_ms=ctx.now_ms,
            user=user,
            # A caller that brings the list wants it ranked, not thinned out.
            exclude_seen=given is None and self._exclude_seen(request),
            exclude_items=tuple(request.exclude_items),
            seed_items=tuple(request.seed_items),
            only_items=given,
            filters={name: _attribute_filter(spec) for name, spec in request.filters.items()},
            intent=intent,
            personal=request.profiling,
            context=tuple(request.context.items()),
        )

    async def _intent(
        self, ctx: RequestContext, request: RecommendRequest, user: UserFeatures, bundle: ReleaseBundle
    ) -> Intent | None:
        """Return what this request looks for, else what the user or the session searched for a while ago."""
        text = request.query
        if text is None:
            age_ms = ctx.now_ms - user.intent_ms
            return faded(user.intent, age_ms=age_ms, life_s=self._settings.intent_s, dimension=bundle.text_dimension)
        # What cannot be understood is not replaced by an older search, which may have been for something else.
        return await run_stage(
            ctx,
            self._settings.query.policy("query"),
            lambda call: encoded(self._encoder, call, text, bundle),
            lambda: None,
            self._recorder,
        )

    def _exclude_seen(self, request: RecommendRequest) -> bool:
        return self._settings.exclude_seen if request.exclude_seen is None else request.exclude_seen

    async def _retrieve(self, ctx: RequestContext, query: RetrievalQuery, bundle: ReleaseBundle) -> Candidates:
        if not len(bundle.catalog):
            ctx.degrade(DegradedReason.empty_catalog)
            return Candidates.empty()
        if not query.filters.keys() <= {*bundle.catalog.label_names, *bundle.catalog.number_names}:
            # Nothing has the attribute, so little or nothing can pass: say why.
            ctx.degrade(DegradedReason.unknown_attribute)
        found = await run_stage(
            ctx,
            self._settings.retrieve.policy("retrieve"),
            lambda call: self._retriever.retrieve(call, query),
            lambda: popular_candidates(bundle, query),
            self._recorder,
        )
        if found.incomplete:
            ctx.degrade(DegradedReason.index_incomplete)
        return found

    def _filters(self, query: RetrievalQuery, bundle: ReleaseBundle, shown: Hashes) -> list[Filter]:
        catalog = bundle.catalog
        filters: list[Filter] = [WithheldFilter(bundle.withheld)]
        if query.exclude_items:
            filters.append(HashFilter("excluded", catalog, hash64_array(query.exclude_items)))
        if len(shown):
            filters.append(HashFilter("shown", catalog, shown))
        if query.exclude_seen and query.personal and len(query.user.seen):
            filters.append(HashFilter("seen", catalog, query.user.seen))
        if query.filters:
            filters.append(AttributesFilter(bundle.masks, query))
        return filters

    async def _rank(self, ctx: RequestContext, query: RetrievalQuery, candidates: Candidates) -> Scores:
        retrieval_order = Scores(candidates.scores, "rank_only")
        if not len(candidates):
            return retrieval_order
        if ctx.planned >= DegradationLevel.no_ranker:
            ctx.degrade(DegradedReason.rank_skipped)
            return retrieval_order

        async def score(call: StageCall) -> Scores:
            scores = await self._ranker.score(call, query, candidates)
            if len(scores.values) != len(candidates):
                raise ContractViolation(f"{len(scores.values)} scores for {len(candidates)} candidates")
            if scores.shortened:
                ctx.degrade(DegradedReason.fewer_rankers)
            return scores

        return await run_stage(ctx, self._settings.rank.policy("rank"), score, lambda: retrieval_order, self._recorder)

    def _select(
        self,
        ctx: RequestContext,
        request: RecommendRequest,
        query: RetrievalQuery,
        bundle: ReleaseBundle,
        candidates: Candidates,
        scores: Scores,
        dropped: dict[str, int],
    ) -> Slate:
        started = time.perf_counter()
        ids = bundle.catalog.item_ids(candidates.rows)
        ranked = order(scores.values, ids)
        caps = self._settings.category_caps
        # Caps pass over some of the best, so they choose from more than the list holds.
        wanted = 3 * request.k if caps else request.k
        picked = ranked
        if request.diversity > 0.0:
            vectors = bundle.text_vectors(candidates.rows)
            picked = diversify(ranked, scores.values, vectors, wanted, diversity=request.diversity)
        if caps:
            labels = [bundle.catalog.labels(int(row)) for row in candidates.rows[picked]]
            picked = capped(picked, labels, request.k, caps=caps)
        picked = picked[: request.k]
        if len(picked) < request.k:
            ctx.degrade(DegradedReason.fewer_items)
        ctx.timings_ms["select"] = (time.perf_counter() - started) * 1000.0
        return Slate(
            chosen=candidates.take(picked),
            item_ids=[ids[i] for i in picked],
            scores=np.where(np.isfinite(scores.values), scores.values, 0.0)[picked].astype(np.float32),
            score_kind=scores.kind,
            query=query,
            considered=len(candidates),
            dropped=dropped,
            candidates=candidates,
            picked=np.asarray(picked, np.int64),
        )


def _attribute_filter(spec: FilterSpec) -> AttributeFilter:
    def many(values: list[str] | None) -> tuple[str, ...] | None:
        return None if values is None else tuple(values)

    return AttributeFilter(many(spec.any_of), many(spec.all_of), many(spec.none_of), spec.gte, spec.lte)
