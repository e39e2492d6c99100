"""Gradient descent for the compressed ranker: the fusion head first, then attention on top of it.

Listwise softmax (Cao et al. 2007, ListNet with one relevant item): the taken candidate against the others of its
list. Each phase keeps the epoch with the least loss on later events, so more epochs cannot make the result worse; or,
once it is known how many epochs pay, runs just so many. Learned vectors of items lie in a table of their own: a step
pulls the rows of its batch and pushes their gradients. Deterministic for a seed and a number of threads. Called by
`train_ranker`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from models.rankers.fusion import FEATURE_NAMES
from models.rankers.id_vectors import IdVectors
from models.rankers.network import (
    HistoryTensors,
    NetworkShape,
    Parameters,
    attention_logits,
    head_logits,
    item_tokens,
    with_ids,
)
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.epochs import Kept, Nothing, Stateful, keep_best, run_all
from pipelines.training.examples import Progress, RankingLists
from pipelines.training.id_tables import IdTable
from pipelines.training.settings import TrainingSettings

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float32]
HEAD = ("head.linear", "head.in", "head.in_bias", "head.out")
HEAD_EPOCHS = 12
"""Most passes of the head alone; it takes seconds."""
_FIXED = ("head.mean", "head.scale")
_ID_RATE = 30.0
"""Steps of id vectors beside those of the rest: row-wise Adagrad starts at about 0.01 and shrinks them by itself."""
_SCORE_BLOCK = 64


@dataclass(frozen=True, slots=True)
class ItemInputs:
    """What item tokens are made of, by catalog row: text vectors (may be mapped), label slots, numbers, id slots.

    `vectors` is what the id slots point into; None where no item has a vector of its own.
    """

    text: Floats
    labels: npt.NDArray[np.int64]
    numbers: Floats
    ids: npt.NDArray[np.int64]
    vectors: IdVectors | None = None

    def take(self, tokens: npt.NDArray[np.int64]) -> TakenItems:
        """Return the inputs of `tokens` (catalog row + 1); all zero for 0, the padding. Pulls the id vectors, once."""
        import torch

        rows, padding = np.maximum(tokens - 1, 0), tokens == 0
        parts = [np.array(column[rows]) for column in (self.text, self.labels, self.numbers, self.ids)]
        for part in parts:
            part[padding] = 0
        slots, position = np.unique(parts[3], return_inverse=True)
        vectors = None if self.vectors is None else torch.from_numpy(self.vectors.rows(slots))
        return TakenItems([torch.from_numpy(part) for part in (*parts[:3], position)], slots, vectors)


@dataclass(frozen=True, slots=True)
class TakenItems:
    """The items of a batch: `inputs` of `item_tokens`, whose id slots point into `vectors`, the rows of `slots`."""

    inputs: list[Tensor]
    slots: npt.NDArray[np.int64]
    vectors: Tensor | None

    def learned(self) -> list[Tensor]:
        """Return the id vectors as a list, empty where there are none, with gradients from here on."""
        return [] if self.vectors is None else [self.vectors.requires_grad_()]


def set_scaling(p: Parameters, lists: RankingLists) -> None:
    """Store mean and deviation of every feature over the real candidates of `lists`, for the head to divide by.

    The head does not read what is the same everywhere here: its random weights would never be corrected, and requests
    of another kind, for lists that may hold what the user has, would meet them.
    """
    import torch

    real = lists.features[lists.rows >= 0]
    deviation = real.std(axis=0)
    varies = deviation > 1e-3
    p["head.mean"] = torch.from_numpy(real.mean(axis=0).astype(np.float32))
    p["head.scale"] = torch.from_numpy(np.where(varies, deviation, 1.0).astype(np.float32))
    p["head.in"][:, torch.from_numpy(~varies)] = 0.0


def lean(p: Parameters, weight: float) -> None:
    """Let the order of retrieval count `weight` per deviation of its scores more beside what was learned, in place.

    It moves one weight of the head, so it costs nothing to serve, and the negative `weight` takes it back.
    """
    at = FEATURE_NAMES.index("merged_z")
    p["head.linear"][at] += weight * p["head.scale"][at]


def fit_head(
    p: Parameters,
    train: RankingLists,
    judge: RankingLists | None,
    *,
    seed: int,
    epochs: int = HEAD_EPOCHS,
    rate: float = 3e-3,
    checkpoint: Checkpoint | None = None,
) -> int:
    """Train the head alone in place; return after how many of `epochs` it was best on `judge`.

    Without `judge` it is what all of them make of it. Goes on from `checkpoint` where it was killed.
    """
    import torch

    features, mask, relevance = _tensors(train)
    trained = {n: p[n].requires_grad_() for n in HEAD}
    optimiser = torch.optim.AdamW(trained.values(), lr=rate, weight_decay=1e-2)

    def epoch(rng: np.random.Generator) -> None:
        for batch in _batches(len(train), 256, rng):
            at = torch.from_numpy(batch)
            loss = _listwise(head_logits(p, features[at], dropout=0.2), mask[at], relevance[at])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()

    parts: dict[str, Stateful] = {"optimiser": optimiser}
    if judge is None:
        run_all(trained, epoch, epochs=epochs, seed=seed, kept=Kept(checkpoint, "head again", parts))
        return epochs
    kept = Kept(checkpoint, "head", parts)
    return keep_best(trained, epoch, lambda: score_head(p, judge), judge.target, epochs=epochs, seed=seed, kept=kept)


def fit_attention(
    p: Parameters,
    shape: NetworkShape,
    items: ItemInputs,
    train: RankingLists,
    judge: RankingLists | None,
    settings: TrainingSettings,
    *,
    seed: int,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
    table: IdTable | None = None,
) -> int:
    """Train attention and head together in place, up to `settings.epochs`; `judge` and result as in `fit_head`.

    `table` is `items.vectors` where they are learned.
    """
    import torch

    fixed = _FIXED if table is None else (*_FIXED, "item.id")
    trained = {n: t.requires_grad_() for n, t in p.items() if n not in fixed}
    head = [t for n, t in trained.items() if n in HEAD]
    rest = [t for n, t in trained.items() if n not in HEAD]
    groups = [
        {"params": rest, "weight_decay": settings.weight_decay},
        {"params": head, "weight_decay": 1e-2, "lr": settings.learning_rate / 3},
    ]
    optimiser = torch.optim.AdamW(groups, lr=settings.learning_rate)
    steps = max(1, settings.epochs * -(-len(train) // settings.batch_lists))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [settings.learning_rate, settings.learning_rate / 3], total_steps=steps + 1, pct_start=0.15
    )

    def epoch(rng: np.random.Generator) -> None:
        for batch in _batches(len(train), settings.batch_lists, rng):
            part = _sample(train.take(batch), settings.sampled_negatives, rng)
            named = _Named.of(part, items)
            vectors = named.items.learned()
            loss = _listwise(_fused(p, shape, named, part, dropout=settings.dropout), *_tensors(part)[1:])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_([*rest, *head, *vectors], 1.0)
            if table is not None:
                rate = _ID_RATE * float(schedule.get_last_lr()[0])
                table.push(named.items.slots, vectors[0].grad.numpy(), rate)  # type: ignore[union-attr]
            optimiser.step()
            schedule.step()

    parts: dict[str, Stateful] = {"optimiser": optimiser, "schedule": schedule}
    beside = table or Nothing()
    if judge is None:
        kept = Kept(checkpoint, "attention again", parts, beside)
        run_all(trained, epoch, epochs=settings.epochs, seed=seed, kept=kept, progress=progress)
        return settings.epochs
    return keep_best(
        trained,
        epoch,
        lambda: score_fused(p, shape, items, judge),
        judge.target,
        epochs=settings.epochs,
        seed=seed,
        kept=Kept(checkpoint, "attention", parts, beside),
        progress=progress,
    )


def score_head(p: Parameters, lists: RankingLists) -> Floats:
    """Return the head's logits float32[L, N], -inf at padding."""
    import torch

    with torch.inference_mode():
        logits = head_logits(p, torch.from_numpy(lists.features)).numpy()
    return np.where(lists.rows >= 0, logits, -np.inf).astype(np.float32)


