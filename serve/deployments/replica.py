"""What every replica is bound with, and how it opens what it needs. Secrets come from the environment only."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.artifacts import ArtifactError, ArtifactStore
from models.bundle import ReleaseBundle
from models.explain.cache import ReasonCache
from models.explain.decisions import DecisionBook
from models.explain.reason_cache import TieredReasons
from models.explain.summary_book import SummaryBook
from models.hosted import Spread
from models.items.log import ItemLog
from models.rankers.settings import RankerSettings
from models.retrieval.settings import RetrievalSettings
from models.store.cache_store import CacheStore, RedisCache
from models.store.port import OnlineStore
from models.store.profiles import ProfileStore
from models.text_space import EncoderPlace, EncoderShelf
from serve.auth import Keys
from serve.errors import ConfigError
from serve.live import LiveFollower
from serve.live_items import ItemFollower
from serve.releases import ReleaseHolder, Warm
from serve.settings import ServeSettings

if TYPE_CHECKING:
    from serve.wiring import Stages

STORE_URL = "RAYCOMMEND_STORE_URL"
CACHE_URL = "RAYCOMMEND_CACHE_URL"
SIGNING_KEY = "RAYCOMMEND_SIGNING_KEY"
API_KEYS = "RAYCOMMEND_API_KEYS"


@dataclass(frozen=True)
class ReplicaConfig:
    """The part of the settings that replicas share; picklable, without secrets."""

    settings: ServeSettings
    retrieval: RetrievalSettings
    artifacts_url: str
    artifact_cache: str
    records_folder: str
    package_root: str
    store_cluster: bool = False
    reason_model: str = ""
    """Identity of the generator: reasons of another model are not found in the cache."""
    release_wait_s: float = 60.0
    encoders: EncoderPlace | None = None
    """Where this node finds encoders of queries."""
    ranking: RankerSettings | None = None


def store_url() -> str:
    """Return the URL of the store. Raises ConfigError when the environment names none."""
    url = os.environ.get(STORE_URL)
    if not url:
        raise ConfigError(f"set {STORE_URL} to the URL of the store (redis:// or rediss://)")
    return url


def open_store(config: ReplicaConfig) -> ProfileStore:
    """Return the online store named by the environment. Raises ConfigError when it names none."""
    from models.store.profiles import RedisProfiles

    return RedisProfiles(store_url(), cluster=config.store_cluster, limits=config.settings.store_limits())


def open_items(config: ReplicaConfig) -> ItemLog:
    """Return the item log, which lives in the store. Raises ConfigError when the environment names no store."""
    from models.items.log import RedisItemLog

    return RedisItemLog(store_url(), limit=config.settings.items.log_changes, cluster=config.store_cluster)


def open_cache(config: ReplicaConfig) -> CacheStore | None:
    """Return the cache store named by the environment, or None: everything works without one, only slower."""
    url = os.environ.get(CACHE_URL)
    return RedisCache(url, timeout_s=config.settings.reason_cache.timeout_ms / 1000.0) if url else None


def open_reasons(
    config: ReplicaConfig, shared: CacheStore | None, *, observe: Callable[[str, int], None] | None = None
) -> TieredReasons:
    """Return the reason cache of this replica, in front of the shared one; `observe` is told of every look-up."""
    of = config.settings.reason_cache
    local = ReasonCache(size=of.local_entries, ttl_s=of.ttl_s)
    return TieredReasons(config.reason_model, local=local, shared=shared, ttl_s=of.ttl_s, observe=observe)


def open_encoders(config: ReplicaConfig) -> EncoderShelf:
    """Return where the encoders of this replica's releases come from. Raises ConfigError when nothing says where."""
    if config.encoders is None:
        raise ConfigError("nothing says where encoders are: a replica that embeds needs `encoders`")
    return EncoderShelf(config.encoders.load)


def open_summaries(config: ReplicaConfig, shared: CacheStore | None) -> SummaryBook | None:
    """Return where users' interests in words are kept; None without a cache store or where settings leave them out."""
    ttl_s = config.settings.reason_cache.summaries_ttl_s
    return SummaryBook(shared, ttl_s=ttl_s) if shared is not None and ttl_s > 0 else None


def open_decisions(config: ReplicaConfig, shared: CacheStore | None) -> DecisionBook | None:
    """Return where explained lists wait for whoever asks for their reasons later; None without a cache store."""
    return None if shared is None else DecisionBook(shared, ttl_s=config.settings.reason_cache.decision_ttl_s)


def api_keys() -> Keys:
    """Return the API keys of the environment (none: everyone is the default tenant)."""
    return Keys.parse(os.environ.get(API_KEYS, ""))


def signing_key() -> bytes:
    """Return the key of cursors and impressions. Raises ConfigError without one."""
    key = os.environ.get(SIGNING_KEY, "")
    if len(key) < 16:
        raise ConfigError(f"set {SIGNING_KEY} to at least 16 characters")
    return key.encode()


