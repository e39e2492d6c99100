"""The text training in two processes through Ray Train: it ends as in one, beside what else runs, or says why not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from models.candidates import SCORED_SOURCES, Candidates
from models.catalog import Item, ItemCatalog
from models.retrieval.query import RetrievalQuery
from pipelines.errors import TrainingError
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.settings import TextTrainingSettings
from pipelines.training.text_cases import TextCase
from pipelines.training.text_fit import fit_text
from pipelines.training.text_pairs import PairReader
from pipelines.training.text_start import load_start
from pipelines.training.text_workers import Work, fit_on_workers

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "liked", "red", "blue", *(f"n{n}" for n in range(40))]
SETTINGS = TextTrainingSettings(
    steps=10, lists_per_step=4, max_tokens=32, frozen_layers=0, checkpoint_steps=4, workers=2, learning_rate=1e-3
)


@pytest.fixture(scope="module")
def ray():
    import ray as library

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        library.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        # As on a machine that serves at the same time: most of it is taken.
        taken = library.remote(num_cpus=1)(Replica).remote()
        library.get(taken.ready.remote())
        yield library
        library.shutdown()


class Replica:
    """Something that serves."""

    def ready(self) -> bool:
        return True


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


@pytest.mark.filterwarnings("ignore")
def test_two_processes_end_as_one_does(ray, tmp_path: Path) -> None:
    catalog = ItemCatalog.of([Item(f"i{n}", f"film n{n}") for n in range(40)])
    model_folder, cases = start(tmp_path / "start"), cases_of(60)
    model, tokenizer = load_start(model_folder, SETTINGS, seed=0)
    alone = fit_text(model, PairReader(tokenizer, catalog, max_tokens=32), cases, 40, SETTINGS, seed=0)
    work = Work(model_folder, None, SETTINGS, 0, tmp_path / "kept")
    losses, trained = fit_on_workers(work, cases, catalog)
    assert len(losses) == len(alone) == 10
    theirs = load_file(str(trained / "model.safetensors"))
    assert_same_steps(load_file(str(model_folder / "model.safetensors")), model, theirs)
    kept = tmp_path / "kept"
    assert kept.stat().st_mode & 0o777 == 0o700 and not list(kept.glob("*.lent"))
    assert Checkpoint(tmp_path / "kept").state("text")["losses"] == losses


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")
def test_what_fails_in_a_worker_is_named_and_leaves_no_histories(ray, tmp_path: Path) -> None:
    catalog = ItemCatalog.of([Item(f"i{n}", f"film n{n}") for n in range(40)])
    model_folder = start(tmp_path / "start")
    (model_folder / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(TrainingError, match=r"worker \d: RankerError: start: not a model that a text ranker can start"):
        fit_on_workers(Work(model_folder, None, SETTINGS, 0, tmp_path / "kept"), cases_of(20), catalog)
    assert not list((tmp_path / "kept").glob("*.lent"))


def test_more_workers_than_ray_has_room_for_name_the_setting(ray, tmp_path: Path) -> None:
    many = SETTINGS.model_copy(update={"cpus_per_worker": 1.5})
    with pytest.raises(TrainingError, match=r"2 workers of 1\.5 CPUs do not fit .* lower pipelines\.text\.cpus_per"):
        fit_on_workers(Work(tmp_path, None, many, 0, tmp_path / "kept"), [], ItemCatalog.of([Item("i", "film")]))
