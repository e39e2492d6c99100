"""What this machine must offer, checked before anything is installed or started, every problem at once.

Only the standard library is imported here, so that it also runs before the first `pip install`; the checks are pure
functions of `Readings`. Knows nothing of settings. Called by `make` (as `python -m cluster.preflight`) and by `up`.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

GB = 10**9
Severity = Literal["error", "warning", "info"]
_CPU_FEATURES = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 bf16", "amx_bf16": "AMX"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing the preflight found; an error stops the start, and its message names the fix."""

    severity: Severity
    subject: str
    message: str

    def __str__(self) -> str:
        """Return the finding as one line."""
        return f"{self.severity}: {self.subject}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """What was read from the machine; tests make their own."""

    system: str
    machine: str
    implementation: str
    python: tuple[int, int]
    disk_free_bytes: int
    disk_path: str
    memory_total_bytes: int
    memory_available_bytes: int
    shm_bytes: int
    cpus: int
    cpu_flags: frozenset[str]
    torch_version: str | None = None
    torch_cuda: str | None = None
    gpus: tuple[str, ...] = ()
    ports_taken: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a start needs, in bytes."""

    disk_fresh_bytes: int = 15 * GB
    """Free disk when nothing is installed yet."""
    disk_installed_bytes: int = 2 * GB
    """Free disk when everything is there."""
    memory_bytes: int = 12 * GB
    memory_free_bytes: int = 5 * GB
    shm_bytes: int = 512 * 1024**2
    """Ray's object store lives in /dev/shm."""
    torch: str = "2.13.0"
    gpu: bool = False
    """Whether the configuration asks for a GPU."""
    downloads: Mapping[str, int] = field(default_factory=dict)
    """What is still to be fetched, by name, in bytes."""


def preflight(folder: Path, needs: Needs, *, ports: Mapping[str, int] | None = None) -> list[Finding]:
    """Read this machine and check it.

    Args:
        folder: Where state, models and data will be; it need not exist yet.
        needs: What the start needs.
        ports: Ports that must be free, by the setting that moves them; needs psutil when given.
    """
    return check(read_machine(folder, ports=ports or {}), needs)


def check(readings: Readings, needs: Needs) -> list[Finding]:
    """Return every finding, errors first."""
    found = [
        *check_platform(readings),
        *check_disk(readings, needs),
        *check_memory(readings, needs),
        *check_torch(readings, needs),
        *check_ports(readings),
        *check_cpu(readings),
        *check_downloads(needs),
    ]
    order: dict[Severity, int] = {"error": 0, "warning": 1, "info": 2}
    return sorted(found, key=lambda finding: order[finding.severity])


def check_platform(readings: Readings) -> list[Finding]:
    """Linux on x86-64 with CPython 3.11 is what the locks are for."""
    found = []
    if (readings.system, readings.machine) != ("Linux", "x86_64"):
        message = f"{readings.system} on {readings.machine}; the locked packages exist for Linux on x86-64 only"
        found.append(Finding("error", "platform", message))
    if (readings.implementation, readings.python) != ("CPython", (3, 11)):
        version = ".".join(map(str, readings.python))
        message = f"{readings.implementation} {version}; use CPython 3.11 (`make PYTHON=/path/to/python3.11`)"
        found.append(Finding("error", "python", message))
    return found


def check_disk(readings: Readings, needs: Needs) -> list[Finding]:
    """A fresh installation needs room for wheels, models and data; a later start for logs and artifacts."""
    fresh = readings.torch_version is None
    wanted = (needs.disk_fresh_bytes if fresh else needs.disk_installed_bytes) + sum(needs.downloads.values())
    if readings.disk_free_bytes >= wanted:
        return []
    message = f"{_gb(readings.disk_free_bytes)} free at {readings.disk_path}, {_gb(wanted)} needed: make room there"
    return [
        Finding("error", "disk", message + ("" if fresh else ", or choose another folder with `--set cluster.state=…`"))
    ]


def check_memory(readings: Readings, needs: Needs) -> list[Finding]:
    """Models, the LLM engine and Ray together need this much; /dev/shm holds Ray's object store."""
    found = []
    total, free = readings.memory_total_bytes, readings.memory_available_bytes
    if total < needs.memory_bytes:
        wanted = _gb(needs.memory_bytes)
        message = f"{_gb(total)} in all, {wanted} needed: use a larger machine or raise the container's limit"
        found.append(Finding("error", "memory", message))
    elif free < needs.memory_free_bytes:
        wanted = _gb(needs.memory_free_bytes)
        message = f"only {_gb(free)} of {_gb(total)} is free and about {wanted} will be used: stop other programs"
        found.append(Finding("warning", "memory", message))
    if readings.shm_bytes < needs.shm_bytes:
        message = (
            f"/dev/shm has {_gb(readings.shm_bytes)}, Ray wants {_gb(needs.shm_bytes)}: in a container set --shm-size"
        )
        found.append(Finding("warning", "shared memory", message))
    return found


