"""Learned id vectors: in one process and in Ray actors the same numbers, through stops, kills and grown catalogs."""

import itertools
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from cluster import ray_job
from cluster.config import load_settings
from loadtests.bench import ids as bench_ids
from models.rankers.compressed import CompressedModel, CompressedRanker, RankerError
from models.rankers.fusion import FEATURE_NAMES
from models.rankers.id_vectors import bounds_of
from models.rankers.network import NetworkShape, initialise
from pipelines.errors import TrainingError
from pipelines.training import epochs, id_tables, train
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.epochs import Kept, keep_best
from pipelines.training.id_tables import IdTable, ShardsHere, opened
from pipelines.training.settings import TrainingSettings
from pipelines.training.train import Incumbent, train_ranker

ALONE = TrainingSettings(
    id_vectors=True,
    train_positions=4,
    validation_positions=2,
    epochs=2,
    list_size=60,
    bootstrap_rounds=200,
    min_examples=5,
)
SHARDED = ALONE.model_copy(update={"id_shards": 3})


@pytest.fixture(scope="module")
def ray():
    import ray as library

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        memory = 100 << 20
        library.init(
            num_cpus=1, object_store_memory=memory, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
        yield library
        library.shutdown()


def here(count, shards, dim=4):
    bounds = bounds_of(count, shards)
    return IdTable(ShardsHere([end - first for first, end in pairwise(bounds)], dim), bounds, dim)


def pushed(table, *, steps=20, seed=0):
    rng = np.random.default_rng(seed)
    count = table.bounds[-1]
    for _ in range(steps):
        slots = np.sort(rng.choice(count, rng.integers(1, 9), replace=False))
        table.push(slots, rng.standard_normal((len(slots), 4)).astype(np.float32), 0.01)
    return table


def everything(table):
    return table.rows(np.arange(table.bounds[-1]))


def test_a_step_is_row_wise_adagrad_and_touches_no_other_row():
    table, gradient = here(6, 2), np.array([[9, 9, 9, 9], [1, 2, 2, 4], [-1, 0, 0, 0]], np.float32)
    table.push(np.array([0, 2, 5]), gradient, 0.1)
    table.push(np.array([2]), gradient[1:2], 0.1)
    rows = everything(table)
    square = 25 / 4
    expected = -0.1 * gradient[1] / np.sqrt(square) - 0.1 * gradient[1] / np.sqrt(2 * square)
    assert rows[2] == pytest.approx(expected, abs=1e-6) and rows[5, 0] == pytest.approx(0.2, abs=1e-6)
    assert (rows[[0, 1, 3, 4, 6]] == 0).all()  # 0 too, whatever its gradient: padding and unknown items


@pytest.mark.parametrize("shards", [2, 3, 7, 40, 100])
def test_a_table_is_the_same_however_it_is_cut(shards):
    assert everything(pushed(here(40, shards))).tobytes() == everything(pushed(here(40, 1))).tobytes()


def test_bounds_leave_no_slot_out_and_no_shard_empty():
    for count, shards in ((1, 1), (1, 9), (10, 3), (7, 7)):
        bounds = bounds_of(count, shards)
        assert bounds[0] == 1 and bounds[-1] == count + 1 and all(a < b for a, b in pairwise(bounds))


def test_early_stopping_goes_back_to_the_best_epoch():
    table, after = here(10, 3), []
    scores = iter([0.0, 2.0, 1.0, 0.0, 0.0])  # of the start, the first epoch (the best), and what follows

    def epoch(rng):
        pushed(table, seed=int(rng.integers(1000)))
        after.append(everything(table))

    def judged():
        return np.array([[next(scores), 0.0]], np.float32)

    best = keep_best({}, epoch, judged, np.zeros(1, np.int32), epochs=4, seed=0, kept=Kept(beside=table))
    assert best == 1 and len(after) == 3
    assert np.array_equal(everything(table), after[0]) and not np.array_equal(after[0], after[2])


def test_what_was_kept_on_disk_goes_on_as_one_run_and_half_of_it_as_none(tmp_path: Path):
    kept, first = Checkpoint(tmp_path / "kept"), pushed(here(40, 3))
    first.keep()
    pushed(first, seed=1).write(kept, "epoch 1 ")
    on = here(40, 3)
    assert on.resume(kept, "epoch 1 ")
    assert everything(pushed(on, seed=2)).tobytes() == everything(pushed(first, seed=2)).tobytes()
    on.restore(), first.restore()
    assert everything(on).tobytes() == everything(first).tobytes() == everything(pushed(here(40, 1))).tobytes()
    sorted(kept.folder.glob("epoch 1 *"))[1].write_bytes(b"PK\x03\x04 half a file")
    fresh = here(40, 3)
    assert not fresh.resume(kept, "epoch 1 ") and not everything(fresh).any()
    assert not here(40, 2).resume(kept, "epoch 1 ")  # of another number of shards


def test_vectors_are_taken_over_in_blocks(monkeypatch):
    monkeypatch.setattr(id_tables, "BLOCK", 3)
    before, after = pushed(here(10, 2)), here(12, 5)
    slots = np.array([0, 1, 2, 0, 3, 4, 5, 6, 7, 8, 9, 10])
    after.take_over(before, slots)
    assert np.array_equal(everything(after)[1:], everything(before)[slots])
    after.keep()  # what was taken over is what early stopping goes back to
    pushed(after).restore()
    assert np.array_equal(everything(after)[1:], everything(before)[slots])


class Killed(BaseException):
    """What a kill looks like to code that must not catch it."""


def trained(folder, log, catalog, embeddings, settings, **named):
    folder.mkdir()
    metrics = train_ranker(log, catalog, embeddings, folder, settings=settings, **named)
    return metrics, CompressedModel.read(folder)


def vectors(model):
    return model.ids.rows(np.arange(len(model.known_ids) + 1))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "metrics.json"}


