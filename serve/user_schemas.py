"""The part of the HTTP contract that is about one user: declarations, linked sessions, stored profiles.

As `serve.schemas`; ids come in bodies, never in a path.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from serve.schemas import AttributeName, Closed, EventName, Id, UserId

MAX_DECLARED = 50
"""Values of all attributes that a user or session declares; read with every request of theirs."""
DeclaredValue = Annotated[str, Field(strict=True, min_length=1, max_length=100, pattern=r"\S")]
DeclaredValues = Annotated[list[DeclaredValue], Field(min_length=1, max_length=MAX_DECLARED)]


class UserIn(Closed):
    """Body of `PUT /v1/users`: all that a user or session declares; what was declared before is replaced.

    `attributes` are kept as they are. `about` is kept as a vector only. Without both, what was declared is removed.
    """

    user_id: UserId | None = None
    session_id: Id | None = None
    attributes: dict[AttributeName, DeclaredValue | DeclaredValues] = Field(default_factory=dict, max_length=16)
    about: str | None = Field(None, strict=True, min_length=1, max_length=2_000, pattern=r"\S")

    @model_validator(mode="after")
    def _bounded(self) -> UserIn:
        if (self.user_id is None) == (self.session_id is None):
            raise ValueError("give user_id or session_id, one of them")
        if len(self.labels()) > MAX_DECLARED:
            raise ValueError(f"at most {MAX_DECLARED} values are declared in all")
        return self

    def labels(self) -> tuple[tuple[str, str], ...]:
        """Return the attributes as pairs of a name and one value, each pair once."""
        listed = ((n, [v] if isinstance(v, str) else v) for n, v in self.attributes.items())
        return tuple(dict.fromkeys((name, value.strip()) for name, values in listed for value in values))


class LinkRequest(Closed):
    """Body of `POST /v1/users:link`."""

    user_id: UserId
    session_id: Id

    @model_validator(mode="after")
    def _two(self) -> LinkRequest:
        if self.user_id == self.session_id:
            raise ValueError("user_id and session_id are the same: give the user that the session turned out to be")
        return self


class ProfileRequest(Closed):
    """Body of `POST /v1/users:profile`: a user or an anonymous session."""

    user_id: UserId | None = None
    session_id: Id | None = None

    @model_validator(mode="after")
    def _one(self) -> ProfileRequest:
        if (self.user_id is None) == (self.session_id is None):
            raise ValueError("give user_id or session_id, one of them")
        return self


class DeclareAnswer(BaseModel):
    """Body of the 200 of `PUT /v1/users`, given when it is durable.

    `known_labels` and `unknown_labels` count the declared labels that some item of the current release carries, or no
    item does.
    """

    request_id: str
    status: Literal["declared", "removed"]
    known_labels: int
    unknown_labels: int


class LinkAnswer(BaseModel):
    """Body of the 200 of `POST /v1/users:link`, given when the merge is durable; asking again is harmless.

    `session_known` is False for a session of which nothing is stored (never seen, expired, or linked before).
    `events` counts the session's recent events that the user did not have yet.
    """

    request_id: str
    session_known: bool
    events: int


class ProfileEventOut(BaseModel):
    """One stored event; `title` is null where the current release holds no such item."""

    item_id: str
    title: str | None
    type: EventName
    value: float
    timestamp_ms: int


class ProfileAnswer(BaseModel):
    """Body of the 200 of `POST /v1/users:profile`: `events` newest first, `seen_items` ever seen, both bounded.

    `summary` is what a text ranker reads of it. `search_age_ms` is the age of the search that still steers lists, null
    where there is none; its text is not stored. `declared` is what `PUT /v1/users` left, by attribute; null without.
    """

    request_id: str
    release: str
    known: bool
    summary: str
    seen_items: int
    search_age_ms: int | None
    declared: dict[str, list[str]] | None
    events: list[ProfileEventOut]
