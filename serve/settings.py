"""Settings of the request path: the `serve` section of the one typed tree (see `cluster.config`).

Units are in the names. Values under `pipeline` are tunables: they change through `reconfigure` without a restart.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.consumer.settings import ConsumerSettings
from models.store.port import StoreLimits
from serve.runner import StagePolicy

Placement = Literal["deployment", "inline"]
StageName = Literal["features", "query", "retrieve", "rank"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class StageBudget(_Section):
    """Time for one stage inside the request's deadline."""

    budget_ms: float = Field(gt=0)
    """The stage is cancelled after this, or at the deadline if that is earlier."""
    minimum_ms: float = Field(1.0, gt=0)
    """With less than this left, the stage is skipped."""

    def policy(self, name: StageName) -> StagePolicy:
        """Return the policy that `run_stage` takes."""
        return StagePolicy(name, self.budget_ms, self.minimum_ms)


class PipelineSettings(_Section):
    """Tunables of the pipeline."""

    candidates: int = Field(100, ge=10, le=2000)
    """How many candidates are retrieved and ranked."""
    exclude_seen: bool = True
    """Whether touched items are left out where a request does not say; a shop, where people buy again, says no."""
    category_caps: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """At most how many items of a list share a value of an attribute (`{"brand": 2}`), while others are left."""
    features: StageBudget = StageBudget(budget_ms=60, minimum_ms=2)
    """One round trip to the store."""
    query: StageBudget = StageBudget(budget_ms=150, minimum_ms=10)
    """Embedding the text of a query."""
    retrieve: StageBudget = StageBudget(budget_ms=200, minimum_ms=5)
    """All sources and the merge."""
    rank: StageBudget = StageBudget(budget_ms=300, minimum_ms=5)
    """The cross-encoder."""
    intent_s: float = Field(1800.0, ge=0, le=86_400)
    """How long a posted search steers the lists of its user or session, less and less; 0 switches it off. Making it
    longer takes a restart: the store keeps a search for what this was at the start."""
    stale_profiles: int = Field(2000, ge=0)
    """How many last-known profiles an ingress replica keeps for the time the store is away."""


class DeploymentSettings(_Section):
    """How one stage is deployed."""

    placement: Placement = "deployment"
    """`deployment`: replicas of its own; `inline`: inside the ingress process."""
    min_replicas: int = Field(1, ge=1)
    """Replicas kept at all times."""
    max_replicas: int = Field(1, ge=1)
    """Replicas that autoscaling may reach."""
    target_ongoing_requests: float = Field(4.0, gt=0)
    """Requests per replica that autoscaling aims at."""
    max_ongoing_requests: int = Field(64, ge=1)
    """Calls one replica works on at a time; the rest wait in the caller."""
    max_queued_requests: int = Field(256, ge=1)
    """Calls a caller lets wait; beyond that they are refused."""
    num_cpus: float = Field(0.1, ge=0)
    """Logical CPUs that Ray sets aside per replica."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs per replica (fractions share one)."""
    threads: int = Field(1, ge=1)
    """Worker threads for model and index calls inside a replica."""


class IndexShardSettings(_Section):
    """Hosts that hold the vector index for retrievers, each a share of its pieces: where no node can hold it all."""

    hosts: int = Field(0, ge=0, le=64)
    """Number of hosts, spread over the nodes; 0 holds the whole index in every retriever. Threads of `serve.retriever`
    wait for hosts, so give it several; `pipelines.index_pieces` cuts the index."""
    host: DeploymentSettings = DeploymentSettings()
    """How each of the hosts is deployed."""


class ReasonCacheSettings(_Section):
    """Reasons that were written before, in each process and in the cache store."""

    ttl_s: float = Field(86_400.0, gt=0)
    """How long a written reason may be shown again."""
    local_entries: int = Field(20_000, ge=0)
    """Reasons that one process keeps."""
    summaries_ttl_s: float = Field(0.0, ge=0)
    """How long users' interests in words (`explain --summaries`) are part of their profile text; 0 leaves them out."""
    decision_ttl_s: float = Field(900.0, gt=0)
    """How long the reasons of an explained list can be asked for by decision id."""
    timeout_ms: float = Field(20.0, gt=0)
    """How long a list waits for the cache store; without an answer it goes on without it."""


