import json

import numpy as np
import pytest

from models.behaviour.statistics import fit_statistics
from models.candidates import SCORED_SOURCES, Candidates
from models.features import features_from_events
from models.rankers import returning
from models.rankers.compressed import CompressedModel
from models.rankers.fusion import FEATURE_NAMES
from models.rankers.load import load_ranker
from models.retrieval.query import RetrievalQuery
from pipelines.training import train as training
from pipelines.training.fit import fit_attention
from pipelines.training.settings import TrainingSettings
from pipelines.training.train import Incumbent, train_ranker

QUICK = TrainingSettings(
    train_positions=4, validation_positions=2, epochs=2, list_size=60, bootstrap_rounds=200, min_examples=10
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "ranker").mkdir()
    return tmp_path / "ranker"


def test_a_ranker_that_learned_a_taste_the_sources_miss_is_switched_on_and_serves_it(
    make_catalog, make_taste_log, folder
):
    catalog, embeddings = make_catalog(100)
    log = make_taste_log(160)
    metrics = train_ranker(log, catalog, embeddings, folder, settings=QUICK)
    assert metrics == json.loads((folder / "metrics.json").read_text())
    assert metrics["switch_on"]
    assert metrics["fused_ndcg10"] > metrics["retrieval_ndcg10"] + 0.02
    assert metrics["calibration_error"] < 0.02

    ranker = load_ranker(folder, catalog, embeddings, fit_statistics(log, catalog), device="cpu")
    past = [f"i{k}" for k in range(1, 36, 5)]  # seven items of genre 1
    user = features_from_events(
        past, np.full(7, 4, np.uint8), np.full(7, 4.0, np.float32), np.arange(7, dtype=np.int64) * 3_600_000
    )
    rows = np.arange(40, 100, dtype=np.int32)
    same = np.ones((60, len(SCORED_SOURCES)), np.float32)
    candidates = Candidates(rows, np.ones(60, np.uint16), same, np.ones(60, np.float32))
    scores = ranker.score(RetrievalQuery(n=60, now_ms=8 * 3_600_000, user=user), candidates)
    assert ranker.score_kind == "probability"
    best = rows[np.argsort(-scores)[:6]]
    assert (best % 5 == 1).mean() >= 0.5


