"""Which implementation of each port an ingress replica uses: the client of a deployment, or the class in process.

Built by `serve.app.build` from the `placement` settings and bound to the ingress; picklable (handles and paths).
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from models.explain.summary_book import SummaryBook
from models.store.port import OnlineStore
from serve.clients import ExplainerClient, FeatureFetcherClient, QueryEncoderClient, RankerClient, RetrieverClient
from serve.ports import Explainer, FeatureFetcher, QueryEncoder, Ranker, Retriever
from serve.ranking import ModelRanker
from serve.settings import DeploymentSettings, ServeSettings
from serve.stages import BundleOf, EngineRetriever, ReleaseQueryEncoder, StoreFeatureFetcher


def turns(of: ServeSettings) -> dict[str, int]:
    """Return the limits of the batcher of a ranker replica."""
    return {"step_tokens": of.rank_step_tokens, "max_waiting": of.ranker.max_ongoing_requests}


@dataclass(frozen=True)
class Ports:
    """One implementation per port."""

    fetcher: FeatureFetcher
    encoder: QueryEncoder
    retriever: Retriever
    ranker: Ranker
    explainer: Explainer


@dataclass(frozen=True)
class Stages:
    """Handles of the stages that are deployments; None where a stage is inline."""

    settings: ServeSettings
    explainer: Any
    features: Any = None
    encoder: Any = None
    retriever: Any = None
    ranker: Any = None
    consumer: Any = None
    """Nobody calls it: bound here, it is part of the application."""

    def ports(
        self, bundle_of: BundleOf, store: OnlineStore, executor: Executor, summaries: SummaryBook | None = None
    ) -> Ports:
        """Return the ports for this replica; inline stages share its store, releases and executor."""
        settings = self.settings

        def bounds(of: DeploymentSettings) -> dict[str, int]:
            return {"min_replicas": of.min_replicas, "max_waiting": of.max_queued_requests}

        return Ports(
            fetcher=StoreFeatureFetcher(store, summaries)
            if self.features is None
            else FeatureFetcherClient(self.features, **bounds(settings.features)),
            encoder=ReleaseQueryEncoder(bundle_of, executor)
            if self.encoder is None
            else QueryEncoderClient(self.encoder, **bounds(settings.encoder)),
            retriever=EngineRetriever(bundle_of, executor)
            if self.retriever is None
            else RetrieverClient(self.retriever, **bounds(settings.retriever)),
            ranker=ModelRanker(bundle_of, executor, workers=settings.ingress.threads, **turns(settings))
            if self.ranker is None
            else RankerClient(self.ranker),
            explainer=ExplainerClient(self.explainer),
        )
