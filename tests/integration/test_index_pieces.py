"""An index in pieces built by Ray for real, from a catalog to a release: as one process builds it, bit for bit."""

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

DRIVER = """
    import hashlib, json, sys, tempfile
    from functools import partial
    from pathlib import Path

    import numpy as np

    from cluster.config import load_settings
    from cluster.ray_job import job_ray
    from models.artifacts import ArtifactStore
    from models.bundle import EMBEDDINGS_FILE
    from models.index import FlatIndex, load_faiss
    from pipelines.index_shards import InlinePieces, RayPieces, build_index

    folder = Path(sys.argv[1])
    settings = load_settings("local", [f"cluster.state={folder / 'state'}"], environ=None)
    vectors = np.random.default_rng(0).standard_normal((30_000, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = {}

    def build(name, runner):
        place = partial(ArtifactStore, str(folder / name), cache=folder / f"{name}-cache")
        artifacts = place()
        with tempfile.TemporaryDirectory() as made:
            np.save(Path(made) / EMBEDDINGS_FILE, vectors, allow_pickle=False)
            embeddings = artifacts.get(artifacts.put("embeddings", Path(made), {}))
        to = folder / f"{name}-index"
        to.mkdir()
        of = {"recall": 0.98, "memory_bytes": 9_000_000, "at_once": 2}
        facts = build_index(artifacts, embeddings, to, **of, runner=runner(place))
        files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(to.iterdir())}
        found[name] = {"shards": facts["shards"], "files": files}
        return to

    build("inline", lambda place: InlinePieces())
    with job_ray(settings):
        to = build("ray", lambda place: RayPieces(place, workers=2, cpus=0.5))
    index, exact = load_faiss(to, vectors), FlatIndex(vectors)
    allowed = np.arange(30_000) % 3 == 0
    rows = [(index.search(q, 10, allowed=allowed)[0], exact.search(q, 10, allowed=allowed)[0]) for q in vectors[:50]]
    found["same"] = sum(a.tolist() == b.tolist() for a, b in rows)
    print(json.dumps(found), flush=True)
"""


def test_pieces_built_by_ray_are_those_of_one_process(run_driver) -> None:
    found = run_driver(DRIVER, timeout_s=200)
    assert found["ray"]["shards"] == found["inline"]["shards"] == 3
    assert found["ray"]["files"] == found["inline"]["files"]
    assert found["same"] == 50
