"""Benchmark `quality`: recommendation quality through the real pipeline, beside baselines of the same run.

Raw samples are each method's NDCG per user, so that `bench verify` recomputes means, intervals and advantages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cluster.config import Settings
from cluster.evaluate import (
    BEST_BASELINE,
    COLD,
    DECLARED,
    FUSED,
    MERGED,
    NEW,
    NEXT_ITEM,
    REPEAT,
    SUMMARISED,
    UNDECLARED,
    evaluate_dataset,
)
from cluster.evaluate_cascade import evaluate_cascade
from cluster.evaluate_driver import CASCADE
from cluster.evaluate_text import BASELINES, OURS, RETRIEVAL, STUDENT_FUSED, WITHOUT_TEXT, evaluate_text
from cluster.evaluate_text import DATASET as TEXTS
from cluster.evaluate_text import FUSED as TEXT_FUSED
from loadtests import stats
from loadtests.bench.harness import BenchContext
from loadtests.bench.measures import measure
from loadtests.bench.targets import Aim
from loadtests.schedule import LoadError
from loadtests.stats import Estimate
from pipelines.evaluation.ablation import BY_STATE, ONE_WEIGHTING
from pipelines.evaluation.baselines import SHOP_BASELINES
from pipelines.evaluation.evaluate import Report


class Options(BaseModel):
    """Options of the benchmark."""

    model_config = ConfigDict(extra="forbid")

    dataset: str = "ml-100k"
    """`ml-100k`, `online-retail`, or the name of an imported data set."""
    seeds: int = Field(5, ge=1, le=5)
    """Seeds of the tie-breaking shuffle; figures are means over them."""
    ablate: bool = False
    """Also every retrieval source alone, the merged list without each, and weights by the user's state against one."""
    student: int | None = Field(None, ge=1)
    """With `amazon-industrial`: also distil a ranker of so many layers from the trained one and ask it."""
    users: int = Field(3000, ge=20, le=3000)
    """With `amazon-industrial`: most users who are asked; all who can be by default, since few show little."""
    validation: bool = False
    """Drop the test events and ask for those before them: what weights are decided by. States no aims."""
    cascade: int | None = Field(None, ge=10, le=3000)
    """Judge the cascade of the settings and nothing else, by so many users: what a second ranker brings over the first.
    With `validation` on the events before the test events."""
    summaries: Path | None = None
    """Also merged retrieval with users' interests in words, from a file of `explain --summaries --before-test`."""


_ABOVE = Aim(at_least=0.0)


@measure
def advantage(path: Path, *, bound: str = "mean") -> Estimate:
    """Mean of per-user differences, or with `bound="low"` the lower end of its 95 % interval."""
    found = stats.mean(np.load(path, allow_pickle=False))
    if bound != "low":
        return found
    return Estimate(value=found.ci95[0], n=found.n, ci95=found.ci95) if found.ci95 else found


@measure
def least_advantage(path: Path) -> Estimate:
    """The least of the lower ends of the 95 % intervals of several differences, one row of users each."""
    rows = np.load(path, allow_pickle=False)
    found = [stats.mean(row) for row in rows]
    low, worst = min(((one.ci95[0] if one.ci95 else one.value, one) for one in found), key=lambda pair: pair[0] or 0.0)
    return Estimate(value=low, n=worst.n, ci95=worst.ci95)


def bench(context: BenchContext) -> None:
    """Evaluate and state the targets."""
    options = context.options(Options)
    settings = Settings.model_validate(dict(context.settings))
    if options.dataset == TEXTS:
        _texts(context, settings, options)
        return
    if options.cascade is not None:
        _cascade(context, settings, options, options.cascade)
        return
    if options.student is not None:
        raise LoadError(f"--student goes with --dataset {TEXTS}: only there a text ranker is trained and judged")
    found = evaluate_dataset(
        settings,
        options.dataset,
        seeds=options.seeds,
        ablate=options.ablate,
        validation=options.validation,
        summaries=options.summaries,
        tell=context.tell,
    )
    timed = ("seconds", "examples_s")  # what another run of the same need not say
    context.facts["trainings"] = [{k: v for k, v in one.items() if k not in timed} for one in found.trainings]
    for question, report in [*found.questions.items(), *found.states.items()]:
        _show(context, question, report)
    if options.validation:
        _validated(context, found.questions)
    elif NEXT_ITEM in found.questions:
        _next_item(context, found.questions[NEXT_ITEM])
    else:
        _baskets(context, found.questions)
    if options.summaries is not None:
        _summarised(context, found.questions)
    if options.ablate:
        asked = {question: report for question, report in found.questions.items() if report.users}
        context.facts["ablation"] = {question: _sources(report) for question, report in asked.items()}
        context.facts["by_state"] = {state: _state(context, state, report) for state, report in found.states.items()}


