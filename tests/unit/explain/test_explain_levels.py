"""The part of `bench explain` that compares grammar levels: real checkers, a scripted model in place of the engine."""

import asyncio
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.reason_records import UserRecord
from loadtests.bench.explain_levels import levels
from loadtests.bench.harness import BenchContext
from loadtests.bench.second_checker import SecondChecker
from models.catalog import Item
from models.events import EventLog, EventType
from models.explain.evidence import Evidence, Liked
from models.explain.generator import ReasonRequest, ScriptedGenerator
from models.explain.grammar import reason_grammar
from models.explain.positives import Attribute
from models.explain.template import template_reason

CRIME = Attribute("Crime", "genre")
LINKED = Evidence("Heat", (Liked("Fargo", "liked", ("shared",), (CRIME,), 0.6),), (CRIME,))
ITEMS = [Item("h", "Heat", labels={"genre": ("Crime",)}), Item("f", "Fargo", labels={"genre": ("Crime",)})]
ITEMS += [Item(f"o{n}", f"Other Film {n}") for n in range(60)]
RECORDS = [UserRecord("u", "h", LINKED)] * 20
TRUE = "Because you liked Fargo, a fitting follow to Heat with more of the Crime side."
CLAIM = "Because you liked Fargo, people often pick Heat for the Crime side."
TAKEN = "Because you bought Fargo, a fitting follow to Heat with more of the Crime side."


class Model(ScriptedGenerator):
    """Writes templates under the closed grammar, and under the open one what `script` says in turn."""

    def __init__(self, *opens: str) -> None:
        super().__init__(lambda request: template_reason(request.evidence))
        self.opens, self.generated_tokens = cycle(opens), 0
        self.asked: list[tuple[str, str]] = []

    def prompt_of(self, request: ReasonRequest) -> list[int]:
        return [1]

    async def complete(self, prompt: list[int], *, grammar: str, salt: str, **_: Any) -> str:
        await asyncio.sleep(0)
        closed = grammar == reason_grammar(LINKED)
        self.asked.append((salt, "closed" if closed else "open"))
        self.generated_tokens += 20 if closed else 30
        return template_reason(LINKED) if closed else next(self.opens)


@pytest.fixture(scope="module")
def checker() -> SecondChecker:
    rows = [("u", "f"), *((f"v{n}", "o1") for n in range(3))]
    users, items = (np.array(column, dtype=object) for column in zip(*rows, strict=True))
    types, values = np.full(len(rows), EventType.rating, np.uint8), np.full(len(rows), 5.0, np.float32)
    return SecondChecker(ITEMS, EventLog(users, items, types, values, np.arange(len(rows)) + 10**12))


def compared(folder: Path, model: Model, checker: SecondChecker) -> tuple[dict[str, float | None], BenchContext]:
    context = BenchContext("explain", folder, {}, settings={}, tell=lambda _: None)
    with asyncio.Runner() as runner:
        levels(context, runner, model, checker, RECORDS)  # type: ignore[arg-type]
    found = {name: target.compute(folder) for name, target in context.targets.items()}
    assert all(figure["met"] is None for figure in found.values()), "reported, not aimed at"
    return {name: figure["value"] for name, figure in found.items()}, context


def test_each_level_is_judged_by_both_checkers_on_the_same_records(tmp_path: Path, checker: SecondChecker) -> None:
    model = Model(TRUE, CLAIM, TAKEN, TRUE)
    found, context = compared(tmp_path, model, checker)
    assert found["closed_first_pass_rate"] == found["closed_independent_pass_rate"] == 1.0
    assert found["open_first_pass_rate"] == 0.5  # what claims something, and what nobody bought, is refused
    assert found["open_independent_pass_rate"] == 1.0 and found["open_independent_pass_rate_unchecked"] == 0.5
    assert found["closed_distinct_masked"] == 1 / 20 and found["open_distinct_masked"] == 3 / 20
    assert found["closed_tokens_a_reason"] == 20.0 and found["open_tokens_a_reason"] == 30.0
    assert context.facts["levels_open"]["verdicts"] == {"ok": 10, "unbacked_claim": 5, "unbacked_liking": 5}
    assert set(context.facts["levels_open"]["refused"]) == {CLAIM, TAKEN}
    assert context.facts["levels_open"]["sentences"] == [TRUE] * 3


def test_no_level_finds_the_prompts_of_the_other_and_each_goes_first_in_turn(
    tmp_path: Path, checker: SecondChecker
) -> None:
    model = Model(TRUE)
    compared(tmp_path, model, checker)
    assert {salt for salt, level in model.asked if salt == level} == {"closed", "open"}
    assert all(salt == level for salt, level in model.asked)
    assert [level for _, level in model.asked[::10]] == ["closed", "open", "open", "closed"]


def test_a_sentence_that_only_the_second_checker_refuses_counts_against_the_level(
    tmp_path: Path,
) -> None:
    class Believes(SecondChecker):
        def wrong(self, sentence: str, *, user_id: str, item_id: str) -> str | None:
            return "praise" if sentence == TRUE else super().wrong(sentence, user_id=user_id, item_id=item_id)

    rows = np.array(["u"], dtype=object), np.array(["f"], dtype=object)
    log = EventLog(*rows, np.array([EventType.rating], np.uint8), np.array([5.0], np.float32), np.array([10**12]))
    found, _ = compared(tmp_path, Model(TRUE), Believes(ITEMS, log))
    assert found["open_first_pass_rate"] == 1.0 and found["open_independent_pass_rate"] == 0.0
