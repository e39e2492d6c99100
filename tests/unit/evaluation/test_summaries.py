"""Interests in words: written from what may be known, kept for their owner, and asked for beside merged retrieval."""

import json
from pathlib import Path

import pytest

from cluster.config import load_settings
from cluster.errors import OperatorError
from cluster.explain import explain
from cluster.interests import HELD_OUT, facts_of, save_summaries, summaries_before_test
from cluster.workspace import Workspace
from loadtests.bench.harness import run_bench
from loadtests.bench.verify import verify
from models.catalog import ItemCatalog, write_catalog
from models.encoder import HashEncoder
from models.explain.generator import GeneratorError, ScriptedGenerator
from models.explain.interests import Interests, check_summary, template_summary
from models.explain.positives import Attribute
from models.settings import GeneratorSettings
from pipelines.dataset import Dataset, write_dataset
from pipelines.evaluation.protocol import drop_last
from pipelines.interests import SummariseUsers
from pipelines.writers import WriterOptions

CRIME = Interests((Attribute("Crime", "genre"),), ("Fargo", "Heat"))
WESTERN = Interests((Attribute("Western", "genre"),), ("Unforgiven",))


class Liar(ScriptedGenerator):
    """Says of everybody what is true of one, and breaks for another."""

    async def summarise(self, interests: Interests, *, tenant: str = "main") -> str:
        if interests == WESTERN:
            raise GeneratorError("the engine is gone")
        return template_summary(CRIME)


def test_a_summary_that_is_not_true_of_the_user_or_not_written_is_a_template() -> None:
    made = lambda folder, settings: Liar(lambda _: "")  # noqa: E731
    worker = SummariseUsers(WriterOptions("m", GeneratorSettings(), make_generator=made))
    other = Interests((Attribute("Drama", "genre"),), ("Casino", "Heat"))
    facts = {"a": CRIME, "b": other, "c": Interests(), "d": WESTERN}
    try:
        out = worker({"id": list(facts), "facts": [one.to_json() for one in facts.values()]})
    finally:
        worker.close()
    assert out["id"] == list(facts) and out["source"] == ["llm", "template", "none", "template"]
    assert out["text"][2] == ""
    for at in (0, 1, 3):
        assert check_summary(out["text"][at], list(facts.values())[at])


@pytest.fixture
def dataset(items_of, log_of) -> Dataset:
    return Dataset("tiny", items_of(40), log_of())


def test_facts_before_the_test_know_nothing_of_it(dataset: Dataset, tmp_path: Path) -> None:
    write_catalog(dataset.items, tmp_path / "catalog.arrow")
    catalog = ItemCatalog(tmp_path)
    known = drop_last(dataset.events, HELD_OUT, tie_seed=0)
    users = sorted(set(dataset.events.user_ids.tolist()))
    facts = facts_of(known, catalog, users)
    titles = {item.item_id: item.title for item in dataset.items}
    for user, found in facts.items():
        assert set(found.titles) <= {titles[i] for i in known.item_ids[known.user_ids == user]}
    assert any(found.titles for found in facts.values())


def test_the_file_is_its_owner_s_and_says_what_it_was_made_of(tmp_path: Path) -> None:
    file = tmp_path / "summaries.parquet"
    save_summaries(file, [("a", "You seek crime titles.", "llm"), ("b", "", "none")], dataset="tiny", before_test=True)
    assert file.stat().st_mode & 0o777 == 0o600
    assert summaries_before_test(file, dataset="tiny") == {"a": "You seek crime titles."}
    with pytest.raises(OperatorError, match="before-test"):
        summaries_before_test(file, dataset="other")
    save_summaries(file, [("a", "You seek crime titles.", "llm")], dataset="tiny", before_test=False)
    with pytest.raises(OperatorError, match="before-test"):
        summaries_before_test(file, dataset="tiny")
    file.write_text("no parquet")
    with pytest.raises(OperatorError, match="not a file"):
        summaries_before_test(file, dataset="tiny")


def test_evaluate_sets_them_beside_merged_retrieval(
    dataset: Dataset, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [f"cluster.state={tmp_path}", "pipelines.train_ranker=false"]
    settings = load_settings("local", overrides, environ={})
    write_dataset(dataset, Workspace(settings).dataset_folder("tiny"))
    monkeypatch.setattr(Workspace, "encoder", lambda self, **_: HashEncoder())
    users = sorted(set(dataset.events.user_ids.tolist()))
    file = tmp_path / "summaries.parquet"
    rows = [(user, f"film {n} western water", "llm") for n, user in enumerate(users[1:])]
    save_summaries(file, rows, dataset="tiny", before_test=True)
    options = {"dataset": "tiny", "seeds": 2, "summaries": str(file)}
    tree = settings.model_dump(mode="json")
    run_bench("quality", state=tmp_path, json=True, options=options, settings=tree)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    gains = {name: row for name, row in result["targets"].items() if name.endswith("_gain")}
    assert set(gains) == {"next_item_with_interests_x_1_gain", "next_item_with_interests_x_0_3_gain"}
    assert all(row["n"] == len(users) and row["met"] is None for row in gains.values())
    assert any(row["value"] != 0 for row in gains.values()), "the words changed no list"
    assert verify(Path(result["folder"]), json=True) == 0
    asked = {"dataset": "tiny", "validation": True, "summaries": str(file)}
    with pytest.raises(OperatorError, match="validation"):
        run_bench("quality", state=tmp_path, json=True, options=asked, settings=tree)


def test_reasons_are_not_written_before_the_test(tmp_path: Path) -> None:
    settings = load_settings("local", [f"cluster.state={tmp_path}"], environ={})
    with pytest.raises(OperatorError, match="--before-test goes with --summaries"):
        explain(settings, warm=True, users=1, most=1, before_test=True)
