"""How a ranker is trained. Read by this package; the owner of the settings tree exposes it as a section."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class TrainingSettings(BaseModel):
    """Settings of `train_ranker`; the defaults suit catalogs of a few thousand items on two cores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: Literal["user", "time"] = "user"
    """`user`: examples are each user's latest events; `time`: all events after one moment, as a shop would see them."""
    train_positions: int = Field(15, ge=1)
    """Latest events of a user that become training examples (before the validation ones)."""
    validation_positions: int = Field(3, ge=1)
    """Latest events of a user that judge the model; never trained on."""
    time_share: float = Field(0.15, gt=0, lt=1)
    """With `split: time`: the share of newest events that are examples; the newest fifth of them validates."""
    baskets: bool = False
    """Whether what a user took at one time is one example, asked before it and all of it right: for shops."""
    stretches: int = Field(1, ge=1, le=100)
    """With `split: time`: sources are fitted anew before each of so many stretches of training and of validation."""
    list_size: int = Field(100, ge=2, le=1000)
    """Retrieved candidates per example; what serving ranks."""
    near_future: int = Field(8, ge=0, le=50)
    """Later training events of the user that count as partly right; events of one sitting are nearly exchangeable."""
    near_future_weight: float = Field(0.6, ge=0, le=1)
    """How right the next one is; each further one by this factor less. 0 with `near_future` 0: only the next event."""
    max_lists: int = Field(20_000, ge=1)
    """More examples than this are sampled by user; bounds memory (about 16 KB a list) and time."""
    exclude_seen: bool = True
    """Whether touched items are kept out of the lists, as serving does; a shop with repeat purchases says false, and
    then learns from both questions, since a request can leave them out."""
    epochs: int = Field(5, ge=0)
    """Most passes of the attention part; as many are used as were best on validation events, none if it did not help.
    0 trains the head alone."""
    refit: bool = True
    """Whether the lists that stopped the training then teach too: trained again on both, for as many passes as paid.
    They are the newest but those that decide, which stay unseen. Twice the time."""
    lean: float = Field(0.3, ge=0)
    """How much the order of retrieval counts beside what was learned, per deviation of its scores: what was learned of
    one time is less true of the next."""
    learning_rate: float = Field(3e-4, gt=0)
    """Peak step size of the attention part."""
    batch_lists: int = Field(64, ge=1)
    """Lists per step."""
    incremental_epochs: int = Field(2, ge=1)
    """Most passes over new events when training goes on from the ranker served now."""
    incremental_learning_rate: float = Field(1e-4, gt=0)
    """Peak step size then: gentle, since a few new events must not undo what many old ones taught."""
    incremental_validation_share: float = Field(0.3, gt=0, lt=1)
    """Share of the new events, the newest, that stops, calibrates and decides."""
    sampled_negatives: int = Field(49, ge=1)
    """Candidates beside the taken one that a step looks at; drawn anew every time."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout of the attention part while training."""
    weight_decay: float = Field(0.05, ge=0)
    """AdamW's decay of the attention part."""
    id_vectors: bool = False
    """Whether items also get a learned vector each; helps only with many events per item."""
    id_shards: int = Field(1, ge=1, le=1024)
    """Above 1 the learned vectors, 517 bytes an item while they are learned, lie in so many Ray actors, over the nodes
    where there are several; what is learned is the same. Nodes must share the state folder, for checkpoints."""
    min_examples: int = Field(50, ge=1)
    """Fewer training or validation lists than this: no ranker is trained, and the metrics say why."""
    bootstrap_rounds: int = Field(2000, ge=100)
    """Resamples of users behind the paired interval that decides whether the ranker is switched on."""

    @model_validator(mode="after")
    def _stretches_are_of_time(self) -> Self:
        if self.stretches > 1 and self.split != "time":
            raise ValueError(
                f"stretches = {self.stretches} needs split: time; by user, sources know others' later events"
            )
        return self

    @model_validator(mode="after")
    def _shards_are_of_id_vectors(self) -> Self:
        if self.id_shards > 1 and not self.id_vectors:
            raise ValueError(f"id_shards = {self.id_shards} needs id_vectors: true; there is no other table to cut")
        return self

    def deciding(self) -> dict[str, Any]:
        """Return what decides what is trained, as plain values: where id vectors lie does not, how they learn does."""
        learned = {"id_optimiser": "row-wise Adagrad"} if self.id_vectors else {}
        return {**self.model_dump(exclude={"id_shards"}), **learned}


class TextTrainingSettings(BaseModel):
    """Settings of `train --kind text`; the defaults train for some minutes on two cores."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    start_uri: str | None = None
    """Reranker or encoder to start from; null takes the encoder of the settings."""
    layers: int | None = Field(None, ge=1)
    """Keep only so many of its layers, evenly spaced; null keeps all."""
    frozen_layers: int = Field(0, ge=0)
    """Lowest layers that stay as they are (with the embeddings): their gradients are never computed."""
    max_tokens: int = Field(64, ge=16, le=8192)
    """Longest pair; of profile and item the longer one is cut first."""
    steps: int = Field(500, ge=1)
    """Most steps."""
    passes: int = Field(2, ge=1)
    """Most passes over the examples; few examples make fewer steps."""
    lists_per_step: int = Field(8, ge=1)
    """Examples per step, over all workers."""
    similar: int = Field(100, ge=2, le=1000)
    """An example is a list of so many items that are most like the user's past, one of which was taken; with a teacher
    also lists that miss it, of which only the teacher tells."""
    hard_negatives: int = Field(5, ge=0)
    """Others of that list, per example."""
    random_negatives: int = Field(0, ge=0)
    """Items at random, per example: they teach what retrieval knows already."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak step size, after a tenth of the steps; it falls to nothing at the end."""
    head_learning_rate: float = Field(1e-3, gt=0)
    """Peak step size of the pooler and the classifier, which start from noise."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's decay."""
    list_size: int = Field(50, ge=2, le=1000)
    """Candidates of all sources that it is judged on."""
    validation_cases: int = Field(150, ge=10)
    """Lists that hold the item taken, of each half: one fits the fusion and calibrates, the other decides."""
    bfloat16: bool | None = None
    """Whether matrix products are bfloat16; null where the device computes them."""
    checkpoint_steps: int = Field(40, ge=1)
    """A kill costs at most so many steps."""
    workers: int = Field(1, ge=1)
    """Above 1 the steps run through Ray Train in so many processes, each with its share of every step."""
    cpus_per_worker: float = Field(0.5, gt=0)
    """Logical CPUs that Ray sets aside for each of them; below 1 leaves room on a machine that also serves."""
    distil_weight: float = Field(0.8, ge=0, le=1)
    """With a teacher: how much its scores count beside what was taken."""

    @property
    def width(self) -> int:
        """How many items of an example a step looks at."""
        return 1 + self.hard_negatives + self.random_negatives

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide what is trained, as plain values: a share of a CPU does not."""
        return self.model_dump(exclude={"cpus_per_worker"})
