"""Schedules and workloads: the same seed gives the same run, and nothing is unbounded."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from loadtests import workload
from loadtests.schedule import NS, Arrivals, LoadError, arrivals_ns
from loadtests.workload import Mix, Request, generate

USERS, ITEMS = [f"u{i}" for i in range(50)], [f"i{i}" for i in range(80)]


@pytest.mark.parametrize("process", list(Arrivals))
def test_the_same_seed_gives_the_same_arrivals_in_order_and_inside_the_duration(process: Arrivals) -> None:
    first = arrivals_ns(200, 5, process=process, seed=7)
    assert np.array_equal(first, arrivals_ns(200, 5, process=process, seed=7))
    assert (np.diff(first) >= 0).all() and first[0] >= 0 and first[-1] < 5 * NS


def test_poisson_arrivals_have_the_rate_and_the_spread_of_independent_users() -> None:
    offsets = arrivals_ns(1000, 50, seed=3)
    gaps = np.diff(offsets) / NS
    assert len(offsets) == pytest.approx(50_000, abs=5 * 50_000**0.5)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)
    assert not np.array_equal(offsets[:100], arrivals_ns(1000, 50, seed=4)[:100])


def test_constant_arrivals_are_a_metronome() -> None:
    assert arrivals_ns(100, 0.05, process=Arrivals.CONSTANT).tolist() == [0, 10**7, 2 * 10**7, 3 * 10**7, 4 * 10**7]


@pytest.mark.parametrize(
    ("rate", "seconds", "word"),
    [
        (0, 1, "rate"),
        (-5, 1, "rate"),
        (1e7, 1, "rate"),
        (10, 0, "duration"),
        (10, 1e6, "duration"),
        (1e5, 3600, "bound"),
    ],
)
def test_a_schedule_without_bounds_is_refused_with_the_option_to_change(rate: float, seconds: float, word: str) -> None:
    with pytest.raises(LoadError, match=word):
        arrivals_ns(rate, seconds)


def test_a_workload_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    first = generate(USERS, ITEMS, 300, seed=1)
    assert first == generate(USERS, ITEMS, 300, seed=1)
    assert first != generate(USERS, ITEMS, 300, seed=2)


def test_shares_of_the_mix_are_kept_and_events_have_ids_of_their_own() -> None:
    made = generate(USERS, ITEMS, 4000, mix=Mix(event_share=0.3, stream_share=0.2), run_id="r1", seed=5)
    shares = {kind: n / 4000 for kind, n in Counter(r.kind for r in made).items()}
    assert shares == pytest.approx({"event": 0.3, "stream": 0.2, "recommend": 0.5}, abs=0.03)
    events = [json.loads(r.body) for r in made if r.kind == "event"]
    assert len({e["event_id"] for e in events}) == len(events)
    assert all(e["event_id"].startswith("r1-") for e in events)
    assert {json.loads(r.body)["explain"] for r in made if r.kind == "stream"} == {True}


def test_users_follow_a_zipf_law_whose_order_is_not_that_of_the_list() -> None:
    made = generate(USERS, ITEMS, 20_000, mix=Mix(event_share=0, zipf=1.0), seed=2)
    counts = Counter(json.loads(r.body)["user_id"] for r in made)
    (busiest, first), (_, second) = counts.most_common(2)
    assert first / second == pytest.approx(2.0, rel=0.15)
    assert busiest != "u0"


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    made = [*generate(USERS, ITEMS, 40, seed=9), Request("get", path="/v1/items:trending")]
    workload.save(made, tmp_path / "w.jsonl")
    assert workload.load(tmp_path / "w.jsonl") == made


@pytest.mark.parametrize(
    "line",
    ["no json", '{"body": {}}', '{"kind": "drop"}', '{"kind": "get", "path": "/a b"}', '{"kind":"get","path":"x"}'],
)
def test_a_bad_line_of_a_workload_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    (tmp_path / "w.jsonl").write_text('{"kind": "get", "path": "/healthz"}\n' + line + "\n")
    with pytest.raises(LoadError, match="line 2"):
        workload.load(tmp_path / "w.jsonl")


@pytest.mark.parametrize(
    "mix", [{"event_share": -0.1}, {"event_share": 0.7, "stream_share": 0.7}, {"zipf": -1}, {"k": 0}]
)
def test_an_impossible_mix_is_refused(mix: dict[str, float]) -> None:
    with pytest.raises(LoadError):
        Mix(**mix)  # type: ignore[arg-type]


def test_ids_come_from_a_number_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("a\n\nb\n")
    assert workload.ids_from("3") == ["1", "2", "3"]
    assert workload.ids_from(str(tmp_path / "ids")) == ["a", "b"]
    for wrong in ("0", str(tmp_path / "missing")):
        with pytest.raises(LoadError):
            workload.ids_from(wrong)
