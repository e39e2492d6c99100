"""What training does with what it should not be given: it ends with finite numbers or a reason, never with a crash."""

from dataclasses import replace

import numpy as np
import pytest

from models.behaviour.statistics import fit_statistics
from models.candidates import SCORED_SOURCES, Candidates
from models.catalog import Item, ItemCatalog
from models.encoder import HashEncoder
from models.features import features_from_events
from models.rankers.load import load_ranker
from models.retrieval.query import RetrievalQuery
from pipelines.training.settings import TrainingSettings
from pipelines.training.train import train_ranker

QUICK = TrainingSettings(
    train_positions=4, validation_positions=2, epochs=1, list_size=60, bootstrap_rounds=200, min_examples=10
)
STRANGE = [
    "",
    " ",
    "x" * 50_000,
    "🎬🎉",
    "فيلم قديم",
    "老电影 好看",
    "a\u202eb\u200f",
    "\U0001f469\u200d\U0001f680 e\u0301",
]


def plain(k):
    return Item(f"i{k}", f"film {k}", labels={"genre": (f"g{k % 5}",)}, numbers={"year": 1980.0 + k % 30})


def strange(k):
    return Item(f"i{k}", STRANGE[k % 8], STRANGE[(k + 3) % 8], labels={"genre": (STRANGE[k % 8][:40], f"g{k % 5}")})


def no_numbers(k):
    return replace(plain(k), numbers={"year": [np.nan, np.inf, -np.inf, 3e38, 1990.0][k % 5]})


def nothing_known(k):
    return Item(f"i{k}", "")


def as_it_is(log):
    return log


def values_that_are_no_numbers(log):
    values = log.values.copy()
    values[::3], values[1::3] = np.nan, np.inf
    return replace(log, values=values)


def huge_values(log):
    return replace(log, values=np.where(np.arange(len(log)) % 2, 3e38, -3e38).astype(np.float32))


def one_moment(log):
    return replace(log, timestamps_ms=np.full(len(log), 10**12, np.int64))


def times_far_apart(log):
    times = log.timestamps_ms.copy()
    times[-1] = 2**52
    return replace(log, timestamps_ms=times)


def items_nobody_knows(log):
    return replace(log, item_ids=np.where(np.arange(len(log)) % 4 == 0, "gone", log.item_ids).astype(object))


def every_type(log):
    return replace(log, types=(np.arange(len(log)) % 10).astype(np.uint8))


@pytest.mark.parametrize("item", [strange, no_numbers, nothing_known])
def test_no_item_is_too_strange(item, make_taste_log, tmp_path):
    trained(item, make_taste_log(60), tmp_path)


@pytest.mark.parametrize(
    "change",
    [values_that_are_no_numbers, huge_values, one_moment, times_far_apart, items_nobody_knows, every_type],
)
def test_no_event_is_too_strange(change, make_taste_log, tmp_path):
    trained(plain, change(make_taste_log(60)), tmp_path)


def test_vectors_that_are_no_numbers_poison_nobody_else_s_scores(make_taste_log, tmp_path):
    catalog = ItemCatalog.of([plain(k) for k in range(100)])
    log = make_taste_log(60)
    embeddings = HashEncoder(16).encode([catalog.document(r) for r in range(100)])
    metrics = train_ranker(log, catalog, embeddings, tmp_path, settings=QUICK)
    assert np.isfinite(metrics["fused_ndcg10"])
    poisoned = embeddings.copy()
    poisoned[7] = np.nan
    ranker = load_ranker(tmp_path, catalog, poisoned, fit_statistics(log, catalog), device="cpu")
    scores = ranker.score(RetrievalQuery(n=5, now_ms=10**12), candidates(np.arange(100)))
    assert np.isfinite(np.delete(scores, 7)).all()


def trained(item, log, folder):
    """Train, and ask about known and unknown items for known and unknown users."""
    items = [item(k) for k in range(100)] + [Item("unseen", "New one"), Item("unseen2", "")]
    catalog = ItemCatalog.of(items)
    embeddings = HashEncoder(16).encode([catalog.document(r)[:200] for r in range(len(items))])
    metrics = train_ranker(log, catalog, embeddings, folder, settings=QUICK)
    if "fused_ndcg10" not in metrics:
        assert "min_examples" in metrics["reason"]
        return
    assert np.isfinite([metrics["fused_ndcg10"], metrics["retrieval_ndcg10"]]).all()
    ranker = load_ranker(folder, catalog, embeddings, fit_statistics(log, catalog), device="cpu")
    past = features_from_events(
        ["i3", "nobody sells this", "unseen"],
        np.full(3, 4, np.uint8),
        np.array([np.nan, 1, np.inf], np.float32),
        np.array([1, 2, 3], np.int64),
    )
    for query in (RetrievalQuery(n=5, now_ms=10**12, user=past), RetrievalQuery(n=5, now_ms=0)):
        scores = ranker.score(query, candidates(np.arange(len(items))))
        assert scores.shape == (102,) and np.isfinite(scores).all()


def candidates(rows):
    n = len(rows)
    scores = np.zeros((n, len(SCORED_SOURCES)), np.float32)
    scores[::2] = np.nan
    return Candidates(rows.astype(np.int32), np.ones(n, np.uint16), scores, np.full(n, np.nan, np.float32))
