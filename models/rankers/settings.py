"""Settings of the rankers: part of the `models` section (see `models.settings`)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from models.rankers.engines import EngineName
from models.retrieval.query import RetrievalQuery


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class CascadeSettings(_Section):
    """The `text` ranker after the `compressed` one, over the best few; what it needs beside it is in `text_uri`."""

    candidates: int = Field(0, ge=0, le=500)
    """How many of the best a text ranker reads again, where time allows and it has earned its place; 0 asks none."""
    most_events: int | None = Field(None, ge=0)
    """Only users with no more events than this are ranked twice; none asks for all. A language model knows titles where
    events are few."""
    minimum_ms: float = Field(30.0, gt=0)
    """With less time than this left, the text ranker is not asked."""
    reserve_ms: float = Field(10.0, ge=0)
    """Time kept for the way back: the text ranker must be done this long before the stage's budget ends."""
    weight: float = Field(0.5, ge=0, le=1)
    """Share of the text ranker in the order of the best; 1 is its order alone."""

    def asks(self, query: RetrievalQuery) -> bool:
        """Whether a user with this history is ranked by both."""
        return self.most_events is None or len(query.user) <= self.most_events


class RankerSettings(_Section):
    """The cross-encoder."""

    backend: Literal["compressed", "text"] = "compressed"
    """`compressed` attends over cached item tokens; `text` reads profile and item text with a transformers model."""
    text_uri: str | None = None
    """The model of the `text` back end, or of the cascade behind the `compressed` one: a sequence classifier with one
    label, or a causal language model, which is asked yes or no per item."""
    compute: EngineName | None = None
    """What computes a `text` ranker on this machine, whatever its artifact says; `auto` is the fastest exact engine."""
    cascade: CascadeSettings = CascadeSettings()
    """A second ranker over the best of the first."""
