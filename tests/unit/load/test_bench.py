"""The bench harness: fair turns, honest ratios, and no figure that does not follow from the raw samples."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict

from loadtests.bench import registry
from loadtests.bench.harness import BenchContext, list_benches, run_bench
from loadtests.bench.interleave import interleave, orders, timed_ms
from loadtests.bench.sweep import parse_rates, search, sweep
from loadtests.bench.targets import Aim, Target
from loadtests.bench.verify import differences, verify
from loadtests.schedule import LoadError
from loadtests.stats import Estimate


class TinyOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = 400


def tiny(context: BenchContext) -> None:
    size = context.options(TinyOptions).size
    rng = np.random.default_rng(0)
    raw = context.interleave("pair", {"a": lambda: rng.random(size) + 1, "b": lambda: rng.random(size) + 2})
    context.target("a_over_b", "paired_ratio", raw, over="a", under="b", aim=Aim(at_most=0.8, on="ci95"))
    context.target("mean", "array_mean", context.save_array("figures", rng.random(50)))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    monkeypatch.setitem(registry.BENCHES, "tiny", registry.Bench("tiny", f"{__name__}:tiny", "a test"))
    options = {"rounds": "5", "size": "300"}
    assert run_bench("tiny", state=tmp_path, json=True, options=options, settings={"k": 1}) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    (tmp_path / "line.json").write_text(json.dumps(line))
    (made,) = (tmp_path / "bench").iterdir()
    return made


def test_the_last_line_states_every_target_with_all_its_marks(folder: Path, tmp_path: Path) -> None:
    line = json.loads((tmp_path / "line.json").read_text())
    assert line["ok"] is True and line["machine"]["cores"] >= 1
    figure = line["targets"]["a_over_b"]
    assert set(figure) == {"value", "n", "ci95", "command", "commit", "settings_hash", "target", "met"}
    assert figure["n"] == 5 and figure["ci95"][0] < figure["value"] < figure["ci95"][1]
    assert figure["value"] == pytest.approx(1.5 / 2.5, rel=0.05)
    assert figure["command"] == "raycommend bench tiny --rounds 5 --option size=300"
    assert (figure["target"], figure["met"]) == ("ci95 <= 0.8", True)


def test_an_untouched_folder_verifies(folder: Path) -> None:
    assert differences(folder) == []
    assert verify(folder) == 0


def edit(name: str, change: Callable[[Any], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return apply


def nudge_samples(folder: Path) -> None:
    values = np.load(folder / "figures.npy")
    values[0] += 1e-9
    np.save(folder / "figures.npy", values)


TAMPERED = {
    "value": edit("result.json", lambda r: r["targets"]["mean"].update(value=r["targets"]["mean"]["value"] + 1e-15)),
    "n": edit("result.json", lambda r: r["targets"]["mean"].update(n=51)),
    "interval": edit("result.json", lambda r: r["targets"]["a_over_b"]["ci95"].reverse()),
    "met": edit("result.json", lambda r: r["targets"]["a_over_b"].update(met=False)),
    "commit": edit("result.json", lambda r: r["targets"]["a_over_b"].update(commit="0" * 40)),
    "ok": edit("result.json", lambda r: r.update(ok=False)),
    "machine": edit("result.json", lambda r: r["machine"].update(cores=64)),
    "dropped target": edit("result.json", lambda r: r["targets"].pop("mean")),
    "added target": edit("result.json", lambda r: r["targets"].update(more=r["targets"]["mean"])),
    "moved aim": edit("spec.json", lambda s: s["targets"]["a_over_b"]["aim"].update(at_most=0.5)),
    "other statistic": edit("spec.json", lambda s: s["targets"]["a_over_b"]["params"].update(statistic="p99")),
    "settings": edit("spec.json", lambda s: s["shaped_by"]["options"].update(size=4)),
    "samples": nudge_samples,
    "missing samples": lambda folder: (folder / "figures.npy").unlink(),
    "unsealed samples": edit("spec.json", lambda s: s["raw_sha256"].pop("figures.npy")),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_tampering_is_found(folder: Path, what: str) -> None:
    TAMPERED[what](folder)
    assert verify(folder) == 1
    assert differences(folder) != []


def test_a_folder_that_is_no_benchmark_is_an_error_not_a_pass(tmp_path: Path) -> None:
    assert verify(tmp_path) == 2


def test_raw_files_outside_the_folder_are_refused() -> None:
    with pytest.raises(ValueError, match="folder itself"):
        Target.from_json({"measure": "array_mean", "raw": ["../x.npy"], "params": {}, "aim": None})


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("options", [{"rounds": "many"}, {"rounds": 1}, {"sizes": 3}, {"size": "big"}])
def test_wrong_options_stop_the_bench_and_leave_no_folder(tmp_path: Path, options: dict[str, Any]) -> None:
    assert run_bench("tiny", state=tmp_path / "other", json=True, options=options) == 2
    assert list((tmp_path / "other" / "bench").iterdir()) == []


def test_an_unknown_bench_is_refused_by_naming_those_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_bench("nothing", state=tmp_path, json=True, options={}) == 2
    assert ", ".join(sorted(registry.BENCHES)) in capsys.readouterr().err


def test_every_registered_bench_loads() -> None:
    assert {"client", "features", "freshness", "http", "retrieval"} <= {bench.name for bench in list_benches()}
    assert all(callable(bench.load()) for bench in list_benches())


def test_arms_take_turns_so_that_drift_falls_on_both() -> None:
    assert list(orders(["A", "B"], 4)) == [["A", "B"], ["B", "A"], ["A", "B"], ["B", "A"]]
    firsts = [order[0] for order in orders(["A", "B", "C"], 6)]
    assert {name: firsts.count(name) for name in "ABC"} == {"A": 2, "B": 2, "C": 2}


def test_warm_up_rounds_are_thrown_away_and_every_sample_is_kept() -> None:
    calls: list[str] = []
    arms = {"a": lambda: calls.append("a") or [1.0, 2.0], "b": lambda: calls.append("b") or 3.0}  # type: ignore[func-returns-value]
    table = interleave(arms, rounds=3, warmup=2, tell=lambda text: None)  # type: ignore[arg-type]
    assert calls == list("abba" + "abba" + "ab")
    assert table.num_rows == 9 and set(table["value"].to_pylist()) == {1.0, 2.0, 3.0}
    assert table.filter(table["position"].to_numpy() == 0)["arm"].to_pylist() == ["a", "a", "b", "a", "a"]


def test_an_interleaved_run_is_bounded() -> None:
    with pytest.raises(ValueError, match="rounds"):
        interleave({"a": lambda: 1.0}, rounds=2)
    with pytest.raises(ValueError, match="fitted"):
        interleave({"a": lambda: time.sleep(0.02) or 1.0}, rounds=9, max_s=0.01, tell=lambda text: None)
    with pytest.raises(ValueError, match="no sample"):
        interleave({"a": lambda: []}, rounds=3)


def test_identical_arms_have_a_ratio_of_one_within_noise(tmp_path: Path) -> None:
    def work() -> list[float]:
        return timed_ms(lambda: sum(range(4000)), 60)

    context = BenchContext("aa", tmp_path, {"rounds": 20}, settings={}, tell=lambda text: None)
    context.target("ratio", "paired_ratio", context.interleave("aa", {"a": work, "b": work}), over="a", under="b")
    figure = context.targets["ratio"].compute(tmp_path)
    assert figure["value"] == pytest.approx(1.0, abs=0.1)
    assert figure["n"] == 20 and figure["ci95"][1] - figure["ci95"][0] < 0.4


def test_an_aim_holds_the_value_or_the_whole_interval() -> None:
    figure = Estimate(1.2, 9, (0.9, 1.5))
    assert Aim(at_least=1).met(figure) and not Aim(at_least=1, on="ci95").met(figure)
    assert Aim(at_most=1.5, on="ci95").met(figure) and not Aim(at_most=1).met(figure)
    assert not Aim(at_least=0, on="ci95").met(Estimate(5, 1, (None, None)))
    assert not Aim(at_most=10).met(Estimate(None, 0, (None, None)))


@pytest.mark.parametrize(("border", "best"), [(130.0, 120), (1e9, 640), (9.0, 8), (0.01, None)])
def test_the_search_finds_the_border_from_below_with_few_probes(border: float, best: float | None) -> None:
    tried: list[float] = []

    def probe(rate: float) -> bool:
        tried.append(rate)
        return rate <= border

    found = search(probe, 20, max_rate=640)
    assert len(tried) <= 16 and len(set(tried)) == len(tried)
    assert found is None if best is None else found == pytest.approx(best, rel=0.15) and found <= border  # type: ignore[operator]


def test_given_rates_are_offered_in_order_up_to_the_first_that_does_not_hold() -> None:
    tried: list[float] = []
    assert sweep(lambda rate: tried.append(rate) or rate < 25, parse_rates("30,10,20,40")) == 20  # type: ignore[func-returns-value]
    assert tried == [10, 20, 30]
    for wrong in ("", "a", "0,1"):
        with pytest.raises(LoadError):
            parse_rates(wrong)
