"""Verdicts on reviews: judged by a worker, kept beside the data set, and believed as far as the reviews back them."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cluster.aspects as module
from cluster.aspects import facts_of, labels_from_reviews, read_verdicts, verdict_file, write_aspects
from cluster.config import Settings, load_settings
from cluster.errors import OperatorError
from cluster.prepare import build_release
from cluster.workspace import Workspace
from models.bundle import load_bundle
from models.encoder import HashEncoder
from models.explain.aspects import Aspect, Aspects, aspects_to_json, template_verdict
from models.explain.generator import GeneratorError, ScriptedGenerator
from models.explain.positives import attributes_of
from models.progress import silent
from models.reviews import Review
from models.settings import GeneratorSettings
from pipelines.aspects import AppraiseItems, Verdict
from pipelines.dataset import Dataset, read_dataset, write_dataset
from pipelines.embedding.assemble import Embedder
from pipelines.embedding.runners import InlineRunner
from pipelines.writers import WriterOptions

SOUND = (Aspect("soundtrack", 3, 3, 0, 4.5, ("great soundtrack",)),)
PLOT = (Aspect("plot", 3, 0, 3, 2.0, ("awful plot",)),)


class Liar(ScriptedGenerator):
    """Says the same of everything, and breaks for plots."""

    async def appraise(self, aspects: Aspects, *, tenant: str = "main") -> str:
        if aspects == PLOT:
            raise GeneratorError("the engine is gone")
        return "soundtrack: disputed"


def reviews(*texts: str, rating: float = 4.5) -> tuple[Review, ...]:
    return tuple(Review(text, rating, writer) for writer, text in enumerate(texts))


PRAISE = ("A great soundtrack", "I loved the soundtrack", "the soundtrack is superb")


def test_a_verdict_that_is_not_true_or_not_written_is_that_of_the_counts() -> None:
    options = WriterOptions("m", GeneratorSettings(), make_generator=lambda folder, settings: Liar(lambda _: ""))
    other = (Aspect("score", 3, 3, 0, None),)
    worker = AppraiseItems(options)
    try:
        facts = {"a": SOUND, "b": PLOT, "c": other}
        out = worker({"id": list(facts), "facts": [aspects_to_json(one) for one in facts.values()]})
    finally:
        worker.close()
    assert out["id"] == ["a", "b", "c"] and out["source"] == ["llm", "template", "template"]
    assert [json.loads(judged) for judged in out["text"]] == [
        {"soundtrack": "disputed"},
        {"plot": "criticised"},
        {"score": "praised"},
    ]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings("local", [f"cluster.state={tmp_path}", "pipelines.train_ranker=false"], environ={})


@pytest.fixture
def dataset(items_of, log_of) -> Dataset:
    items = items_of(12)
    said = {
        items[0].item_id: reviews(*PRAISE),
        items[1].item_id: reviews("an awful plot", "the plot is boring", "hated the plot", rating=1.0),
        items[2].item_id: reviews("Fine.", "A great soundtrack"),
    }
    return Dataset("tiny", items, log_of(users=6, each=5, items=12), reviews=said)


@pytest.fixture
def asked(settings: Settings, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The items that each run of the job was asked about; the job itself runs in this process without Ray."""
    runs: list[list[str]] = []

    def judged(facts, options):
        runs.append(list(facts))
        for item, one in facts.items():
            worker = AppraiseItems(replace(options, make_generator=lambda *_: ScriptedGenerator(lambda _: "")))
            out = worker({"id": [item], "facts": [aspects_to_json(one)]})
            worker.close()
            yield [Verdict(out["id"][0], json.loads(out["text"][0]), out["source"][0])]

    monkeypatch.setattr(module, "verdicts", judged)
    monkeypatch.setattr(module, "quiet_ray_data", lambda: None)
    monkeypatch.setattr(module, "job_ray", lambda settings, say: nullcontext())
    monkeypatch.setattr(Workspace, "generator_folder", lambda self, **_: tmp_path / "model-1")
    write_dataset(dataset, Workspace(settings).dataset_folder("tiny"))
    return runs


