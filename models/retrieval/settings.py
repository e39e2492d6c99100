"""Settings of retrieval: what each source looks at, and how much it counts in which state of the user."""

from __future__ import annotations

from typing import Annotated, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from models.candidates import Source

Weight = Annotated[float, Field(ge=0)]
SourceName = Literal[
    "semantic",
    "collaborative",
    "sequential",
    "neighbours",
    "trending",
    "repeat",
    "fresh",
    "similar",
    "cluster",
    "declared",
]


class SourceWeights(BaseModel):
    """How much each source counts; 0 switches it off. Scores are scaled to unit variance before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    semantic: Weight = 0.1
    """Content close to what the user took lately or searches for."""
    collaborative: Weight = 0.4
    """What people who took these items also took."""
    sequential: Weight = 0.1
    """What followed the user's last items."""
    neighbours: Weight = 1.0
    """What people who recently took the same items took next to them."""
    trending: Weight = 0.0
    """Popular of late."""
    repeat: Weight = 1.0
    """The user's own items; only where seen items may be recommended again."""
    fresh: Weight = 0.0
    """Items few people know yet, by content."""
    similar: Weight = 0.5
    """Content close to the seed items of the request."""
    popular: Weight = 0.0
    """Popular over all time; always asked to fill a list that the others leave short."""
    cluster: Weight = 0.0
    """What the group of users nearest in content takes; only while there are fewer events than `short_history`."""
    declared: Weight = 0.4
    """Items with the labels that the user declared or the request names; less with every event."""

    def of(self, source: Source) -> float:
        """Return the weight of `source`."""
        return float(getattr(self, str(source.name)))


class RetrievalSettings(BaseModel):
    """Settings of the retrieval engine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: SourceWeights = SourceWeights()
    """For users with at least `short_history` events, where neither of the next two applies."""
    unseen_weights: SourceWeights | None = None
    """For the same users where the answer leaves out what they have; null takes `weights`. A shop needs its own: what
    somebody buys again says little about what they try."""
    stale_weights: SourceWeights | None = None
    """For the same users when their newest event is older than `stale_after_s`; null takes `weights`."""
    short_weights: SourceWeights = SourceWeights(
        semantic=0.5, collaborative=0.15, sequential=1.0, trending=0.05, fresh=0.25
    )
    """For users and seed lists with fewer events than that, but at least one."""
    cold_weights: SourceWeights = SourceWeights(semantic=1.0, trending=1.0, popular=1.0)
    """For users without history, seeds and intent: only popularity has something to say."""
    declared_weights: SourceWeights = SourceWeights(semantic=0.25, trending=1.0, popular=1.0, declared=0.2)
    """For the same users where they, or the request, named labels or said what they like."""
    declared_events: int = Field(default=10, ge=1)
    """Number of events and seeds from which a declaration counts for nothing; before, less with each."""
    declared_weight: float = Field(default=0.5, ge=0)
    """How much a declaration counts in the user's content vector, beside the whole history (1.0)."""
    search_weights: SourceWeights = SourceWeights(semantic=1.0, trending=0.1, popular=0.1)
    """For users without history and seeds who search: what they ask for, and among that what is popular."""
    item_weights: SourceWeights = SourceWeights(
        semantic=0.0, collaborative=0.0, sequential=1.0, neighbours=0.0, repeat=0.0, similar=1.0, declared=0.0
    )
    """For what is similar to an item: its content, and what people took after it."""
    short_history: int = Field(default=5, ge=1)
    """Number of known events from which `weights` apply."""
    stale_after_s: float = Field(default=86_400.0, gt=0)
    """Age of the newest event from which `stale_weights` apply: the session is over, its last steps say less."""
    sequential_events: int = Field(default=10, ge=1, le=256)
    """How many last events the sequential and neighbours sources look at."""
    sequential_decay: float = Field(default=0.8, gt=0, le=1)
    """What an event counts relative to the one after it."""
    semantic_events: int = Field(default=10, ge=1, le=256)
    """How many last events the semantic source averages."""
    semantic_decay: float = Field(default=0.8, gt=0, le=1)
    """What an event counts relative to the one after it."""
    intent_weight: float = Field(default=1.5, ge=0)
    """How much the search text counts beside the whole history (1.0) in the user's content vector, while it is new."""
    neighbour_power: float = Field(default=3.0, ge=1, le=10)
    """How much more people who share several of the last items count than those who share one."""
    neighbour_window: int = Field(default=10, ge=1, le=50)
    """How many events on either side of a shared item are proposed."""
    neighbour_step: float = Field(default=0.8, gt=0, le=1)
    """What an event counts relative to the one closer to the shared item."""
    neighbour_backward: float = Field(default=0.75, ge=0, le=1)
    """What events before the shared item count relative to those after it."""
    neighbour_per_item: int = Field(default=1_000, ge=1)
    """Only this many latest takers of an item are compared."""
    neighbour_matches: int = Field(default=1_000, ge=1)
    """How many shared items, strongest first, proposals are read from."""
    collaborative_events: int = Field(default=128, ge=1, le=256)
    """How many last events fold a user in."""
    collaborative_half_life_events: float | None = Field(default=20.0, gt=0)
    """Number of later events after which one counts half when a user is folded in; null counts all alike."""
    collaborative_half_life_days: float | None = Field(default=None, gt=0)
    """Age after which an event counts half when a user is folded in; null counts all alike."""
    repeat_half_life_days: float = Field(default=60.0, gt=0)
    """Age after which an event counts half for the repeat source."""
    repeat_trend_power: float = Field(default=0.0, ge=0, le=2)
    """The repeat source multiplies by recent popularity to this power: what nobody takes now may be out of stock."""
    trending_power: float | None = Field(default=None, gt=0, le=2)
    """Trending compares recent popularity to this power; null takes its logarithm, which flattens the head."""
    fresh_below_users: int = Field(default=5, ge=0)
    """Items taken by at most this many users are fresh."""
    fresh_items: int = Field(default=5_000, ge=0)
    """At most this many fresh items are compared, newest first."""
    source_depth: int = Field(default=200, ge=1, le=10_000)
    """On large catalogs each source is asked for this many items (or the wanted number, if that is larger)."""
    source_depths: dict[SourceName, Annotated[int, Field(ge=1, le=10_000)]] = Field(default_factory=dict)
    """Sources that are asked for another number, by name."""

    def depth_of(self, source: Source, wanted: int) -> int:
        """Return how many items `source` is asked for where the answer has `wanted`."""
        general = max(wanted, self.source_depth)
        return self.source_depths.get(cast(SourceName, source.name), general)
