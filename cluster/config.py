"""The root of the settings tree, and how it is read: class default < `envs/<env>.yaml` < `--set section.field=value`.

Each section's class lives beside the code it configures. Unknown keys, wrong types and contradictions fail at start
with every problem named at once. Secrets are not part of the tree: they come from the environment only.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.contradictions import contradictions
from cluster.errors import OperatorError
from models.settings import ModelSettings
from pipelines.settings import PipelinesSettings
from serve.settings import ServeSettings

ENVS = Path(__file__).parent / "envs"


class SettingsInvalid(OperatorError):
    """The settings cannot work; the message lists every problem."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class StoreSettings(_Section):
    """The online store and the cache."""

    mode: Literal["embedded", "external"] = "embedded"
    """`embedded` starts two Valkey servers; `external` takes RAYCOMMEND_STORE_URL and RAYCOMMEND_CACHE_URL."""
    port: int = Field(6390, ge=1024, le=65535)
    """Port of the embedded store."""
    cache_port: int = Field(6391, ge=1024, le=65535)
    """Port of the embedded cache."""
    cluster: bool = False
    """Whether the external store is a cluster-mode server."""


class RaySettings(_Section):
    """Ray on this node."""

    cpus: int = Field(4, ge=1)
    """Logical CPUs that replicas share; not a limit on what they use."""
    gpus: int = Field(0, ge=0)
    """GPUs that replicas share."""
    object_store_bytes: int = Field(256 * 1024**2, ge=80 * 1024**2)
    """Shared memory for objects."""
    metrics_port: int | None = Field(None, ge=1024, le=65535)
    """Port of Ray's Prometheus metrics; none lets Ray choose."""
    dashboard_port: int | None = Field(None, ge=1024, le=65535)
    """Port of Ray's dashboard on the loopback; none starts no dashboard."""
    omp_threads: int = Field(1, ge=1)
    """Threads of numeric libraries in one process."""


class HaproxySettings(_Section):
    """The proxy in front of the ingress replicas."""

    stats_port: int = Field(8404, ge=1024, le=65535)
    """Its statistics page."""
    metrics_port: int = Field(9101, ge=1024, le=65535)
    """Its Prometheus metrics."""
    fallback_port: int = Field(8500, ge=1024, le=65535)
    """The proxy that Serve starts beside it."""
    replica_port_min: int = Field(30000, ge=1024, le=65535)
    """First port of ingress replicas."""
    replica_port_max: int = Field(31000, ge=1024, le=65535)
    """Last port of ingress replicas."""
    threads: int = Field(1, ge=1)
    """Its threads."""


class ClusterSettings(_Section):
    """The `cluster` section."""

    state: str = "./.raycommend"
    """Folder of everything this deployment writes: models, data, artifacts, store files, logs, the process ledger."""
    artifacts_url: str | None = None
    """Any fsspec URL; none keeps artifacts in the state folder."""
    dataset: str = "movielens-100k"
    """The data set that `build` reads and `demo` imports."""
    start_timeout_s: float = Field(240.0, gt=0)
    """How long `up` waits until the first answer."""
    store: StoreSettings = StoreSettings()
    """Online store and cache."""
    ray: RaySettings = RaySettings()
    """Ray."""
    haproxy: HaproxySettings = HaproxySettings()
    """HAProxy."""


class Settings(_Section):
    """The whole tree."""

    models: ModelSettings = ModelSettings()
    """What is computed."""
    serve: ServeSettings = ServeSettings()
    """How a request flows."""
    pipelines: PipelinesSettings = PipelinesSettings()
    """How artifacts are made."""
    cluster: ClusterSettings = ClusterSettings()
    """Where it runs."""

    @property
    def state(self) -> Path:
        """The state folder; absolute when the settings were loaded."""
        return Path(self.cluster.state)

    @property
    def artifacts_url(self) -> str:
        """Where artifacts are kept."""
        return self.cluster.artifacts_url or str(self.state / "artifacts")


