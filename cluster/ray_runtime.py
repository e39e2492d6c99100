"""Starts and stops one Ray with Serve behind HAProxy for one state folder, and leaves nothing behind.

Knows nothing of recommendations: it hands over a running Serve, on which `up` deploys. Ray reads its flags when it is
imported and its children inherit them, so `prepare` comes before the first import of ray in the process.
"""

import contextlib
import io
import logging
import os
import secrets
import shutil
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.errors import OperatorError
from cluster.ledger import Ended, Ledger
from cluster.ports import require_free
from cluster.ray_options import RayOptions, address_file, environment, ports_of, runtime_folder, token_file
from models.origin import ForeignPackage, check_origin


class RayTooEarly(RuntimeError):
    """Ray was imported before its flags were set; a mistake in the calling code."""


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

    def start(self, *, http: bool = True) -> None:
        """Start Ray; the caller has ended what an earlier start left (`Ledger.end_all`).

        The current directory becomes the state folder until `shutdown`. Without `http` the ports may be in use: nothing
        is going to listen on them.

        Raises:
            OperatorError: A package of ours is hidden by a stranger's, or a folder is not ours.
            PortsTaken: Somebody holds a port this node needs.
            RayTooEarly: ray was imported before.
        """
        verify_packages()
        if http:
            require_free(ports_of(self._options))
        prepare(self._options)
        import ray

        self._from = os.getcwd()
        # Ray puts the driver's folder on every worker's path: a stranger's `models` package there would hide ours.
        os.chdir(self._options.state)
        with _own_signals():
            ray.init(
                address="local",
                num_cpus=self._options.cpus,
                object_store_memory=self._options.object_store_bytes,
                include_dashboard=self._options.dashboard_port is not None,
                dashboard_port=self._options.dashboard_port,
                log_to_driver=False,
                logging_level=logging.WARNING,
                namespace="raycommend",
                _temp_dir=str(runtime_folder(self._options.state) / "r"),
                _metrics_export_port=self._options.ray_metrics_port,
            )
        address_file(self._options.state).write_text(ray.get_runtime_context().gcs_address)
        self.record()

    def start_http(self) -> None:
        """Start Serve and HAProxy on the configured address; deploy with `ray_serve.run` afterwards."""
        from ray import serve as ray_serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
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
        """Write what runs now into the ledger; again after each deployment, because replicas start engines."""
        self._ledger.record_found()

    def shutdown(self, *, grace_s: float = 10.0) -> list[Ended]:
        """Stop Serve, then Ray, then whatever of them is still there; the store is left to whoever started it.

        Safe to call twice, and after a start that failed.

        Returns:
            What had to be swept after Ray said it was done.
        """
        address_file(self._options.state).unlink(missing_ok=True)
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            address_file(self._options.state).unlink(missing_ok=True)
            from ray import serve as ray_serve

            with _quiet():
                ray_serve.shutdown()
                ray.shutdown()
        swept = self._ledger.end_all(grace_s=grace_s, kinds=("ray", "engine", "haproxy", "other"))
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
    token = token_file(state)
    if not token.exists():
        with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    os.environ.update(wanted)


def verify_packages() -> None:
    """Check that this process runs our packages and nobody else's of the same names.

    Raises:
        OperatorError: Another package comes first; its path is named.
    """
    try:
        check_origin()
    except ForeignPackage as error:
        raise OperatorError(str(error)) from error


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the caller's signal handlers: `ray.init` replaces the one for SIGTERM by its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what Ray prints; it is shown only where the block fails.

    Serve ends its controller by killing it, and Ray reports that as a failed task on standard output each time.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            yield
    except BaseException:
        sys.stderr.write(said.getvalue())
        raise


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
