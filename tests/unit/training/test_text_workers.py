"""The text training in two processes: the very function that Ray Train runs, over a process group of its own."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from models.candidates import SCORED_SOURCES, Candidates
from models.catalog import Item, ItemCatalog
from models.retrieval.query import RetrievalQuery
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.settings import TextTrainingSettings
from pipelines.training.text_cases import TextCase
from pipelines.training.text_fit import fit_text
from pipelines.training.text_pairs import PairReader
from pipelines.training.text_start import load_start
from pipelines.training.text_workers import Work, fit_on_workers

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "liked", "red", "blue", *(f"n{n}" for n in range(40))]
SETTINGS = TextTrainingSettings(
    steps=10,
    lists_per_step=4,
    max_tokens=32,
    frozen_layers=0,
    checkpoint_steps=4,
    workers=2,
    learning_rate=1e-3,
    bfloat16=False,  # half as many pairs are rounded otherwise; what is asked here is whether the sums are the same
)
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


def start(folder: Path) -> Path:
    BertTokenizer(vocab={word: at for at, word in enumerate(WORDS)}).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(WORDS), num_labels=1, initializer_range=0.2, **shape)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def assert_same_steps(before, model, theirs) -> None:
    """Both moved the weights the same way; single ones differ, where the sum of nothing decides what Adam does."""
    ours = dict(model.named_parameters())
    moved = torch.cat([(ours[n].detach() - before[n]).reshape(-1) for n in ours])
    other = torch.cat([(theirs[n] - before[n]).reshape(-1) for n in ours])
    assert float(moved.norm()) > 0.01
    assert float((moved - other).norm() / moved.norm()) < 0.05


def cases_of(count: int) -> list[TextCase]:
    rng = np.random.default_rng(0)
    none = np.zeros((10, len(SCORED_SOURCES)), np.float32)
    cases = []
    for user in range(count):
        rows = rng.permutation(40)[:11].astype(np.int32)
        seeds = tuple(f"i{row}" for row in rng.permutation(40)[:3])
        query = RetrievalQuery(n=10, now_ms=10**12, seed_items=seeds)
        found = Candidates(rows[:10], np.ones(10, np.uint16), none, np.zeros(10, np.float32))
        cases.append(TextCase(user, query, found, int(rows[10]), -1))
    return cases


def test_two_processes_end_as_one_does_and_have_nothing_left_to_do_when_called_again(
    tmp_path: Path, forks: Callable[..., list[Any]]
) -> None:
    def run_both(name: str) -> None:
        for ended in forks(script, *([str(rank), str(tmp_path / f"{name}.meet"), str(given)] for rank in (0, 1))):
            assert ended.returncode == 0, ended.stderr

    script, given = tmp_path / "worker.py", tmp_path / "work"
    script.write_text(PROGRAM)
    catalog = ItemCatalog.of([Item(f"i{n}", f"film n{n}") for n in range(40)])
    model_folder, cases = start(tmp_path / "start"), cases_of(60)
    model, tokenizer = load_start(model_folder, SETTINGS, seed=0)
    alone = fit_text(model, PairReader(tokenizer, catalog, max_tokens=32), cases, 40, SETTINGS, seed=0)
    work = Work(model_folder, None, SETTINGS, 0, tmp_path / "kept")
    given.write_bytes(pickle.dumps(work))
    (tmp_path / "cases").write_bytes(pickle.dumps((cases, catalog)))
    run_both("first")
    theirs = load_file(str(work.folder / "trained" / "model.safetensors"))
    assert_same_steps(load_file(str(model_folder / "model.safetensors")), model, theirs)
    losses = Checkpoint(work.folder).state("text")["losses"]
    assert len(losses) == len(alone) == 10
    run_both("again")
    assert Checkpoint(work.folder).state("text")["losses"] == losses
    again = load_file(str(work.folder / "trained" / "model.safetensors"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in again.items())


def test_several_workers_without_ray_say_so(tmp_path: Path) -> None:
    work = Work(tmp_path, None, SETTINGS, 0, tmp_path)
    with pytest.raises(ValueError, match=r"needs Ray"):
        fit_on_workers(work, [], ItemCatalog.of([Item("i", "film")]))
