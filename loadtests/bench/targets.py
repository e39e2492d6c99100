"""A target: a figure, how it is recomputed from raw samples, and the aim it is held against.

Called by the harness (to state targets) and by `verify` (to recompute them). Knows nothing of how samples came about.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from loadtests.bench.measures import MEASURES
from loadtests.stats import Estimate


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What a figure should be. With `on="ci95"` the whole interval must satisfy it, as a claim demands."""

    at_least: float | None = None
    at_most: float | None = None
    on: Literal["value", "ci95"] = "value"

    def __str__(self) -> str:
        bounds = [f">= {self.at_least:g}"] if self.at_least is not None else []
        bounds += [f"<= {self.at_most:g}"] if self.at_most is not None else []
        return ("ci95 " if self.on == "ci95" else "") + " and ".join(bounds)

    def met(self, figure: Estimate) -> bool:
        """Whether the figure satisfies it; a figure or bound that is not there does not."""
        low, high = figure.ci95 if self.on == "ci95" else (figure.value, figure.value)
        return (self.at_least is None or (low is not None and low >= self.at_least)) and (
            self.at_most is None or (high is not None and high <= self.at_most)
        )


@dataclass(frozen=True, kw_only=True)
class Target:
    """One figure of a benchmark: `measure(*raw files, **params)`."""

    measure: str
    raw: tuple[str, ...]
    """Names of raw files inside the benchmark's folder."""
    params: Mapping[str, Any] = field(default_factory=dict)
    aim: Aim | None = None

    def compute(self, folder: Path) -> dict[str, Any]:
        """Recompute from the raw files: value, n, ci95, target, met. Raises KeyError for an unknown measure."""
        figure = MEASURES[self.measure](*(folder / name for name in self.raw), **self.params)
        aim = self.aim
        held = {"target": str(aim) if aim else None, "met": aim.met(figure) if aim else None}
        return figure.as_json() | held

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        aim = {"at_least": self.aim.at_least, "at_most": self.aim.at_most, "on": self.aim.on} if self.aim else None
        return {"measure": self.measure, "raw": list(self.raw), "params": dict(self.params), "aim": aim}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Target:
        """Read a target. File names that leave the folder are refused (ValueError)."""
        raw: Sequence[str] = row["raw"]
        if any(Path(name).name != name for name in raw):
            raise ValueError(f"raw files must lie in the folder itself: {', '.join(raw)}")
        aim = Aim(**row["aim"]) if row["aim"] else None
        return cls(measure=row["measure"], raw=tuple(raw), params=row["params"], aim=aim)


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Return 16 hex digits of the sha256 of the canonical JSON of all settings that shaped a figure."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
