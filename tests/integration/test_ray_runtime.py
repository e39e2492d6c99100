"""Ray, Serve and HAProxy for real: started among hostile packages, stopped, killed, and never left behind."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from cluster import processes
from cluster.ledger import Ledger
from cluster.ports import listener
from cluster.ray_options import runtime_folder

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

HOSTILE = ("models", "serve", "tests", "pipelines")

DRIVER = """
    import json, os, signal, sys
    from pathlib import Path

    from cluster.ledger import Ledger
    from cluster.ray_options import RayOptions
    from cluster.ray_runtime import RayRuntime

    state, base = Path(sys.argv[1]), int(sys.argv[2])
    ledger = Ledger(state)

    def stop(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    options = RayOptions(
        state=state, cpus=2, object_store_bytes=80 * 1024**2, http_port=base, stats_port=base + 1,
        metrics_port=base + 2, fallback_port=base + 3, replica_ports=(base + 4, base + 24),
    )
    with ledger.lock():
        swept = ledger.end_all()
        ledger.record(os.getpid(), "driver", "driver")
        with RayRuntime(options, ledger=ledger) as runtime:
            runtime.start_http()
            from ray import serve as ray_serve

            @ray_serve.deployment(ray_actor_options={"num_cpus": 0})
            class Origin:
                def __init__(self):
                    from models.origin import check_origin, installation_root

                    check_origin()
                    self.root = str(installation_root())

                async def __call__(self, request):
                    return {"root": self.root, "folder": os.getcwd()}

            ray_serve.run(Origin.bind(), name="origin", route_prefix="/")
            ledger.record_found()
            print(json.dumps({"ready": True, "swept": [e.name for e in swept]}), flush=True)
            try:
                signal.pause()
            except KeyboardInterrupt:
                pass
    print(json.dumps({"left": [r.name for r in ledger.alive() if r.pid != os.getpid()]}), flush=True)
"""


class Driver:
    """One `up`, in a process of its own, started from a folder full of packages with our names."""

    def __init__(self, folder: Path, base: int) -> None:
        self.state = folder / "state"
        self.base = base
        home = folder / "home"
        for name in HOSTILE:
            (home / name).mkdir(parents=True, exist_ok=True)
            (home / name / "__init__.py").write_text(f"open({str(folder / f'imported-{name}')!r}, 'w')\n")
        script = folder / "bin" / "driver.py"
        script.parent.mkdir(exist_ok=True)
        script.write_text(textwrap.dedent(DRIVER))
        self.stderr = folder / "stderr"
        with self.stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(script), str(self.state), str(base)],
                cwd=home,
                env={**os.environ, "PYTHONPATH": str(Path(processes.__file__).parents[1])},
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )

    def say(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("{"), f"the driver said {line!r} and ended with\n{self.stderr.read_text()}"
        return json.loads(line)

    def get(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.base}/", timeout=10) as answer:
            return json.load(answer)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        Ledger(self.state).end_all(grace_s=2)
        shutil.rmtree(runtime_folder(self.state), ignore_errors=True)


@pytest.fixture(scope="module")
def base() -> int:
    """The first of 25 free ports below the range from which the kernel hands out its own."""
    for start in random.sample(range(20000, 29900, 25), 40):
        with ExitStack() as probes:
            try:
                for port in range(start, start + 25):
                    probes.enter_context(closing(socket.socket())).bind(("127.0.0.1", port))
            except OSError:
                continue
            return start
    pytest.fail("no 25 free ports in a row")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runtime")


@pytest.fixture(scope="module")
def first(folder: Path, base: int) -> Iterator[Driver]:
    driver = Driver(folder, base)
    yield driver
    driver.close()


@pytest.fixture(scope="module")
def second(first: Driver, folder: Path, base: int) -> Iterator[Driver]:
    """A driver after the first one was killed, in the same state folder."""
    first.process.kill()
    first.process.wait()
    # How long HAProxy outlives its driver varies; Ray's agents stay for good, so the sweep always has work to do.
    assert Ledger(first.state).alive() != []
    driver = Driver(folder, base)
    yield driver
    driver.close()


# One life, in order: a start, a killed driver, a start over what it left, an orderly end.


def test_a_start_among_hostile_packages_serves(folder: Path, first: Driver) -> None:
    assert first.say() == {"ready": True, "swept": []}
    assert first.get() == {
        "root": str(Path(processes.__file__).resolve().parents[1]),
        "folder": str(first.state.resolve()),
    }
    assert list(folder.glob("imported-*")) == []
    running = Ledger(first.state).alive()
    assert {record.kind for record in running} == {"driver", "ray", "haproxy"}
    unmarked = [r.name for r in running if r.kind != "driver" and processes.marker_of(r.pid) != str(first.state)]
    assert unmarked == []
    assert _mode(runtime_folder(first.state)) == 0o700
    assert _mode(first.state / "ray_token") == 0o600


def test_what_a_killed_driver_leaves_is_ended_by_the_next_start(first: Driver, request: pytest.FixtureRequest) -> None:
    running = Ledger(first.state).alive()
    assert "haproxy" in [record.kind for record in running]
    second: Driver = request.getfixturevalue("second")  # from here on the first is killed
    swept = second.say()["swept"]
    assert swept, "the second start found and ended what the first left"
    assert [record.name for record in running if processes.is_running(record.id)] == []
    assert second.get()["folder"] == str(second.state.resolve())


def test_an_orderly_end_leaves_nothing(folder: Path, second: Driver, base: int) -> None:
    ended = Ledger(second.state).end_all(grace_s=20)
    assert [(e.kind, e.killed) for e in ended if e.kind == "driver"] == [("driver", False)]
    assert second.say() == {"left": []}
    assert second.process.wait(20) == 0
    assert Ledger(second.state).alive() == []
    assert [port for port in range(base, base + 25) if listener(port)] == []
    assert list(folder.glob("imported-*")) == []


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777