def test_training_is_deterministic_for_a_seed(make_catalog, make_taste_log, tmp_path):
    catalog, embeddings = make_catalog(100)
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        train_ranker(make_taste_log(60), catalog, embeddings, tmp_path / name, settings=QUICK, seed=seed)
        weights.append((tmp_path / name / "ranker.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


@pytest.mark.parametrize("users", [0, 1, 3])
def test_too_little_data_is_a_reason_and_not_a_crash(users, make_catalog, make_log, folder):
    catalog, embeddings = make_catalog(5, attributes=False)
    log = make_log([(f"u{u}", f"i{n % 5}", n) for u in range(users) for n in range(4)])
    metrics = train_ranker(log, catalog, embeddings, folder)
    assert metrics["switch_on"] is False
    assert "min_examples" in metrics["reason"]
    assert [p.name for p in folder.iterdir()] == ["metrics.json"]


def test_a_tiny_catalog_without_attributes_can_still_be_trained_on(make_catalog, make_log, folder):
    catalog, embeddings = make_catalog(5, attributes=False)
    rng = np.random.default_rng(0)
    rows = [(f"u{u}", f"i{i}", 10 * u + n) for u in range(40) for n, i in enumerate(rng.permutation(5))]
    settings = QUICK.model_copy(update={"min_examples": 1})
    metrics = train_ranker(make_log(rows), catalog, embeddings, folder, settings=settings)
    assert np.isfinite(metrics["fused_ndcg10"])
    assert not metrics["beyond_chance"]  # the order is random: nothing can be learned


def test_events_of_unknown_items_are_ignored(make_catalog, patterned_log, folder):
    catalog, embeddings = make_catalog(3)
    metrics = train_ranker(patterned_log, catalog, embeddings, folder, settings=QUICK)
    assert not metrics["switch_on"]


def test_what_stopped_the_training_teaches_too_and_what_decides_never_does(
    make_catalog, make_taste_log, folder, monkeypatch
):
    calls = []

    def spied(p, shape, items, lists, judge, settings, **named):
        calls.append((lists, judge, fit_attention(p, shape, items, lists, judge, settings, **named)))
        return calls[-1][-1]

    monkeypatch.setattr(training, "fit_attention", spied)
    catalog, embeddings = make_catalog(100)
    train_ranker(make_taste_log(60), catalog, embeddings, folder, settings=QUICK)
    (lists, judge, passes), (again, unjudged, as_many) = calls
    stopped = judge.take(judge.target >= 0)
    assert (unjudged, as_many) == (None, passes)
    assert len(stopped) > 0
    assert np.array_equal(again.rows, np.concatenate([lists.rows, stopped.rows]))
    assert set(stopped.user % 2) == {0}  # the users of the other half decide


def test_a_ranker_leans_to_retrieval_by_as_much_as_settings_say(make_catalog, make_taste_log, tmp_path):
    catalog, embeddings = make_catalog(100)
    heads = []
    for lean in (0.0, 0.3):
        (to := tmp_path / str(lean)).mkdir()
        settings = QUICK.model_copy(update={"lean": lean})
        train_ranker(make_taste_log(60), catalog, embeddings, to, settings=settings)
        heads.append(CompressedModel.read(to))
    assert heads[1].notes == {"lean": 0.3}
    at = FEATURE_NAMES.index("merged_z")
    per_feature = [model.parameters["head.linear"] / model.parameters["head.scale"] for model in heads]
    assert float(per_feature[1][at] - per_feature[0][at]) == pytest.approx(0.3, abs=1e-5)
    others = [n for n in range(len(FEATURE_NAMES)) if n != at]
    assert (per_feature[1][others] == per_feature[0][others]).all()


def test_going_on_neither_adds_to_how_far_a_ranker_leans_nor_takes_it_back(make_catalog, make_taste_log, tmp_path):
    catalog, embeddings = make_catalog(100)
    log = make_taste_log(60)
    moment = int(np.quantile(log.timestamps_ms, 0.6))
    for name in ("first", "next"):
        (tmp_path / name).mkdir()
    train_ranker(log.take(log.timestamps_ms <= moment), catalog, embeddings, tmp_path / "first", settings=QUICK)
    # No pass pays with steps of nothing: what comes out is what went in.
    still = QUICK.model_copy(update={"incremental_learning_rate": 1e-12, "min_examples": 2})
    served = Incumbent(tmp_path / "first", since_ms=moment)
    train_ranker(log, catalog, embeddings, tmp_path / "next", settings=still, incumbent=served)
    before, after = (CompressedModel.read(tmp_path / name) for name in ("first", "next"))
    gap = after.parameters["head.linear"] - before.parameters["head.linear"]
    assert float(gap.abs().max()) < 1e-4
    assert after.notes == before.notes == {"lean": 0.3}


def test_a_feature_that_says_nothing_in_training_says_nothing_of_a_request_of_another_kind(
    make_catalog, make_taste_log, folder
):
    catalog, embeddings = make_catalog(100)
    train_ranker(make_taste_log(60), catalog, embeddings, folder, settings=QUICK)
    model = CompressedModel.read(folder)
    owned = [FEATURE_NAMES.index(name) for name in returning.NAMES]  # answers left out what users have
    assert (model.parameters["head.in"][:, owned] == 0).all()
    assert (model.parameters["head.linear"][owned] == 0).all()
    assert (model.parameters["head.in"][:, FEATURE_NAMES.index("merged_z")] != 0).any()


def test_where_two_questions_are_asked_each_is_calibrated_and_stated(make_catalog, make_log, folder):
    catalog, embeddings = make_catalog(60)
    # Every other time an item of five that the user takes again, else one that is new to the user.
    rows = [
        (f"u{u}", f"i{(u + n) % 5 if n % 2 else 5 + (7 * u + n) % 55}", 24 * u + n)
        for u in range(80)
        for n in range(20)
    ]
    settings = QUICK.model_copy(update={"exclude_seen": False, "train_positions": 6, "validation_positions": 4})
    metrics = train_ranker(make_log(rows), catalog, embeddings, folder, settings=settings)
    assert {"fused_vs_retrieval_new", "fused_vs_retrieval_any"} <= set(metrics)
    model = CompressedModel.read(folder)
    assert model.calibration is not None and model.calibration_new is not None
    assert model.calibration != model.calibration_new
    assert metrics["calibration_error"] < 0.05