def check_torch(readings: Readings, needs: Needs) -> list[Finding]:
    """Which torch build is here, and whether it fits the packages and the GPU."""
    version, cuda = readings.torch_version, readings.torch_cuda
    if version is None:
        return [Finding("info", "torch", "not installed yet; TORCH_INDEX_URL says which index it comes from")]
    found = []
    if version.partition("+")[0] != needs.torch:
        fix = "install the lock again (`rm .venv/.installed`, then `make test`)"
        message = f"{version} is installed, the lock is for {needs.torch}: {fix}"
        found.append(Finding("error", "torch", message))
    if needs.gpu and cuda is None:
        message = (
            "the CPU build is installed but the configuration asks for a GPU: install cluster/requirements/gpu.txt"
        )
        found.append(Finding("error", "torch", message))
    elif needs.gpu and not readings.gpus:
        message = f"torch was built for CUDA {cuda} but sees no GPU: check the driver and CUDA_VISIBLE_DEVICES"
        found.append(Finding("error", "gpu", message))
    build = f"CUDA {cuda}" if cuda else "CPU"
    gpus = f", GPUs: {', '.join(readings.gpus)}" if readings.gpus else ""
    return [*found, Finding("info", "torch", f"{version}, {build} build{gpus}")]


def check_cpu(readings: Readings) -> list[Finding]:
    """The CPU's vector units decide how fast models run, and vLLM for the CPU needs AVX2."""
    if "avx2" not in readings.cpu_flags and readings.machine == "x86_64":
        return [Finding("error", "cpu", "no AVX2: vLLM for the CPU does not run here; use a newer machine or a GPU")]
    names = [name for flag, name in _CPU_FEATURES.items() if flag in readings.cpu_flags]
    lacking = "" if "avx512_bf16" in readings.cpu_flags else "; no bf16 units, so the LLM writes more slowly"
    found = [Finding("info", "cpu", f"{readings.cpus} cores, {', '.join(names) or 'no vector units known'}{lacking}")]
    if readings.cpus < 2:
        found.append(
            Finding("warning", "cpu", "one core: expect answers to be late; two are the least that was measured")
        )
    return found


def check_ports(readings: Readings) -> list[Finding]:
    """Each port that is taken, by whom."""
    return [Finding("error", f"port ({purpose})", who) for purpose, who in readings.ports_taken.items()]


def check_downloads(needs: Needs) -> list[Finding]:
    """How much is going to be fetched."""
    if not needs.downloads:
        return []
    parts = ", ".join(f"{name} {_gb(size)}" for name, size in needs.downloads.items())
    return [Finding("info", "download", f"about {_gb(sum(needs.downloads.values()))}: {parts}")]


def read_machine(folder: Path, *, ports: Mapping[str, int]) -> Readings:
    """Read what the checks need; imports torch only where its build is for CUDA."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    memory = _memory()
    shm = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
    version, cuda = _torch()
    return Readings(
        system=platform.system(),
        machine=platform.machine(),
        implementation=platform.python_implementation(),
        python=sys.version_info[:2],
        disk_free_bytes=shutil.disk_usage(place).free,
        disk_path=str(place),
        memory_total_bytes=memory[0],
        memory_available_bytes=memory[1],
        shm_bytes=shm.f_bavail * shm.f_frsize if shm else 0,
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        cpu_flags=_cpu_flags(),
        torch_version=version,
        torch_cuda=cuda,
        gpus=_gpus() if cuda else (),
        ports_taken=_ports_taken(ports) if ports else {},
    )


def _memory() -> tuple[int, int]:
    """Return total and available bytes, the smaller of what the machine has and what the container may use."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    except OSError:
        return 0, 0
    total, available = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):  # no container, or "max": no limit
        return total, available
    return min(total, limit), min(available, limit - used)


def _cpu_flags() -> frozenset[str]:
    try:
        match = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return frozenset()
    return frozenset(match.group(1).split()) if match else frozenset()


def _torch() -> tuple[str | None, str | None]:
    """Return torch's version and the CUDA it was built for, from its files: importing it takes seconds."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None, None
    spec = importlib.util.find_spec("torch")
    text = (Path(spec.origin).parent / "version.py").read_text() if spec and spec.origin else ""
    match = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return version, match.group(1) if match else None


def _gpus() -> tuple[str, ...]:
    import torch

    return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def _ports_taken(ports: Mapping[str, int]) -> dict[str, str]:
    from cluster.ports import taken_by

    return {purpose: f"{who.port} is taken by {who}{fix}" for purpose, (who, fix) in taken_by(ports).items()}


def _gb(size: int) -> str:
    return f"{size / GB:.1f} GB"


def main() -> None:
    """Print the findings for the current folder; the exit code is 1 where there is an error."""
    parser = argparse.ArgumentParser(prog="python -m cluster.preflight", description=preflight.__doc__)
    parser.add_argument("--folder", type=Path, default=Path(), help="where everything will be installed")
    parser.add_argument("--gpu", action="store_true", help="check for a GPU machine")
    given = parser.parse_args()
    findings = preflight(given.folder, Needs(gpu=given.gpu))
    for finding in findings:
        print(finding, file=sys.stderr if finding.severity == "error" else sys.stdout)
    sys.exit(any(finding.severity == "error" for finding in findings))


if __name__ == "__main__":
    main()
