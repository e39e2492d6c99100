"""Users who said what they like: before any event, beside a few, and after enough of them."""

import numpy as np
import pytest

from models.behaviour.behaviour import BehaviourSettings, fit_behaviour
from models.behaviour.statistics import fit_statistics
from models.candidates import COLUMN_OF, Source
from models.declared import Declaration
from models.events import EventType
from models.features import UserFeatures
from models.index import FlatIndex
from models.retrieval.engine import RetrievalEngine
from models.retrieval.filters import AttributeMasks
from models.retrieval.query import AttributeFilter, RetrievalQuery
from models.retrieval.settings import RetrievalSettings, SourceWeights

NOW = 10**12
RARE = (("genres", "rare"),)
STRONG = RetrievalSettings(
    declared_weights=SourceWeights(semantic=2.0, trending=0.5, popular=0.5, declared=4.0),
    short_weights=SourceWeights(declared=1.0),
    weights=SourceWeights(declared=1.0),
)
"""Weights by which a declaration shows in a catalog of sixty items."""


def engine_of(catalog, log, embeddings, settings: RetrievalSettings) -> RetrievalEngine:
    behaviour = fit_behaviour(log, catalog, BehaviourSettings(ease_ridge=5.0))
    index, statistics = FlatIndex(embeddings), fit_statistics(log, catalog)
    return RetrievalEngine(catalog, embeddings, index, behaviour, statistics, settings)


@pytest.fixture(scope="module")
def engine(catalog, log, embeddings) -> RetrievalEngine:
    return engine_of(catalog, log, embeddings, STRONG)


def user(*items: str, labels=(), vector=None) -> UserFeatures:
    return UserFeatures(
        items,
        np.full(len(items), EventType.click, np.uint8),
        np.ones(len(items), np.float32),
        NOW - 1000 * np.arange(len(items), 0, -1, dtype=np.int64),
        known=bool(items),
        declared=Declaration(tuple(labels), vector, NOW - 1),
    )


def ask(engine: RetrievalEngine, who: UserFeatures, n: int = 10, **more):
    return engine.retrieve(RetrievalQuery(n=n, now_ms=NOW, user=who, **more))


@pytest.mark.parametrize(
    "asked",
    [{"who": user(labels=RARE)}, {"who": user(), "context": RARE}, {"who": user(), "context": RARE, "personal": False}],
    ids=["declared", "context", "context without profiling"],
)
def test_a_stranger_who_names_a_label_gets_its_items_first_and_popular_ones_behind(engine, asked) -> None:
    found = ask(engine, **asked)
    assert set(found.rows[:3].tolist()) == {0, 20, 40} and len(found) == 10
    assert (found.sources[:3] & np.uint16(Source.declared)).all()
    assert not (found.sources[3:] & np.uint16(Source.declared)).any()
    popular = found.source_scores[3:, COLUMN_OF[Source.popular]]
    assert (np.diff(popular + found.source_scores[3:, COLUMN_OF[Source.trending]]) <= 1e-5).all()


def test_by_the_default_weights_a_list_leans_to_the_label_and_popularity_has_its_say(catalog, log, embeddings) -> None:
    plain = engine_of(catalog, log, embeddings, RetrievalSettings())
    before, after = ask(plain, UserFeatures(), n=60), ask(plain, user(labels=RARE), n=60)
    places = [np.flatnonzero(np.isin(found.rows, [0, 20, 40])) for found in (before, after)]
    assert places[1].sum() < places[0].sum() and places[1].max() > 2


def test_a_rare_label_counts_more_than_a_common_one(engine) -> None:
    found = ask(engine, user(labels=(*RARE, ("genres", "Comedy"))), n=60)
    column = dict(zip(found.rows.tolist(), found.source_scores[:, COLUMN_OF[Source.declared]], strict=True))
    assert column[20] > column[2] > column[3] == 0.0 and column[20] > 3 * column[2]


