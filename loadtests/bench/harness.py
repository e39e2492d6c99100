"""The bench harness: runs a registered benchmark, keeps its raw samples, states its targets in one JSON line.

A folder `<state>/bench/<name>-<time>/` holds the raw samples (.parquet, .npy), `spec.json` (how each figure follows
from them, their sha256, settings, machine) and `result.json` (the line). Knows nothing of any particular benchmark.
Called by the command line; `loadtests.bench.verify` reads the folder again.
"""

from __future__ import annotations

import json as jsonlib
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from loadtests.bench import registry
from loadtests.bench.interleave import Arm, interleave
from loadtests.bench.machine import commit, machine_facts
from loadtests.bench.targets import Aim, Target, settings_hash, sha256_of
from loadtests.samples import RunResult
from loadtests.schedule import LoadError

Options = TypeVar("Options", bound=BaseModel)
OptionValues = Mapping[str, str | int | float | bool | None]
DEFAULT_ROUNDS = 10


class BenchContext:
    """What a benchmark is given: its options, a place for raw samples, and a way to state targets."""

    def __init__(
        self,
        name: str,
        folder: Path,
        options: OptionValues,
        *,
        settings: Mapping[str, Any],
        tell: Callable[[str], None],
    ) -> None:
        self.name, self.folder, self.tell = name, folder, tell
        self.settings = settings
        """The effective settings tree of what is measured, secrets redacted; part of the settings hash."""
        self.chosen: dict[str, Any] = {}
        self.targets: dict[str, Target] = {}
        self.facts: dict[str, Any] = {}
        self.invalid: list[str] = []
        self._options = dict(options)
        self.rounds = _rounds(self._options.pop("rounds", None))

    def options(self, model: type[Options]) -> Options:
        """Return the options as the benchmark's own model (give it `extra="forbid"`). Raises LoadError, all at once."""
        try:
            parsed = model.model_validate({k: v for k, v in self._options.items() if v is not None})
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            known = ", ".join(model.model_fields)
            raise LoadError(f"bench {self.name}: {problems}. Options: rounds, {known}") from error
        self.chosen = parsed.model_dump(mode="json")
        return parsed

    def save_run(self, label: str, run: RunResult) -> str:
        """Keep the raw samples of an open-loop run; returns the file name that targets refer to."""
        return run.save(self.folder / f"{label}.parquet").name

    def save_array(self, label: str, values: Sequence[float] | np.ndarray[Any, Any]) -> str:
        """Keep an array of raw figures; returns the file name."""
        np.save(self.folder / f"{label}.npy", np.asarray(values, dtype=np.float64), allow_pickle=False)
        return f"{label}.npy"

    def interleave(self, label: str, arms: Mapping[str, Arm], *, warmup: int = 1, max_s: float = 600.0) -> str:
        """Run the arms in turn for `rounds` rounds and keep every sample; returns the file name."""
        import pyarrow.parquet as pq

        table = interleave(arms, rounds=self.rounds, warmup=warmup, max_s=max_s, tell=self.tell)
        pq.write_table(table, self.folder / f"{label}.parquet")
        return f"{label}.parquet"

    def target(self, name: str, measure: str, /, *raw: str, aim: Aim | None = None, **params: Any) -> None:
        """State a figure: `measure` of `loadtests.bench.measures` over raw files. Names are unique."""
        if name in self.targets:
            raise ValueError(f"target {name} is stated twice")
        self.targets[name] = Target(measure=measure, raw=raw, params=params, aim=aim)


def list_benches() -> list[registry.Bench]:
    """Return the registered benchmarks by name; imports none of them."""
    return [registry.BENCHES[name] for name in sorted(registry.BENCHES)]


