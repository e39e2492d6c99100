import json

import numpy as np
import pytest
import torch
from transformers import BertTokenizer

from models.candidates import Candidates
from models.catalog import Item, ItemCatalog, write_catalog
from models.rankers.compressed import RankerError
from models.rankers.load import load_ranker
from models.rankers.pair_tokens import PairTokens
from models.rankers.pairs import budget_batches, longest_first, pair_template
from models.rankers.text import TextRanker


@pytest.fixture(params=["transformers", "packed"])
def ranker(request, folder, catalog):
    # Without kept scores, or a second question would compare a score with itself.
    return TextRanker.load(folder, catalog, device="cpu", engine=request.param, cached_profiles=0)


def test_a_pair_joined_from_cached_parts_is_what_the_tokenizer_makes_of_both_texts(folder):
    tokenizer = BertTokenizer.from_pretrained(folder)
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
    assert np.array_equal(np.argsort(together), np.argsort(alone))
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
    ranker = TextRanker.load(folder, catalog, device="cpu", cached_items=3, cached_profiles=0)
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


def test_a_model_with_two_labels_and_one_without_safetensors_are_refused(tmp_path, catalog, save_text_model):
    save_text_model(tmp_path / "two", labels=2)
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


@pytest.mark.parametrize("max_tokens", [12, 19, 64])
def test_every_engine_scores_as_the_library_does(folder, catalog, make_query, make_candidates, max_tokens):
    from sentence_transformers import CrossEncoder

    from models.rankers.profile_text import profile_text

    query, rows = make_query(), range(40)
    library = CrossEncoder(str(folder), max_length=max_tokens, device="cpu")
    pairs = [(profile_text(query, catalog), catalog.document(row)) for row in rows]
    wanted = library.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    for engine in ("transformers", "packed"):
        ranker = TextRanker.load(folder, catalog, device="cpu", engine=engine, max_tokens=max_tokens)
        scores = ranker.score(query, make_candidates(rows))
        assert np.abs(scores - wanted).max() <= 1e-4
        assert np.array_equal(np.argsort(scores), np.argsort(wanted))


def test_a_profile_that_asks_again_pays_only_for_items_it_has_not_asked_about(
    folder, catalog, make_query, make_candidates
):
    class Counting:
        name, length_multiple, pairs = "counting", 1, 0

        def logits(self, tokens, types, mask):
            self.pairs += len(tokens)
            return tokens.sum(axis=1).astype(np.float32)

    ranker = TextRanker.load(folder, catalog, device="cpu", cached_profiles=1)
    ranker.engine = Counting()
    first = ranker.score(make_query(), make_candidates(range(10)))
    again = ranker.score(make_query(), make_candidates(range(12)))
    assert ranker.engine.pairs == 12
    assert np.array_equal(first, again[:10])
    ranker.score(make_query(("i7",)), make_candidates(range(5)))
    ranker.score(make_query(), make_candidates(range(10)))  # forgotten for the other profile
    assert ranker.engine.pairs == 12 + 5 + 10


def test_the_longer_text_is_cut_first():
    assert longest_first(3, 4, 10) == (3, 4)
    assert longest_first(3, 40, 10) == (3, 7)
    assert longest_first(40, 3, 10) == (7, 3)
    assert longest_first(30, 40, 9) == (4, 5)
    assert longest_first(40, 30, 9) == (5, 4)


def test_an_engine_that_cannot_run_the_model_is_refused(folder, catalog):
    from models.rankers.engines import build_engine

    class Other:
        class config:
            model_type, hidden_act = "roberta", "gelu"

    with pytest.raises(ValueError, match="BERT-like"):
        build_engine("packed", Other, "cpu", list)


def test_over_a_catalog_with_changed_texts_only_those_are_computed_again(folder, tmp_path, make_query, make_candidates):
    def films(*changed):
        home = tmp_path / f"films{len(changed)}"
        home.mkdir()
        texts = ["red" if n in changed else "blue" for n in range(20)]
        items = [Item(f"i{n}", f"film {n}", text=text) for n, text in enumerate(texts)]
        write_catalog(items, home / "catalog.arrow")
        return ItemCatalog(home)

    ranker = TextRanker.load(folder, films(), device="cpu", engine="packed")
    before = ranker.score(make_query(), make_candidates(range(10)))
    real, computed = ranker.engine, []

    class Counting:
        name, length_multiple = "packed", 8

        def logits(self, tokens, types, mask):
            computed.append(len(tokens))
            return real.logits(tokens, types, mask)

    ranker.engine = Counting()
    after = ranker.over(films(3, 7)).score(make_query(), make_candidates(range(10)))
    assert sum(computed) == 2
    changed = np.flatnonzero(before != after)
    assert set(changed.tolist()) == {3, 7}
    fresh = TextRanker.load(folder, films(3, 7, 99), device="cpu", engine="packed")
    assert np.abs(fresh.score(make_query(), make_candidates(range(10))) - after).max() <= 1e-4


def test_starting_over_in_one_catalog_starts_over_in_all(folder, catalog, monkeypatch):
    ranker = TextRanker.load(folder, catalog, device="cpu", engine="transformers", cached_items=4)
    grown = ranker.over(catalog)
    ranker._tokens.of("liked", range(5))
    grown._tokens.of("liked", range(2))
    encoded = []
    whole = PairTokens._encode
    monkeypatch.setattr(PairTokens, "_encode", lambda self, texts: encoded.extend(texts) or whole(self, texts))
    ranker._tokens.of("liked", range(2))
    assert encoded == ["liked"]
