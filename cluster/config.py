"""The root of the settings tree, and how it is read: class default < `envs/<env>.yaml` < `--set section.field=value`.

Each section's class lives beside the code it configures. Unknown keys, wrong types and contradictions fail at start
with every problem named at once. Secrets are not part of the tree: they come from the environment only.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import OperatorError
from models.settings import ModelSettings
from pipelines.settings import PipelinesSettings
from serve.auth import DEFAULT_TENANT, Keys
from serve.errors import ConfigError
from serve.schemas import MAX_K
from serve.settings import DeploymentSettings, ServeSettings

ENVS = Path(__file__).parent / "envs"
MIN_KEY_LENGTH = 16
STAGES = ("ingress", "features", "encoder", "retriever", "ranker", "explainer")


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
    env: str = "local", overrides: Sequence[str] = (), *, environ: Mapping[str, str] = os.environ
) -> Settings:
    """Read the tree. `env` is a name in `cluster/envs` or a path of a YAML file. Raises SettingsInvalid."""
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


def contradictions(settings: Settings, *, environ: Mapping[str, str]) -> list[str]:
    """Return every cross-check that fails, as sentences that name the settings."""
    return [*_budgets(settings.serve), *_deployments(settings), *_addresses(settings, environ), *_models(settings)]


def _budgets(serve: ServeSettings) -> list[str]:
    problems = []
    pipeline = serve.pipeline
    total = sum(s.budget_ms for s in (pipeline.features, pipeline.query, pipeline.retrieve, pipeline.rank))
    if total > serve.default_deadline_ms:
        problems.append(
            f"serve.pipeline: stage budgets add up to {total:g} ms, more than serve.default_deadline_ms = "
            f"{serve.default_deadline_ms}"
        )
    if serve.default_deadline_ms > serve.max_deadline_ms:
        problems.append("serve.default_deadline_ms is larger than serve.max_deadline_ms")
    for name in ("features", "query", "retrieve", "rank"):
        stage = getattr(pipeline, name)
        if stage.minimum_ms > stage.budget_ms:
            problems.append(f"serve.pipeline.{name}: minimum_ms is larger than budget_ms, so it would never run")
    if pipeline.candidates < MAX_K:
        problems.append(f"serve.pipeline.candidates is below {MAX_K}, the largest k a caller may ask for")
    return problems


def _deployments(settings: Settings) -> list[str]:
    problems, cpus, gpus = [], 0.0, 0.0
    for name in STAGES:
        of: DeploymentSettings = getattr(settings.serve, name)
        if of.min_replicas > of.max_replicas:
            problems.append(f"serve.{name}: min_replicas is larger than max_replicas")
        if of.target_ongoing_requests > of.max_ongoing_requests:
            problems.append(f"serve.{name}: target_ongoing_requests is larger than max_ongoing_requests")
        cpus += of.num_cpus * of.min_replicas
        gpus += of.num_gpus * of.min_replicas
    for name in ("ingress", "explainer"):
        if getattr(settings.serve, name).placement != "deployment":
            problems.append(f"serve.{name}.placement must be deployment: it needs a process of its own")
    if settings.serve.ingress.max_ongoing_requests < settings.serve.max_in_flight:
        problems.append("serve.ingress.max_ongoing_requests is smaller than serve.max_in_flight: requests would hang")
    ray = settings.cluster.ray
    if cpus > ray.cpus:
        problems.append(f"the replicas want {cpus:g} CPUs, cluster.ray.cpus = {ray.cpus}")
    if gpus > ray.gpus:
        problems.append(f"the replicas want {gpus:g} GPUs, cluster.ray.gpus = {ray.gpus}")
    return problems


def _addresses(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    problems = []
    cluster = settings.cluster
    ports = {
        "serve.http_port": settings.serve.http_port,
        "cluster.haproxy.stats_port": cluster.haproxy.stats_port,
        "cluster.haproxy.metrics_port": cluster.haproxy.metrics_port,
        "cluster.haproxy.fallback_port": cluster.haproxy.fallback_port,
        "cluster.ray.metrics_port": cluster.ray.metrics_port,
        "cluster.ray.dashboard_port": cluster.ray.dashboard_port,
    }
    if cluster.store.mode == "embedded":
        ports |= {"cluster.store.port": cluster.store.port, "cluster.store.cache_port": cluster.store.cache_port}
    by_port: dict[int, list[str]] = {}
    for name, port in ports.items():
        if port is not None:
            by_port.setdefault(port, []).append(name)
    problems += [f"{' and '.join(names)} are both {port}" for port, names in by_port.items() if len(names) > 1]
    if cluster.haproxy.replica_port_min >= cluster.haproxy.replica_port_max:
        problems.append("cluster.haproxy.replica_port_min must be below replica_port_max")
    if not _is_loopback(settings.serve.host) and not environ.get("RAYCOMMEND_API_KEYS"):
        problems.append("serve.host is not a loopback address: set RAYCOMMEND_API_KEYS=tenant=key,… first")
    try:
        tenants = Keys.parse(environ.get("RAYCOMMEND_API_KEYS", "")).tenants
        if strangers := [t for t in tenants if t != DEFAULT_TENANT]:
            # Replicas would wait for releases that nobody builds.
            ours, theirs = DEFAULT_TENANT, ", ".join(strangers)
            problems.append(f"RAYCOMMEND_API_KEYS: releases are built for tenant {ours} only, not for {theirs}")
    except ConfigError as error:
        problems.append(f"RAYCOMMEND_API_KEYS: {error}")
    if 0 < len(environ.get("RAYCOMMEND_SIGNING_KEY", "")) < MIN_KEY_LENGTH:
        problems.append(f"RAYCOMMEND_SIGNING_KEY is shorter than {MIN_KEY_LENGTH} characters")
    if cluster.store.mode == "external" and not environ.get("RAYCOMMEND_STORE_URL"):
        problems.append("cluster.store.mode is external: set RAYCOMMEND_STORE_URL (redis:// or rediss://)")
    return problems


def _models(settings: Settings) -> list[str]:
    ranker = settings.models.ranker
    if ranker.backend == "text" and ranker.text_uri is None:
        return ["models.ranker.backend is text: name the model in models.ranker.text_uri"]
    return []


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
