"""The deployments of stages 2 to 4 and of the query encoder: each hosts the in-process class of its port."""

from __future__ import annotations

from typing import Any

from ray import serve as ray_serve

from models.candidates import Candidates
from models.hosted import Spread
from models.retrieval.query import RetrievalQuery
from serve.clients import BatchMember, BatchReply, IndexShardClient
from serve.context import StageCall
from serve.deployments.batches import each
from serve.deployments.replica import (
    ReplicaConfig,
    check_packages,
    executor,
    follow_releases,
    follow_statistics,
    open_cache,
    open_store,
    open_summaries,
    warm_encoder,
    warm_ranking,
    warm_retrieval,
    warm_share,
)
from serve.index_shards import ShardHosts, ShareSearcher
from serve.metrics import RankMetrics
from serve.ports import Scores
from serve.ranking import ModelRanker
from serve.stages import EngineRetriever, ReleaseQueryEncoder, StoreFeatureFetcher
from serve.wiring import turns


def replica_name() -> str:
    """Return the name of the replica this code runs in."""
    return str(ray_serve.get_replica_context().replica_id.unique_id)


class FeatureFetcherDeployment:
    """Stage 2."""

    def __init__(self, config: ReplicaConfig) -> None:
        check_packages(config)
        self._fetcher = StoreFeatureFetcher(open_store(config), open_summaries(config, open_cache(config)))
        self._name = replica_name()

    async def fetch_many(self, members: list[BatchMember]) -> BatchReply:
        """Fetch the features of many users; one round trip each, side by side."""
        return self._name, await each(members, lambda call, who: self._fetcher.fetch(call, *who))


class QueryEncoderDeployment:
    """Embeds query texts, each with the encoder of the release its request is pinned to."""

    async def __init__(self, config: ReplicaConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        check_packages(config)
        self._releases = await follow_releases(config, open_store(config), warm_encoder, items=False, embeds=True)
        # What is prepared answers too: an ingress may see the pointer move first.
        self._encoder = ReleaseQueryEncoder(self._releases.ready, executor(config.settings.encoder.threads, "encoder"))
        self._name = replica_name()

    async def encode_many(self, members: list[BatchMember]) -> BatchReply:
        """Embed many texts."""
        return self._name, await each(members, self._encoder.encode)


class IndexShardDeployment:
    """One host of the vector index: holds a share of its pieces for retrievers, without items that changed since."""

    async def __init__(self, config: ReplicaConfig, number: int) -> None:  # type: ignore[misc]  # Serve awaits it
        check_packages(config)
        of = config.settings.index_shards
        spread = Spread(of.hosts, own=number)
        self._releases = await follow_releases(config, open_store(config), warm_share, spread=spread, items=False)
        self._searcher = ShareSearcher(self._releases.ready, executor(of.host.threads, "index"))
        self._name = replica_name()

    async def search_many(self, members: list[BatchMember]) -> BatchReply:
        """Search for many retrievals."""
        return self._name, await each(members, self._searcher.search)


class RetrieverDeployment:
    """Stage 3."""

    async def __init__(self, config: ReplicaConfig, *hosts: Any) -> None:  # type: ignore[misc]  # Serve awaits it
        """`hosts` are the handles of what holds the vector index, by number; none: it is held here."""
        check_packages(config)
        of = config.settings.index_shards.host
        bounds = {"min_replicas": of.min_replicas, "max_waiting": of.max_queued_requests}
        shards = [IndexShardClient(handle, **bounds) for handle in hosts]
        spread = Spread(len(shards), ask=ShardHosts(shards).ask) if shards else None
        self._releases = await follow_releases(config, open_store(config), warm_retrieval, spread=spread)
        self._live = await follow_statistics(config, self._releases)
        self._retriever = EngineRetriever(
            self._releases.bundle, executor(config.settings.retriever.threads, "retriever")
        )
        self._name = replica_name()

    async def retrieve_many(self, members: list[BatchMember]) -> BatchReply:
        """Retrieve for many requests."""
        return self._name, await each(members, self._retriever.retrieve)


class RankerDeployment:
    """Stage 4."""

    async def __init__(self, config: ReplicaConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        check_packages(config)
        self._releases = await follow_releases(config, open_store(config), warm_ranking)
        of = config.settings.ranker
        self._ranker = ModelRanker(
            self._releases.bundle,
            executor(of.threads, "ranker"),
            workers=of.threads,
            on_drop=RankMetrics().dropped,
            **turns(config.settings),
        )

    async def score(self, call: StageCall, query: RetrievalQuery, candidates: Candidates) -> Scores:
        """Score one request's candidates."""
        return await self._ranker.score(call, query, candidates)


STAGES: dict[str, Any] = {
    "features": FeatureFetcherDeployment,
    "encoder": QueryEncoderDeployment,
    "retriever": RetrieverDeployment,
    "ranker": RankerDeployment,
}
"""Deployment classes by the name of their settings."""
