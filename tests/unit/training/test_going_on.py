"""Training that was killed, training on new events only, and the guard against the ranker served now."""

import textwrap

import numpy as np
import pytest

from models.catalog import Item, ItemCatalog
from models.media.layout import Layout
from models.media.layout import Part as Modality
from models.rankers.compressed import CompressedModel
from pipelines import makers
from pipelines.training import lists as training
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.examples import empty_lists
from pipelines.training.settings import TrainingSettings
from pipelines.training.split import Part, split_after
from pipelines.training.train import Incumbent, train_ranker
from pipelines.training.verdict import verdict

QUICK = TrainingSettings(
    train_positions=4, validation_positions=2, epochs=3, list_size=60, bootstrap_rounds=200, min_examples=10
)


def trained(folder, log, catalog, embeddings, **named):
    folder.mkdir()
    metrics = train_ranker(log, catalog, embeddings, folder, **{"settings": QUICK, **named})
    return metrics, (folder / "ranker.safetensors").read_bytes() if metrics.get("fused_ndcg10") else b""


class Killed(BaseException):
    """What a kill looks like to code that must not catch it."""


def test_an_interrupted_training_ends_with_the_bytes_of_one_in_a_single_run(
    make_catalog, make_taste_log, tmp_path, monkeypatch
):
    catalog, embeddings = make_catalog(100)
    log = make_taste_log(60)
    steps: list[str] = []
    _, whole = trained(
        tmp_path / "whole", log, catalog, embeddings, progress=lambda step, share: steps.append(step.split(":")[0])
    )
    steps = [step for step in steps if "epoch" in step]
    for at in (0, 1, len(steps) - 2):

        def dying(step, share, last=steps[at]):
            if step.startswith(last):
                raise Killed

        kept = Checkpoint(tmp_path / f"kept-{at}")
        with pytest.raises(Killed):
            trained(tmp_path / f"cut-{at}", log, catalog, embeddings, checkpoint=kept, progress=dying)
        again: list[str] = []
        with monkeypatch.context() as patched:
            patched.setattr(training, "build_lists", lambda *_, **__: pytest.fail("the lists were built again"))
            _, resumed = trained(
                tmp_path / f"on-{at}",
                log,
                catalog,
                embeddings,
                checkpoint=kept,
                progress=lambda step, share, said=again: said.append(step.split(":")[0]),
            )
        assert resumed == whole
        assert again == steps[at + 1 :]
    assert steps[-1].startswith("again")  # what stopped the training teaches at the end


