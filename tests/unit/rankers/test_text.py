import json

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from models.candidates import Candidates
from models.catalog import Item, ItemCatalog, write_catalog
from models.rankers.compressed import RankerError
from models.rankers.load import load_ranker
from models.rankers.pairs import budget_batches, pair_template
from models.rankers.text import TextRanker

WORDS = "film drama comedy thriller western liked did not like : ; . , x red blue year genre 0 1 2 3 4 5 6 7 8 9"


def save_model(folder, *, labels=1):
    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split(), *(f"##{d}" for d in range(10))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizer(vocab={w: at for at, w in enumerate(vocabulary)})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=labels,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return tokenizer


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path / "text")
    return tmp_path / "text"


@pytest.fixture
def ranker(folder, catalog):
    return TextRanker.load(folder, catalog, device="cpu")


def test_a_pair_joined_from_cached_parts_is_what_the_tokenizer_makes_of_both_texts(tmp_path):
    tokenizer = save_model(tmp_path / "t")
    template = pair_template(tokenizer)
    first, second = "liked film 3", "thriller 12"
    parts = [np.asarray(tokenizer(t, add_special_tokens=False)["input_ids"], np.int32) for t in (first, second)]
    ids, types = template.join(*parts)
    expected = tokenizer(first, second)
    assert ids.tolist() == expected["input_ids"]
    assert types.tolist() == expected["token_type_ids"]


def test_scores_do_not_depend_on_the_batch_nor_its_order(ranker, folder, catalog, make_query, make_candidates):
    candidates = make_candidates(range(40))
    together = ranker.score(make_query(), candidates)
    alone = np.concatenate([ranker.score(make_query(), candidates.take(np.array([at]))) for at in range(40)])
    assert together.std() > 0.01
    assert np.abs(together - alone).max() <= 1e-4
    small = TextRanker.load(folder, catalog, device="cpu", batch_tokens=64).score(make_query(), candidates)
    assert np.abs(together - small).max() <= 1e-4


def test_the_profile_changes_the_score(ranker, make_query, make_candidates):
    candidates = make_candidates(range(10))
    assert not np.allclose(ranker.score(make_query(("i2",)), candidates), ranker.score(make_query(("i7",)), candidates))


def test_any_text_and_no_text_are_scored(folder, tmp_path, make_query, make_candidates):
    texts = ["", "word " * 10_000, "🎬🔥👩‍👩‍👧", "مرحبا بالعالم", "银翼杀手", "\x00\ufffd\u202e"]
    write_catalog([Item(f"i{n}", t, text=t) for n, t in enumerate(texts)], tmp_path / "catalog.arrow")
    ranker = TextRanker.load(folder, ItemCatalog(tmp_path), device="cpu")
    scores = ranker.score(make_query(("i0", "i1", "i2")), make_candidates(range(len(texts))))
    assert scores.shape == (len(texts),)
    assert np.isfinite(scores).all()


def test_no_candidates_give_no_scores(ranker, make_query):
    assert ranker.score(make_query(), Candidates.empty()).shape == (0,)


def test_a_full_cache_starts_over_and_scores_the_same(folder, catalog, make_query, make_candidates):
    ranker = TextRanker.load(folder, catalog, device="cpu", cached_items=3)
    first = ranker.score(make_query(), make_candidates(range(20)))
    ranker.score(make_query(), make_candidates(range(20, 40)))
    assert np.allclose(ranker.score(make_query(), make_candidates(range(20))), first, atol=1e-6)


def test_the_loader_finds_a_text_ranker_with_or_without_our_configuration(folder, catalog, embeddings, statistics):
    assert isinstance(load_ranker(folder, catalog, embeddings, statistics, device="cpu"), TextRanker)
    (folder / "ranker.json").write_text(json.dumps({"backend": "text"}))
    assert isinstance(load_ranker(folder, catalog, embeddings, statistics, device="cpu"), TextRanker)


def test_what_is_no_ranker_is_refused_by_name(tmp_path, folder, catalog, embeddings, statistics):
    with pytest.raises(RankerError, match="not a ranker"):
        load_ranker(tmp_path, catalog, embeddings, statistics)
    (folder / "ranker.json").write_text(json.dumps({"backend": "magic"}))
    with pytest.raises(RankerError, match="magic"):
        load_ranker(folder, catalog, embeddings, statistics)


def test_a_model_with_two_labels_and_one_without_safetensors_are_refused(tmp_path, catalog):
    save_model(tmp_path / "two", labels=2)
    with pytest.raises(RankerError, match="2 labels"):
        TextRanker.load(tmp_path / "two", catalog, device="cpu")
    (tmp_path / "two" / "model.safetensors").unlink()
    with pytest.raises(RankerError, match=r"model\.safetensors is missing"):
        TextRanker.load(tmp_path / "two", catalog, device="cpu")


def test_batches_hold_every_pair_once_within_the_budget():
    lengths = np.array([5, 90, 7, 30, 31, 200, 6])
    batches = budget_batches(lengths, 100)
    assert sorted(np.concatenate(batches).tolist()) == list(range(7))
    assert all(len(b) == 1 or len(b) * lengths[b].max() <= 100 for b in batches)
