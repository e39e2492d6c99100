"""The trained text ranker is judged on test rows that its training cannot have seen, beside the same baselines."""

import json

import numpy as np
import pytest

from cluster import evaluate_text as evaluation
from cluster.config import load_settings
from cluster.errors import OperatorError
from cluster.prepare import import_dataset
from cluster.workspace import Workspace
from loadtests.bench import quality
from loadtests.bench.harness import BenchContext
from loadtests.schedule import LoadError
from models.encoder import HashEncoder
from pipelines.importers.amazon import TEST_MS

HEAD = "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid\n"
ITEMS, USERS = 80, 150


def tables(folder, *, test_seed=1):
    """Users buy within a brand of their own."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    items = {
        str(n): {"title": f"tool b{n % 5} n{n}", "description": f"['good b{n % 5}']", "brand": f"b{n % 5}"}
        for n in range(ITEMS)
    }
    (folder / "X.item.json").write_text(json.dumps(items))
    past = {user: rng.permutation(np.arange(user % 5, ITEMS, 5))[:4].tolist() for user in range(USERS)}
    later = np.random.default_rng(test_seed)
    for name, draw in (("valid.csv", rng), ("test.csv", later)):
        text = HEAD
        for user in range(USERS):
            for _ in range(2):
                left = [n for n in range(user % 5, ITEMS, 5) if n not in past[user]]
                item = int(draw.choice(left))
                text += f'u{user},"[]",t,"{past[user]}",{item},"[]",x\n'
                past[user].append(item)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def settings(tmp_path, monkeypatch, tiny_bert):
    words = ["tool", "good", "liked", "red", "blue", *(f"b{n}" for n in range(5))]
    model = tiny_bert(tmp_path / "model", words, initializer_range=0.2)
    monkeypatch.setattr(Workspace, "encoder", lambda self, *, threads=None: HashEncoder(16))
    monkeypatch.setattr(Workspace, "encoder_folder", lambda self, **_: model)
    overrides = [
        f"cluster.state={tmp_path / 'state'}",
        "models.encoder.dimension=16",
        "pipelines.text={steps: 8, lists_per_step: 4, max_tokens: 32, validation_cases: 12}",
        "pipelines.training={min_examples: 5, bootstrap_rounds: 200}",
    ]
    return load_settings("local", overrides, environ={})


def asked(settings, **named):
    wish = {"users": 40, "student": None, "seed": 0, "tell": lambda _: None, **named}
    return evaluation.evaluate_text(settings, **wish)


def imported(settings, folder):
    import_dataset(settings, evaluation.DATASET, paths={"path": folder, "items": None, "events": None})


def test_every_order_is_asked_the_same_users_and_nothing_is_trained_twice(settings, tmp_path, monkeypatch):
    imported(settings, tables(tmp_path / "data"))
    found = asked(settings, student=1)
    methods = {*evaluation.BASELINES, *evaluation.OURS, evaluation.STUDENT_ALONE, evaluation.STUDENT_FUSED}
    methods |= {evaluation.WITHOUT_TEXT}
    assert set(found.ndcg) == methods
    assert {len(ndcg) for ndcg in found.ndcg.values()} == {40}
    assert set(found.served) == methods - {evaluation.BI_ENCODER}
    assert {len(ndcg) for ndcg in found.served.values()} == {40}
    every = [*found.ndcg.values(), *found.served.values()]
    assert all(((ndcg >= 0) & (ndcg <= 1)).all() for ndcg in every)
    assert found.trainings["student"]["layers"] == 1 and found.trainings["text"]["layers"] == 2
    assert found.trainings["text"]["training_s"] > 0
    monkeypatch.setattr(evaluation, "train_text_ranker", lambda *_, **__: pytest.fail("it was trained again"))
    again = asked(settings)
    for first, second in ((found.ndcg, again.ndcg), (found.served, again.served)):
        for name, ndcg in second.items():
            np.testing.assert_array_equal(ndcg, first[name])


def test_the_test_rows_change_nothing_but_the_score(settings, tmp_path, monkeypatch):
    logs = []

    def watched(log, *rest, **named):
        logs.append(log)
        raise OperatorError("seen enough")

    monkeypatch.setattr(evaluation, "train_text_ranker", watched)
    for at, seed in enumerate((1, 2)):
        imported(settings, tables(tmp_path / f"data{at}", test_seed=seed))
        with pytest.raises(OperatorError, match="seen enough"):
            asked(settings)
    assert logs[0].timestamps_ms.max() < TEST_MS and len(logs[0]) == USERS * 6
    for column in ("user_ids", "item_ids", "timestamps_ms"):
        np.testing.assert_array_equal(getattr(logs[0], column), getattr(logs[1], column))


def test_a_training_that_fails_leaves_no_draft_and_showed_nobody_one(settings, tmp_path, monkeypatch):
    drafts = []

    def failing(log, catalog, embeddings, draft, *rest, **named):
        (draft / "model").write_text("half")
        drafts.append((draft, draft.stat().st_mode & 0o777))
        raise OperatorError("failed")

    monkeypatch.setattr(evaluation, "train_text_ranker", failing)
    imported(settings, tables(tmp_path / "data"))
    with pytest.raises(OperatorError, match="failed"):
        asked(settings)
    assert [mode for _, mode in drafts] == [0o700] and not drafts[0][0].exists()


def test_baselines_are_asked_without_any_training(settings, tmp_path):
    imported(settings, tables(tmp_path / "data"))
    off = settings.pipelines.model_copy(update={"train_ranker": False})
    found = asked(settings.model_copy(update={"pipelines": off}))
    assert set(found.ndcg) == set(evaluation.BASELINES) and found.trainings == {}
    assert set(found.served) == {evaluation.RETRIEVAL}


def test_the_benchmark_states_every_advantage_and_what_reading_brought(settings, tmp_path):
    imported(settings, tables(tmp_path / "data"))
    options = {"dataset": evaluation.DATASET, "users": 40}
    context = BenchContext("quality", tmp_path, options, settings=settings.model_dump(mode="json"), tell=lambda _: None)
    quality.bench(context)
    named = set(context.targets)
    assert {"text_vs_retrieval_lower", "served_text_fused_over_retrieval_order_lower"} <= named
    assert {"text_fused_over_fused_without_text_lower", "served_text_fused_over_fused_without_text_lower"} <= named
    assert {"fused_without_text_ndcg10", "text_alone_ndcg10"} <= named


@pytest.mark.parametrize(("name", "value"), [("validation", True), ("ablate", True), ("summaries", "f"), ("seeds", 2)])
def test_what_it_does_not_do_is_refused_by_name(settings, tmp_path, capsys, monkeypatch, name, value):
    monkeypatch.setattr(quality, "evaluate_text", lambda *_, **__: pytest.fail("test rows were asked"))
    options = {"dataset": evaluation.DATASET, name: value}
    with pytest.raises(LoadError, match=f"--{name} does not go with"):
        quality.bench(BenchContext("quality", tmp_path, options, settings=settings.model_dump(mode="json"), tell=print))


def test_a_data_set_that_is_not_there_is_one_sentence(settings):
    with pytest.raises(OperatorError, match="import amazon-industrial --path"):
        asked(settings)
