"""A pretrained text ranker is taken into an artifact, judged, and loads from there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.artifacts import ArtifactStore
from models.bundle import load_bundle
from models.catalog import Item
from models.encoder import HashEncoder
from models.events import EventLog, EventType
from models.items.live import LiveItems
from models.rankers.compressed import CompressedRanker
from models.rankers.second import SECOND_RANKER
from models.rankers.settings import CascadeSettings, RankerSettings
from models.rankers.text import TextRanker
from models.retrieval.query import RetrievalQuery
from models.retrieval.settings import RetrievalSettings
from pipelines.build import Builder
from pipelines.dataset import Dataset
from pipelines.settings import PipelinesSettings
from pipelines.training.settings import TrainingSettings
from pipelines.training.verdict import verdict


@pytest.fixture
def model(tmp_path: Path, tiny_bert: Callable[..., Path]) -> Path:
    return tiny_bert(tmp_path / "model", ["film", "liked", *"0123456789"], layers=1)


def films() -> Dataset:
    items = [Item(f"i{n}", f"film {n}") for n in range(12)]
    n = 60
    log = EventLog(
        np.array([f"u{k % 6}" for k in range(n)], object),
        np.array([f"i{(k * 5 + k // 6) % 12}" for k in range(n)], object),
        np.full(n, EventType.view, np.uint8),
        np.ones(n, np.float32),
        np.arange(n, dtype=np.int64) * 1000,
    )
    return Dataset("films", items, log)


def serials(users: int = 20, each: int = 12, count: int = 40) -> Dataset:
    """What came next always comes next: a trained ranker has nothing to lose against retrieval order."""
    items = [Item(f"i{n}", f"film {n}") for n in range(count)]
    rows = [(f"u{user}", f"i{(user * 3 + at) % count}") for at in range(each) for user in range(users)]
    log = EventLog(
        np.array([user for user, _ in rows], object),
        np.array([item for _, item in rows], object),
        np.full(len(rows), EventType.view, np.uint8),
        np.ones(len(rows), np.float32),
        np.arange(len(rows), dtype=np.int64) * 1000,
    )
    return Dataset("serials", items, log)


def test_the_text_back_end_is_copied_judged_and_served_only_when_it_is_not_below_retrieval(
    tmp_path: Path, model: Path
) -> None:
    artifacts = ArtifactStore(str(tmp_path / "artifacts"), cache=tmp_path / "cache")
    fetched: list[int] = []

    def build() -> object:
        return Builder(
            artifacts,
            settings=PipelinesSettings(text_validation_cases=10),
            retrieval=RetrievalSettings(),
            encoder=HashEncoder,
            encoder_uri="hash",
            text_ranker=("folder:model", lambda: fetched.append(1) or model),
        ).run(films())

    report = build()
    judged = report.release.notes["ranker"]
    assert judged["validation_lists"] == 6
    assert judged["switch_on"] is (judged["fused_vs_retrieval"]["mean"] >= 0)
    assert ("ranker" in report.release.artifacts) is judged["switch_on"]
    ranker = next(s for s in report.steps if s.name == "ranker")
    release = report.release.__class__({**report.release.artifacts, "ranker": ranker.ref})
    bundle = load_bundle(artifacts, release, settings=RetrievalSettings())
    assert isinstance(bundle.ranker, TextRanker)
    query = RetrievalQuery(n=5, now_ms=100_000)
    assert np.isfinite(bundle.ranker.score(query, bundle.engine.retrieve(query))).all()
    again = build()
    assert all(s.reused for s in again.steps) and fetched == [1]
    # Items that change while it is served cost no second model, and their texts are read anew.
    grown = bundle.with_items(LiveItems(bundle.item_sequence))
    assert grown.ranker is not bundle.ranker and grown.ranker.engine is bundle.ranker.engine
    # What was fastest here is kept on this node, outside the artifact.
    assert list(artifacts.node.glob("*.json")) and sorted(p.name for p in Path(bundle.folders["ranker"]).iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    named = load_bundle(
        artifacts, release, settings=RetrievalSettings(), ranking=RankerSettings(compute="transformers")
    )
    assert isinstance(named.ranker, TextRanker) and named.ranker.engine.name == "transformers"


def test_a_cascade_is_judged_against_its_first_ranker_and_loads_behind_it(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*lists: Any, **how: Any) -> dict[str, Any]:
        return verdict(*lists, **how) | {"switch_on": False, "reason": "lost"}

    monkeypatch.setattr("pipelines.training.train.verdict", lost)
    artifacts = ArtifactStore(str(tmp_path / "artifacts"), cache=tmp_path / "cache")
    ranking = RankerSettings(cascade=CascadeSettings(candidates=4))
    builder = Builder(
        artifacts,
        settings=PipelinesSettings(text_validation_cases=10, training=TrainingSettings(epochs=0, min_examples=10)),
        retrieval=RetrievalSettings(),
        encoder=HashEncoder,
        encoder_uri="hash",
        text_ranker=("folder:model", lambda: model),
        ranking=ranking,
    )
    dataset = serials()
    report = builder.run(dataset)
    first = next(s.ref for s in report.steps if s.name == "ranker")
    # A first ranker that lost is not switched on, and then nothing goes behind it.
    assert not report.release.notes["ranker"]["switch_on"]
    assert SECOND_RANKER not in {s.name for s in report.steps}
    made = {**report.release.artifacts, "ranker": first}
    whole = load_bundle(artifacts, report.release.__class__(made), settings=RetrievalSettings())
    judged = builder._cascade(dataset, whole.catalog, whole.embeddings, made)
    assert judged["validation_lists"] == 10
    assert 0 <= judged["cascade_ndcg10"] <= 1 and judged["first_ndcg10"] > 0.1
    assert judged["switch_on"] is (judged["cascade_vs_first"]["mean"] > 0)
    [second] = artifacts.list(SECOND_RANKER)
    release = report.release.__class__({**made, SECOND_RANKER: second})
    bundle = load_bundle(artifacts, release, settings=RetrievalSettings(), ranking=ranking)
    assert isinstance(bundle.ranker, CompressedRanker)
    assert bundle.second is not None and isinstance(bundle.second.ranker, TextRanker)
    assert load_bundle(artifacts, release, settings=RetrievalSettings()).second is None
    assert builder._cascade(dataset, whole.catalog, whole.embeddings, made) == judged
    assert artifacts.list(SECOND_RANKER) == [second]
