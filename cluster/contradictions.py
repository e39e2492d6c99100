"""Cross-checks of the settings tree: what each section allows alone but cannot work together.

Every problem is a sentence that names the settings, and all of them are returned at once. Called by `cluster.config`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import TYPE_CHECKING

from serve.auth import DEFAULT_TENANT, Keys
from serve.errors import ConfigError
from serve.schemas import MAX_K
from serve.settings import DeploymentSettings, ServeSettings

if TYPE_CHECKING:
    from cluster.config import Settings

MIN_KEY_LENGTH = 16
STAGES = ("ingress", "features", "encoder", "retriever", "ranker", "explainer")


def contradictions(settings: Settings, *, environ: Mapping[str, str] | None) -> list[str]:
    """Return every cross-check that fails, as sentences that name the settings."""
    problems = [*_budgets(settings.serve), *_deployments(settings), *_addresses(settings), *_models(settings)]
    problems += _pipelines(settings)
    return problems if environ is None else [*problems, *_secrets(settings, environ)]


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
    shards = settings.serve.index_shards
    cpus += shards.hosts * shards.host.num_cpus * shards.host.min_replicas
    gpus += shards.hosts * shards.host.num_gpus * shards.host.min_replicas
    problems += _index_shards(settings) if shards.hosts else []
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


def _index_shards(settings: Settings) -> list[str]:
    of, problems = settings.serve.index_shards, []
    if of.host.placement != "deployment" or settings.serve.retriever.placement != "deployment":
        problems.append("serve.index_shards.hosts: hosts and serve.retriever must have placement deployment")
    if of.hosts > settings.pipelines.index_pieces:
        problems.append(
            f"serve.index_shards.hosts = {of.hosts} is more than pipelines.index_pieces = "
            f"{settings.pipelines.index_pieces}: some hosts would hold nothing"
        )
    if of.host.min_replicas > of.host.max_replicas:
        problems.append("serve.index_shards.host: min_replicas is larger than max_replicas")
    if of.host.target_ongoing_requests > of.host.max_ongoing_requests:
        problems.append("serve.index_shards.host: target_ongoing_requests is larger than max_ongoing_requests")
    return problems


def _addresses(settings: Settings) -> list[str]:
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
    return problems


def _secrets(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    problems = []
    cluster = settings.cluster
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
    if ranker.cascade.candidates and (ranker.backend != "compressed" or ranker.text_uri is None):
        return ["models.ranker.cascade needs the compressed back end and a text ranker in models.ranker.text_uri"]
    return []


def _pipelines(settings: Settings) -> list[str]:
    text = settings.pipelines.text
    if text.workers > text.lists_per_step:
        return [
            f"pipelines.text.workers = {text.workers} is more than pipelines.text.lists_per_step = "
            f"{text.lists_per_step}: each worker reads at least one list of a step"
        ]
    return []


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
