"""The HTTP contract as types: requests, answers, problems. Unknown fields are refused.

Called by the ingress, by the pipeline (which takes a `RecommendRequest`) and by clients in `loadtests`.
Answers are written with orjson from plain dicts; the answer models here document them in OpenAPI.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, model_validator

from models.events import session_owner
from models.ids import ID_PATTERN

Id = Annotated[str, Field(strict=True, min_length=1, max_length=128, pattern=ID_PATTERN)]


def _no_session(user_id: str) -> str:
    """Refuse what would be the profile of a session: nobody may read or write it as a user."""
    if user_id.startswith(session_owner("")):
        raise ValueError(f"a user id does not begin with {session_owner('')}, which marks sessions")
    return user_id


UserId = Annotated[Id, AfterValidator(_no_session)]
AttributeName = Annotated[str, Field(strict=True, min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_ -]{1,64}$")]
AttributeValue = Annotated[str, Field(strict=True, min_length=1, max_length=256)]
Number = Annotated[StrictInt, Field(ge=-(2**53), le=2**53)] | StrictFloat
"""A number that a float64 holds; larger integers would overflow in the columns they are compared with."""
EventValue = Annotated[StrictInt | StrictFloat, Field(ge=-1e12, le=1e12)]
"""A rating, a price or a quantity; stored as float32."""

MAX_K = 100
MAX_CANDIDATES = 1000
MAX_EVENTS = 500


class Closed(BaseModel):
    """A body that refuses fields it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FilterSpec(Closed):
    """One attribute condition; at least one part is given, and all given parts must hold."""

    any_of: list[AttributeValue] | None = Field(None, max_length=100)
    all_of: list[AttributeValue] | None = Field(None, max_length=100)
    none_of: list[AttributeValue] | None = Field(None, max_length=100)
    gte: Number | None = None
    lte: Number | None = None

    @model_validator(mode="after")
    def _says_something(self) -> FilterSpec:
        if all(getattr(self, name) is None for name in ("any_of", "all_of", "none_of", "gte", "lte")):
            raise ValueError("give at least one of any_of, all_of, none_of, gte, lte")
        return self


class RecommendRequest(Closed):
    """Body of `POST /v1/recommend`."""

    user_id: UserId | None = None
    session_id: Id | None = None
    k: StrictInt = Field(10, ge=1, le=MAX_K)
    explain: StrictBool = False
    language: str = Field("en", strict=True, max_length=35, pattern=r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*$")
    context: dict[AttributeName, AttributeValue] = Field(default_factory=dict, max_length=16)
    """Where an attribute of the catalog is named, it counts like a declared one; other entries change nothing."""
    query: str | None = Field(None, strict=True, min_length=1, max_length=512)
    seed_items: list[Id] = Field(default_factory=list, max_length=50)
    candidates: list[Id] | None = Field(None, min_length=1, max_length=MAX_CANDIDATES)
    exclude_items: list[Id] = Field(default_factory=list, max_length=1000)
    exclude_seen: StrictBool | None = None
    cursor: str | None = Field(None, strict=True, max_length=16_384, pattern=r"^[A-Za-z0-9_=-]+$")
    filters: dict[AttributeName, FilterSpec] = Field(default_factory=dict, max_length=16)
    diversity: float = Field(0.0, ge=0.0, le=1.0, strict=True)
    profiling: StrictBool = True
    deadline_ms: StrictInt | None = Field(None, ge=1, le=60_000)
    reasons_deadline_ms: StrictInt | None = Field(None, ge=0, le=120_000)
    debug: StrictBool = False


EventName = Literal[
    "impression", "view", "click", "like", "rating", "add_to_cart", "purchase", "dislike", "hide", "search"
]


class EventIn(Closed):
    """One event of `POST /v1/events`. `event_id` makes a retry harmless; `timestamp_ms` defaults to now."""

    event_id: Id
    user_id: UserId | None = None
    session_id: Id | None = None
    item_id: Id | None = None
    type: EventName
    timestamp_ms: StrictInt | None = Field(None, ge=0)
    value: EventValue = 1.0
    decision_id: Id | None = None
    impression: str | None = Field(None, strict=True, max_length=256)
    query: str | None = Field(None, strict=True, min_length=1, max_length=512)

    @model_validator(mode="after")
    def _complete(self) -> EventIn:
        if self.user_id is None and self.session_id is None:
            raise ValueError("give user_id or session_id")
        if (self.type == "search") != (self.item_id is None):
            raise ValueError("search carries query and no item_id; every other type carries item_id")
        if (self.type == "search") != (self.query is not None):
            raise ValueError("query belongs to search events, and they need it")
        return self


class ListQuery(Closed):
    """Query string of the list routes: `k`, and per attribute of the catalog the values of which an item needs one."""

    k: StrictInt = Field(10, ge=1, le=MAX_K)
    filters: dict[AttributeName, Annotated[list[AttributeValue], Field(min_length=1, max_length=100)]] = Field(
        default_factory=dict, max_length=16
    )


AttributeIn = AttributeValue | Annotated[list[AttributeValue], Field(max_length=100)] | Number | None
AttributesIn = Annotated[dict[AttributeName, AttributeIn], Field(max_length=32)]
ItemTitle = Annotated[str, Field(strict=True, min_length=1, max_length=1_000, pattern=r"\S")]
ItemText = Annotated[str, Field(strict=True, max_length=100_000)]
Reference = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]