def test_a_process_that_is_killed_goes_on_where_it_was(make_catalog, tmp_path, forks):
    """A real SIGKILL in the middle of the training, then the same call in another process."""
    make_catalog(100)
    script = tmp_path / "training.py"
    program = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        import numpy as np, torch
        from models.catalog import ItemCatalog
        from models.encoder import HashEncoder
        from models.events import EventLog
        from pipelines.training.checkpoint import Checkpoint
        from pipelines.training.settings import TrainingSettings
        from pipelines.training.train import train_ranker
        torch.set_num_threads(1)
        here, die = Path(sys.argv[1]), sys.argv[2]
        catalog = ItemCatalog(here)
        rng = np.random.default_rng(5)
        rows = [(f"u{u}", f"i{i}") for u in range(40) for i in rng.permutation(100)[:12]]
        users, items = (np.array(c, object) for c in zip(*rows))
        n = len(rows)
        log = EventLog(users, items, np.full(n, 2, np.uint8), np.ones(n, np.float32), np.arange(n) * 1000)
        settings = TrainingSettings(train_positions=4, validation_positions=2, epochs=3, list_size=60,
                                    bootstrap_rounds=200, min_examples=5)
        (out := here / f"out-{die or 'none'}-{sys.argv[3]}").mkdir()
        def told(step, share):
            print(step.split(":")[0], flush=True)
            if die and step.startswith(die):
                os.kill(os.getpid(), signal.SIGKILL)
        train_ranker(log, catalog, HashEncoder(16).encode([catalog.document(r) for r in range(100)]), out,
                     settings=settings, checkpoint=Checkpoint(here / sys.argv[3]), progress=told)
        """
    )

    script.write_text(program)
    killed, whole = forks(script, [str(tmp_path), "epoch 1", "kept"], [str(tmp_path), "", "other"])
    (resumed,) = forks(script, [str(tmp_path), "", "kept"])
    assert killed.returncode == -9
    assert resumed.returncode == whole.returncode == 0, resumed.stderr + whole.stderr
    assert "epoch 1" in whole.stdout.splitlines() and "epoch 1" not in resumed.stdout.splitlines()
    weights = [(tmp_path / f"out-none-{kept}" / "ranker.safetensors").read_bytes() for kept in ("kept", "other")]
    assert weights[0] == weights[1]


def test_a_checkpoint_that_cannot_be_read_is_done_again(make_catalog, make_taste_log, tmp_path):
    catalog, embeddings = make_catalog(100)
    log = make_taste_log(60)
    kept = Checkpoint(tmp_path / "kept")
    _, first = trained(tmp_path / "whole", log, catalog, embeddings, checkpoint=kept)
    for number, damage in enumerate((b"", b"PK\x03\x04 half a file")):
        for file in kept.folder.iterdir():
            file.write_bytes(damage)
        _, again = trained(tmp_path / str(number), log, catalog, embeddings, checkpoint=kept)
        assert again == first, damage


def test_a_checkpoint_belongs_to_all_that_a_training_reads(make_taste_log, monkeypatch):
    log, vectors, layout = make_taste_log(5), np.eye(2, dtype=np.float32), Layout(1, (Modality("image", 1, 0.5),))

    def key(*, vectors=vectors, layout=layout, **changed):
        first = Item(**{"item_id": "a", "title": "one", "labels": {"genre": ("x",)}, "numbers": {"year": 1}, **changed})
        catalog = ItemCatalog.of([first, Item("b", "two", labels={"genre": ("y",), "brand": ()})])
        return makers.key_of({"seed": 0}, log, catalog, vectors, layout)

    assert key() == key()
    others = [
        key(title="other"),
        key(text="long"),
        key(labels={"genre": ("y",)}),
        key(labels={"brand": ("x",)}),  # the very same words, under another name
        key(numbers={"year": 2}),
        key(layout=None),
        key(layout=Layout(1, (Modality("image", 1, 0.7),))),
        key(vectors=vectors * 2),
    ]
    before = key()
    monkeypatch.setattr(makers, "RANKER_FORMAT", 999)
    assert len({before, key(), *others}) == len(others) + 2


def test_checkpoints_that_nobody_goes_on_with_are_removed(tmp_path):
    import os

    for name, age_s in (("old", 30 * 86_400), ("new", 60)):
        Checkpoint(tmp_path / name).keep_arrays("lists", {"a": np.zeros(1)})
        at = os.stat(tmp_path / name).st_mtime - age_s
        os.utime(tmp_path / name, (at, at))
    Checkpoint.under(tmp_path, "mine")
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_going_on_learns_from_later_events_only_and_starts_from_the_ranker_served(
    make_catalog, make_taste_log, tmp_path, monkeypatch
):
    catalog, embeddings = make_catalog(100)
    log = make_taste_log(160)
    moment = int(np.quantile(log.timestamps_ms, 0.6))
    early = log.take(log.timestamps_ms <= moment)
    trained(tmp_path / "served", early, catalog, embeddings)
    seen: list[int] = []
    real = training.build_lists

    def watched(examples, *rest, **named):
        seen.extend(int(e.history.timestamps_ms[e.position]) for e in examples)
        return real(examples, *rest, **named)

    monkeypatch.setattr(training, "build_lists", watched)
    metrics, _ = trained(
        tmp_path / "on", log, catalog, embeddings, incumbent=Incumbent(tmp_path / "served", since_ms=moment)
    )
    assert min(seen) > moment
    assert metrics["since_ms"] == moment and metrics["fit_events"] == len(early)
    before, after = (CompressedModel.read(tmp_path / name) for name in ("served", "on"))
    assert np.array_equal(before.parameters["head.mean"], after.parameters["head.mean"])  # not fitted anew
    moved = float((before.parameters["layer0.qkv"] - after.parameters["layer0.qkv"]).abs().max())
    assert moved < 0.1
    assert metrics["incumbent_ndcg10"] > 0 and "lower" in metrics["fused_vs_incumbent"]


def test_later_events_are_split_by_time_and_what_came_late_only_feeds_the_sources(make_taste_log):
    log = make_taste_log(50)
    moment = int(np.quantile(log.timestamps_ms, 0.5))
    split = split_after(log, moment, QUICK, seed=0)
    assert split.fit.timestamps_ms.max() <= moment
    times = {
        part: [int(e.history.timestamps_ms[e.position]) for e in split.of(part)] for part in (Part.train, Part.validate)
    }
    assert moment < min(times[Part.train]) and max(times[Part.train]) < min(times[Part.validate])
    assert not split_after(log, int(log.timestamps_ms[-1]), QUICK, seed=0).examples


def test_too_few_new_events_are_a_reason_and_not_a_crash(make_catalog, make_taste_log, tmp_path):
    catalog, embeddings = make_catalog(100)
    log = make_taste_log(60)
    trained(tmp_path / "served", log, catalog, embeddings)
    late = Incumbent(tmp_path / "served", since_ms=int(log.timestamps_ms[-3]))
    metrics, _ = trained(tmp_path / "on", log, catalog, embeddings, incumbent=late)
    assert not metrics["switch_on"] and "min_examples" in metrics["reason"]


def test_a_ranker_below_the_one_served_now_is_not_switched_on(make_catalog, make_taste_log, tmp_path):
    catalog, embeddings = make_catalog(100)
    log = make_taste_log(160)
    good, _ = trained(tmp_path / "good", log, catalog, embeddings)
    assert good["switch_on"]
    served = Incumbent(tmp_path / "good")
    # The same settings again are the same ranker: a tie is no loss.
    again, _ = trained(tmp_path / "again", log, catalog, embeddings, incumbent=served)
    assert again["switch_on"] and again["fused_vs_incumbent"]["mean"] == 0
    weak = QUICK.model_copy(update={"epochs": 0, "train_positions": 1})
    worse, _ = trained(tmp_path / "worse", log, catalog, embeddings, incumbent=served, settings=weak)
    assert worse["fused_ndcg10"] < worse["incumbent_ndcg10"]
    assert worse["fused_vs_incumbent"]["mean"] < 0 and not worse["switch_on"]


def test_the_verdict_names_who_was_better():
    lists = empty_lists(40, 5).take(np.arange(40))
    lists.rows[:], lists.target[:], lists.user[:] = np.arange(5), 2, np.arange(40)
    lists.merged[:] = [5, 4, 3, 2, 1]
    best, middle = np.zeros((2, 40, 5), np.float32)
    best[:, 2], middle[:, 2], middle[:, 1] = 1, 1, 2
    retrieval_only = verdict(middle, lists, rounds=200, seed=0)
    assert retrieval_only["switch_on"] and retrieval_only["beyond_chance"] and retrieval_only["reason"] == ""
    beaten = verdict(middle, lists, incumbent=best, rounds=200, seed=0)
    assert not beaten["switch_on"] and "served now" in beaten["reason"]
    assert verdict(best, lists, incumbent=best, rounds=200, seed=0)["switch_on"]
    assert "retrieval order" in verdict(-best, lists, incumbent=best, rounds=200, seed=0)["reason"]


def test_going_on_from_a_ranker_that_cannot_be_read_says_so(make_catalog, make_taste_log, tmp_path):
    catalog, embeddings = make_catalog(100)
    (tmp_path / "served").mkdir()
    with pytest.raises(ValueError, match="train without going on"):
        trained(
            tmp_path / "on",
            make_taste_log(60),
            catalog,
            embeddings,
            incumbent=Incumbent(tmp_path / "served", since_ms=1),
        )


def test_a_gain_in_one_question_does_not_excuse_a_loss_in_the_other():
    lists = empty_lists(80, 5)
    lists.rows[:], lists.target[:], lists.user[:], lists.new[::2] = np.arange(5), 2, np.arange(80), True
    lists.merged[:] = [5, 4, 6, 2, 1]
    lists.merged[::2] = [5, 4, 3, 2, 1]
    ours = lists.merged.copy()
    ours[::2, 2] = 9  # what is new is now first, where it was third
    won = verdict(ours, lists, rounds=200, seed=0)
    assert won["switch_on"] and won["fused_vs_retrieval_any"]["mean"] == 0 < won["fused_vs_retrieval_new"]["lower"]
    ours[1::2, 0] = 9  # whatever is taken next is now second, where it was first
    lost = verdict(ours, lists, rounds=200, seed=0)
    assert lost["fused_vs_retrieval"]["mean"] > 0 > lost["fused_vs_retrieval_any"]["upper"]
    assert not lost["switch_on"] and "that ask for whatever is taken next" in lost["reason"]
    # Of a loss that chance may be, the mean over both questions decides.
    ours[1::2] = lists.merged[1::2]
    ours[1:20:18, 0] = 9
    assert verdict(ours, lists, rounds=200, seed=0)["switch_on"]
