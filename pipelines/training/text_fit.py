"""Gradient descent for the text ranker: listwise softmax over what was taken and what was not.

The loss is that of the compressed ranker (Cao et al. 2007, ListNet); with a teacher, the teacher's distribution over
the same list (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"). Every step draws its examples from
the seed and its number alone and there is no dropout, so a training that was killed goes on to the same bytes. Knows
nothing of artifacts. Called by the text training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from models.rankers.packed import computes_bfloat16
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.examples import Progress
from pipelines.training.settings import TextTrainingSettings
from pipelines.training.text_cases import TextCase, negatives
from pipelines.training.text_pairs import PairReader

if TYPE_CHECKING:
    from torch import Tensor

_HEAD = ("classifier", "pooler")
_WARM_SHARE = 0.1

Teacher = Callable[[TextCase, npt.NDArray[np.int32]], npt.NDArray[np.float32]]
"""From a case and catalog rows to the teacher's logits."""


class Group(Protocol):
    """The processes that train together."""

    @property
    def rank(self) -> int:
        """Which of them this one is, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many they are."""
        ...

    def average(self, gradients: list[Tensor]) -> None:
        """Replace each gradient by its mean over the group, in place."""
        ...


@dataclass(frozen=True, slots=True)
class Alone:
    """A group of one."""

    @property
    def rank(self) -> int:
        """The only one."""
        return 0

    @property
    def size(self) -> int:
        """One."""
        return 1

    def average(self, gradients: list[Tensor]) -> None:
        """Nothing to average."""


ALONE = Alone()


def fit_text(
    model: Any,
    reader: PairReader,
    cases: Sequence[TextCase],
    items: int,
    settings: TextTrainingSettings,
    *,
    seed: int,
    teacher: Teacher | None = None,
    group: Group = ALONE,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> list[float]:
    """Train `model`, a sequence-classification model with one label, in place; return the loss of every step.

    `cases` are the training examples, `items` the number of catalog rows. Goes on from `checkpoint`.
    """
    import torch

    model.eval()  # no dropout: a few hundred steps do not overfit, and resuming needs no random state
    optimiser = _optimiser(model, settings)
    trained = [p for g in optimiser.param_groups for p in g["params"]]
    steps = min(settings.steps, max(1, settings.passes * len(cases) // settings.lists_per_step))
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(cases)) for _ in range(settings.passes)])
    losses = _resumed(model, optimiser, checkpoint)
    for step in range(len(losses), steps):
        for part in optimiser.param_groups:
            part["lr"] = part["peak"] * _rate(step, steps)
        whole = order[step * settings.lists_per_step : (step + 1) * settings.lists_per_step]
        mine = whole[group.rank :: group.size]
        loss = _loss(model, reader, [(cases[at], (seed, step, int(at))) for at in mine], items, settings, teacher)
        optimiser.zero_grad()
        (loss * (len(mine) * group.size / len(whole))).backward()  # type: ignore[no-untyped-call]
        group.average([p.grad for p in trained if p.grad is not None])
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        last = len(losses) == steps
        if group.rank == 0 and checkpoint is not None and (last or len(losses) % settings.checkpoint_steps == 0):
            checkpoint.keep_state("text", {"losses": losses, "model": _trained_state(model), **_state(optimiser)})
        if progress is not None and (last or len(losses) % 20 == 0):
            recent = float(np.mean(losses[-20:]))
            progress(f"step {len(losses)} of {steps}: loss {recent:.4f}", len(losses) / steps)
    return losses


def prepare(model: Any, settings: TextTrainingSettings) -> None:
    """Drop and freeze layers as the settings say, in place. Raises ValueError where none would be left to train."""
    base = getattr(model, model.base_model_prefix)
    layers = base.encoder.layer
    if settings.layers is not None:
        if settings.layers > len(layers):
            raise ValueError(f"pipelines.text.layers = {settings.layers}, but the model has {len(layers)}")
        # Evenly spaced and always the last one: what the classifier was to read.
        kept = [round((at + 1) * len(layers) / settings.layers) - 1 for at in range(settings.layers)]
        base.encoder.layer = layers = layers.__class__([layers[at] for at in kept])
        model.config.num_hidden_layers = len(layers)
    frozen = min(settings.frozen_layers, len(layers) - 1)
    for parameter in base.embeddings.parameters():
        parameter.requires_grad_(frozen == 0)
    for layer in layers[:frozen]:
        for parameter in layer.parameters():
            parameter.requires_grad_(False)


def _loss(
    model: Any,
    reader: PairReader,
    cases: Sequence[tuple[TextCase, tuple[int, int, int]]],
    items: int,
    settings: TextTrainingSettings,
    teacher: Teacher | None,
) -> Tensor:
    """Return the mean listwise loss of cases, each with the seed of its negatives; the taken item is the first.

    A teacher also tells of lists that miss what was taken: there its word is all there is.
    """
    import torch

    device = next(model.parameters()).device
    pairs, wanted, width = [], [], 0
    for case, draw in cases:
        rng = np.random.default_rng(draw)
        known = teacher is None or case.place >= 0
        others = negatives(case, items, settings.hard_negatives + (not known), settings.random_negatives, rng)
        rows = np.concatenate([[case.taken] if known else [], others]).astype(np.int32)
        pairs += reader.read(case.query, rows)
        width = len(rows)
        wanted.append(_target(case, rows, settings.distil_weight if known else 1.0, teacher))
    inputs = {name: torch.from_numpy(a).to(device) for name, a in reader.padded(pairs).items()}
    half = settings.bfloat16 if settings.bfloat16 is not None else device.type == "cuda" or computes_bfloat16()
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        logits = model(**inputs).logits[:, 0]
    shares = torch.from_numpy(np.stack(wanted)).to(device)
    loss: Tensor = -(shares * logits.float().view(len(cases), width).log_softmax(dim=1)).sum(dim=1).mean()
    return loss


def _target(
    case: TextCase, rows: npt.NDArray[np.int32], weight: float, teacher: Teacher | None
) -> npt.NDArray[np.float32]:
    """Return how the mass of one list is to be shared; with a teacher the first row gets it only by 1 - `weight`."""
    target = np.zeros(len(rows), np.float32)
    target[0] = 1.0
    if teacher is None:
        return target
    logits = teacher(case, rows)
    shares = np.exp(logits - logits.max())
    mixed: npt.NDArray[np.float32] = (weight * shares / shares.sum() + (1 - weight) * target).astype(np.float32)
    return mixed


def _optimiser(model: Any, settings: TextTrainingSettings) -> Any:
    import torch

    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    head = [p for n, p in named if any(part in n for part in _HEAD)]
    rest = [p for n, p in named if not any(part in n for part in _HEAD)]
    groups = [{"params": rest, "peak": settings.learning_rate}, {"params": head, "peak": settings.head_learning_rate}]
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay)


def _rate(step: int, steps: int) -> float:
    """Up in a straight line, then down to nothing."""
    warm = max(1, round(steps * _WARM_SHARE))
    return min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))


def _trained_state(model: Any) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}


def _state(optimiser: Any) -> dict[str, Any]:
    return {"optimiser": optimiser.state_dict()}


def _resumed(model: Any, optimiser: Any, checkpoint: Checkpoint | None) -> list[float]:
    import torch

    state = None if checkpoint is None else checkpoint.state("text")
    if state is None:
        return []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in state["model"]:
                parameter.copy_(state["model"][name])
    optimiser.load_state_dict(state["optimiser"])
    return list(state["losses"])