class ItemIn(Closed):
    """Body of `PUT /v1/items/{item_id}`: the whole item. An attribute is a text, a list of texts or a number.

    Another picture or sound than the release has is read by the next one; until then the text stands for it.
    """

    title: ItemTitle
    text: ItemText = ""
    attributes: AttributesIn = Field(default_factory=dict)
    image: Reference = ""
    audio: Reference = ""
    hidden: StrictBool = False
    available: StrictBool = True


class ItemPatch(Closed):
    """Body of `PATCH /v1/items/{item_id}`: what changes; an attribute that is null goes, an image of "" too."""

    title: ItemTitle | None = None
    text: ItemText | None = None
    attributes: AttributesIn = Field(default_factory=dict)
    image: Reference | None = None
    audio: Reference | None = None
    hidden: StrictBool | None = None
    available: StrictBool | None = None

    @model_validator(mode="after")
    def _says_something(self) -> ItemPatch:
        if not self.model_fields_set:
            raise ValueError("give at least one of title, text, attributes, image, audio, hidden, available")
        return self


class EventResult(BaseModel):
    """What became of one event."""

    event_id: str | None
    status: Literal["accepted", "duplicate", "ignored", "invalid"]
    reason: str | None = None


class EventsAnswer(BaseModel):
    """Body of the 202 of `POST /v1/events`."""

    request_id: str
    results: list[EventResult]


class EvidenceOut(BaseModel):
    """What a reason may cite: the user's own items that link to this one, and what they share with it."""

    liked: list[str]
    viewed: list[str]
    shared: list[str]
    year: int | None
    source: str | None
    popular: bool
    trending: bool


class ItemOut(BaseModel):
    """One recommended item."""

    item_id: str
    title: str
    score: float
    score_kind: Literal["probability", "rank_only"]
    rank: int
    sources: list[str]
    impression: str
    reason: str | None = None
    reason_source: Literal["llm", "cache", "template", "none"] = "none"
    evidence: EvidenceOut | None = None


class RecommendAnswer(BaseModel):
    """Body of the 200 of `POST /v1/recommend`."""

    request_id: str
    decision_id: str
    release: str
    profile_age_ms: int | None
    degraded: bool
    degraded_reasons: list[str]
    degradation: dict[str, str]
    next_cursor: str | None
    items: list[ItemOut]
    timings_ms: dict[str, float]


class ListItemOut(BaseModel):
    """One item of a list; `score` is a count of events for popular items, a decayed one for trending items."""

    item_id: str
    title: str
    score: float
    rank: int


class ListAnswer(BaseModel):
    """Body of the 200 of `GET /v1/items:popular` and `GET /v1/items:trending`."""

    request_id: str
    release: str
    degraded: bool
    degraded_reasons: list[str]
    items: list[ListItemOut]
    timings_ms: dict[str, float]


class SimilarItemOut(ListItemOut):
    """One similar item; `sources` says whether its content or what people took after the item speaks for it."""

    sources: list[str]


class TogetherOut(BaseModel):
    """One association rule: `support` baskets hold both items, which is the share `confidence` of the item's baskets.

    `lift` is how many times as often as by chance.
    """

    item_id: str
    title: str
    support: int
    confidence: float
    lift: float


class SimilarAnswer(BaseModel):
    """Body of the 200 of `GET /v1/items/{item_id}/similar`; `bought_together` is best first."""

    request_id: str
    release: str
    degraded: bool
    degraded_reasons: list[str]
    item_id: str
    bought_together: list[TogetherOut]
    items: list[SimilarItemOut]
    timings_ms: dict[str, float]


class ItemAnswer(BaseModel):
    """Body of the 200 of a change of an item, given when it is durable; `sequence` is its number in the item log."""

    request_id: str
    item_id: str
    status: Literal["created", "replaced", "changed", "removed"]
    sequence: int


class Problem(BaseModel):
    """An RFC 9457 problem document."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
