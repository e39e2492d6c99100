from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.bundle import ReleaseBundle
from models.candidates import SCORED_SOURCES, Candidates
from models.catalog import Item, ItemCatalog, write_catalog
from models.features import features_from_events
from models.media.layout import Layout, Part
from models.rankers.compressed import CompressedModel
from models.rankers.fusion import FEATURE_NAMES, FusionFeatures
from models.rankers.inputs import label_slots, label_vocabulary
from models.rankers.load import load_ranker
from models.rankers.network import NetworkShape, initialise
from models.rankers.text import TextRanker
from models.rankers.text_fusion import FusedTextRanker, TextFusion
from models.releases import Release
from models.retrieval.query import RetrievalQuery
from models.retrieval.settings import RetrievalSettings

AT = {name: at for at, name in enumerate(FEATURE_NAMES)}


@pytest.fixture
def fusion(catalog, embeddings, statistics):
    return FusionFeatures(catalog, embeddings, statistics)


def test_features_have_a_named_column_each_and_are_finite(fusion, make_query, make_candidates):
    features = fusion.build(make_query(), make_candidates(range(10, 30)))
    assert features.shape == (20, len(FEATURE_NAMES))
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert len(set(FEATURE_NAMES)) == len(FEATURE_NAMES) >= 20


def test_only_list_relative_columns_depend_on_the_other_candidates(fusion, make_query, make_candidates):
    whole = make_candidates(range(10, 30))
    part = whole.take(np.arange(5))
    a, b = fusion.build(make_query(), whole)[:5], fusion.build(make_query(), part)
    own = [at for name, at in AT.items() if not name.endswith(("_z", "_rank"))]
    assert np.allclose(a[:, own], b[:, own], atol=1e-6)
    assert not np.allclose(a[:, AT["merged_z"]], b[:, AT["merged_z"]])


def test_the_best_score_of_a_source_has_rank_zero_and_ties_share_one(fusion, make_query, make_candidates):
    candidates = make_candidates([3, 4, 6])
    candidates.source_scores[:, 0] = [0.2, 0.7, 0.2]
    ranks = fusion.build(make_query(), candidates)[:, AT["semantic_rank"]]
    assert ranks[1] == 0.0
    assert ranks[0] == ranks[2] < 0.0


def test_an_item_of_a_liked_genre_has_more_affinity_than_one_of_a_disliked_genre(fusion, make_query, make_candidates):
    # i4 is drama (rated 1), i10 is thriller (rated 5); i8 is drama, i2 is thriller
    query = make_query(("i4", "i10"))
    liking = fusion.build(query, make_candidates([8, 2]))[:, AT["label_liking"]]
    assert liking[1] > 0 > liking[0]


def test_a_year_near_the_history_is_closer(fusion, make_query, make_candidates):
    affinity = fusion.build(make_query(("i1", "i2")), make_candidates([3, 39, 5]))[:, AT["number_affinity"]]
    assert affinity[0] > affinity[1]
    assert affinity[2] == 0.0  # i5 has no year


def test_a_user_without_history_and_an_unknown_history_give_the_same_neutral_columns(
    fusion, make_query, make_candidates
):
    candidates = make_candidates(range(5))
    nobody, stranger = make_query(()), make_query(("gone1", "gone2"))
    assert np.array_equal(fusion.build(nobody, candidates), fusion.build(stranger, candidates))


def test_without_personal_the_history_is_not_read(fusion, make_query, make_candidates):
    candidates = make_candidates(range(5))
    private = fusion.build(make_query(personal=False), candidates)
    assert np.array_equal(private, fusion.build(make_query(()), candidates))


def test_an_event_after_now_does_not_exist(fusion, make_query, make_candidates):
    query = make_query(("i1", "i5"))
    early = make_query(("i1", "i5"), now_ms=int(query.user.timestamps_ms[0]))
    candidates = make_candidates([5, 6])
    assert fusion.build(early, candidates)[0, AT["text_max"]] < fusion.build(query, candidates)[0, AT["text_max"]]


@settings(deadline=None, max_examples=40)  # a busy machine is not a failure
@given(
    n=st.integers(1, 12),
    poison=st.sampled_from([np.nan, np.inf, -np.inf, 1e38, -1e38, 0.0]),
)
def test_features_are_finite_for_any_score(n, poison, tmp_path_factory):
    folder = tmp_path_factory.mktemp("c")
    write_catalog([Item(f"i{k}", "") for k in range(n)], folder / "catalog.arrow")
    catalog = ItemCatalog(folder)
    counts = np.full(n, poison, np.float32)
    statistics = SimpleNamespace(popularity=counts, recent=counts, first_ms=counts)
    fusion = FusionFeatures(catalog, np.full((n, 4), poison, np.float32), statistics)
    scores = np.full((n, len(SCORED_SOURCES)), poison, np.float32)
    scores[0] = 1.0
    candidates = Candidates(np.arange(n, dtype=np.int32), np.zeros(n, np.uint16), scores, scores[:, 0].copy())
    user = features_from_events(
        ["i0"], np.array([4], np.uint8), np.array([poison], np.float32), np.array([5], np.int64)
    )
    features = fusion.build(RetrievalQuery(n=n, now_ms=9, user=user), candidates)
    assert np.isfinite(features).all()
    assert np.abs(features).max() <= 8.0