class ConsumerDeploymentSettings(_Section):
    """The event consumer: live statistics for `trending` and `popular`, and the event log."""

    enabled: bool = True
    """Whether events are counted live and written to the event log; off, both end with the release."""
    num_cpus: float = Field(0.1, ge=0)
    """Logical CPUs that Ray sets aside for it."""
    poll_s: float = Field(2.0, gt=0)
    """How often replicas look for new live statistics."""
    loop: ConsumerSettings = ConsumerSettings()
    """How it counts and writes."""


class ItemSettings(_Section):
    """Items that change while a release is served."""

    poll_s: float = Field(0.1, gt=0, le=1)
    """How often replicas look for changes of items."""
    log_changes: int = Field(20_000, ge=1)
    """Most changes that wait for a release to take them in. Every replica folds all of them anew with each change: at
    20,000 that takes under a second."""


class ServeSettings(_Section):
    """The `serve` section."""

    host: str = "127.0.0.1"
    """Address that HTTP listens on. Anything but loopback needs API keys."""
    http_port: int = Field(8000, ge=1024, le=65535)
    """Port of the public API (HAProxy)."""
    route_prefix: str = Field("/", pattern=r"^/[A-Za-z0-9/_-]*$")
    """Path under which the API is served."""
    default_deadline_ms: int = Field(800, ge=10, le=60_000)
    """Deadline of a request that names none, and the longest one granted is `max_deadline_ms`."""
    max_deadline_ms: int = Field(10_000, ge=10, le=60_000)
    """Longer deadlines are shortened to this."""
    max_reasons_deadline_ms: int = Field(60_000, ge=0, le=120_000)
    """Longer deadlines for reasons are shortened to this."""
    stream_reasons_deadline_ms: int = Field(15_000, ge=0, le=120_000)
    """Default deadline for reasons of a streamed answer (JSON answers default to 0: cache or template)."""
    max_body_bytes: int = Field(2_000_000, ge=10_000)
    """Larger request bodies are refused with 413 before they are read whole."""
    max_in_flight: int = Field(256, ge=1)
    """Requests one ingress replica admits at a time; beyond that it answers 503 with Retry-After."""
    release_poll_s: float = Field(1.0, gt=0)
    """How often replicas look for a new release."""
    future_events_s: float = Field(300.0, ge=0)
    """Events later than now plus this are invalid."""
    oldest_event_ms: int = Field(946_684_800_000, ge=0)
    """Events before this time (default 2000-01-01) are invalid; imports may hold older ones."""
    repeat_window_s: float = Field(2.0, ge=0, le=3600)
    """The same item, type and value as a user's newest event within this time is ignored as a repeat; 0 takes it."""
    events_per_user_s: int = Field(500, ge=0)
    """New events of one user or session per second; more are ignored until later. 0 sets no limit."""
    pipeline: PipelineSettings = PipelineSettings()
    """Tunables of the request path."""
    ingress: DeploymentSettings = DeploymentSettings(max_ongoing_requests=512, target_ongoing_requests=32)
    """Stage 1."""
    features: DeploymentSettings = DeploymentSettings()
    """Stage 2."""
    encoder: DeploymentSettings = DeploymentSettings(num_cpus=0.1)
    """Embeds query texts."""
    retriever: DeploymentSettings = DeploymentSettings()
    """Stage 3."""
    index_shards: IndexShardSettings = IndexShardSettings()
    """The vector index, where it is spread over hosts."""
    ranker: DeploymentSettings = DeploymentSettings()
    """Stage 4."""
    rank_step_tokens: int = Field(1024, ge=256, le=1_000_000)
    """Tokens of text that a ranker replica computes in one step: an urgent request waits for no more than that.
    A tenth of a second on a CPU; a GPU takes more."""
    explainer: DeploymentSettings = DeploymentSettings(max_ongoing_requests=64)
    """Stage 5."""
    items: ItemSettings = ItemSettings()
    """Items that arrive, change and go between two releases."""
    consumer: ConsumerDeploymentSettings = ConsumerDeploymentSettings()
    """The event consumer; it has one replica."""
    reason_cache: ReasonCacheSettings = ReasonCacheSettings()
    """Reasons that were written before."""

    def store_limits(self) -> StoreLimits:
        """Return what these settings say of the online store; all else there is fixed."""
        return StoreLimits(
            repeat_window_s=self.repeat_window_s,
            events_per_owner_s=self.events_per_user_s,
            intent_s=self.pipeline.intent_s,
        )