@pytest.fixture
def world(make_catalog, make_taste_log, monkeypatch):
    """A log, its catalog and vectors; every epoch pays, or so few events would leave all id vectors at zero."""
    falling = itertools.count()
    monkeypatch.setattr(epochs, "list_loss", lambda scores, target: -float(next(falling)))
    catalog, embeddings = make_catalog(100)
    return make_taste_log(40), catalog, embeddings


def told_until(last):
    def tell(step, share):
        if step.startswith(last):
            raise Killed

    return tell


@pytest.mark.cluster
def test_a_training_ends_the_same_in_one_process_and_in_shards_that_were_killed_in_between(world, ray, tmp_path):
    pushed_slots, push = set(), IdTable.push

    def watched(table, slots, gradients, rate):
        pushed_slots.update(slots.tolist())
        push(table, slots, gradients, rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IdTable, "push", watched)
        metrics, alone = trained(tmp_path / "alone", *world, ALONE)
    assert vectors(alone).any() and not vectors(alone)[0].any()
    assert not vectors(alone)[sorted({*range(101)} - pushed_slots)].any()
    kept = Checkpoint(tmp_path / "kept")
    with pytest.raises(Killed):
        train_ranker(*world, tmp_path, settings=SHARDED, checkpoint=kept, progress=told_until("again, epoch 1"))
    theirs, sharded = trained(tmp_path / "sharded", *world, SHARDED, checkpoint=kept)
    assert vectors(sharded).tobytes() == vectors(alone).tobytes()
    assert theirs["fused_ndcg10"] == metrics["fused_ndcg10"]
    assert len(sharded.ids.bounds) == 4 and len(alone.ids.bounds) == 2
    one, other = files(tmp_path / "alone"), files(tmp_path / "sharded")
    assert one["ranker.safetensors"] == other["ranker.safetensors"]
    assert {name for name in other if name.startswith("ids-")} == {
        f"ids-{number:05d}-of-00003.safetensors" for number in range(3)
    }
    assert not [name for name in kept.folder.iterdir() if name.name.startswith("attention 1 ")]  # one epoch is enough


@pytest.mark.cluster
def test_a_shard_that_is_lost_is_a_sentence(ray):
    with opened(8, 4, 2) as table:
        ray.kill(table._shards._all[1])
        with pytest.raises(TrainingError, match=r"a shard of id vectors failed \(ActorDiedError\): run it again"):
            everything(table)


def test_a_training_that_was_killed_ends_with_the_bytes_of_one_in_a_single_run(world, tmp_path):
    trained(tmp_path / "whole", *world, ALONE)
    kept = Checkpoint(tmp_path / "kept")
    with pytest.raises(Killed):
        train_ranker(*world, tmp_path, settings=ALONE, checkpoint=kept, progress=told_until("epoch 1"))
    trained(tmp_path / "resumed", *world, ALONE, checkpoint=kept)
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")


