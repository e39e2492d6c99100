"""Manifests of `reembed`: what they run is a command that exists, what they ask for follows from the settings."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from cluster.cli import app
from cluster.config import load_settings
from cluster.errors import OperatorError
from cluster.manifests import KINDS, STATE, Wanted, manifest

IMAGE = "registry.example.org/raycommend:1.2"


def printed(kind: str, *arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["manifest", kind, "--image", IMAGE, *arguments])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = yaml.safe_load(result.stdout)
    return found


def pods(found: dict[str, Any]) -> list[dict[str, Any]]:
    spec = found["spec"]
    if found["kind"] == "CronJob":
        return [spec["jobTemplate"]["spec"]["template"]]
    cluster = spec["rayClusterSpec"]
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


def command(found: dict[str, Any]) -> list[str]:
    if found["kind"] == "CronJob":
        return list(pods(found)[0]["spec"]["containers"][0]["command"])
    return shlex.split(found["spec"]["entrypoint"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_job_runs_is_a_command_of_ours_with_settings_that_hold(kind: str) -> None:
    program, name, *arguments = command(printed(kind, "--set", "pipelines.embedding.workers=6"))
    assert program == "raycommend"
    parsed = typer.main.get_command(app).commands[name].make_context(name, arguments).params  # type: ignore[attr-defined]
    assert parsed["env"] == "prod" and parsed["json"] is True
    settings = load_settings(parsed["env"], parsed["set_"], environ=None)
    assert settings.pipelines.embedding.workers == 6 and settings.cluster.state == STATE


@pytest.mark.parametrize("kind", KINDS)
def test_every_pod_has_limits_secrets_by_reference_and_the_volume_of_the_state(kind: str) -> None:
    for pod in pods(printed(kind, "--claim", "disk", "--secret", "keys")):
        (one,) = pod["spec"]["containers"]
        assert one["image"] == IMAGE and one["envFrom"] == [{"secretRef": {"name": "keys"}}]
        assert set(one["resources"]["requests"]) == {"cpu", "memory"} <= set(one["resources"]["limits"])
        mounts = {m["name"]: m["mountPath"] for m in one["volumeMounts"]}
        volumes = {v["name"]: v for v in pod["spec"]["volumes"]}
        assert mounts["state"] == STATE and mounts.keys() == volumes.keys()
        assert volumes["state"]["persistentVolumeClaim"]["claimName"] == "disk"
        assert one["securityContext"]["allowPrivilegeEscalation"] is False


def test_a_ray_job_has_the_workers_that_the_settings_want_spread_over_its_nodes() -> None:
    wide = ["--set", "pipelines.embedding.workers=8", "--set", "pipelines.embedding.gpus_per_worker=0.5"]
    found = printed("rayjob", "--nodes", "4", *wide)
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", "RayJob")
    spec = found["spec"]["rayClusterSpec"]
    (group,) = spec["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 4
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1" and int(limits["cpu"]) >= 3
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    import ray

    assert spec["rayVersion"] == ray.__version__


def test_a_cron_job_runs_on_its_schedule_and_never_twice_at_once() -> None:
    found = printed("cronjob", "--schedule", "*/30 * * * *", "--name", "nightly")
    assert (found["apiVersion"], found["kind"], found["metadata"]["name"]) == ("batch/v1", "CronJob", "nightly")
    assert found["spec"]["schedule"] == "*/30 * * * *" and found["spec"]["concurrencyPolicy"] == "Forbid"
    assert pods(found)[0]["spec"]["restartPolicy"] == "Never"


def test_memory_follows_the_bound_on_building_the_index() -> None:
    def memory(gib: int) -> int:
        found = printed("cronjob", "--set", f"pipelines.index_memory_bytes={gib << 30}")
        return int(pods(found)[0]["spec"]["containers"][0]["resources"]["limits"]["memory"].removesuffix("Mi"))

    assert memory(12) - memory(4) == 8 * 1024


def test_every_pod_has_room_for_the_index_and_for_shared_memory_which_counts_against_its_limit() -> None:
    def mebibytes(amount: str) -> int:
        return int(amount.removesuffix("Mi"))

    index, objects = 6 << 10, 3 << 10
    sizes = (f"pipelines.index_memory_bytes={index << 20}", f"cluster.ray.object_store_bytes={objects << 20}")
    for kind in KINDS:
        for pod in pods(printed(kind, *(a for size in sizes for a in ("--set", size)))):
            limits = pod["spec"]["containers"][0]["resources"]["limits"]
            (shm,) = [v["emptyDir"]["sizeLimit"] for v in pod["spec"]["volumes"] if v["name"] == "shm"]
            assert mebibytes(shm) >= objects
            # Ray itself and the process that runs the command take more than a gibibyte.
            assert mebibytes(limits["memory"]) >= index + mebibytes(shm) + 1024


def test_the_head_of_a_ray_job_which_runs_the_command_has_cpus_to_compute_with() -> None:
    head, *_ = pods(printed("rayjob", "--set", "pipelines.embedding.threads=6"))
    assert int(head["spec"]["containers"][0]["resources"]["limits"]["cpu"]) > 6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["deployment"], "rayjob and cronjob"),
        (["rayjob", "--name", "Not_A_Name"], "not a name of Kubernetes"),
        (["rayjob", "--name", "a" * 60], "not a name of Kubernetes"),
        (["cronjob", "--schedule", "every day"], "not five fields"),
        (["rayjob", "--env", "local"], r"set cluster\.store\.mode to external"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["manifest", *arguments, "--image", IMAGE])
    assert result.exit_code == 1
    settings = load_settings("prod", environ=None)
    if arguments[-1] != "local":
        given = {k.removeprefix("--"): v for k, v in zip(arguments[1::2], arguments[2::2], strict=True)}
        with pytest.raises(OperatorError, match=said):
            manifest(arguments[0], settings, Wanted(image=IMAGE, **given))  # type: ignore[arg-type]


@pytest.mark.parametrize("image", ["", "two words", "a;b", "-x"])
def test_an_image_that_is_none_is_refused(image: str) -> None:
    with pytest.raises(OperatorError, match="not a container image"):
        manifest("rayjob", load_settings("prod", environ=None), Wanted(image=image))


@pytest.mark.parametrize("kind", KINDS)
def test_kubernetes_own_schemas_accept_them(kind: str) -> None:
    """Of core Kubernetes: the CronJob whole, and each pod of the RayJob, whose own schema is KubeRay's."""
    from kubernetes_validate import validate

    found = printed(kind, "--set", "pipelines.embedding.gpus_per_worker=1")
    whole = [found] if kind == "cronjob" else []
    for pod in pods(found):
        whole.append(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", **pod["metadata"]}, "spec": pod["spec"]}
        )
    for one in whole:
        validate(one, "1.37", strict=True)


def test_as_json_it_is_the_same_manifest() -> None:
    result = CliRunner().invoke(app, ["manifest", "cronjob", "--image", IMAGE, "--json"])
    assert json.loads(result.stdout.splitlines()[-1]) == {"ok": True, "manifest": printed("cronjob")}
