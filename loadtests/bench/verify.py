"""Recompute every figure of a benchmark's folder from its raw samples and compare exactly.

Finds raw samples that changed, figures that do not follow from them, aims that were moved and settings that were
edited. Called by `raycommend bench verify`; knows nothing of how the samples came about.
"""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadtests.bench import registry
from loadtests.bench.targets import Target, settings_hash, sha256_of

_STAMP = ("command", "commit", "settings_hash")
_SHARED = ("bench", "dirty", "machine", "facts", "invalid")


def verify(folder: Path, *, json: bool = False) -> int:
    """Print what differs; 0 when nothing does, 1 when something does, 2 when the folder is not a benchmark's."""
    try:
        found = differences(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"{folder} cannot be verified: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if json:
        print(jsonlib.dumps({"verified": not found, "differences": found}))
    else:
        print("\n".join(found) or f"{folder}: every figure follows from the raw samples")
    return 1 if found else 0


def differences(folder: Path) -> list[str]:
    """Return one sentence per difference between `result.json` and what spec and raw samples give."""
    spec = jsonlib.loads((folder / "spec.json").read_text(encoding="utf-8"))
    result = jsonlib.loads((folder / "result.json").read_text(encoding="utf-8"))
    if spec["bench"] not in registry.BENCHES:
        raise ValueError(f"no bench named {spec['bench']}")
    registry.BENCHES[spec["bench"]].load()  # registers the measures of its own
    found = _raw(folder, spec)
    if settings_hash(spec["shaped_by"]) != spec["settings_hash"]:
        found.append("settings_hash does not belong to the settings in spec.json")
    found += [f"{key} differs between spec.json and result.json" for key in _SHARED if spec[key] != result[key]]
    figures: Mapping[str, Any] = result["targets"]
    for name in sorted(spec["targets"].keys() ^ figures.keys()):
        found.append(f"target {name} is in only one of spec.json and result.json")
    for name in sorted(spec["targets"].keys() & figures.keys()):
        found += _target(folder, name, spec, figures[name])
    ok = not spec["invalid"] and all(figure["met"] is not False for figure in figures.values())
    if result["ok"] != ok:
        found.append(f"ok is {result['ok']}, the targets say {ok}")
    return found


def _raw(folder: Path, spec: Mapping[str, Any]) -> list[str]:
    found = []
    for name, digest in spec["raw_sha256"].items():
        path = folder / Path(name).name
        if not path.is_file():
            found.append(f"raw samples {name} are missing")
        elif sha256_of(path) != digest:
            found.append(f"raw samples {name} are not those that were written")
    return found


def _target(folder: Path, name: str, spec: Mapping[str, Any], figure: Mapping[str, Any]) -> list[str]:
    target = Target.from_json(spec["targets"][name])
    unsealed = sorted(set(target.raw) - spec["raw_sha256"].keys())
    if unsealed:
        return [f"{name}: {', '.join(unsealed)} has no sha256 in spec.json"]
    try:
        expected = target.compute(folder) | {key: spec[key] for key in _STAMP}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{name} cannot be recomputed: {type(error).__name__}: {error}"]
    return [
        f"{name}: {key} is {figure.get(key)!r}, recomputed {expected.get(key)!r}"
        for key in sorted(expected.keys() | figure.keys())
        if figure.get(key) != expected.get(key)
    ]
