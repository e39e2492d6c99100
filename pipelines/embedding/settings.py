"""Settings of embedding a catalog: `pipelines.embedding` in the settings tree."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from models.vectors import Dtype


class EmbeddingSettings(BaseModel):
    """How `reembed` computes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    dtype: Dtype = "float32"
    """Numbers that vectors are kept as; `float16` halves their bytes and is read as float32 everywhere."""
    workers: int = Field(2, ge=1)
    """Encoder actors; each holds the model once."""
    threads: int = Field(1, ge=1)
    """CPU threads of one actor; actors of one thread each do more than one actor of many."""
    cpus_per_worker: float = Field(0.5, ge=0)
    """Logical CPUs that Ray sets aside for an actor."""
    gpus_per_worker: float | None = Field(None, ge=0)
    """GPUs, or a share of one, that Ray sets aside for an actor; none shares out what is free when the job starts."""
    max_unread_media: int = Field(0, ge=0)
    """Most pictures and sounds of a catalog that may be unreadable; their items are known by text alone then."""
    watch_poll_s: float = Field(5.0, gt=0)
    """How often `reembed --watch` looks at the item log."""
    watch_changes: int = Field(1000, ge=1)
    """`--watch` makes a release once this many changes wait."""
    watch_age_s: float = Field(900.0, gt=0)
    """`--watch` makes a release once a change has waited this long."""