def run_bench(
    name: str, *, state: Path, json: bool, options: OptionValues, settings: Mapping[str, Any] | None = None
) -> int:
    """Run a benchmark and print its targets; the last line on stdout is the JSON result.

    Args:
        name: A name of the registry.
        state: State folder; raw samples go to `<state>/bench/<name>-<time>/`.
        json: Print nothing but the JSON line.
        options: `rounds` and the benchmark's own options, as strings or values.
        settings: Effective settings of what is measured, without secrets.

    Returns:
        0 when valid and every aim is met, 1 when not, 2 when it could not run as asked.
    """
    if name not in registry.BENCHES:
        print(f"no bench named {name}; there are: {', '.join(sorted(registry.BENCHES))}", file=sys.stderr)
        return 2
    folder = _new_folder(state / "bench", name)
    revision, dirty = commit()
    machine = machine_facts()
    tell: Callable[[str], None] = (lambda text: None) if json else (lambda text: print(text, file=sys.stderr))
    try:
        context = BenchContext(name, folder, options, settings=settings or {}, tell=tell)
        registry.BENCHES[name].load()(context)
        result = _write(context, _command(name, options), revision, dirty, machine)
    except (LoadError, OSError, ValueError) as error:
        if not any(folder.iterdir()):
            folder.rmdir()
        print(f"bench {name}: {error}", file=sys.stderr)
        return 2
    if not json:
        _print_table(result)
    print(jsonlib.dumps(result), flush=True)
    return 0 if result["ok"] else 1


def _write(
    context: BenchContext, command: str, revision: str, dirty: bool, machine: Mapping[str, Any]
) -> dict[str, Any]:
    raw = sorted(path.name for path in context.folder.iterdir())
    shaped_by = {"options": context.chosen, "rounds": context.rounds, "settings": dict(context.settings)}
    stamp = {"command": command, "commit": revision, "settings_hash": settings_hash(shaped_by)}
    spec = {
        "bench": context.name,
        **stamp,
        "dirty": dirty,
        "shaped_by": shaped_by,
        "machine": dict(machine),
        "facts": context.facts,
        "invalid": context.invalid,
        "raw_sha256": {name: sha256_of(context.folder / name) for name in raw},
        "targets": {name: target.as_json() for name, target in context.targets.items()},
    }
    # Figures are computed from what can be read back, never from what is still in memory.
    stated = {n: t.compute(context.folder) for n, t in context.targets.items()}
    figures = {name: figure | stamp for name, figure in stated.items()}
    ok = not context.invalid and all(figure["met"] is not False for figure in figures.values())
    result = {
        "bench": context.name,
        "ok": ok,
        "invalid": context.invalid,
        "dirty": dirty,
        "folder": str(context.folder),
        "machine": dict(machine),
        "facts": context.facts,
        "targets": figures,
    }
    kept = {k: v for k, v in result.items() if k != "folder"}  # the folder may move
    for file, content in (("spec.json", spec), ("result.json", kept)):
        text = jsonlib.dumps(content, indent=1, allow_nan=False, default=str)
        (context.folder / file).write_text(text + "\n", encoding="utf-8")
    return result


def _rounds(value: object) -> int:
    try:
        return DEFAULT_ROUNDS if value is None else int(str(value))
    except ValueError as error:
        raise LoadError(f"rounds must be a whole number, not {value}") from error


def _new_folder(parent: Path, name: str) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    parent.mkdir(parents=True, exist_ok=True)
    for number in range(100):
        folder = parent / (f"{name}-{stamp}" + (f"-{number}" if number else ""))
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise OSError(f"{parent} holds 100 runs of this second already")


def _command(name: str, options: OptionValues) -> str:
    given = {key: value for key, value in options.items() if value is not None}
    parts = ["raycommend", "bench", name]
    if (rounds := given.pop("rounds", None)) is not None:
        parts += ["--rounds", str(rounds)]
    for key in sorted(given):
        parts += ["--option", f"{key}={given[key]}"]
    return shlex.join(parts)


def _print_table(result: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"bench {result['bench']}", caption="\n".join(f"INVALID: {r}" for r in result["invalid"]))
    for column in ("target", "value", "95 %", "n", "aim", "met"):
        table.add_column(column, justify="left" if column in ("target", "aim") else "right")
    for name, figure in result["targets"].items():
        value, *bounds = ("–" if v is None else f"{v:.4g}" for v in (figure["value"], *figure["ci95"]))
        met = {True: "yes", False: "NO", None: ""}[figure["met"]]
        table.add_row(name, value, " … ".join(bounds), str(figure["n"]), figure["target"] or "", met)
    Console().print(table)
