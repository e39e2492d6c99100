"""Starts and stops one Ray with Serve behind HAProxy for one state folder, and leaves nothing behind.

Knows nothing of recommendations: it hands over a running Serve, on which `up` deploys. Ray reads its flags when it is
imported and its children inherit them, so `prepare` comes before the first import of ray in the process.
"""

import hashlib
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster import processes
from cluster.errors import OperatorError
from cluster.ledger import Ended, Ledger
from cluster.ports import require_free


@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """What one node of Raycommend gives to Ray."""

    state: Path
    """The state folder; the marker of every process, and the working directory of every worker."""
    cpus: int
    """Logical CPUs that replicas may reserve; not a limit on what they use."""
    object_store_bytes: int = 512 * 1024**2
    """Shared memory for large objects."""
    http_host: str = "127.0.0.1"
    """Address HAProxy and the replicas listen on; 0.0.0.0 where other nodes or machines must reach them."""
    http_port: int = 8000
    """Port of the API."""
    stats_port: int = 8404
    """Port of HAProxy's own statistics page; open to whoever reaches it."""
    metrics_port: int = 9101
    """Port of HAProxy's Prometheus metrics; open to whoever reaches it."""
    replica_ports: tuple[int, int] = (30000, 31000)
    """Ports from which each ingress replica takes one for HAProxy to reach it."""
    ray_metrics_port: int | None = None
    """Port of Ray's Prometheus metrics; None lets Ray choose."""
    dashboard_port: int | None = None
    """Port of Ray's dashboard on the loopback; None starts no dashboard."""
    haproxy_threads: int = 1
    """Threads of HAProxy; one per two cores is plenty."""
    omp_threads: int = 1
    """Threads that numeric libraries use in one process, unless a deployment says otherwise."""
    request_timeout_s: float | None = None
    """When Serve gives up on a request (408); None leaves it to our own deadlines."""
    keep_alive_s: int = 75
    """How long an idle client connection stays open."""
    drain_s: float = 1.0
    """How long an ingress replica goes on answering after it was told to stop, for HAProxy to notice."""


class RayTooEarly(RuntimeError):
    """Ray was imported before its flags were set; a mistake in the calling code."""


def runtime_folder(state: Path) -> Path:
    """Return where Ray and HAProxy keep sockets, sessions and logs of this state folder.

    It is beside the system's temporary files and short: HAProxy allows 97 bytes for the path of a socket, and 72 of
    them are taken by Ray's node id and the socket's name.
    """
    owner = f"{os.getuid()}:{state.resolve()}"
    return Path(tempfile.gettempdir()) / f"rc-{hashlib.sha256(owner.encode()).hexdigest()[:10]}"


def environment(options: RayOptions) -> dict[str, str]:
    """Return the variables that Ray, Serve and HAProxy of this state folder are started with."""
    runtime = runtime_folder(options.state)
    haproxy = runtime / "h"
    low, high = options.replica_ports
    return {
        processes.MARKER: str(options.state.resolve()),
        # A process that changes its title would otherwise write over its environment, and with it over our marker.
        "SPT_NOENV": "1",
        "OMP_NUM_THREADS": str(options.omp_threads),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(options.state.resolve() / "ray_token"),
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(options.haproxy_threads),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(options.stats_port),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(options.metrics_port),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
        # The default sends a log line per request to the syslog port of this machine.
        "RAY_SERVE_HAPROXY_LOG_TARGET": str(haproxy / "log.sock"),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(low),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(high),
        # The default waits 30 s for a cloud balancer to forget a replica; only HAProxy has to, and it is told.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(options.drain_s),
    }


class RayRuntime:
    """Ray and Serve of one state folder, from `start` to `shutdown`; also usable in a `with` block.

    Args:
        options: What the node gives to Ray.
        ledger: The ledger of the same state folder, whose lock the caller holds.
    """

    def __init__(self, options: RayOptions, *, ledger: Ledger) -> None:
        self._options = options
        self._ledger = ledger
        self._from: str | None = None

    def start(self) -> None:
        """Start Ray, from a clean slate: processes of an earlier start that are still there are ended first.

        Raises:
            PortsTaken: Somebody else holds a port this node needs.
            RayTooEarly: ray was imported before.
        """
        prepare(self._options)
        require_free(ports_of(self._options))
        import ray

        self._from = os.getcwd()
        # Ray puts the driver's folder on every worker's path: a stranger's `models` package there would hide ours.
        os.chdir(self._options.state)
        ray.init(
            address="local",
            num_cpus=self._options.cpus,
            object_store_memory=self._options.object_store_bytes,
            include_dashboard=self._options.dashboard_port is not None,
            dashboard_port=self._options.dashboard_port,
            log_to_driver=False,
            configure_logging=False,
            namespace="raycommend",
            _temp_dir=str(runtime_folder(self._options.state) / "r"),
            _metrics_export_port=self._options.ray_metrics_port,
        )
        self.record()

    def start_http(self) -> None:
        """Start Serve and HAProxy on the configured address."""
        from ray import serve as ray_serve

        ray_serve.start(
            proxy_location="HeadOnly",
            http_options={
                "host": self._options.http_host,
                "port": self._options.http_port,
                "request_timeout_s": self._options.request_timeout_s,
                "keep_alive_timeout_s": self._options.keep_alive_s,
            },
        )
        self.record()

    def record(self) -> None:
        """Write what runs now into the ledger; again after each deployment, so that `down` knows it by name."""
        for found in self._ledger.alive():
            self._ledger.record(found.pid, found.name, found.kind)

    def shutdown(self, *, grace_s: float = 10.0) -> list[Ended]:
        """Stop Serve, then Ray, then whatever of this folder is still there; safe to call twice.

        Returns:
            What had to be swept after Ray said it was done.
        """
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            from ray import serve as ray_serve

            ray_serve.shutdown()
            ray.shutdown()
        swept = self._ledger.end_all(grace_s=grace_s)
        if self._from is not None:
            os.chdir(self._from)
            self._from = None
        return swept

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()


def ports_of(options: RayOptions) -> Mapping[str, int]:
    """Return the fixed ports a node needs, by the setting that moves them."""
    wanted = {
        "cluster.http.port": options.http_port,
        "cluster.haproxy.stats_port": options.stats_port,
        "cluster.haproxy.metrics_port": options.metrics_port,
        "cluster.ray.metrics_port": options.ray_metrics_port,
        "cluster.ray.dashboard_port": options.dashboard_port,
    }
    return {name: port for name, port in wanted.items() if port}


def prepare(options: RayOptions) -> None:
    """Set the environment for Ray and make its folders and its token; call before the first import of ray.

    Raises:
        RayTooEarly: ray was imported already, so the flags would be read too late.
    """
    wanted = environment(options)
    if "ray" in sys.modules and any(os.environ.get(name) != value for name, value in wanted.items()):
        raise RayTooEarly("import ray only after `prepare`: it reads its flags when it is imported")
    state = options.state.resolve()
    state.mkdir(parents=True, exist_ok=True)
    _private_folder(runtime_folder(state))
    token = state / "ray_token"
    if not token.exists():
        with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    os.environ.update(wanted)


def _private_folder(folder: Path) -> None:
    """Make an empty folder that is ours alone; it lies where other users may write too, so nothing there is trusted."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            message = f"{folder} belongs to somebody else: remove it, or set TMPDIR to a folder of yours"
            raise OperatorError(message) from None
        folder.chmod(0o700)
        for old in folder.iterdir():
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            else:
                old.unlink()
    # Ray opens its own folder to every user, so it gets one inside.
    (folder / "r").mkdir()
    (folder / "h").mkdir()
