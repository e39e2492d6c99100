import json

import numpy as np
import pytest

from models.behaviour.statistics import fit_statistics
from models.features import features_from_events
from models.rankers.load import load_ranker
from models.retrieval.query import RetrievalQuery
from pipelines.training.settings import TrainingSettings
from pipelines.training.train import train_ranker

QUICK = TrainingSettings(train_positions=4, validation_positions=2, epochs=2, list_size=20, bootstrap_rounds=200)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "ranker").mkdir()
    return tmp_path / "ranker"


def test_a_trained_ranker_beats_retrieval_order_where_there_is_something_to_learn(make_catalog, patterned_log, folder):
    catalog, embeddings = make_catalog(100)
    metrics = train_ranker(patterned_log, catalog, embeddings, folder, settings=QUICK)
    assert metrics == json.loads((folder / "metrics.json").read_text())
    assert 0 <= metrics["retrieval_ndcg10"] <= 1
    assert metrics["switch_on"] == (metrics["fused_vs_retrieval"]["lower"] > 0)
    assert metrics["switch_on"] or "beat" in metrics["reason"]


def test_training_is_deterministic_for_a_seed(make_catalog, patterned_log, tmp_path):
    catalog, embeddings = make_catalog(100)
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        train_ranker(patterned_log, catalog, embeddings, tmp_path / name, settings=QUICK, seed=seed)
        weights.append((tmp_path / name / "ranker.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_the_trained_folder_loads_and_scores(make_catalog, patterned_log, folder, make_log):
    catalog, embeddings = make_catalog(100)
    train_ranker(patterned_log, catalog, embeddings, folder, settings=QUICK)
    ranker = load_ranker(folder, catalog, embeddings, fit_statistics(patterned_log, catalog), device="cpu")
    from models.candidates import SCORED_SOURCES, Candidates

    rows = np.arange(10, dtype=np.int32)
    candidates = Candidates(
        rows, np.ones(10, np.uint16), np.ones((10, len(SCORED_SOURCES)), np.float32), np.ones(10, np.float32)
    )
    user = features_from_events(["i3"], np.array([4], np.uint8), np.array([5.0], np.float32), np.array([1], np.int64))
    scores = ranker.score(RetrievalQuery(n=10, now_ms=10, user=user), candidates)
    assert np.isfinite(scores).all()
    assert ranker.score_kind in ("probability", "rank_only")


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
    assert not metrics["switch_on"]  # the order is random: nothing can be learned


def test_events_of_unknown_items_are_ignored(make_catalog, patterned_log, make_log, folder):
    catalog, embeddings = make_catalog(3)
    metrics = train_ranker(patterned_log, catalog, embeddings, folder, settings=QUICK)
    assert not metrics["switch_on"]
