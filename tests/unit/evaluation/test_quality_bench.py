"""`raycommend evaluate` on a tiny shop, end to end but for the encoder: through the pipeline, to verified targets."""

import json
from pathlib import Path

import numpy as np
import pytest

from cluster.cli import _SUITED
from cluster.config import load_settings
from cluster.evaluate import embedded
from cluster.prepare import build_release, embedder_here
from cluster.workspace import Workspace
from loadtests.bench.harness import run_bench
from loadtests.bench.verify import verify
from models.catalog import Item
from models.encoder import HashEncoder
from models.events import EventLog, EventType
from models.progress import silent
from pipelines.dataset import Dataset, write_dataset
from pipelines.evaluation.baselines import SHOP_BASELINES
from pipelines.evaluation.protocol import moment_of
from pipelines.importers import IMPORTERS

DAY_MS = 86_400_000
START_MS = 1_600_000_000_000


def tiny_shop(users: int = 30, visits: int = 9, items: int = 40) -> Dataset:
    """Everyone buys their staple every week, and then what follows on what they tried the week before."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(users):
        staple, tried = int(rng.integers(5)), int(rng.integers(5, items))
        # The last user is new at the end.
        for visit in range(visits - 1 if user == users - 1 else 0, visits):
            at = START_MS + (7 * visit + user % 7) * DAY_MS
            rows += [(f"u{user}", f"i{staple}", at), (f"u{user}", f"i{tried}", at)]
            tried = 5 + (tried - 4) % (items - 5)
    user_ids, item_ids, times = zip(*rows, strict=True)
    log = EventLog(
        np.array(user_ids, object), np.array(item_ids, object), np.full(len(rows), EventType.purchase, np.uint8),
        np.ones(len(rows), np.float32), np.array(times, np.int64),
    ).sorted_by_time()  # fmt: skip
    return Dataset("tiny-shop", [Item(f"i{n}", f"Item {n}") for n in range(items)], log)


def test_a_shop_is_asked_three_questions_and_its_figures_can_be_verified(tmp_path, capsys, monkeypatch) -> None:
    settings = load_settings("shop", [f"cluster.state={tmp_path}"], environ={})
    write_dataset(tiny_shop(), Workspace(settings).dataset_folder("tiny-shop"))
    monkeypatch.setattr(Workspace, "encoder", lambda self, **_: HashEncoder())
    tree = settings.model_dump(mode="json")
    run_bench("quality", state=tmp_path, json=True, options={"dataset": "tiny-shop"}, settings=tree)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    targets = result["targets"]
    fused = {
        f"{question}_fused_{figure}"
        for question in ("new", "repeat", "cold")
        for figure in ("ndcg10", "vs_merged_lower")
    }
    merged = {"new_ndcg10", "repeat_ndcg10", "cold_ndcg10", "new_vs_best_lower", "repeat_vs_best_lower"}
    assert merged | fused == set(targets)
    # So small a shop trains no ranker: retrieval order is what is served then, and what is asked.
    assert ["min_examples" in training["reason"] for training in result["facts"]["trainings"]] == [True]
    gaps = {question: targets[f"{question}_fused_vs_merged_lower"]["value"] for question in ("new", "repeat", "cold")}
    assert gaps == {"new": 0, "repeat": 0, "cold": None}
    assert targets["repeat_ndcg10"]["value"] > 0.7 and targets["new_ndcg10"]["value"] > 0.7
    assert targets["cold_ndcg10"]["n"] == 1
    assert result["facts"]["repeat_best_baseline"] in SHOP_BASELINES
    assert verify(Path(result["folder"]), json=True) == 0


def test_an_ablation_tells_source_by_source_and_by_state_and_validation_reads_no_test_event(
    tmp_path, capsys, monkeypatch
) -> None:
    settings = load_settings("shop", [f"cluster.state={tmp_path}"], environ={})
    shop = tiny_shop()
    held = shop.events.timestamps_ms >= moment_of(shop.events, 0.9)
    log = shop.events
    poisoned = EventLog(
        log.user_ids, np.where(held, "i39", log.item_ids), log.types, log.values, log.timestamps_ms
    )  # fmt: skip
    monkeypatch.setattr(Workspace, "encoder", lambda self, **_: HashEncoder())
    results = []
    for name, events in {"clean": log, "poisoned": poisoned}.items():
        write_dataset(Dataset(name, shop.items, events), Workspace(settings).dataset_folder(name))
        options = {"dataset": name, "ablate": True, "validation": True}
        run_bench("quality", state=tmp_path, json=True, options=options, settings=settings.model_dump(mode="json"))
        printed = capsys.readouterr()
        assert printed.out, printed.err
        results.append(json.loads(printed.out.splitlines()[-1]))
    clean, other = results
    assert held.any() and clean["facts"] == other["facts"]
    values = [{n: t["value"] for n, t in r["targets"].items()} for r in results]
    assert values[0] == values[1] and all(t["target"] is None for t in clean["targets"].values())
    sources = clean["facts"]["ablation"]["repeat"]
    assert {"only repeat", "without repeat", "only cluster", "merged retrieval"} <= set(sources)
    mean, low, high = sources["only trending"]["merged_minus_this"]
    assert 0 < low < mean < high and sources["merged retrieval"]["merged_minus_this"] == [0, 0, 0]
    assert {"new, no events", "repeat, 1-4 events", "repeat, 5-9 events"} <= set(clean["facts"]["by_state"])
    users = clean["facts"]["by_state"]["repeat, no events"]["users"]
    assert clean["targets"]["by_state_repeat__no_events"]["n"] == users > 20
    assert verify(Path(clean["folder"]), json=True) == 0


def tiny_cinema(users: int = 24, each: int = 45, items: int = 60) -> Dataset:
    """Everyone rates films in an order of their own: those of one of three genres with five, all others with two."""
    rng = np.random.default_rng(0)
    films = [rng.permutation(items)[:each] for _ in range(users)]
    rows = [(f"u{u}", int(n), 5.0 if n % 3 == u % 3 else 2.0) for u, taken in enumerate(films) for n in taken]
    size = len(rows)
    log = EventLog(
        np.array([u for u, _, _ in rows], object), np.array([f"i{n}" for _, n, _ in rows], object),
        np.full(size, EventType.rating, np.uint8), np.array([v for _, _, v in rows], np.float32),
        START_MS + np.tile(np.arange(each), users).astype(np.int64) * DAY_MS,
    ).sorted_by_time()  # fmt: skip
    return Dataset(
        "tiny-cinema", [Item(f"i{n}", f"Film {n}", labels={"genre": (f"g{n % 3}",)}) for n in range(items)], log
    )


def test_validation_asks_what_strangers_like_who_declare_it_and_what_that_brings(tmp_path, capsys, monkeypatch) -> None:
    overrides = [f"cluster.state={tmp_path}", "pipelines.train_ranker=false"]
    settings = load_settings("local", overrides, environ={})
    write_dataset(tiny_cinema(), Workspace(settings).dataset_folder("tiny-cinema"))
    monkeypatch.setattr(Workspace, "encoder", lambda self, **_: HashEncoder())
    options = {"dataset": "tiny-cinema", "seeds": 1, "validation": True}
    run_bench("quality", state=tmp_path, json=True, options=options, settings=settings.model_dump(mode="json"))
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    targets = result["targets"]
    assert {"validation_next_item_ndcg10", "validation_declared_ndcg10", "validation_declared_gain"} < set(targets)
    assert targets["validation_declared_gain"]["value"] > 0.05 and targets["validation_declared_gain"]["n"] > 5
    assert targets["validation_declared_gain_lower"]["value"] < targets["validation_declared_gain"]["value"]
    assert targets["validation_declared__1_4_events_gain"]["n"] == targets["validation_declared_gain"]["n"]
    assert all(target["target"] is None for target in targets.values())
    assert verify(Path(result["folder"]), json=True) == 0


@pytest.mark.parametrize(("dataset", "env"), _SUITED.items())
def test_an_environment_that_suits_a_data_set_is_one_of_ours_and_means_that_data_set(dataset: str, env: str) -> None:
    assert dataset in IMPORTERS
    assert load_settings(env, environ={}).cluster.dataset == dataset


def test_what_evaluation_embeds_is_what_a_build_would_and_finds_again(tmp_path, monkeypatch) -> None:
    overrides = [f"cluster.state={tmp_path}", "pipelines.train_ranker=false", "models.encoder.max_tokens=32"]
    settings = load_settings("shop", overrides, environ={})
    workspace, shop = Workspace(settings), tiny_shop()
    write_dataset(shop, workspace.dataset_folder("tiny-shop"))
    dimension = settings.models.encoder.dimension
    monkeypatch.setattr(Workspace, "encoder", lambda self, **_: HashEncoder(dimension))
    catalog, vectors, layout = embedded(settings, workspace, shop)
    assert vectors.shape == (len(catalog), dimension) and layout is None
    report = build_release(settings, shop, embedder=embedder_here(settings), progress=silent)
    made = next(step for step in report.steps if step.name == "embeddings")
    # Made of 32 tokens a text: under the key of another length a build would take it for something else.
    assert made.reused and made.meta["inputs"] == embedder_here(settings).inputs(report.release.artifacts["catalog"])
    assert made.meta["space"] == workspace.encoder_spec().space
