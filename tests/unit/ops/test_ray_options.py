"""What Ray is started with, and that it is set in time and in private."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import ray_runtime
from cluster.errors import OperatorError
from cluster.processes import MARKER
from cluster.ray_options import RayOptions, environment, ports_of, runtime_folder, token_file

ROOT = str(Path(ray_runtime.__file__).parents[1])
NODE_ID = "f" * 56


def test_two_state_folders_share_no_path_and_no_marker(tmp_path: Path) -> None:
    one, two = (environment(RayOptions(state=tmp_path / name, cpus=2)) for name in ("one", "two"))
    paths = {name for name, value in one.items() if value.startswith("/")}
    assert {"RAY_SERVE_HAPROXY_SOCKET_PATH", "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC", MARKER} <= paths
    assert [name for name in paths if one[name] == two[name]] == []


def test_the_sockets_of_haproxy_fit_its_limit_however_deep_the_state_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/tmp")
    deep = environment(RayOptions(state=tmp_path / ("d" * 200), cpus=2))
    for name in ("RAY_SERVE_HAPROXY_SOCKET_PATH", "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"):
        path = Path(deep[name])
        assert len(str(path.parent / NODE_ID / path.name)) <= 97


def test_a_temporary_folder_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/" + "t" * 40)
    with pytest.raises(OperatorError, match="set TMPDIR to a shorter folder"):
        runtime_folder(tmp_path)


def test_every_fixed_port_is_checked_under_the_setting_that_moves_it(tmp_path: Path) -> None:
    assert ports_of(RayOptions(state=tmp_path, cpus=2, http_port=1, stats_port=2, metrics_port=3, fallback_port=4)) == {
        "serve.http_port": 1,
        "cluster.haproxy.stats_port": 2,
        "cluster.haproxy.metrics_port": 3,
        "cluster.haproxy.fallback_port": 4,
    }
    assert ports_of(RayOptions(state=tmp_path, cpus=2, dashboard_port=5))["cluster.ray.dashboard_port"] == 5


def test_preparing_makes_a_private_token_that_stays_and_private_folders_that_are_emptied(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path;"
        "from cluster.ray_options import *; from cluster.ray_runtime import prepare;"
        f"o = RayOptions(state=Path({str(tmp_path / 'state')!r}), cpus=2); prepare(o);"
        "t = token_file(o.state).read_text(); assert len(t) == 64;"
        "assert token_file(o.state).stat().st_mode & 0o777 == 0o600;"
        "f = runtime_folder(o.state); assert f.stat().st_mode & 0o777 == 0o700;"
        "(f / 'r' / 'old').write_text('session'); prepare(o); assert not (f / 'r' / 'old').exists();"
        "assert token_file(o.state).read_text() == t;"
        "assert all(os.environ[k] == v for k, v in environment(o).items());"
        "assert 'ray' not in sys.modules"
    )
    try:
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    finally:
        shutil.rmtree(runtime_folder(tmp_path / "state"), ignore_errors=True)


def test_a_runtime_folder_that_is_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/tmp")
    monkeypatch.delitem(sys.modules, "ray", raising=False)  # another test may have imported it, which is refused first
    state = tmp_path / "state"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder = runtime_folder(state)
    folder.symlink_to(elsewhere)
    try:
        with pytest.raises(OperatorError, match="belongs to somebody else"):
            ray_runtime.prepare(RayOptions(state=state, cpus=2))
    finally:
        folder.unlink()
    assert not token_file(state).exists()


def test_preparing_after_ray_was_imported_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", sys)
    with pytest.raises(ray_runtime.RayTooEarly, match="import ray only after"):
        ray_runtime.prepare(RayOptions(state=tmp_path, cpus=2))
