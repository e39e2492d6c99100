"""The whole product on one node: embedded servers, Ray, Serve and the application, started and stopped in order.

`Stack.start` refuses what cannot work before anything runs; `Stack.stop` leaves nothing running. What was started is
in the ledger of the state folder, so that another process (`raycommend down`) can end it too.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from cluster.config import Settings
from cluster.console import bars
from cluster.errors import OperatorError
from cluster.ledger import Ledger
from cluster.preflight import Needs, preflight
from cluster.publish import publish
from cluster.ray_options import RayOptions, ports_of
from cluster.valkey import start_valkey
from cluster.workspace import Workspace
from models.hub import resolve
from models.releases import Release
from models.store.port import OnlineStore, StoreError
from serve.deployments.replica import STORE_URL

Say = Callable[[str], None]


class Stack:
    """Starts and stops everything of one state folder. Use as a context manager, or call `start` and `stop`."""

    def __init__(self, settings: Settings, *, say: Say = lambda _: None) -> None:
        """`say` is told of every step in a few words."""
        self._settings = settings
        self._workspace = Workspace(settings)
        self._say = say
        self._ledger = Ledger(settings.state)
        self._exit = ExitStack()
        self.url = api_url(settings)

    def __enter__(self) -> Stack:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything and return when the first request can be answered. Raises OperatorError."""
        self._exit.enter_context(self._ledger.lock())
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End everything this stack started; safe to call twice, and after a failed start."""
        self._exit.close()

    def _start(self) -> None:
        from cluster.ray_runtime import RayRuntime, prepare

        release = self._workspace.release_to_serve()
        if release is None:
            raise OperatorError("there is no release yet: run `raycommend import` and `raycommend build` first")
        self._fetch_encoder(release)
        options = ray_options(self._settings)
        swept = self._ledger.end_all()
        if swept:
            self._say(f"ended {len(swept)} processes of an earlier run")
        self._check_machine(options)
        prepare(options)
        self._ledger.record(os.getpid(), "raycommend", "driver")
        os.environ.update(self._workspace.secrets())
        self._write_effective_tree()
        self._start_store()
        self._materialise(release)
        self._say("publishing the release")
        # Nothing serves yet, so nobody prepares; the canary ran when the release was made.
        publish(self._settings, release, check=False)
        runtime = RayRuntime(options, ledger=self._ledger)
        # Pushed before the start, so that a start that fails halfway is undone too.
        self._exit.callback(runtime.shutdown)
        self._say("starting Ray and HAProxy")
        runtime.start()
        runtime.start_http()
        self._say("starting the deployments (the language model takes longest)")
        self._deploy()
        runtime.record()
        self._await_ready()
        runtime.record()

    def _fetch_encoder(self, release: Release) -> None:
        """Fetch the encoder of `release`, which `reembed --encoder` may have chosen. Raises HubError naming it."""
        uri, of_settings = self._workspace.encoder_of(release), self._settings.models.encoder.uri
        if uri != of_settings:
            self._say(f"{release.release_id} was built by the encoder {uri}; models.encoder.uri is {of_settings}")
            resolve(uri, cache=self._workspace.models)

    def _check_machine(self, options: RayOptions) -> None:
        wanted = dict(ports_of(options))
        if self._settings.cluster.store.mode == "embedded":
            store = self._settings.cluster.store
            wanted |= {"cluster.store.port": store.port, "cluster.store.cache_port": store.cache_port}
        findings = preflight(self._settings.state, Needs(gpu=self._settings.cluster.ray.gpus > 0), ports=wanted)
        for finding in findings:
            if finding.severity == "warning":
                self._say(str(finding))
        problems = [str(f) for f in findings if f.severity == "error"]
        if problems:
            raise OperatorError("this machine cannot run it:\n" + "\n".join(f"  - {p}" for p in problems))

    def _start_store(self) -> None:
        store = self._settings.cluster.store
        if store.mode == "external":
            return
        password = self._workspace.store_password()
        roles = (("store", store.port), ("cache", store.cache_port))
        for role, port in roles:
            self._say(f"starting the embedded {role}")
            server = start_valkey(self._settings.state / role, port=port, role=role, password=password)  # type: ignore[arg-type]
            self._exit.callback(server.stop)
            self._ledger.record(server.pid, f"valkey {role}", "valkey")

    def _materialise(self, release: Release) -> None:
        """Write the users' imported history into the store, once per data set and store."""
        from pipelines.materialise import materialise

        marker = history_marker(self._settings, os.environ[STORE_URL])
        wanted = str(self._workspace.artifacts().meta(release.artifacts["behaviour"])["inputs"]["events"])
        if marker.is_file() and marker.read_text() == wanted:
            return
        dataset = self._workspace.dataset(str(release.notes["dataset"]))

        async def run() -> int:
            store = _patient_store(self._settings)
            try:
                return await materialise(store, dataset.events, progress=progress)
            finally:
                await store.close()

        started = time.perf_counter()
        with bars() as progress:
            try:
                written = asyncio.run(run())
            except StoreError as error:
                raise OperatorError(f"the users' history could not be written to the store: {error}") from error
        marker.write_text(wanted)
        self._say(f"wrote {written} events of known users to the store in {time.perf_counter() - started:.1f} s")

    def _deploy(self) -> None:
        from ray import serve as ray_serve

        from serve.app import APP_NAME, build

        of = self._workspace
        app = build(
            {
                "serve": self._settings.serve.model_dump(),
                "models": self._settings.models.model_dump(),
                "artifacts_url": self._settings.artifacts_url,
                "artifact_cache": str(of.artifact_cache),
                "records_folder": str(of.records),
                "events_folder": str(of.events),
                "encoder_folder": str(of.encoder_folder()),
                "model_cache": str(of.models),
                "generator_folder": str(of.generator_folder()),
                "store_cluster": self._settings.cluster.store.cluster,
            }
        )
        try:
            ray_serve.run(app, name=APP_NAME, route_prefix=self._settings.serve.route_prefix, blocking=False)
        except RuntimeError as error:
            logs = log_folder(self._settings)
            why = "\n".join(_failures(APP_NAME)) or f"  - {error}"
            raise OperatorError(f"these deployments did not start:\n{why}\nMore is in {logs}") from error

    def _await_ready(self) -> None:
        deadline = time.monotonic() + self._settings.cluster.start_timeout_s
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=2.0).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise OperatorError(
            f"no answer from {self.url}/readyz within cluster.start_timeout_s; see the logs of Ray Serve"
        )

    def _write_effective_tree(self) -> None:
        tree = self._settings.model_dump(mode="json")
        file = self._settings.state / "settings.json"
        file.write_text(json.dumps(tree, indent=2))
        set_here = ", ".join(
            f"{name} = {value}" for name, value in differences(tree, Settings().model_dump(mode="json"))
        )
        self._say(f"settings that are not the default: {set_here or 'none'}; all of them are in {file}")


