"""Settings of the rankers: part of the `models` section (see `models.settings`)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from models.rankers.engines import EngineName


class RankerSettings(BaseModel):
    """The cross-encoder."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    backend: Literal["compressed", "text"] = "compressed"
    """`compressed` attends over cached item tokens; `text` reads profile and item text with a transformers model."""
    text_uri: str | None = None
    """The sequence-classification model of the `text` back end."""
    compute: EngineName | None = None
    """What computes a `text` ranker on this machine, whatever its artifact says; `auto` is the fastest exact engine."""