def test_a_second_run_asks_only_about_what_changed(
    settings: Settings, dataset: Dataset, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = (item.item_id for item in dataset.items[:2])
    told: list[str] = []
    report = write_aspects(settings, "tiny", say=told.append)
    assert report["aspects"] == {"praised": 1, "criticised": 1} and report["items_by"] == {"llm": 2}
    assert write_aspects(settings, "tiny")["judged_now"] == 0 and asked == [[first, second]]
    more = {**dataset.reviews, second: dataset.reviews[second] + (Review("an awful plot here", 1.0, 9),)}
    write_dataset(replace(dataset, reviews=more), Workspace(settings).dataset_folder("tiny"))
    write_aspects(settings, "tiny")
    assert asked[1:] == [[second]]
    monkeypatch.setattr(Workspace, "generator_folder", lambda self, **_: tmp_path / "model-2")
    write_aspects(settings, "tiny")
    assert sorted(asked[2]) == sorted([first, second]), "another model"
    assert not [line for line in told if first in line or "soundtrack" in line]


def test_what_was_judged_before_a_kill_is_kept(
    settings: Settings, dataset: Dataset, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SAVE_EVERY_S", 0.0)
    whole = module.verdicts

    def killed(facts, options):
        yield next(whole(facts, options))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "verdicts", killed)
        write_aspects(settings, "tiny")
    assert write_aspects(settings, "tiny")["judged_now"] == 1


def test_a_data_set_without_reviews_or_with_another_file_is_a_sentence(
    settings: Settings, dataset: Dataset, asked: list[list[str]]
) -> None:
    write_dataset(replace(dataset, reviews={}), Workspace(settings).dataset_folder("bare"))
    with pytest.raises(OperatorError, match="has no reviews"):
        write_aspects(settings, "bare")
    verdict_file(Workspace(settings), "tiny").write_text("no parquet")
    with pytest.raises(OperatorError, match="no verdicts"):
        write_aspects(settings, "tiny")


def test_a_build_makes_labels_of_what_the_reviews_still_back(
    settings: Settings, dataset: Dataset, asked: list[list[str]]
) -> None:
    workspace = Workspace(settings)
    write_aspects(settings, "tiny")
    kept = read_verdicts(verdict_file(workspace, "tiny"))
    third = dataset.items[2].item_id
    # A file that somebody wrote: praise of what two people said, and of what nobody did.
    kept[third] = replace(kept[dataset.items[0].item_id], judged={"soundtrack": "praised", "bribery": "praised"})
    module.save_verdicts(verdict_file(workspace, "tiny"), kept)
    data = read_dataset(workspace.dataset_folder("tiny"))
    labels = labels_from_reviews(workspace, data)
    assert labels == {
        dataset.items[0].item_id: {"praised_for": ("soundtrack",)},
        dataset.items[1].item_id: {"criticised_for": ("plot",)},
    }
    embedder = Embedder(workspace.artifacts(), workspace.encoder_spec(), InlineRunner(lambda: HashEncoder(384)))
    report = build_release(settings, data, embedder=embedder, progress=silent)
    bundle = load_bundle(workspace.artifacts(), report.release, settings=settings.models.retrieval)
    praised = [[a.text for a in attributes_of(bundle.catalog, row) if a.kind == "aspect"] for row in range(12)]
    assert praised == [["soundtrack"]] + [[]] * 11
    assert bundle.catalog.labels(1)["criticised_for"] == ("plot",)
    plain = HashEncoder(384).encode([bundle.catalog.document(row) for row in range(12)])
    np.testing.assert_allclose(np.asarray(bundle.embeddings), plain, atol=1e-3)
    assert "soundtrack" not in bundle.catalog.document(0)
    # The reviews are gone with the next import: so is the praise.
    assert labels_from_reviews(workspace, replace(data, reviews={})) == {}


def test_facts_hold_only_items_with_something_to_ask(dataset: Dataset) -> None:
    seen: list[tuple[int, int]] = []
    facts = facts_of(dataset.reviews, done=lambda at, of: seen.append((at, of)))
    assert list(facts) == [item.item_id for item in dataset.items[:2]] and seen[-1] == (3, 3)
    assert template_verdict(facts[dataset.items[0].item_id]) == "soundtrack: praised"
