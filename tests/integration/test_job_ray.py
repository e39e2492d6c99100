"""A job of somebody else's Ray cluster joins that, leaves it running, and sets none of its flags."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

DRIVER = """
    import json, os, sys
    from pathlib import Path

    import ray
    from ray.cluster_utils import Cluster

    from cluster.config import load_settings
    from cluster.ray_job import job_ray

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "resources": {"theirs": 3}})
    os.environ["RAY_ADDRESS"] = cluster.address
    before = dict(os.environ)
    settings = load_settings("local", [f"cluster.state={Path(sys.argv[1]) / 'state'}"], environ=None)
    seen = []
    for _ in range(2):
        with job_ray(settings):
            seen.append(ray.cluster_resources().get("theirs"))
        assert not ray.is_initialized()
    changed = sorted(k for k in set(before) | set(os.environ) if before.get(k) != os.environ.get(k))
    print(json.dumps({"theirs": seen, "cwd_back": os.getcwd() == before.get("PWD", os.getcwd()), "changed": changed}))
    cluster.shutdown()
"""


def test_a_job_joins_the_ray_it_is_told_of(tmp_path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-P", str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "PWD": os.getcwd()},
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["theirs"] == [3.0, 3.0] and found["cwd_back"]
    ours = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_SERVE_ENABLE_HA_PROXY", "OMP_NUM_THREADS"}
    assert not ours & set(found["changed"])
