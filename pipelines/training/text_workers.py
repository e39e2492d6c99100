"""The steps of the text training in several processes, through Ray Train: each reads its share of every step.

Gradients are averaged over all of them (gloo on a CPU, nccl on GPUs), so the outcome is that of one process up to the
order in which numbers are added. The checkpoint's folder must be one that every worker reads: a shared disk where
there are several nodes. Called by the text training; knows nothing of events.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.catalog import ItemCatalog
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.settings import TextTrainingSettings
from pipelines.training.text_cases import TextCase

if TYPE_CHECKING:
    from torch import Tensor

_CASES, _MODEL = "cases.pkl", "trained"


class Processes:
    """A `text_fit.Group` over torch's process group, which Ray Train has set up."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self._rank, self._size = dist.get_rank(), dist.get_world_size()

    @property
    def rank(self) -> int:
        """Which of them this one is, from 0."""
        return self._rank

    @property
    def size(self) -> int:
        """How many they are."""
        return self._size

    def average(self, gradients: list[Tensor]) -> None:
        """Average all gradients in one exchange."""
        import torch
        import torch.distributed as dist

        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= self._size
        at = 0
        for gradient in gradients:
            gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
            at += gradient.numel()


@dataclass(frozen=True, slots=True)
class Work:
    """What every worker is given beside the cases."""

    start: Path
    teacher: Path | None
    settings: TextTrainingSettings
    seed: int
    folder: Path


def fit_on_workers(
    work: Work, cases: Sequence[TextCase], catalog: ItemCatalog, *, told: Callable[[str], None] = lambda _: None
) -> tuple[list[float], Path]:
    """Train in `work.settings.workers` processes; return rank 0's losses and the folder of the trained model.

    Raises ValueError where there is no Ray to run on, or fewer lists a step than workers.
    """
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    of = work.settings
    if not ray.is_initialized():
        raise ValueError(f"pipelines.text.workers = {of.workers} needs Ray: run it through `raycommend train`")
    if of.lists_per_step < of.workers:
        raise ValueError(f"pipelines.text.lists_per_step = {of.lists_per_step} is less than workers = {of.workers}")
    work.folder.mkdir(parents=True, exist_ok=True)
    # Written here and read by workers that we start ourselves: not something that came from outside.
    (work.folder / _CASES).write_bytes(pickle.dumps((list(cases), catalog)))
    gpu = ray.cluster_resources().get("GPU", 0) >= of.workers
    told(f"training in {of.workers} processes")
    TorchTrainer(
        _train,
        train_loop_config={"work": work},
        scaling_config=ScalingConfig(num_workers=of.workers, use_gpu=gpu, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="text-ranker", storage_path=str(work.folder / "ray")),
    ).fit()
    state = Checkpoint(work.folder).state("text")
    (work.folder / _CASES).unlink()
    if state is None:
        raise ValueError("the workers ended without a trained model")
    return list(state["losses"]), work.folder / _MODEL


def _train(config: dict[str, Any]) -> None:
    """Run in every worker."""
    from pipelines.training.text_fit import fit_text
    from pipelines.training.text_pairs import PairReader
    from pipelines.training.text_start import load_start, teacher_of

    work: Work = config["work"]
    cases, catalog = pickle.loads((work.folder / _CASES).read_bytes())
    model, tokenizer = load_start(work.start, work.settings, seed=work.seed)
    reader = PairReader(tokenizer, catalog, max_tokens=work.settings.max_tokens)
    group = Processes()
    fit_text(
        model,
        reader,
        cases,
        len(catalog),
        work.settings,
        seed=work.seed,
        teacher=None if work.teacher is None else teacher_of(work.teacher, catalog),
        group=group,
        checkpoint=Checkpoint(work.folder),
    )
    if group.rank == 0:
        model.save_pretrained(str(work.folder / _MODEL))
        tokenizer.save_pretrained(str(work.folder / _MODEL))
