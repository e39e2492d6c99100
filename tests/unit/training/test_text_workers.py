"""The text training in two processes: the very function that Ray Train runs, over a process group of its own."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models.catalog import Item, ItemCatalog
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.text_fit import fit_text
from pipelines.training.text_pairs import PairReader
from pipelines.training.text_start import load_start
from pipelines.training.text_workers import Work, fit_on_workers

PROGRAM = """
import pathlib, pickle, sys
import torch, torch.distributed as dist
from pipelines.training.text_workers import _train
torch.set_num_threads(1)
rank, place, work = int(sys.argv[1]), sys.argv[2], pickle.load(open(sys.argv[3], "rb"))
cases = pathlib.Path(place).parent / "cases"
dist.init_process_group("gloo", init_method="file://" + place, rank=rank, world_size=2)
_train({"work": work, "cases": cases})
dist.destroy_process_group()
"""


def test_two_processes_end_as_one_does_and_have_nothing_left_to_do_when_called_again(
    tmp_path: Path, forks: Callable[..., list[Any]], two_workers: Any
) -> None:
    def run_both(name: str) -> None:
        for ended in forks(script, *([str(rank), str(tmp_path / f"{name}.meet"), str(given)] for rank in (0, 1))):
            assert ended.returncode == 0, ended.stderr

    script, given = tmp_path / "worker.py", tmp_path / "work"
    script.write_text(PROGRAM)
    settings, catalog = two_workers.settings, two_workers.catalog
    model_folder, cases = two_workers.start(tmp_path / "start"), two_workers.cases(60)
    model, tokenizer = load_start(model_folder, settings, seed=0)
    alone = fit_text(model, PairReader(tokenizer, catalog, max_tokens=32), cases, 40, settings, seed=0)
    work = Work(model_folder, None, settings, 0, tmp_path / "kept")
    given.write_bytes(pickle.dumps(work))
    (tmp_path / "cases").write_bytes(pickle.dumps((cases, catalog)))
    run_both("first")
    theirs = load_file(str(work.folder / "trained" / "model.safetensors"))
    two_workers.assert_same_steps(load_file(str(model_folder / "model.safetensors")), model, theirs)
    losses = Checkpoint(work.folder).state("text")["losses"]
    assert len(losses) == len(alone) == 10
    run_both("again")
    assert Checkpoint(work.folder).state("text")["losses"] == losses
    again = load_file(str(work.folder / "trained" / "model.safetensors"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in again.items())


def test_several_workers_without_ray_say_so(tmp_path: Path, two_workers: Any) -> None:
    work = Work(tmp_path, None, two_workers.settings, 0, tmp_path)
    with pytest.raises(ValueError, match=r"needs Ray"):
        fit_on_workers(work, [], ItemCatalog.of([Item("i", "film")]))
