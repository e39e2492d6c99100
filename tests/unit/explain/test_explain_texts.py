"""The parts of `bench explain` that read texts: three writers side by side, a scripted model in place of the engine."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.reason_records import UserRecord
from loadtests.bench.explain_text import WRITERS, reading, reference
from loadtests.bench.harness import BenchContext
from models.explain.evidence import Evidence
from models.explain.generator import ReasonRequest, ScriptedGenerator
from models.explain.positives import Attribute
from models.explain.template import template_reason

SHARED = Path(__file__).parents[3].parent / "shared" / "data" / "xrec-explanations"
FREE = "Considering everything, this extraordinarily sophisticated recommendation is unquestionably magnificent"
ROW = {
    "title": "Drums of Autumn",
    "user_summary": "The user enjoys historical romance and dark humor.",
    "item_summary": "Fans of historical fiction and romance would enjoy it.",
    "explanation": "The user would love the romance, the historical setting and the dragons.",
}


class Model(ScriptedGenerator):
    """Writes templates under a grammar, and something long without one."""

    def __init__(self) -> None:
        super().__init__(lambda request: template_reason(request.evidence, request.language))

    def prompt_of(self, request: ReasonRequest) -> list[int]:
        return [1]

    async def complete(self, prompt: list[int], **_: Any) -> str:
        await asyncio.sleep(0)
        return FREE


class Checker:
    """Believes nothing that is long."""

    def wrong(self, sentence: str, *, user_id: str, item_id: str) -> str | None:
        return "long" if len(sentence) > 90 else None


@pytest.fixture
def context(tmp_path: Path) -> BenchContext:
    return BenchContext("explain", tmp_path, {}, settings={}, tell=lambda _: None)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


def figures(context: BenchContext) -> dict[str, Any]:
    return {name: target.compute(context.folder) for name, target in context.targets.items()}


def test_reasons_templates_and_free_text_are_read_by_one_formula(context, runner) -> None:
    records = [
        UserRecord("u", f"i{n}", Evidence(f"Film {chr(65 + n)}", attributes=(Attribute("Crime", "genre"),)))
        for n in range(12)
    ]
    reading(context, runner, Model(), Checker(), records)  # type: ignore[arg-type]
    found = figures(context)
    assert {f"reading_ease_{w}" for w in WRITERS} < set(found)
    assert all(found[f"reading_ease_{w}"]["n"] == 12 for w in WRITERS)
    assert found["reading_ease_reason"]["value"] == pytest.approx(found["reading_ease_template"]["value"])
    assert found["reading_ease_reason"]["value"] > found["reading_ease_free"]["value"] + 50
    assert found["free_independent_pass_rate"]["value"] == 0.0
    assert all(figure["met"] is None for figure in found.values()), "reported, not aimed at"


def test_a_fact_counts_where_the_summaries_hold_it_too(context, runner, tmp_path: Path) -> None:
    folder = tmp_path / "reference"
    folder.mkdir()
    (folder / "books_tst.jsonl").write_text(json.dumps(ROW) + "\n")
    reference(context, runner, Model(), folder, rows=5, seed=0)  # type: ignore[arg-type]
    found = figures(context)
    # Romance and the historical side can be known, dragons cannot; the title's words are no fact of the reference.
    assert found["reference_facts_covered_reason"]["n"] == 1
    assert found["reference_facts_covered_reason"]["value"] in (0.5, 1.0)
    assert found["reference_facts_covered_free"]["value"] == 0.0


def test_without_references_nothing_is_said_about_them(context, runner, tmp_path: Path) -> None:
    reference(context, runner, Model(), tmp_path / "nowhere", rows=5, seed=0)  # type: ignore[arg-type]
    assert context.targets == {} and "not measured" in context.facts["reference"]


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the reference explanations are not in {SHARED}")
def test_the_shared_references_give_facts_to_cover(context, runner) -> None:
    reference(context, runner, Model(), SHARED, rows=60, seed=0)  # type: ignore[arg-type]
    covered = figures(context)["reference_facts_covered_reason"]
    assert covered["n"] >= 50 and 0.0 < covered["value"] < 1.0
