"""The text training in two processes through Ray Train: it ends as in one, beside what else runs, or says why not."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from models.catalog import Item, ItemCatalog
from pipelines.errors import TrainingError
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.text_fit import fit_text
from pipelines.training.text_pairs import PairReader
from pipelines.training.text_start import load_start
from pipelines.training.text_workers import Work, fit_on_workers

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


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


@pytest.mark.filterwarnings("ignore")
def test_two_processes_end_as_one_does(ray, tmp_path: Path, two_workers: Any) -> None:
    settings, catalog = two_workers.settings, two_workers.catalog
    model_folder, cases = two_workers.start(tmp_path / "start"), two_workers.cases(60)
    model, tokenizer = load_start(model_folder, settings, seed=0)
    alone = fit_text(model, PairReader(tokenizer, catalog, max_tokens=32), cases, 40, settings, seed=0)
    work = Work(model_folder, None, settings, 0, tmp_path / "kept")
    losses, trained = fit_on_workers(work, cases, catalog)
    assert len(losses) == len(alone) == 10
    theirs = load_file(str(trained / "model.safetensors"))
    two_workers.assert_same_steps(load_file(str(model_folder / "model.safetensors")), model, theirs)
    kept = tmp_path / "kept"
    assert kept.stat().st_mode & 0o777 == 0o700 and not list(kept.glob("*.lent"))
    assert Checkpoint(tmp_path / "kept").state("text")["losses"] == losses


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")
def test_what_fails_in_a_worker_is_named_and_leaves_no_histories(ray, tmp_path: Path, two_workers: Any) -> None:
    model_folder = two_workers.start(tmp_path / "start")
    (model_folder / "model.safetensors").write_bytes(b"half a file")
    work = Work(model_folder, None, two_workers.settings, 0, tmp_path / "kept")
    with pytest.raises(TrainingError, match=r"worker \d: RankerError: start: not a model that a text ranker can start"):
        fit_on_workers(work, two_workers.cases(20), two_workers.catalog)
    assert not list((tmp_path / "kept").glob("*.lent"))


def test_more_workers_than_ray_has_room_for_name_the_setting(ray, tmp_path: Path, two_workers: Any) -> None:
    many = two_workers.settings.model_copy(update={"cpus_per_worker": 1.5})
    with pytest.raises(TrainingError, match=r"2 workers of 1\.5 CPUs do not fit .* lower pipelines\.text\.cpus_per"):
        fit_on_workers(Work(tmp_path, None, many, 0, tmp_path / "kept"), [], ItemCatalog.of([Item("i", "film")]))