def test_no_candidates_give_no_rows(fusion, make_query):
    assert fusion.build(make_query(), Candidates.empty()).shape == (0, len(FEATURE_NAMES))


def test_columns_of_different_catalogs_are_refused(catalog, embeddings, statistics):
    with pytest.raises(ValueError, match="same catalog"):
        FusionFeatures(catalog, embeddings[:-1], statistics)


def with_pictures(embeddings, *, of):
    """Vectors that hold a picture beside the text for the rows `of`, and their layout."""
    layout = Layout(embeddings.shape[1], (Part("image", 8, 0.4),))
    pictures = np.zeros((len(embeddings), 8), np.float32)
    drawn = np.random.default_rng(0).normal(size=(len(of), 8))
    pictures[of] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return layout.joined(embeddings, {"image": pictures}), layout


def test_pictures_change_no_text_feature(catalog, embeddings, statistics, fusion, make_query, make_candidates, folder):
    fused, layout = with_pictures(embeddings, of=[1, 4, 12, 15, 20])
    parts, query = (catalog, fused, statistics), make_query(intent=embeddings[3])
    wanted = fusion.build(query, make_candidates(range(10, 30)))
    found = FusionFeatures(*parts, layout=layout).build(query, make_candidates(range(10, 30)))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert wanted[:, [AT["text_max"], AT["text_mean"], AT["text_last"], AT["text_intent"]]].any(axis=0).all()
    # Whatever reads the features reads them so: the text ranker beside them too, also over items that changed.
    fusion_of = TextFusion(0.0, {"text_max": 1.0, "text_intent": 0.5})
    text = TextRanker.load(folder, catalog, device="cpu")
    alone = FusedTextRanker(text, fusion_of, catalog, embeddings, statistics)
    beside = FusedTextRanker(text, fusion_of, *parts, layout=layout)
    for ranker in (beside, beside.over(*parts)):
        scores = ranker.score(query, make_candidates(range(10, 30)))
        np.testing.assert_allclose(scores, alone.score(query, make_candidates(range(10, 30))), atol=1e-5)


def test_a_compressed_ranker_tells_texts_from_pictures_when_it_is_loaded(
    catalog, embeddings, statistics, make_query, make_candidates, tmp_path
):
    fused, layout = with_pictures(embeddings, of=[1, 4, 12])
    shape = NetworkShape(text_dim=fused.shape[1], labels=0, numbers=2, features=len(FEATURE_NAMES))
    CompressedModel(shape, initialise(shape, seed=0), [], []).save(tmp_path)
    ranker = load_ranker(tmp_path, catalog, fused, statistics, layout=layout, device="cpu")
    query, candidates = make_query(intent=embeddings[3]), make_candidates(range(10, 30))
    wanted = FusionFeatures(catalog, embeddings, statistics).build(query, candidates)
    np.testing.assert_allclose(ranker._features.build(query, candidates), wanted, atol=1e-5)
    assert np.isfinite(ranker.score(query, candidates)).all()
    bundle = ReleaseBundle(Release({}), {"ranker": tmp_path}, catalog, fused, RetrievalSettings(), layout=layout)
    vars(bundle)["statistics"] = statistics
    np.testing.assert_array_equal(bundle.ranker.score(query, candidates), ranker.score(query, candidates))
    weights = bundle.feature_weights
    for one in (weights, weights.over(catalog, fused, statistics)):
        np.testing.assert_allclose(one.features.build(query, candidates), wanted, atol=1e-5)


def test_ranking_reads_nothing_of_what_reviews_say(catalog, embeddings, statistics, make_query, make_candidates):
    said = {"praised_for": ("soundtrack",), "criticised_for": ("plot", "ending"), "disputed": ("acting",)}
    items = [catalog.item(row) for row in range(len(catalog))]
    told = ItemCatalog.of([replace(item, labels={**said, **item.labels}) for item in items])
    assert label_vocabulary(told) == label_vocabulary(catalog)
    np.testing.assert_array_equal(
        label_slots(told, label_vocabulary(told)), label_slots(catalog, label_vocabulary(told))
    )
    before, after = (FusionFeatures(one, embeddings, statistics) for one in (catalog, told))
    asked = make_query(("i1", "i4", "i10")), make_candidates(range(10, 30))
    np.testing.assert_array_equal(after.build(*asked), before.build(*asked))