def check_packages(config: ReplicaConfig) -> None:
    """Refuse to serve with packages of somebody else. Raises RuntimeError naming the shadowing path."""
    from models.origin import check_origin

    # Our records go where Serve's go: the replica's log file.
    ours = logging.getLogger("raycommend")
    ours.setLevel(logging.INFO)
    ours.parent = logging.getLogger("ray.serve")
    check_origin(Path(config.package_root))


async def follow_releases(
    config: ReplicaConfig,
    store: OnlineStore,
    warm: Warm,
    *,
    spread: Spread | None = None,
    items: bool = True,
    embeds: bool = False,
) -> ReleaseHolder:
    """Load the current release and go on following the pointer, and with `items` the item log.

    `spread` says how its vector index is spread over processes. With `embeds` releases bring their encoder. Raises
    ConfigError where there is nowhere to have it from.
    """
    from models.store.board import RedisBoard

    holder = ReleaseHolder(
        store,
        lambda tenant: ArtifactStore(config.artifacts_url, cache=Path(config.artifact_cache), tenant=tenant),
        tenants=api_keys().tenants,
        settings=config.retrieval,
        warm=warm,
        items=ItemFollower(open_items(config), warm=warm) if items else None,
        board=RedisBoard(store_url(), cluster=config.store_cluster),
        encoder=None if config.encoders is None else config.encoders.uri,
        encoders=open_encoders(config) if embeds else None,
        ranking=config.ranking,
        spread=spread,
    )
    await holder.start(
        poll_s=config.settings.release_poll_s,
        wait_s=config.release_wait_s,
        item_poll_s=config.settings.items.poll_s,
    )
    return holder


async def follow_statistics(config: ReplicaConfig, releases: ReleaseHolder) -> LiveFollower | None:
    """Go on mapping live statistics onto the loaded releases; None where nobody counts them."""
    from models.store.redis_streams import RedisEventStreams

    if not config.settings.consumer.enabled:
        return None
    streams = RedisEventStreams(store_url(), cluster=config.store_cluster, write_timeout_s=5.0, connections=2)
    follower = LiveFollower(streams, releases, tenants=api_keys().tenants)
    await follower.start(poll_s=config.settings.consumer.poll_s)
    return follower


def executor(threads: int, name: str) -> ThreadPoolExecutor:
    """Return the one bounded executor of a replica."""
    return ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name)


def warm_retrieval(bundle: ReleaseBundle) -> None:
    """Build the retrieval engine before the release is served."""
    _ = bundle.engine


def warm_encoder(bundle: ReleaseBundle) -> None:
    """Fetch and load the encoder of the release. Raises HubError or ArtifactError naming it."""
    _ = bundle.space.encoder


def warm_share(bundle: ReleaseBundle) -> None:
    """Load the pieces of the vector index that this replica holds for retrievers."""
    _ = bundle.share


def warm_ranking(bundle: ReleaseBundle) -> None:
    """Load the ranker and run it once, so that the first request does not pay for lazy set-up.

    Raises ArtifactError when its scores are no numbers: the release is refused then.
    """
    import numpy as np

    from models.candidates import SCORED_SOURCES, Candidates
    from models.retrieval.query import RetrievalQuery

    rows = np.arange(min(100, len(bundle.catalog)), dtype=np.int32)
    candidates = Candidates(
        rows,
        np.ones(len(rows), np.uint16),
        np.zeros((len(rows), len(SCORED_SOURCES)), np.float32),
        np.zeros(len(rows), np.float32),
    )
    if len(rows):
        query = RetrievalQuery(n=len(rows), now_ms=0)
        scores = [bundle.ranker.score(query, candidates)]
        if bundle.second is not None:
            scores.append(bundle.second.ranker.score(query, candidates.take(np.arange(min(4, len(rows))))))
        if not all(np.isfinite(one).all() for one in scores):
            raise ArtifactError(f"{bundle.release_id}: its ranker gives scores that are not numbers")


def warm_ingress(stages: Stages) -> Warm:
    """Return what an ingress warms: what it reads itself, and what stages inside of it read."""
    of = [warm_edge, *([warm_retrieval] if stages.retriever is None else [])]
    of += [warm_ranking] if stages.ranker is None else []
    of += [warm_encoder] if stages.encoder is None else []

    def warm(bundle: ReleaseBundle) -> None:
        for one in of:
            one(bundle)

    return warm


def warm_edge(bundle: ReleaseBundle) -> None:
    """Load what the ingress reads: evidence and the popular fallback."""
    _ = bundle.behaviour, bundle.popularity_rank, bundle.trending_rank, bundle.masks
    # Items change often and weights are read for reasons alone: what was grown builds its tables on first use.
    if bundle.alone is None and bundle.feature_weights is not None:
        _ = bundle.feature_weights.features