def _summarised(context: BenchContext, reports: Mapping[str, Report]) -> None:
    """State what interests in words bring over merged retrieval without them; reported, not aimed at."""
    for question, report in reports.items():
        for name in report.methods:
            if name.startswith(SUMMARISED):
                label = f"{_name(question)}_{_name(name)}"
                file = context.save_array(label, report.per_user(name) - report.per_user(MERGED))
                context.target(f"{label}_gain", "advantage", file)


def _texts(context: BenchContext, settings: Settings, options: Options) -> None:
    """Every order against every baseline; the aim is on the least of the four lower bounds.

    Raises LoadError for what it does not do: who tunes by `--validation` must not be shown test events instead.
    """
    of = Options(dataset=options.dataset)
    for name in ("validation", "ablate", "summaries", "seeds", "cascade"):
        if getattr(options, name) != getattr(of, name):
            raise LoadError(f"--{name} does not go with --dataset {TEXTS}: it asks test rows, in one order, once")
    found = evaluate_text(settings, users=options.users, student=options.student, seed=0, tell=context.tell)
    for prefix, by in (("", found.ndcg), ("served ", found.served)):
        for name, ndcg in by.items():
            file = context.save_array(_label(prefix + name), ndcg)
            context.target(f"{_name(prefix + name)}_ndcg10", "array_mean", file)
    context.facts["trainings"] = {name: dict(metrics) for name, metrics in found.trainings.items()}
    if TEXT_FUSED not in found.ndcg:
        return
    gaps = {f"{ours} over {theirs}": found.ndcg[ours] - found.ndcg[theirs] for ours in OURS for theirs in BASELINES}
    gaps |= {f"served {ours} over {RETRIEVAL}": found.served[ours] - found.served[RETRIEVAL] for ours in OURS}
    for prefix, by in (("", found.ndcg), ("served ", found.served)):
        gaps[f"{prefix}{TEXT_FUSED} over {WITHOUT_TEXT}"] = by[TEXT_FUSED] - by[WITHOUT_TEXT]
    for name, gap in gaps.items():
        context.target(f"{_name(name)}_lower", "advantage", context.save_array(_name(name), gap), bound="low")
    every = context.save_array("text-vs-retrieval", np.stack([gaps[f"{o} over {b}"] for o in OURS for b in BASELINES]))
    context.target("text_vs_retrieval_lower", "least_advantage", every, aim=Aim(at_least=0.0))
    if STUDENT_FUSED in found.ndcg:
        # Of the lists that hold what was taken a loss weighs most; of all that is served it is what users lose.
        for prefix, by in (("", found.ndcg), ("served_", found.served)):
            change = context.save_array(f"{prefix}student", by[STUDENT_FUSED] - by[TEXT_FUSED])
            target = f"{prefix}student_ndcg_change_lower"
            context.target(target, "advantage", change, bound="low", aim=Aim(at_least=-0.003))


def _cascade(context: BenchContext, settings: Settings, options: Options, users: int) -> None:
    """State what the second ranker brings over the first, question by question; reported, not aimed at.

    Raises LoadError for options of the other questions, which would be dropped without a word.
    """
    of = Options()
    for name in ("ablate", "summaries", "seeds", "student"):
        if getattr(options, name) != getattr(of, name):
            raise LoadError(f"--{name} does not go with --cascade, which asks nothing else")
    found = evaluate_cascade(settings, options.dataset, users=users, validation=options.validation, tell=context.tell)
    for question, report in found.items():
        _show(context, question, report)
        (first,) = (name for name in report.methods if name != CASCADE)
        for name in (first, CASCADE):
            label = f"{_name(question)}_{_name(name)}"
            context.target(f"{label}_ndcg10", "array_mean", context.save_array(label, report.per_user(name)))
        gain = context.save_array(f"{_name(question)}_gain", report.per_user(CASCADE) - report.per_user(first))
        context.target(f"{_name(question)}_gain", "advantage", gain)
        context.target(f"{_name(question)}_gain_lower", "advantage", gain, bound="low")


def _validated(context: BenchContext, reports: Mapping[str, Report]) -> None:
    """Figures without aims: nothing is claimed from events that weights were tuned on."""
    reports = {question: report for question, report in reports.items() if report.users}
    for question, report in reports.items():
        file = context.save_array(_label(f"{question} {MERGED}"), report.per_user(MERGED))
        context.target(f"validation_{_name(question)}_ndcg10", "array_mean", file)
        if FUSED in report.methods:
            target = f"validation_{_name(question)}_fused_vs_merged_lower"
            _advantage(context, target, report, FUSED, MERGED, aim=None)
    for question in reports:
        if question.startswith(NEW):
            best = reports[question].best_of([n for n in SHOP_BASELINES if n in reports[question].methods])
            context.facts[f"{question}_best_baseline"] = best
            _advantage(
                context, f"validation_{_name(question)}_vs_best_lower", reports[question], MERGED, best, aim=None
            )
    for question in DECLARED.keys() & reports.keys():
        gain = reports[question].per_user(MERGED) - reports[question].per_user(UNDECLARED)
        file = context.save_array(_label(f"{question} gain"), gain)
        context.target(f"validation_{_name(question)}_gain", "advantage", file)
        context.target(f"validation_{_name(question)}_gain_lower", "advantage", file, bound="low")


