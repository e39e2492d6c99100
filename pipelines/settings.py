"""Settings of how artifacts are made: the `pipelines` section of the one typed tree (see `cluster.config`)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from models.behaviour.behaviour import BehaviourSettings
from pipelines.canary import CanarySettings
from pipelines.embedding.settings import EmbeddingSettings
from pipelines.training.settings import TextTrainingSettings, TrainingSettings


class PipelinesSettings(BaseModel):
    """The `pipelines` section."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    max_bad_rows: int = Field(0, ge=0)
    """An import with more bad rows than this fails; all of them are in the rejects file either way."""
    popularity_half_life_days: float = Field(14.0, gt=0)
    """Recent popularity halves in this time."""
    index_recall: float = Field(0.98, ge=0.5, le=1.0)
    """Share of the 100 nearest items that an index which is not exact finds, measured on held-out queries."""
    index_memory_bytes: int = Field(8 << 30, ge=16 << 20)
    """Memory for building the index on a node; a catalog that takes more gets one in pieces, searched as one."""
    index_pieces: int = Field(1, ge=1, le=1024)
    """Pieces that an index has at least, whatever fits into memory: `serve.index_shards.hosts` share them out."""
    train_ranker: bool = True
    """Whether `build` trains a ranker; without one, retrieval order is served."""
    text_validation_cases: int = Field(100, ge=10)
    """Users whose last event judges a `text` ranker; each costs a hundred pairs of texts."""
    seed: int = Field(0, ge=0)
    """Seed of training; the same seed and data give the same ranker."""
    behaviour: BehaviourSettings = BehaviourSettings()
    """Transitions and collaborative weights."""
    training: TrainingSettings = TrainingSettings()
    """The compressed ranker's training."""
    text: TextTrainingSettings = TextTrainingSettings()
    """The text ranker's training."""
    embedding: EmbeddingSettings = EmbeddingSettings()
    """Embedding the catalog."""
    canary: CanarySettings = CanarySettings()
    """What a release must reach before it is published."""