def test_going_on_keeps_the_vectors_of_known_items_when_the_catalog_grew(world, make_catalog, tmp_path):
    log, catalog, embeddings = world
    moment = int(np.quantile(log.timestamps_ms, 0.6))
    _, before = trained(tmp_path / "served", log.take(log.timestamps_ms <= moment), catalog, embeddings, ALONE)
    grown, larger = make_catalog(120)
    # Steps of nothing: what comes out is what went in.
    still = ALONE.model_copy(update={"incremental_learning_rate": 1e-12, "min_examples": 2})
    served = Incumbent(tmp_path / "served", since_ms=moment)
    _, after = trained(tmp_path / "on", log, grown, larger, still, incumbent=served)
    assert vectors(before).any() and len(after.known_ids) == after.shape.ids == 120
    known = np.isin(after.known_ids, before.known_ids)
    assert np.abs(vectors(after)[1:][known] - vectors(before)[1:]).max() < 1e-6
    assert np.abs(vectors(after)[1:][~known]).max() < 1e-6 and known.sum() == 100


def test_serving_scores_as_training_did(world, tmp_path, monkeypatch):
    log, catalog, embeddings = world
    seen = {}

    def fitted(*given, **named):
        seen["statistics"] = fit_statistics(*given, **named)
        return seen["statistics"]

    def decided(fused, decide, **named):
        seen.update(fused=fused, decide=decide)
        return verdict(fused, decide, **named)

    fit_statistics, verdict = train.fit_statistics, train.verdict
    monkeypatch.setattr(train, "fit_statistics", fitted)
    monkeypatch.setattr(train, "verdict", decided)
    _, model = trained(tmp_path / "ranker", log, catalog, embeddings, ALONE)
    assert vectors(model).any()
    ranker = CompressedRanker(model, catalog, embeddings, seen["statistics"], device="cpu")
    lists = seen["decide"]
    for at in range(len(lists)):
        real, history = lists.rows[at] >= 0, lists.history[at]
        past = history[:, history[0] > 0]
        scores = ranker._network.logits(past, lists.rows[at][real], lists.features[at][real])
        assert np.abs(scores - seen["fused"][at][real]).max() < 1e-5
    small = ranker._all_tokens(embeddings, seen["statistics"], block=7)
    assert np.abs(small.numpy() - ranker._all_tokens(embeddings, seen["statistics"]).numpy()).max() < 1e-5


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_shard_that_is_missing_or_changed_is_refused_by_name(tmp_path, damage):
    shape = NetworkShape(text_dim=8, labels=0, numbers=2, features=len(FEATURE_NAMES), ids=10, dim=4, heads=2)
    table, known = pushed(here(10, 3)), np.arange(10, dtype=np.uint64)
    CompressedModel(shape, initialise(shape, seed=0), [], [], known, ids=table).save(tmp_path)
    assert np.array_equal(vectors(CompressedModel.read(tmp_path)), everything(table))
    file = tmp_path / "ids-00001-of-00003.safetensors"
    body = file.read_bytes()
    file.unlink()
    if damage == "changed":
        file.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    with pytest.raises(
        RankerError, match=r"ids-00001-of-00003\.safetensors is (missing|not the file that was written)"
    ):
        CompressedModel.read(tmp_path)


def test_shards_without_a_table_or_without_ray_are_sentences(monkeypatch):
    with pytest.raises(ValidationError, match=r"id_shards = 2 needs id_vectors: true"):
        TrainingSettings(id_shards=2)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with (
        pytest.raises(TrainingError, match=r"id_shards = 2 needs Ray: run it through `raycommend train`"),
        opened(8, 4, 2),
    ):
        pass


def test_commands_ask_for_a_ray_where_several_shards_are_trained(monkeypatch):
    asked = []
    monkeypatch.setattr(ray_job, "job_ray", lambda settings, *, say: asked.append(settings) or nullcontext())
    several = ["pipelines.training={id_vectors: true, id_shards: 2}"]
    for overrides in ([], [*several, "pipelines.train_ranker=false"], several):
        assert not asked
        with ray_job.training_ray(load_settings("local", overrides, environ={})):
            pass
    assert len(asked) == 1


def test_where_vectors_lie_decides_nothing_and_how_they_learn_does():
    assert SHARDED.deciding() == ALONE.deciding()
    plain = TrainingSettings()
    assert plain.deciding() == {name: value for name, value in plain.model_dump().items() if name != "id_shards"}
    assert "id_optimiser" in ALONE.deciding()


def test_the_benchmark_takes_a_real_step_over_made_up_lists():
    found = bench_ids._measured(1, 500, 1, 1)
    assert len(found.step_ms) == 1 and found.step_ms[0] > 0 and found.shard_mb == []
