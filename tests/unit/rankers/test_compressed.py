import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.candidates import Candidates
from models.rankers.calibration import PlattScaling
from models.rankers.compressed import CompressedModel, CompressedRanker, RankerError
from models.rankers.fusion import FEATURE_NAMES
from models.rankers.id_vectors import WholeIds
from models.rankers.inputs import label_slots, label_vocabulary
from models.rankers.network import NetworkShape, initialise


@pytest.fixture
def model(catalog):
    labels = label_vocabulary(catalog)
    shape = NetworkShape(text_dim=16, labels=len(labels), numbers=3, features=len(FEATURE_NAMES), ids=3)
    parameters = initialise(shape, seed=3)
    generator = torch.Generator().manual_seed(4)
    for name in ("out.weight", "head.linear", "head.out"):  # as if it had been trained
        parameters[name] = torch.randn(parameters[name].shape, generator=generator)
    table = torch.randn(4, shape.dim, generator=generator).numpy()
    table[0] = 0.0
    known, scaling = np.sort(catalog.hashes[:3]), PlattScaling(0.5, -3.0)
    return CompressedModel(shape, parameters, labels, ["year"], known, scaling, ids=WholeIds(table))


@pytest.fixture
def ranker(model, catalog, embeddings, statistics):
    return CompressedRanker(model, catalog, embeddings, statistics, device="cpu")


def test_an_untrained_network_adds_nothing_to_the_head(model, catalog, embeddings, statistics, make_query):
    fresh = replace(model, parameters=initialise(model.shape, seed=1), calibration=None)
    ranker = CompressedRanker(fresh, catalog, embeddings, statistics, device="cpu")
    assert np.array_equal(ranker.attention(make_query(), np.arange(5, dtype=np.int32)), np.zeros(5))
    assert ranker.score_kind == "rank_only"


def test_the_attention_logit_of_a_candidate_does_not_depend_on_the_others(ranker, make_query):
    rows = np.arange(40, dtype=np.int32)
    together = ranker.attention(make_query(), rows)
    alone = np.concatenate([ranker.attention(make_query(), rows[at : at + 1]) for at in range(40)])
    assert together.std() > 0.1
    assert np.abs(together - alone).max() <= 1e-4
    assert np.array_equal(np.argsort(together), np.argsort(alone))
    shuffled = np.random.default_rng(0).permutation(rows)
    assert np.abs(ranker.attention(make_query(), shuffled) - together[shuffled]).max() <= 1e-4


def test_the_history_changes_the_attention_logit(ranker, make_query):
    rows = np.arange(10, dtype=np.int32)
    base = ranker.attention(make_query(("i1", "i5")), rows)
    assert np.abs(ranker.attention(make_query(("i5", "i1")), rows) - base).max() > 1e-3
    assert np.isfinite(ranker.attention(make_query(()), rows)).all()


def test_what_is_saved_scores_the_same_after_loading(
    ranker, model, tmp_path, catalog, embeddings, statistics, make_query, make_candidates
):
    folder = tmp_path / "ranker"
    folder.mkdir()
    model.save(folder)
    loaded = CompressedRanker.load(folder, catalog, embeddings, statistics, device="cpu")
    candidates = make_candidates(range(20))
    assert np.array_equal(loaded.score(make_query(), candidates), ranker.score(make_query(), candidates))


def test_what_is_new_to_the_user_has_a_calibration_of_its_own(
    model, tmp_path, catalog, embeddings, statistics, make_query, make_candidates
):
    of_new, folder = PlattScaling(0.25, -5.0), tmp_path / "ranker"
    folder.mkdir()
    replace(model, calibration_new=of_new).save(folder)
    both = CompressedRanker.load(folder, catalog, embeddings, statistics, device="cpu")
    one = CompressedRanker(model, catalog, embeddings, statistics, device="cpu")
    logits = CompressedRanker(replace(model, calibration=None), catalog, embeddings, statistics, device="cpu")
    candidates = make_candidates(range(30))
    anything, new = (replace(make_query(), exclude_seen=leave_out) for leave_out in (False, True))
    assert np.array_equal(both.score(anything, candidates), one.score(anything, candidates))
    assert np.array_equal(both.score(new, candidates), of_new.apply(logits.score(new, candidates)))
    # Without any calibration of all, nothing is said to be a probability.
    half = replace(model, calibration=None, calibration_new=of_new)
    assert half.calibration_of(new) is None