def load_settings(
    env: str = "local", overrides: Sequence[str] = (), *, environ: Mapping[str, str] | None = os.environ
) -> Settings:
    """Read the tree. `env` is a name in `cluster/envs` or a path of a YAML file. Raises SettingsInvalid.

    Secrets are looked for in `environ`; None asks for none, for commands that start nothing.
    """
    tree = _read_env(env)
    problems: list[str] = []
    for override in overrides:
        try:
            _apply(tree, override)
        except SettingsInvalid as error:
            problems.append(str(error))
    settings, wrong = _validated(tree)
    problems += wrong
    if settings is not None:
        problems += contradictions(settings, environ=environ)
    if problems or settings is None:
        raise SettingsInvalid(_listed(env, problems))
    # Made absolute here and now: `up` changes its working directory before Ray starts.
    state = _absolute(settings.cluster.state)
    cache = None if settings.models.cache is None else _absolute(settings.models.cache)
    return settings.model_copy(
        update={
            "cluster": settings.cluster.model_copy(update={"state": state}),
            "models": settings.models.model_copy(update={"cache": cache}),
        }
    )


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def _read_env(env: str) -> dict[str, Any]:
    path = Path(env) if env.endswith((".yaml", ".yml")) else ENVS / f"{env}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in ENVS.glob("*.yaml")))
        raise SettingsInvalid(f"--env {env}: no such environment; there is {known}, or give the path of a YAML file")
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise SettingsInvalid(f"{path.name}: not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise SettingsInvalid(f"{path.name}: want a mapping of sections")
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise SettingsInvalid(f"--set {override}: want section.field=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsInvalid(f"--set {name}: the value is not YAML") from error
    for key in keys[:-1]:
        inner = tree.setdefault(key, {})
        if not isinstance(inner, dict):
            raise SettingsInvalid(f"--set {name}: {key} is a value, not a section")
        tree = inner
    tree[keys[-1]] = value


def _validated(tree: dict[str, Any]) -> tuple[Settings | None, list[str]]:
    """Return the settings and what is wrong with single values; those count as unset, so that the rest is checked."""
    # Merged field by field: a section keeps the defaults that its parent gives it when one of its fields is set.
    merged = _merged(Settings().model_dump(), tree)
    try:
        return Settings.model_validate(merged), []
    except ValidationError as error:
        found = error.errors()
    for one in found:
        _unset(merged, one["loc"])
    try:
        return Settings.model_validate(merged), [_sentence(e) for e in found]
    except ValidationError:
        return None, [_sentence(e) for e in found]


def _merged(base: Any, over: Any) -> Any:
    if not isinstance(base, dict) or (over is not None and not isinstance(over, dict)):
        return over
    rest = {} if over is None else over
    return {**base, **{k: _merged(base[k], v) if k in base else v for k, v in rest.items()}}


def _unset(tree: Any, path: Sequence[Any]) -> None:
    """Put the default back, or remove what has none."""
    default: Any = Settings().model_dump()
    for key in path[:-1]:
        tree = tree.get(key) if isinstance(tree, dict) else None
        default = default.get(key) if isinstance(default, dict) else None
    if isinstance(tree, dict):
        tree.pop(path[-1], None)
        if isinstance(default, dict) and path[-1] in default:
            tree[path[-1]] = default[path[-1]]


def _sentence(error: Any) -> str:
    path = ".".join(str(p) for p in error["loc"])
    if error["type"] != "extra_forbidden":
        return f"{path}: {error['msg']}"
    close = difflib.get_close_matches(str(error["loc"][-1]), _fields_at(error["loc"][:-1]), n=1, cutoff=0.5)
    return f"{path}: no such setting" + (f"; did you mean {close[0]}?" if close else "")


def _fields_at(path: Sequence[Any]) -> list[str]:
    model: Any = Settings
    for key in path:
        field = model.model_fields.get(str(key))
        if field is None or not hasattr(field.annotation, "model_fields"):
            return []
        model = field.annotation
    return list(model.model_fields)


def _listed(env: str, problems: Sequence[str]) -> str:
    head = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{head} in the settings (env {env}):\n" + "\n".join(f"  - {p}" for p in problems)
