"""`evaluate --cascade` judges a second ranker behind the first, through the pipeline, to verified targets."""

import json
from pathlib import Path

import numpy as np
import pytest

from cluster.config import load_settings
from cluster.errors import OperatorError
from cluster.evaluate_cascade import BRIEF, FEW, WHOLE, evaluate_cascade, last_of
from cluster.evaluate_driver import CASCADE, MERGED
from cluster.workspace import Workspace
from loadtests.bench.harness import run_bench
from loadtests.bench.verify import verify
from models.catalog import Item
from models.encoder import HashEncoder
from models.events import EventLog, EventType
from models.rankers.text import TextRanker
from models.retrieval.settings import SourceWeights
from pipelines.dataset import Dataset, write_dataset

HOUR_MS = 3_600_000
COLOURS = [f"c{n}" for n in range(6)]
ITEMS, USERS, EVENTS = 60, 40, 7
POPULAR = {**dict.fromkeys(SourceWeights.model_fields, 0.0), "popular": 1.0}
WEIGHTINGS = ("weights", "unseen_weights", "stale_weights", "short_weights", "cold_weights")


def dataset() -> Dataset:
    """Everyone takes lamps of one colour, in no order that behaviour could learn: titles tell what comes next."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        own = rng.permutation(np.arange(user % len(COLOURS), ITEMS, len(COLOURS)))[:EVENTS]
        rows += [(f"u{user:02}", f"i{item}", user + step * 100) for step, item in enumerate(own)]
    users, items, hours = zip(*rows, strict=True)
    log = EventLog(
        np.array(users, object), np.array(items, object), np.full(len(rows), EventType.purchase, np.uint8),
        np.ones(len(rows), np.float32), np.array(hours, np.int64) * HOUR_MS,
    ).sorted_by_time()  # fmt: skip
    return Dataset("lamps", [Item(f"i{n}", f"lamp {COLOURS[n % len(COLOURS)]}") for n in range(ITEMS)], log)


class Reader:
    """A text engine that knows colours: the more words of the item the profile holds, the likelier it is."""

    name, length_multiple = "reader", 1

    def __init__(self) -> None:
        self.pairs = 0

    def logits(self, tokens, types, mask):
        self.pairs += len(tokens)
        found = np.zeros(len(tokens), np.float32)
        for at, row in enumerate(tokens):
            _, profile, item, *_ = np.split(row, np.flatnonzero(np.isin(row, (2, 3))))
            found[at] = sum(int(word in profile) for word in item.tolist() if word > 5)
        return found


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_bert):
    """Settings with a cascade over retrieval order, a data set, and an engine that is not a network."""
    model = tiny_bert(tmp_path / "text", ["lamp", *COLOURS], layers=1)
    reader, load = Reader(), TextRanker.load.__func__

    def read(cls, *args, **named):
        ranker = load(cls, *args, **named)
        ranker.engine = reader
        return ranker

    monkeypatch.setattr(TextRanker, "load", classmethod(read))
    monkeypatch.setattr(Workspace, "encoder", lambda self, **_: HashEncoder(16))

    def settings(*sets):
        of = [
            f"cluster.state={tmp_path / 'state'}",
            "models.encoder.dimension=16",
            f"models.ranker.text_uri={model}",
            "models.ranker.cascade={candidates: 30, weight: 1.0}",
            "models.ranker.compute=transformers",
            # What everybody takes, whoever asks: titles are all that tells users apart.
            *(f"models.retrieval.{weights}={json.dumps(POPULAR)}" for weights in WEIGHTINGS),
            "pipelines.train_ranker=false",
        ]
        return load_settings("local", [*of, *sets], environ={})

    workspace = Workspace(settings())
    workspace.data.mkdir(parents=True)
    write_dataset(dataset(), workspace.dataset_folder("lamps"))
    return settings, reader


def test_what_the_second_ranker_brings_is_told_with_all_events_and_with_few(place) -> None:
    settings, reader = place
    found = evaluate_cascade(settings(), "lamps", users=20, tell=lambda _: None)
    assert set(found) == {WHOLE, BRIEF}
    for report in found.values():
        assert report.users == report.cases == 20 and set(report.methods) == {MERGED, CASCADE}
        assert report.advantage(CASCADE, MERGED).low > 0
    assert 0 < reader.pairs <= 2 * 20 * 30


def test_the_switch_by_history_acts_as_it_does_when_serving(place) -> None:
    settings, _ = place
    few = settings(f"models.ranker.cascade={{candidates: 30, weight: 1.0, most_events: {FEW}}}")
    found = evaluate_cascade(few, "lamps", users=20, tell=lambda _: None)
    np.testing.assert_array_equal(found[WHOLE].per_user(CASCADE), found[WHOLE].per_user(MERGED))
    assert found[BRIEF].advantage(CASCADE, MERGED).low > 0


def test_the_last_event_of_a_seeded_choice_of_users_is_asked_and_never_trained_on() -> None:
    log = dataset().events
    split = last_of(log, 15)
    assert len({case.user_id for case in split.cases}) == len(split.cases) == 15
    assert [case.user_id for case in split.cases] == [case.user_id for case in last_of(log, 15).cases]
    for case in split.cases:
        own = log.take(log.user_ids == case.user_id)
        assert case.targets == {own.item_ids[-1]} and len(case.user) == EVENTS - 1
        assert own.item_ids[-1] not in split.train.item_ids[split.train.user_ids == case.user_id]


def test_the_figures_can_be_verified_and_other_questions_are_refused(place, tmp_path, capsys) -> None:
    settings, _ = place
    tree = settings().model_dump(mode="json")
    options = {"dataset": "lamps", "cascade": 12}
    assert run_bench("quality", state=tmp_path, json=True, options=options, settings=tree) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["targets"]["next_item_gain"]["value"] > 0 and result["targets"]["next_item_cascade_ndcg10"]["n"] == 12
    assert verify(Path(result["folder"]), json=True) == 0
    capsys.readouterr()
    for other in ({"ablate": True}, {"seeds": 2}, {"student": 1}):
        assert run_bench("quality", state=tmp_path, json=True, options={**options, **other}, settings=tree) == 2
        assert "does not go with --cascade" in capsys.readouterr().err


def test_settings_without_a_cascade_are_told_what_to_set(place) -> None:
    settings, _ = place
    with pytest.raises(OperatorError, match=r"models\.ranker\.cascade\.candidates"):
        evaluate_cascade(settings("models.ranker.cascade={candidates: 0}"), "lamps", users=12, tell=lambda _: None)
