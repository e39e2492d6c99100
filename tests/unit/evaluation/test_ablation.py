"""Weights by state, the variants of an ablation, and the slices that are asked about both."""

import numpy as np

from models.candidates import SCORED_SOURCES, Source
from models.events import EventType
from models.features import UserFeatures
from models.retrieval.engine import weights_for
from models.retrieval.query import RetrievalQuery
from models.retrieval.settings import RetrievalSettings, SourceWeights
from models.retrieval.state import UserState
from pipelines.evaluation.ablation import ALWAYS, OPTIONAL, only, slices, uniform, variants, without
from pipelines.evaluation.protocol import Case, Split

HOUR_MS = 3_600_000
EACH = [SourceWeights(semantic=float(n)) for n in range(1, 7)]
SETTINGS = RetrievalSettings(
    weights=EACH[0], short_weights=EACH[1], cold_weights=EACH[2], item_weights=EACH[3],
    unseen_weights=EACH[4], stale_weights=EACH[5], stale_after_s=3600,
)  # fmt: skip


def state(events: int, age_ms: int = 0) -> UserState:
    none = np.empty(0, np.int32)
    ages = age_ms + np.arange(events - 1, -1, -1, dtype=np.int64) * HOUR_MS
    return UserState(np.zeros(events, np.int32), ages, none, none, 10**12, None)


def query(**options: object) -> RetrievalQuery:
    return RetrievalQuery(n=1, now_ms=10**12, **{"exclude_seen": False, **options})  # type: ignore[arg-type]


def case(events: int, age_ms: int = 0) -> Case:
    times = 10**12 - age_ms - np.arange(events - 1, -1, -1, dtype=np.int64)
    user = UserFeatures(
        tuple(f"i{n}" for n in range(events)), np.full(events, EventType.click, np.uint8),
        np.ones(events, np.float32), times, np.arange(events, dtype=np.uint64), known=True,
    )  # fmt: skip
    return Case(f"u{events}", user, 10**12, frozenset({"x"}))


def test_weights_go_by_the_question_by_how_much_is_known_and_by_how_fresh_that_is() -> None:
    asked = [
        weights_for(SETTINGS, query(about_seeds=True), state(9)),
        weights_for(SETTINGS, query(), state(0)),
        weights_for(SETTINGS, query(), state(4)),
        weights_for(SETTINGS, query(), state(9, age_ms=2 * HOUR_MS)),
        weights_for(SETTINGS, query(exclude_seen=True), state(9)),
        weights_for(SETTINGS, query(), state(9)),
    ]
    assert [w.semantic for w in asked] == [4, 3, 2, 6, 5, 1]


def test_weights_that_are_not_set_apart_are_those_of_long_histories() -> None:
    settings = SETTINGS.model_copy(update=dict.fromkeys(OPTIONAL))
    assert weights_for(settings, query(exclude_seen=True), state(9, age_ms=2 * HOUR_MS)) == EACH[0]


def test_an_ablation_has_each_source_that_speaks_alone_and_the_rest_without_each_that_counts() -> None:
    settings = RetrievalSettings(unseen_weights=SourceWeights(popular=0.5))
    found = variants(settings, repeats=False)
    alone = {name.removeprefix("only ") for name in found if name.startswith("only ")}
    assert alone == {str(s.name) for s in SCORED_SOURCES} - {"repeat", "similar", "declared"}
    assert "only repeat" in variants(settings, repeats=True)
    assert "without popular" in found and "without cluster" not in found
    for name in (*ALWAYS, "unseen_weights"):
        changed, before = (getattr(s, name) for s in (found["without semantic"], settings))
        assert changed.semantic == 0 and changed == before.model_copy(update={"semantic": 0.0})
    assert without(settings, Source.semantic).stale_weights is None
    alone = only(settings, Source.fresh)
    for name in ALWAYS:
        assert [s for s in SCORED_SOURCES if getattr(alone, name).of(s) > 0] == [Source.fresh]


def test_one_weighting_is_the_same_in_every_state() -> None:
    settings = uniform(SETTINGS)
    for wish, known in ((query(), 0), (query(), 4), (query(exclude_seen=True), 9), (query(), 9)):
        assert weights_for(settings, wish, state(known, age_ms=2 * HOUR_MS)) == EACH[0]


def test_slices_cut_what_is_known_and_nothing_else() -> None:
    cases = [case(2), case(7), case(30, age_ms=2 * HOUR_MS)]
    parts = dict(slices(Split(None, cases), stale_after_s=3600))  # type: ignore[arg-type]
    lengths = {name: [len(c.user) for c in part.cases] for name, part in parts.items()}
    assert lengths == {
        "no events": [0, 0, 0],
        "1-4 events": [1, 2, 3],
        "5-9 events": [6, 7],
        "10+ events": [30],
        "fresh session": [7],
        "stale session": [30],
    }
    short = parts["1-4 events"].cases[2]
    assert short.user.item_ids == ("i27", "i28", "i29") and short.targets == {"x"}
    assert len(short.user.seen) == 30, "what was touched stays touched"
