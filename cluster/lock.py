"""Resolves a requirement lock anew: `python -m cluster.lock cpu|gpu` writes `cluster/requirements/<name>.txt`.

Uses `uv pip compile` in a throwaway environment, because it resolves for a platform from metadata alone (the GPU set
is several GB). Installing stays with pip. Called by `make lock-cpu` and `make lock-gpu`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
PLATFORM = "x86_64-manylinux_2_35"
_LEFT_OUT = ("nvidia-", "cuda-", "triton", "torchvision", "torchaudio", "torchcodec", "openvino-telemetry")
_HEADS = {
    "cpu": (
        "# Complete lock for Linux x86-64, CPython 3.11, CPU. `make lock-cpu` resolves it anew.\n"
        "# Installed with --no-deps after torch. torchvision, torchaudio, torchcodec, triton and the CUDA libraries,\n"
        "# which metadata also names, are left out on purpose: several GB that text on a CPU does not use. So is\n"
        "# openvino-telemetry, which only the tools of OpenVINO load.\n"
    ),
    "gpu": (
        "# Complete lock for Linux x86-64, CPython 3.11, CUDA. `make lock-gpu` resolves it anew.\n"
        "# Not run on a GPU yet.\n"
    ),
}


def resolve(name: str) -> str:
    """Return the text of the lock `name`. Raises CalledProcessError when nothing satisfies the requirements."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        tool = Path(folder) / "bin"
        subprocess.run([tool / "pip", "install", "--quiet", "uv"], check=True)
        command = [tool / "uv", "pip", "compile", "--quiet", "--no-annotate", "--no-header"]
        command += ["--python-platform", PLATFORM, "--python-version", "3.11", REQUIREMENTS / f"{name}.in"]
        override = REQUIREMENTS / f"{name}.override"
        command += ["--override", override] if override.is_file() else []
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    lines = [line for line in found.splitlines() if name == "gpu" or not line.startswith(_LEFT_OUT)]
    return _HEADS[name] + "\n".join(lines) + "\n"


def main() -> None:
    """Resolve the lock named on the command line and write it."""
    if len(sys.argv) != 2 or sys.argv[1] not in _HEADS:
        sys.exit("usage: python -m cluster.lock cpu|gpu")
    name = sys.argv[1]
    (REQUIREMENTS / f"{name}.txt").write_text(resolve(name))


if __name__ == "__main__":
    main()