def _sources(report: Report) -> dict[str, Any]:
    """Return, by variant, NDCG@10 with its interval, coverage, and the merged list's paired advantage over it."""
    names = [n for n in report.methods if n.startswith(("only ", "without ")) or n in (MERGED, FUSED)]
    return {name: _figures(report, name) | {"merged_minus_this": _bounds(report, MERGED, name)} for name in names}


def _state(context: BenchContext, state: str, report: Report) -> dict[str, Any]:
    """State what weights by state bring over one weighting among these users; a target without an aim."""
    file = context.save_array(_label(f"by state {state}"), report.per_user(BY_STATE) - report.per_user(ONE_WEIGHTING))
    context.target(f"by_state_{_name(state)}", "advantage", file)
    gain = _bounds(report, BY_STATE, ONE_WEIGHTING)
    context.tell(f"{state}: weights by state bring {gain[0]:+.4f} [{gain[1]:+.4f}, {gain[2]:+.4f}] over one weighting")
    return {name: _figures(report, name) for name in report.methods} | {"users": report.users, "gain": gain}


def _figures(report: Report, name: str) -> dict[str, Any]:
    method = report.methods[name]
    return {"ndcg": list(asdict(method.metrics["ndcg"]).values()), "coverage": method.coverage}


def _bounds(report: Report, ours: str, theirs: str) -> list[float]:
    return list(asdict(report.advantage(ours, theirs)).values())


def _next_item(context: BenchContext, report: Report) -> None:
    files = {name: context.save_array(_label(name), report.per_user(name)) for name in report.methods}
    context.target("merged_ndcg10", "array_mean", files[MERGED], aim=Aim(at_least=0.130))
    if FUSED in files:
        context.target("fused_ndcg10", "array_mean", files[FUSED], aim=Aim(at_least=0.138))
    _advantage(context, "merged_vs_best_lower", report, MERGED, BEST_BASELINE)
    if FUSED in files:
        _advantage(context, "fused_vs_merged_lower", report, FUSED, MERGED)
    ratio = report.methods[MERGED].coverage / max(report.methods["popularity"].coverage, 1e-9)
    context.target("coverage_ratio", "array_mean", context.save_array("coverage_ratio", [ratio]), aim=Aim(at_least=5.0))


def _baskets(context: BenchContext, reports: Mapping[str, Report]) -> None:
    """Every question against the best baseline of this very run; cold users without an aim."""
    for question, aim in ((NEW, Aim(at_least=0.100)), (REPEAT, Aim(at_least=0.300)), (COLD, None)):
        report = reports[question]
        files = {
            name: context.save_array(_label(f"{question} {name}"), report.per_user(name)) for name in report.methods
        }
        context.target(f"{question}_ndcg10", "array_mean", files[MERGED], aim=aim)
        best = report.best_of([name for name in SHOP_BASELINES if name in files])
        context.facts[f"{question}_best_baseline"] = best
        if aim is not None:
            _advantage(context, f"{question}_vs_best_lower", report, MERGED, best)
        if FUSED in files:
            context.target(f"{question}_fused_ndcg10", "array_mean", files[FUSED])
            _advantage(context, f"{question}_fused_vs_merged_lower", report, FUSED, MERGED, aim=_ABOVE if aim else None)


def _advantage(
    context: BenchContext, target: str, report: Report, ours: str, theirs: str, *, aim: Aim | None = _ABOVE
) -> None:
    file = context.save_array(target, report.per_user(ours) - report.per_user(theirs))
    context.target(target, "advantage", file, bound="low", aim=aim)


def _show(context: BenchContext, question: str, report: Report) -> None:
    context.tell(
        f"{question}: {report.users} users, {report.cases} cases a seed, {len(report.seeds)} seeds, "
        "means [95 % over users]"
    )
    for name, method in report.methods.items():
        figures = "  ".join(
            f"{metric} {value.mean:.4f} [{value.low:.4f}, {value.high:.4f}]" for metric, value in method.metrics.items()
        )
        context.tell(f"{name:<22} {figures}  coverage {method.coverage:.3f}  novelty {method.novelty:.2f}")


def _label(name: str) -> str:
    return "ndcg-" + _name(name).replace("_", "-")


def _name(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text).lower()
