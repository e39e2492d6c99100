"""`build(args)`: the Serve application, stages wired to the ingress as the settings say.

Also the entry of `serve run serve.app:build` and of KubeRay's `import_path`. `args` is a JSON-like mapping of
`AppArgs`; `cluster` composes it from the settings tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve as ray_serve

import serve as our_package
from models.explain.generator import model_of
from models.settings import ModelSettings
from models.text_space import EncoderPlace
from serve.deployments.consumer import ConsumerDeployment
from serve.deployments.explainer import ExplainerDeployment
from serve.deployments.ingress import IngressDeployment
from serve.deployments.replica import ReplicaConfig
from serve.deployments.stages import STAGES, IndexShardDeployment
from serve.settings import DeploymentSettings, ServeSettings
from serve.wiring import Stages

APP_NAME = "raycommend"
HEALTH_PERIOD_S = 2.0
HEALTH_TIMEOUT_S = 5.0


class AppArgs(BaseModel):
    """What the application needs to know; no secrets (those come from the environment of each node)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    serve: ServeSettings = ServeSettings()
    models: ModelSettings = ModelSettings()
    artifacts_url: str
    artifact_cache: str
    records_folder: str
    events_folder: str = ""
    encoder_folder: str
    model_cache: str
    generator_folder: str
    store_cluster: bool = False


def build(args: Mapping[str, Any]) -> Any:
    """Return the bound application. Raises pydantic's ValidationError on arguments that do not fit."""
    given = AppArgs.model_validate(args)
    settings = given.serve
    config = ReplicaConfig(
        settings=settings,
        retrieval=given.models.retrieval,
        artifacts_url=given.artifacts_url,
        artifact_cache=given.artifact_cache,
        records_folder=given.records_folder,
        package_root=str(Path(our_package.__file__ or "").resolve().parent.parent),
        store_cluster=given.store_cluster,
        encoders=EncoderPlace(given.models.encoder.uri, Path(given.encoder_folder), Path(given.model_cache)),
        ranking=given.models.ranker,
        reason_model=model_of(Path(given.generator_folder), given.models.generator.grammar),
    )
    hosts = [
        deployment(IndexShardDeployment, settings.index_shards.host, name=f"IndexShard{number}").bind(config, number)
        for number in range(settings.index_shards.hosts)
    ]
    arguments: dict[str, tuple[Any, ...]] = {
        "features": (config,),
        "encoder": (config,),
        "retriever": (config, *hosts),
        "ranker": (config,),
    }
    handles = {
        name: deployment(STAGES[name], getattr(settings, name)).bind(*arguments[name])
        for name in STAGES
        if getattr(settings, name).placement == "deployment"
    }
    explainer = deployment(ExplainerDeployment, settings.explainer).bind(
        config, given.generator_folder, given.models.generator
    )
    consumer = _consumer(settings, config, given.events_folder) if settings.consumer.enabled else None
    stages = Stages(settings, explainer, consumer=consumer, **handles)
    ingress = deployment(IngressDeployment, settings.ingress, user_config=settings.pipeline.model_dump())
    return ingress.bind(config, stages)


def _consumer(settings: ServeSettings, config: ReplicaConfig, folder: str) -> Any:
    if not folder:
        raise ValueError("events_folder is missing: serve.consumer.enabled writes the event log there")
    return deployment(ConsumerDeployment, DeploymentSettings(num_cpus=settings.consumer.num_cpus)).bind(config, folder)


def deployment(
    cls: Any, of: DeploymentSettings, *, name: str | None = None, user_config: dict[str, Any] | None = None
) -> Any:
    """Return `cls` as a deployment with every default of Serve that could hurt overridden.

    Its name is that of the class where none is given. `user_config` holds what the class takes through `reconfigure`:
    it changes without a restart.
    """
    return ray_serve.deployment(
        cls,
        name=name or cls.__name__.removesuffix("Deployment"),
        max_ongoing_requests=of.max_ongoing_requests,
        max_queued_requests=of.max_queued_requests,
        autoscaling_config={
            "min_replicas": of.min_replicas,
            "max_replicas": of.max_replicas,
            "target_ongoing_requests": of.target_ongoing_requests,
            "upscale_delay_s": 5.0,
            "downscale_delay_s": 120.0,
        },
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=5.0,
        ray_actor_options={"num_cpus": of.num_cpus, "num_gpus": of.num_gpus},
        logging_config={"enable_access_log": False},
        user_config=user_config,
    )
