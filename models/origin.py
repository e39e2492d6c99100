"""Where our packages were imported from, and the refusal to run on a stranger's.

`models`, `serve`, `cluster` and `pipelines` are common names, and Ray puts folders of the driver on every worker's
path, so a package of the same name there could hide ours. Knows nothing of Ray. Called by `up` and by every replica.
"""

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

PACKAGES = ("models", "serve", "pipelines", "cluster")


class ForeignPackage(ImportError):
    """A package of ours is hidden by another of the same name; the message names its path."""


def installation_root() -> Path:
    """Return the folder that holds the packages of this installation: site-packages, or the checkout."""
    return Path(__file__).resolve().parents[1]


def check_origin(expected_root: Path | None = None, *, packages: Iterable[str] = PACKAGES) -> None:
    """Check that every package of ours, imported or not, is found in one installation.

    Args:
        expected_root: Where they must be; by default, where this module itself is.
        packages: Names to look at.

    Raises:
        ForeignPackage: Another package of that name comes first, or one of ours is missing.
    """
    root = (expected_root or installation_root()).resolve()
    found = {name: _found(name) for name in packages}
    wrong = [f"`{name}` from {place or 'nowhere'}" for name, place in found.items() if place != root / name]
    if wrong:
        raise ForeignPackage(
            f"this process would import {', '.join(wrong)} instead of from {root}: "
            "start from another folder, and take that one off PYTHONPATH"
        )


def _found(name: str) -> Path | None:
    module: ModuleType | None = sys.modules.get(name)
    spec = getattr(module, "__spec__", None) if module is not None else importlib.util.find_spec(name)
    places = getattr(spec, "submodule_search_locations", None) or []
    if spec is not None and spec.origin and spec.origin != "namespace":
        return Path(spec.origin).resolve().parent if places else Path(spec.origin).resolve()
    # A folder without __init__.py: a namespace package, which ours never are.
    return next((Path(place).resolve() for place in places), None)
