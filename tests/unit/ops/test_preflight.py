"""Every check of the machine, with readings of machines we do not have."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import preflight as subject
from cluster.preflight import GB, Needs, Readings, check, preflight

GOOD = Readings(
    system="Linux",
    machine="x86_64",
    implementation="CPython",
    python=(3, 11),
    disk_free_bytes=100 * GB,
    disk_path="/srv",
    memory_total_bytes=24 * GB,
    memory_available_bytes=20 * GB,
    shm_bytes=8 * GB,
    cpus=8,
    cpu_flags=frozenset({"avx2", "avx512f", "avx512_bf16", "amx_bf16"}),
    torch_version="2.13.0+cpu",
)


def messages(severity: str, needs: Needs | None = None, **changes: Any) -> list[str]:
    return [str(f) for f in check(replace(GOOD, **changes), needs or Needs()) if f.severity == severity]


def test_a_good_machine_has_no_errors_and_no_warnings() -> None:
    assert messages("error") == messages("warning") == []
    assert messages("info") == [
        "info: torch: 2.13.0+cpu, CPU build",
        "info: cpu: 8 cores, AVX2, AVX-512, AVX-512 bf16, AMX",
    ]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"system": "Darwin", "machine": "arm64"}, "Darwin on arm64"),
        ({"machine": "aarch64"}, "Linux on x86-64 only"),
        ({"python": (3, 12)}, "CPython 3.12; use CPython 3.11"),
        ({"implementation": "PyPy"}, "PyPy 3.11; use CPython 3.11"),
        ({"disk_free_bytes": GB}, "1.0 GB free at /srv, 2.0 GB needed"),
        ({"memory_total_bytes": 8 * GB}, "8.0 GB in all, 12.0 GB needed"),
        ({"torch_version": "2.12.1"}, "2.12.1 is installed, the lock is for 2.13.0: install the lock again (`rm"),
        ({"cpu_flags": frozenset({"sse4_2"})}, "no AVX2"),
        ({"ports_taken": {"cluster.http.port": "8000 is taken by nginx (pid 7)"}}, "8000 is taken by nginx (pid 7)"),
    ],
)
def test_each_missing_thing_is_one_error_that_names_it(changes: dict[str, Any], named: str) -> None:
    errors = messages("error", **changes)
    assert len(errors) == 1
    assert named in errors[0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"memory_available_bytes": 3 * GB}, "only 3.0 GB of 24.0 GB is free"),
        ({"shm_bytes": 64 * 1024**2}, "--shm-size"),
        ({"cpus": 1}, "one core"),
    ],
)
def test_what_is_merely_tight_is_a_warning(changes: dict[str, Any], named: str) -> None:
    assert messages("error", **changes) == []
    assert named in messages("warning", **changes)[0]


def test_a_fresh_machine_needs_more_disk_than_one_that_is_set_up() -> None:
    assert messages("error", disk_free_bytes=10 * GB) == []
    assert "15.0 GB needed" in messages("error", disk_free_bytes=10 * GB, torch_version=None)[0]


def test_downloads_are_announced_and_count_towards_the_disk() -> None:
    needs = Needs(downloads={"encoder": GB, "generator": 2 * GB})
    assert "info: download: about 3.0 GB: encoder 1.0 GB, generator 2.0 GB" in messages("info", needs)
    assert "5.0 GB needed" in messages("error", needs, disk_free_bytes=4 * GB)[0]


def test_a_gpu_that_is_asked_for_must_be_there() -> None:
    needs = Needs(gpu=True)
    assert "asks for a GPU" in messages("error", needs)[0]
    assert "sees no GPU" in messages("error", needs, torch_version="2.13.0", torch_cuda="13.0")[0]
    there: dict[str, Any] = {"torch_version": "2.13.0", "torch_cuda": "13.0", "gpus": ("L4",)}
    assert messages("error", needs, **there) == []
    assert "info: torch: 2.13.0, CUDA 13.0 build, GPUs: L4" in messages("info", needs, **there)


def test_all_problems_are_reported_at_once_errors_first() -> None:
    found = check(replace(GOOD, python=(3, 13), disk_free_bytes=0, memory_total_bytes=GB, shm_bytes=0, cpus=1), Needs())
    severities = [finding.severity for finding in found]
    assert severities == ["error"] * 3 + ["warning"] * 2 + ["info"] * 2


def test_this_machine_is_read_without_importing_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cluster.preflight import *;"
        f"r = read_machine(Path({str(tmp_path / 'not' / 'yet')!r}), ports={{}});"
        "assert r.system == 'Linux' and r.disk_path and r.memory_total_bytes >= r.memory_available_bytes > 0;"
        "assert r.cpus > 0 and r.cpu_flags and r.torch_version;"
        "assert not {'torch', 'psutil', 'ray'} & sys.modules.keys()"
    )
    root = str(Path(subject.__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_a_taken_port_is_among_the_findings(tmp_path: Path) -> None:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        found = preflight(tmp_path, Needs(), ports={"cluster.http.port": port})
    errors = [str(f) for f in found if f.subject.startswith("port")]
    assert len(errors) == 1
    assert f"{port} is taken by" in errors[0]
    assert "--set cluster.http.port=<port>" in errors[0]