def score_fused(p: Parameters, shape: NetworkShape, items: ItemInputs, lists: RankingLists) -> Floats:
    """Return head plus attention logits float32[L, N], -inf at padding."""
    import torch

    out = np.empty(lists.rows.shape, np.float32)
    with torch.inference_mode():
        for at in range(0, len(lists), _SCORE_BLOCK):
            block = lists.take(np.arange(at, min(at + _SCORE_BLOCK, len(lists))))
            out[at : at + _SCORE_BLOCK] = _fused(p, shape, _Named.of(block, items), block, dropout=0.0).numpy()
    return np.where(lists.rows >= 0, out, -np.inf).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Named:
    """The distinct items that lists name, and which of them stands at each place of history and list."""

    items: TakenItems
    position: Tensor

    @classmethod
    def of(cls, lists: RankingLists, items: ItemInputs) -> _Named:
        """Take one of each: a large catalog costs no more than a small one."""
        import torch

        named = np.concatenate([lists.history[:, 0], lists.rows.astype(np.int64) + 1], axis=1)
        distinct, position = np.unique(named, return_inverse=True)
        return cls(items.take(distinct), torch.from_numpy(position.reshape(named.shape)))


def _fused(p: Parameters, shape: NetworkShape, named: _Named, lists: RankingLists, *, dropout: float) -> Tensor:
    import torch
    import torch.nn.functional as F

    columns = torch.from_numpy(lists.history)
    # Not by indexing: the gradient of that is summed in whichever order the threads arrive.
    tokens = F.embedding(named.position, item_tokens(with_ids(p, named.items.vectors), *named.items.inputs))
    length = columns.shape[2]
    attention = attention_logits(
        p, shape, HistoryTensors(*columns.unbind(1)), tokens[:, :length], tokens[:, length:], dropout=dropout
    )
    return attention + head_logits(p, torch.from_numpy(lists.features), dropout=dropout)


