"""Epochs with early stopping that go on after a kill exactly where they were.

What is kept after each epoch is all that decides the next one: weights, the optimiser's moments, the schedule, both
random states and the best weights so far. So an interrupted training ends with the same bytes as one in a single run.
What lies beside the weights, in other processes maybe, keeps itself first, under the number of the epoch: the rest then
names what belongs to it.
Knows nothing of models. Called by `fit`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from models.rankers.network import Parameters
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.examples import Progress
from pipelines.training.measures import list_loss, ndcg_at

Floats = npt.NDArray[np.float32]


class Stateful(Protocol):
    """An optimiser or a schedule of torch."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that it remembers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Take over what another one remembered."""
        ...


class Beside(Protocol):
    """What is trained beside the tensors and too large to be copied through here (see `id_tables.IdTable`)."""

    def keep(self) -> None:
        """Remember the present state."""
        ...

    def restore(self) -> None:
        """Go back to what was remembered."""
        ...

    def write(self, checkpoint: Checkpoint, name: str) -> None:
        """Keep both states on disk as arrays whose names begin with `name`."""
        ...

    def resume(self, checkpoint: Checkpoint, name: str) -> bool:
        """Take over what `write` kept; False, and nothing changed, where it cannot be read."""
        ...


class Nothing:
    """A `Beside` where tensors are all there is."""

    def keep(self) -> None:
        """See `Beside.keep`."""

    def restore(self) -> None:
        """See `Beside.restore`."""

    def write(self, checkpoint: Checkpoint, name: str) -> None:
        """See `Beside.write`."""

    def resume(self, checkpoint: Checkpoint, name: str) -> bool:
        """See `Beside.resume`."""
        return True


@dataclass(frozen=True, slots=True)
class Kept:
    """Where a phase keeps its state, under which name, and what belongs to it beside the weights."""

    checkpoint: Checkpoint | None = None
    name: str = "epochs"
    parts: Mapping[str, Stateful] = field(default_factory=dict)
    beside: Beside = field(default_factory=Nothing)

    def of_epoch(self, number: int) -> str:
        """Return what the names of arrays begin with that lie beside the weights after an epoch."""
        return f"{self.name} {number} "


@dataclass(slots=True)
class _Standing:
    """How far a phase is, and the least loss it has seen, if it looks for one: when, and with which weights."""

    epoch: int = 0
    best: float = math.inf
    best_epoch: int = 0
    state: Parameters = field(default_factory=dict)
    waited: int = 0


def keep_best(
    trained: Parameters,
    epoch: Callable[[np.random.Generator], None],
    judged: Callable[[], Floats],
    target: npt.NDArray[np.int32],
    *,
    epochs: int,
    seed: int,
    kept: Kept,
    progress: Progress | None = None,
    patience: int = 2,
) -> int:
    """Run `epoch` up to `epochs` times, leave the state of least loss (the start included), return after how many.

    `judged` scores the judging lists with the present state. Stops after `patience` epochs without progress.
    """
    with _going_on(trained, seed) as rng:
        at = _resumed(trained, kept, rng)
        if at is None:
            at = _Standing(best=list_loss(judged(), target), state=_copy(trained))
            kept.beside.keep()
        while at.epoch < epochs and at.waited < patience:
            epoch(rng)
            scores = judged()
            loss = list_loss(scores, target)
            at.epoch += 1
            at.waited += 1
            if loss < at.best:
                at.best, at.best_epoch, at.waited, at.state = loss, at.epoch, 0, _copy(trained)
                kept.beside.keep()
            _keep(trained, kept, rng, at)
            if progress is not None:
                progress(f"epoch {at.epoch}: loss {loss:.4f}, NDCG@10 {ndcg_at(scores, target):.4f}", at.epoch / epochs)
    for name, tensor in trained.items():
        tensor.copy_(at.state[name])
    kept.beside.restore()
    return at.best_epoch


def run_all(
    trained: Parameters,
    epoch: Callable[[np.random.Generator], None],
    *,
    epochs: int,
    seed: int,
    kept: Kept,
    progress: Progress | None = None,
) -> None:
    """Run `epoch` exactly `epochs` times; what they make of `trained` stays, with nothing to judge it by."""
    with _going_on(trained, seed) as rng:
        at = _resumed(trained, kept, rng) or _Standing()
        while at.epoch < epochs:
            epoch(rng)
            at.epoch += 1
            _keep(trained, kept, rng, at)
            if progress is not None:
                progress(f"again, epoch {at.epoch} of {epochs}", at.epoch / epochs)


@contextmanager
def _going_on(trained: Parameters, seed: int) -> Iterator[np.random.Generator]:
    """Lend a generator of `seed`, with torch's own set to it too; afterwards nothing is trained any more."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield np.random.default_rng(seed)
    for tensor in trained.values():
        tensor.requires_grad_(False)


def _keep(trained: Parameters, kept: Kept, rng: np.random.Generator, at: _Standing) -> None:
    import torch

    if kept.checkpoint is None:
        return
    state = {
        "epoch": at.epoch,
        "best": at.best,
        "best_epoch": at.best_epoch,
        "waited": at.waited,
        "state": at.state,
        "trained": _copy(trained),
        "numpy": json.dumps(rng.bit_generator.state),
        "torch": torch.get_rng_state(),
        **{f"part {name}": part.state_dict() for name, part in kept.parts.items()},
    }
    kept.beside.write(kept.checkpoint, kept.of_epoch(at.epoch))
    kept.checkpoint.keep_state(kept.name, state)
    kept.checkpoint.forget_arrays(kept.of_epoch(at.epoch - 1))


def _resumed(trained: Parameters, kept: Kept, rng: np.random.Generator) -> _Standing | None:
    """Put everything back as it was after the last epoch; None where nothing was kept."""
    import torch

    state = None if kept.checkpoint is None else kept.checkpoint.state(kept.name)
    if state is None or kept.checkpoint is None:
        return None
    if not kept.beside.resume(kept.checkpoint, kept.of_epoch(state["epoch"])):
        return None
    with torch.no_grad():
        for name, tensor in trained.items():
            tensor.copy_(state["trained"][name])
    for name, part in kept.parts.items():
        part.load_state_dict(state[f"part {name}"])
    rng.bit_generator.state = json.loads(state["numpy"])
    torch.set_rng_state(state["torch"])
    return _Standing(state["epoch"], state["best"], state["best_epoch"], state["state"], state["waited"])


def _copy(parameters: Parameters) -> Parameters:
    return {n: t.detach().clone() for n, t in parameters.items()}
