"""What one state folder gives to Ray, Serve and HAProxy: ports, sizes, paths, and the variables that carry them.

Pure: starts nothing and sets nothing. Called by the Ray runtime and the preflight.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster import processes
from cluster.errors import OperatorError

_SOCKET_PATH_BYTES = 97


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
    fallback_port: int = 8500
    """Port of the proxy that Serve starts beside HAProxy; same address as the API."""
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


def token_file(state: Path) -> Path:
    """Return where the token is that every call between processes of this Ray must show."""
    return state.resolve() / "ray_token"


def address_file(state: Path) -> Path:
    """Return where `up` writes the address of its Ray, for commands that use it too; gone when it stops."""
    return state.resolve() / "ray_address"


def runtime_folder(state: Path) -> Path:
    """Return where Ray and HAProxy keep sockets, sessions and logs of this state folder.

    It is beside the system's temporary files and short: HAProxy allows 97 bytes for the path of a socket, and 72 of
    them are taken by Ray's node id and the socket's name.

    Raises:
        OperatorError: The system's temporary folder has too long a path.
    """
    owner = f"{os.getuid()}:{state.resolve()}"
    folder = Path(tempfile.gettempdir()) / f"rc-{hashlib.sha256(owner.encode()).hexdigest()[:10]}"
    if len(str(folder)) > _SOCKET_PATH_BYTES - len("/h/" + "f" * 56 + "/metrics.sock"):
        raise OperatorError(f"{folder} is too long for the sockets of HAProxy: set TMPDIR to a shorter folder")
    return folder


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
        "RAY_AUTH_TOKEN_PATH": str(token_file(options.state)),
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
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(options.fallback_port),
        # The default sends a log line per request to the syslog port of this machine.
        "RAY_SERVE_HAPROXY_LOG_TARGET": str(haproxy / "log.sock"),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(low),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(high),
        # The default waits 30 s for a cloud balancer to forget a replica; only HAProxy has to, and it is told.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(options.drain_s),
    }


def ports_of(options: RayOptions) -> Mapping[str, int]:
    """Return the fixed ports a node needs, by the setting that moves them."""
    wanted = {
        "serve.http_port": options.http_port,
        "cluster.haproxy.stats_port": options.stats_port,
        "cluster.haproxy.metrics_port": options.metrics_port,
        "cluster.haproxy.fallback_port": options.fallback_port,
        "cluster.ray.metrics_port": options.ray_metrics_port,
        "cluster.ray.dashboard_port": options.dashboard_port,
    }
    return {name: port for name, port in wanted.items() if port}