def _sample(lists: RankingLists, negatives: int, rng: np.random.Generator) -> RankingLists:
    """Keep the taken candidate and `negatives` others of each list: what was shown and left, then random ones."""
    count, size = lists.rows.shape
    if negatives + 1 >= size:
        return lists
    order = rng.random((count, size), dtype=np.float32)
    order[lists.rows < 0] = 2.0  # padding last
    order[lists.shown] -= 1.0
    order[np.arange(count), lists.target] = -2.0
    kept = np.argpartition(order, negatives, axis=1)[:, : negatives + 1]
    first = np.argmin(np.take_along_axis(order, kept, axis=1), axis=1)
    return replace(
        lists,
        rows=np.take_along_axis(lists.rows, kept, axis=1),
        features=np.take_along_axis(lists.features, kept[:, :, None], axis=1),
        merged=np.take_along_axis(lists.merged, kept, axis=1),
        target=first.astype(np.int32),
        relevance=np.take_along_axis(lists.relevance, kept, axis=1),
        shown=np.take_along_axis(lists.shown, kept, axis=1),
    )


def _tensors(lists: RankingLists) -> tuple[Tensor, Tensor, Tensor]:
    import torch

    return (
        torch.from_numpy(lists.features),
        torch.from_numpy(lists.rows >= 0),
        torch.from_numpy(lists.relevance),
    )


def _listwise(logits: Tensor, mask: Tensor, relevance: Tensor) -> Tensor:
    share = relevance / relevance.sum(dim=1, keepdim=True)
    return -(share * logits.masked_fill(~mask, -1e9).log_softmax(dim=1)).sum(dim=1).mean()


def _batches(count: int, size: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    order = rng.permutation(count)
    for at in range(0, count, size):
        yield order[at : at + size]