@pytest.mark.parametrize("labels", [(("genres", "Nobody's"),), (("surface", "home"),), (("year", "nineteen"),)])
def test_what_no_item_carries_changes_nothing(engine, labels) -> None:
    declared = ask(engine, user(labels=labels))
    assert not declared.source_scores[:, COLUMN_OF[Source.declared]].any()
    assert declared.rows.tolist() == ask(engine, user()).rows.tolist() == ask(engine, UserFeatures()).rows.tolist()


def test_a_vector_draws_what_is_near_and_another_encoder_s_draws_nothing(engine, embeddings) -> None:
    found = ask(engine, user(vector=embeddings[33]))
    semantic = found.source_scores[:, COLUMN_OF[Source.semantic]]
    assert 33 in found.rows[:3] and semantic[found.rows.tolist().index(33)] == semantic.max()
    other = ask(engine, user(vector=np.ones(5, np.float32)))
    assert other.rows.tolist() == ask(engine, UserFeatures()).rows.tolist()


def test_it_weighs_less_with_every_event_and_nothing_after_enough(engine) -> None:
    events = [f"i{n}" for n in range(3, 23, 2)]
    gains = []
    for count in range(11):
        with_it = ask(engine, user(*events[:count], labels=RARE), n=60)
        without = ask(engine, user(*events[:count]), n=60)
        places = [np.flatnonzero(np.isin(f.rows, [0, 20, 40])).sum() for f in (without, with_it)]
        gains.append(int(places[0] - places[1]))
    assert gains[1] > 0 and gains[10] == 0
    last = ask(engine, user(*events, labels=RARE, vector=np.ones(8, np.float32) / np.sqrt(np.float32(8))), n=60)
    np.testing.assert_array_equal(last.scores, ask(engine, user(*events), n=60).scores)
    at = COLUMN_OF[Source.declared]
    by_count = [ask(engine, user(*events[:n], labels=RARE), n=60) for n in (6, 8)]
    lift = [float(f.scores[f.source_scores[:, at] > 0].mean() - f.scores.mean()) for f in by_count]
    plain = [ask(engine, user(*events[:n]), n=60) for n in (6, 8)]
    base = [float(f.scores[np.isin(f.rows, [0, 20, 40])].mean() - f.scores.mean()) for f in plain]
    assert lift[0] - base[0] > lift[1] - base[1] > 0


def test_who_must_not_be_profiled_is_not_known_by_what_they_declared(engine) -> None:
    who = user(labels=RARE, vector=np.ones(8, np.float32) / np.sqrt(np.float32(8)))
    found = ask(engine, who, personal=False)
    assert found.rows.tolist() == ask(engine, UserFeatures()).rows.tolist()


def test_filters_and_seen_items_hold_for_declared_labels_too(engine, catalog) -> None:
    who = user("i20", labels=RARE)
    found = ask(engine, UserFeatures(**{f: getattr(who, f) for f in UserFeatures.__slots__ if f != "seen"} | {
        "seen": np.sort(catalog.hashes[[20]])}), n=60, filters={"year": AttributeFilter(lte=1985)})  # fmt: skip
    assert 20 not in found.rows and 40 not in found.rows and 0 in found.rows


def test_a_label_is_looked_up_as_filters_compare_it(catalog) -> None:
    masks = AttributeMasks(catalog)
    name = catalog.label_names[0]
    value = catalog.label_column(name).vocabulary[0]
    for asked in (value, value.upper(), "no such value", ""):
        assert masks.knows(name, asked) == masks.of_one(name, AttributeFilter((asked,))).any(), asked
    assert not masks.knows("no such attribute", value)
    for number in catalog.number_names:
        held = catalog.number_column(number)
        first = next(float(v) for v in held if v == v)
        assert masks.knows(number, f"{first:g}") and not masks.knows(number, "1e300") and not masks.knows(number, "nan")