def differences(tree: Mapping[str, Any], default: Mapping[str, Any], *, under: str = "") -> list[tuple[str, Any]]:
    """Return (dotted name, value) of every setting in `tree` that differs from `default`. Secrets are not settings."""
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        usual = default.get(name)
        if isinstance(value, Mapping) and isinstance(usual, Mapping) and usual:
            found += differences(value, usual, under=f"{under}{name}.")
        elif value != usual:
            found.append((f"{under}{name}", value))
    return found


def ray_options(settings: Settings) -> RayOptions:
    """Return what the node gives to Ray, as the settings say."""
    of = settings.cluster
    return RayOptions(
        state=settings.state,
        cpus=of.ray.cpus,
        object_store_bytes=of.ray.object_store_bytes,
        http_host=settings.serve.host,
        http_port=settings.serve.http_port,
        stats_port=of.haproxy.stats_port,
        metrics_port=of.haproxy.metrics_port,
        fallback_port=of.haproxy.fallback_port,
        replica_ports=(of.haproxy.replica_port_min, of.haproxy.replica_port_max),
        ray_metrics_port=of.ray.metrics_port,
        dashboard_port=of.ray.dashboard_port,
        haproxy_threads=of.haproxy.threads,
        omp_threads=of.ray.omp_threads,
    )


def history_marker(settings: Settings, url: str) -> Path:
    """Return the file that says which history a store holds: gone with an embedded store, another for another one."""
    if settings.cluster.store.mode == "embedded":
        return settings.state / "store" / "materialised"
    place = urlsplit(url)  # without the credentials, which may change and say nothing about the data
    digest = hashlib.sha256(f"{place.hostname}:{place.port}{place.path}".encode()).hexdigest()
    return settings.state / f"materialised-{digest[:12]}"


def _failures(app: str) -> list[str]:
    """Return one line per deployment that is not healthy: its name and the last line of what went wrong."""
    from ray import serve as ray_serve

    found = []
    for name, deployment in ray_serve.status().applications[app].deployments.items():
        lines = [line.strip() for line in deployment.message.splitlines() if line.strip()]
        if deployment.status not in ("HEALTHY", "UPDATING") and lines:
            found.append(f"  - {name}: {lines[-1]}")
    return found


def _patient_store(settings: Settings) -> OnlineStore:
    """Open the store for work that is not a request: a busy machine may take its time."""
    from models.store.redis_store import RedisStore

    url, cluster = os.environ[STORE_URL], settings.cluster.store.cluster
    return RedisStore(url, cluster=cluster, write_timeout_s=10.0, connect_timeout_s=5.0)


def running(settings: Settings) -> bool:
    """Whether the API of this state folder answers."""
    try:
        return httpx.get(f"{api_url(settings)}/healthz", timeout=1.0).status_code == 200
    except httpx.HTTPError:
        return False


def online(settings: Settings) -> bool:
    """Whether a store is to be reached: an external one always, an embedded one while its deployment runs."""
    return settings.cluster.store.mode == "external" or running(settings)


def api_url(settings: Settings) -> str:
    """Return where this machine reaches the API, without a slash at the end."""
    of = settings.serve
    host = "127.0.0.1" if of.host in ("0.0.0.0", "localhost") else of.host
    return f"http://{host}:{of.http_port}{of.route_prefix.rstrip('/')}"


def log_folder(settings: Settings) -> Path:
    """Return where Ray keeps the logs of the replicas."""
    from cluster.ray_options import runtime_folder

    return runtime_folder(settings.state) / "r" / "session_latest" / "logs" / "serve"
