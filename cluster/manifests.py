"""Kubernetes manifests of `reembed`: a RayJob for a catalog that needs several nodes, a CronJob for a schedule.

Everything in them follows from the settings: workers, their CPUs and (where `gpus_per_worker` is set) GPUs, and the
command itself, so that what runs on the cluster is what `raycommend reembed` runs here. A RayJob (KubeRay) gets a Ray
of its own for as long as it takes; a CronJob runs one pod, which starts Ray inside itself. Both keep their state folder
on a volume claim, so that a run that was killed goes on where it was. Secrets come from a Kubernetes secret as
environment variables. Called by the `manifest` command, which prints what this returns.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from cluster.config import Settings
from cluster.errors import OperatorError

Kind = Literal["rayjob", "cronjob"]
KINDS: tuple[Kind, ...] = ("rayjob", "cronjob")
STATE = "/var/lib/raycommend"
"""Where the volume is mounted: the state folder of the job."""
_LABELS = {"app.kubernetes.io/name": "raycommend", "app.kubernetes.io/component": "reembed"}
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?")
_IMAGE = re.compile(r"[a-z0-9][\w.\-/:@]{0,254}", re.IGNORECASE)
_WORKER_MEMORY = 4 << 30
"""Of one encoder actor with its model, beside the objects of Ray."""
_BASE_MEMORY = 4 << 30
"""Of a pod: Ray itself and the driver, which holds the content hashes of the catalog."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the settings do not say."""

    image: str
    """Container image with this package installed."""
    env: str = "prod"
    overrides: Sequence[str] = ()
    """As given to `--set`; they go into the command."""
    name: str = "raycommend-reembed"
    claim: str = "raycommend-state"
    """PersistentVolumeClaim of the state folder."""
    secret: str = "raycommend"
    """Secret whose keys become environment variables (RAYCOMMEND_STORE_URL and the others)."""
    schedule: str = "0 3 * * *"
    """Of the CronJob."""
    nodes: int = 1
    """Worker pods of the RayJob; the encoder actors are spread over them."""


def manifest(kind: str, settings: Settings, wanted: Wanted) -> dict[str, Any]:
    """Return the manifest as plain data. Raises OperatorError for a kind, name, image or schedule that cannot be."""
    if kind not in KINDS:
        raise OperatorError(f"manifest {kind}: there is {' and '.join(KINDS)}")
    for what, value in (("name", wanted.name), ("claim", wanted.claim), ("secret", wanted.secret)):
        if _NAME.fullmatch(value) is None:
            raise OperatorError(f"--{what} {value}: not a name of Kubernetes (a-z, 0-9 and -, at most 52 characters)")
    if _IMAGE.fullmatch(wanted.image) is None:
        raise OperatorError(f"--image {wanted.image}: not a container image")
    if settings.cluster.store.mode != "external":
        raise OperatorError("a job on Kubernetes needs a store it can reach: set cluster.store.mode to external")
    return _ray_job(settings, wanted) if kind == "rayjob" else _cron_job(settings, wanted)


def _command(wanted: Wanted) -> list[str]:
    overrides = [*wanted.overrides, f"cluster.state={STATE}"]
    return ["raycommend", "reembed", "--env", wanted.env, *(a for o in overrides for a in ("--set", o)), "--json"]


def _ray_job(settings: Settings, wanted: Wanted) -> dict[str, Any]:
    of = settings.pipelines.embedding
    per_node = math.ceil(of.workers / wanted.nodes)
    gpus = math.ceil((of.gpus_per_worker or 0.0) * per_node)
    workers = _pod(
        settings,
        wanted,
        "ray-worker",
        # What Ray sets aside for an actor, and what its threads use, whichever is more; one more for the index.
        cpus=math.ceil(max(of.cpus_per_worker, of.threads) * per_node) + 1,
        gpus=gpus,
        memory=_BASE_MEMORY + per_node * _WORKER_MEMORY + settings.pipelines.index_memory_bytes,
    )
    # The command runs on the head: an index in one piece, and what is learned from events, are computed there.
    head = _pod(
        settings,
        wanted,
        "ray-head",
        cpus=2 + max(2, of.threads),
        gpus=0,
        memory=_BASE_MEMORY + settings.pipelines.index_memory_bytes,
    )
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": wanted.name, "labels": _LABELS},
        "spec": {
            # Ray tells the command where it is (RAY_ADDRESS), and the command joins it.
            "entrypoint": shlex.join(_command(wanted)),
            "submissionMode": "K8sJobMode",
            # A new attempt goes on with the blocks that were finished.
            "backoffLimit": 2,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 3600,
            "rayClusterSpec": {
                "rayVersion": version("ray"),
                # Ray puts nothing on the head, where the command computes: actors and tasks go to the workers.
                "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": head},
                "workerGroupSpecs": [
                    {
                        "groupName": "encoders",
                        "replicas": wanted.nodes,
                        "minReplicas": wanted.nodes,
                        "maxReplicas": wanted.nodes,
                        "rayStartParams": {},
                        "template": workers,
                    }
                ],
            },
        },
    }


def _cron_job(settings: Settings, wanted: Wanted) -> dict[str, Any]:
    if len(wanted.schedule.split()) != 5 and not wanted.schedule.startswith("@"):
        raise OperatorError(f"--schedule {wanted.schedule}: not five fields of cron")
    of = settings.pipelines.embedding
    pod = _pod(
        settings,
        wanted,
        "reembed",
        cpus=math.ceil(max(of.cpus_per_worker, of.threads) * of.workers) + 1,
        gpus=math.ceil((of.gpus_per_worker or 0.0) * of.workers),
        memory=_BASE_MEMORY + of.workers * _WORKER_MEMORY + settings.pipelines.index_memory_bytes,
        command=_command(wanted),
    )
    pod["spec"]["restartPolicy"] = "Never"
    job = {"backoffLimit": 2, "ttlSecondsAfterFinished": 86_400, "template": pod}
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": wanted.name, "labels": _LABELS},
        "spec": {
            "schedule": wanted.schedule,
            # Two at once would wait for each other's proposal.
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": 3600,
            "successfulJobsHistoryLimit": 2,
            "failedJobsHistoryLimit": 3,
            "jobTemplate": {"metadata": {"labels": _LABELS}, "spec": job},
        },
    }


def _pod(
    settings: Settings,
    wanted: Wanted,
    container: str,
    *,
    cpus: int,
    gpus: int,
    memory: int,
    command: list[str] | None = None,
) -> dict[str, Any]:
    shm = math.ceil(settings.cluster.ray.object_store_bytes * 1.1 / (1 << 20))
    # What is written to /dev/shm counts against the limit of the container.
    amounts: dict[str, Any] = {"cpu": str(cpus), "memory": f"{math.ceil(memory / (1 << 20)) + shm}Mi"}
    limits = {**amounts, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    one: dict[str, Any] = {
        "name": container,
        "image": wanted.image,
        "resources": {"requests": amounts, "limits": limits},
        "env": [{"name": "OMP_NUM_THREADS", "value": str(settings.pipelines.embedding.threads)}],
        "envFrom": [{"secretRef": {"name": wanted.secret}}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "state", "mountPath": STATE}, {"name": "shm", "mountPath": "/dev/shm"}],
    }
    if command is not None:
        one["command"] = command
    return {
        "metadata": {"labels": dict(_LABELS)},
        "spec": {
            "containers": [one],
            "volumes": [
                {"name": "state", "persistentVolumeClaim": {"claimName": wanted.claim}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm}Mi"}},
            ],
        },
    }