def test_an_artifact_with_its_id_vectors_in_one_tensor_is_read_as_before(
    ranker, model, tmp_path, catalog, embeddings, statistics, make_query, make_candidates
):
    model.save(tmp_path)
    weights, config = tmp_path / "ranker.safetensors", tmp_path / "ranker.json"
    table = torch.from_numpy(model.ids.rows(np.arange(4)))
    save_file({**load_file(weights), "item.id": table}, weights)
    body = json.loads(config.read_text())
    (tmp_path / body.pop("ids")[0]["file"]).unlink()
    config.write_text(json.dumps(body))
    loaded = CompressedRanker.load(tmp_path, catalog, embeddings, statistics, device="cpu")
    candidates = make_candidates(range(20))
    assert np.array_equal(loaded.score(make_query(), candidates), ranker.score(make_query(), candidates))
    save_file({**load_file(weights), "item.id": table[:3].clone()}, weights)
    with pytest.raises(RankerError, match=r"tensor item\.id is missing or has another shape"):
        CompressedModel.read(tmp_path)


def test_calibrated_scores_are_probabilities_in_the_order_of_the_logits(
    ranker, model, catalog, embeddings, statistics, make_query, make_candidates
):
    plain = CompressedRanker(
        replace(model, calibration=None),
        catalog,
        embeddings,
        statistics,
        device="cpu",
    )
    candidates = make_candidates(range(30))
    scores, logits = ranker.score(make_query(), candidates), plain.score(make_query(), candidates)
    assert (ranker.score_kind, plain.score_kind) == ("probability", "rank_only")
    assert ((scores > 0) & (scores < 1)).all()
    assert np.array_equal(np.argsort(scores, kind="stable"), np.argsort(logits, kind="stable"))


def test_scores_are_finite_for_poisoned_candidates_and_unknown_history(ranker, make_query, make_candidates):
    candidates = make_candidates(range(10))
    candidates.source_scores[3] = np.nan
    candidates.scores[4] = np.inf
    scores = ranker.score(make_query(("never", "seen")), candidates)
    assert scores.shape == (10,)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()


def test_no_candidates_give_no_scores(ranker, make_query):
    assert ranker.score(make_query(), Candidates.empty()).shape == (0,)


def test_a_damaged_weights_file_is_refused_by_name(model, tmp_path):
    model.save(tmp_path)
    file = tmp_path / "ranker.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RankerError, match=r"ranker\.safetensors"):
        CompressedModel.read(tmp_path)


def test_a_configuration_that_does_not_fit_the_weights_is_refused(model, tmp_path):
    model.save(tmp_path)
    body = json.loads((tmp_path / "ranker.json").read_text())
    body["shape"]["hidden"] = 999
    (tmp_path / "ranker.json").write_text(json.dumps(body))
    with pytest.raises(RankerError, match="another shape"):
        CompressedModel.read(tmp_path)


def test_embeddings_of_another_size_are_refused(model, catalog, embeddings, statistics):
    with pytest.raises(RankerError, match="16 dims"):
        CompressedRanker(model, catalog, embeddings[:, :8], statistics)


def test_label_slots_follow_the_vocabulary_and_ignore_unknown_labels(catalog):
    vocabulary = ["genre=drama", "genre=western"]
    slots = label_slots(catalog, vocabulary)
    assert slots[4].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]  # i4: drama
    assert slots[3].tolist() == [2, 1, 0, 0, 0, 0, 0, 0]  # i3: western, drama
    assert slots[2].sum() == 0  # i2: thriller is not in the vocabulary
