"""The int8 engine of the text ranker against the float32 one."""

import json

import numpy as np
import pytest
from transformers import AutoConfig

from models.catalog import Item, ItemCatalog, write_catalog
from models.rankers.compressed import RankerError
from models.rankers.load import load_ranker
from models.rankers.pairs import equal_batches
from models.rankers.text import TextRanker


def test_int8_says_nearly_what_float32_says(folder, catalog, make_query, make_candidates):
    exact = TextRanker.load(folder, catalog, device="cpu").score(make_query(), make_candidates(range(40)))
    whole = TextRanker.load(folder, catalog, device="cpu", engine="int8").score(
        make_query(), make_candidates(range(40))
    )
    assert exact.std() > 0.01
    assert np.corrcoef(exact, whole)[0, 1] > 0.95
    assert not np.array_equal(exact, whole)


def test_an_int8_score_does_not_depend_on_the_batch_nor_its_order(folder, tmp_path, make_query, make_candidates):
    # Texts of many lengths: each pair is padded as it would be alone.
    words = ["film", "drama", "comedy", "thriller", "western", "red", "blue"]
    items = [Item(f"i{n}", f"film {n}", text=" ".join(words[(n + k) % 7] for k in range(n))) for n in range(60)]
    write_catalog(items, tmp_path / "catalog.arrow")
    ranker = TextRanker.load(folder, ItemCatalog(tmp_path), device="cpu", engine="int8")
    candidates = make_candidates(range(60))
    together = ranker.score(make_query(), candidates)
    alone = np.concatenate([ranker.score(make_query(), candidates.take(np.array([at]))) for at in range(60)])
    backwards = ranker.score(make_query(), candidates.take(np.arange(60)[::-1]))[::-1]
    assert together.std() > 0.01
    assert np.abs(together - alone).max() <= 1e-5
    assert np.abs(together - backwards).max() <= 1e-5
    assert np.array_equal(np.argsort(together, kind="stable"), np.argsort(alone, kind="stable"))


def test_any_text_and_no_text_are_scored_in_int8(folder, tmp_path, make_query, make_candidates):
    texts = ["", "word " * 10_000, "🎬🔥👩‍👩‍👧", "مرحبا بالعالم", "银翼杀手", "\x00\ufffd\u202e"]
    write_catalog([Item(f"i{n}", t, text=t) for n, t in enumerate(texts)], tmp_path / "catalog.arrow")
    ranker = TextRanker.load(folder, ItemCatalog(tmp_path), device="cpu", engine="int8")
    assert np.isfinite(ranker.score(make_query(("i0", "i1")), make_candidates(range(len(texts))))).all()


def test_the_configuration_chooses_what_computes(folder, catalog, embeddings, statistics):
    (folder / "ranker.json").write_text(json.dumps({"backend": "text", "compute": "int8"}))
    assert isinstance(load_ranker(folder, catalog, embeddings, statistics, device="cpu"), TextRanker)
    (folder / "ranker.json").write_text(json.dumps({"backend": "text", "compute": "int3"}))
    with pytest.raises(RankerError, match="int3"):
        load_ranker(folder, catalog, embeddings, statistics, device="cpu")


def test_int8_refuses_an_activation_it_does_not_read(folder, catalog):
    config = AutoConfig.from_pretrained(folder)
    config.hidden_act = "relu"
    config.save_pretrained(folder)
    with pytest.raises(RankerError, match="int8 reads BERT with GELU"):
        TextRanker.load(folder, catalog, device="cpu", engine="int8")


def test_an_empty_catalog_cannot_calibrate(folder, tmp_path):
    write_catalog([], tmp_path / "catalog.arrow")
    with pytest.raises(RankerError, match="texts to calibrate"):
        TextRanker.load(folder, ItemCatalog(tmp_path), device="cpu", engine="int8")


def test_equal_batches_hold_every_pair_once_beside_its_equals():
    lengths = np.array([5, 90, 7, 30, 31, 200, 6, 8, 9])
    batches = equal_batches(lengths, 16, 8)
    assert sorted(np.concatenate(batches).tolist()) == list(range(9))
    for batch in batches:
        assert len(set((-(-lengths[batch] // 8)).tolist())) == 1
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= 16
