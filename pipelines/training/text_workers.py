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
from pipelines.errors import TrainingError
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.settings import TextTrainingSettings
from pipelines.training.text_cases import TextCase

if TYPE_CHECKING:
    from torch import Tensor

_CASES, _MODEL = "cases", "trained"
_STARTS = 4
"""Times that Ray looks again for room for the workers, a minute each."""


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

    Raises TrainingError where there is no Ray to run on or too small a one, fewer lists a step than workers, and where
    a worker fails, with the cause.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    of = work.settings
    if not ray.is_initialized():
        raise TrainingError(f"pipelines.text.workers = {of.workers} needs Ray: run it through `raycommend train`")
    if of.lists_per_step < of.workers:
        raise TrainingError(
            f"pipelines.text.lists_per_step = {of.lists_per_step} is less than workers = {of.workers}: raise it"
        )
    has = ray.cluster_resources()
    if has.get("CPU", 0) < of.workers * of.cpus_per_worker:
        raise TrainingError(
            f"{of.workers} workers of {of.cpus_per_worker:g} CPUs do not fit into a Ray of {has.get('CPU', 0):g}: "
            "lower pipelines.text.cpus_per_worker or workers"
        )
    gpu = has.get("GPU", 0) >= of.workers
    told(f"training in {of.workers} processes")
    checkpoint = Checkpoint(work.folder)
    try:
        # Written here and read by workers that we start ourselves: not something that came from outside.
        with checkpoint.lent(_CASES, pickle.dumps((list(cases), catalog))) as lent:
            TorchTrainer(
                _train,
                train_loop_config={"work": work, "cases": lent},
                scaling_config=ScalingConfig(
                    num_workers=of.workers, use_gpu=gpu, resources_per_worker={"CPU": of.cpus_per_worker}
                ),
                run_config=RunConfig(
                    name="text-ranker",
                    storage_path=str(work.folder / "ray"),
                    # Ray's default is to look for room for ever.
                    failure_config=FailureConfig(controller_failure_limit=_STARTS),
                ),
            ).fit()
    except TrainingFailedError as error:
        raise TrainingError(f"training in {of.workers} processes failed: {cause_of(error)}") from error
    state = checkpoint.state("text")
    if state is None:
        raise TrainingError("the workers ended without a trained model: run it again")
    return list(state["losses"]), work.folder / _MODEL


def cause_of(error: Exception) -> str:
    """Return what went wrong first: of a worker's error where one failed, else of Ray's, in one line.

    When one worker fails the others lose the connection to it; that is a consequence and comes last.
    """
    failures: dict[int, Exception] = getattr(error, "worker_failures", None) or {}
    if not failures:
        inner = getattr(error, "controller_failure", error)
        return f"{type(inner).__name__}: {' '.join(str(inner).split())}"
    rank, first = min(failures.items(), key=lambda pair: (_lost_the_others(pair[1]), pair[0]))
    return f"worker {rank}: {type(first).__name__}: {' '.join(str(first).split())}"


def _lost_the_others(error: Exception) -> bool:
    said = str(error).lower()
    return any(word in said for word in ("gloo", "nccl", "connection closed", "connection reset"))


def _train(config: dict[str, Any]) -> None:
    """Run in every worker."""
    from pipelines.training.text_fit import fit_text
    from pipelines.training.text_start import load_start, reader_for, teacher_of

    work: Work = config["work"]
    cases, catalog = pickle.loads(config["cases"].read_bytes())
    model, tokenizer = load_start(work.start, work.settings, seed=work.seed)
    reader = reader_for(model, tokenizer, catalog, work.settings)
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
