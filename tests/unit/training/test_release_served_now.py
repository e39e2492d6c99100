"""Which release training and new vectors go on from: the one the store points at, and not the newest."""

import pytest

from cluster.config import load_settings
from cluster.publish import Reach, release_now, with_store
from cluster.reembed import kept_ranker
from cluster.train import release_served, served_ranker
from cluster.valkey import start_valkey
from cluster.workspace import Workspace
from models.catalog import Item
from models.events import EventLog
from models.releases import new_release
from pipelines.dataset import Dataset
from serve.deployments.replica import STORE_URL

PARTS = ("catalog", "embeddings", "index", "behaviour", "statistics")
DATA = Dataset("ours", [Item("i", "film")], EventLog.empty())


@pytest.fixture
def settings(tmp_path, monkeypatch, free_port):
    server = start_valkey(tmp_path / "store", port=free_port, role="store", password="pw")
    monkeypatch.setenv(STORE_URL, server.url)
    overrides = [f"cluster.state={tmp_path / 'state'}", "cluster.store.mode=external"]
    yield load_settings("local", overrides, environ={STORE_URL: server.url})
    server.stop()


def two_releases(workspace: Workspace, tmp_path, *, encoder: str):
    """Keep two releases over the same vectors, each with a ranker of its own; return the older and the newer."""
    folder = tmp_path / "any"
    folder.mkdir()

    def put(kind: str, text: str, meta) -> str:
        (folder / "file").write_text(text)
        return workspace.artifacts().put(kind, folder, meta)

    meta = {"inputs": {"encoder": encoder}, "space": workspace.encoder_spec().space}
    parts = dict.fromkeys(PARTS, put("embeddings", "any", meta))
    made = [
        new_release({**parts, "ranker": put("ranker", name, {})}, dataset="ours", of=name) for name in ("old", "new")
    ]
    for release in made:
        workspace.releases().save(release)
    return made


def serve(settings, release) -> None:
    async def swap(reach: Reach) -> None:
        await reach.publisher.swap(release, expected_epoch=0)

    with_store(settings, swap, tenant="main")


def test_after_a_rollback_both_go_on_from_the_release_that_is_served(settings, tmp_path) -> None:
    workspace = Workspace(settings)
    older, newer = two_releases(workspace, tmp_path, encoder=settings.models.encoder.uri)
    assert release_now(settings, reachable=True) == newer == workspace.newest_release()
    serve(settings, older)
    assert release_now(settings, reachable=True).artifacts == older.artifacts
    ranker = served_ranker(settings, release_served(settings, DATA))
    assert ranker is not None and ranker.ref == older.artifacts["ranker"]
    kept = kept_ranker(settings, DATA)
    assert kept is not None and kept.artifacts["ranker"] == older.artifacts["ranker"]
    # Where no store is reached nothing tells what was served, so the newest counts.
    assert release_now(settings, reachable=False) == newer


def test_nothing_goes_on_from_a_served_release_of_another_encoder(settings, tmp_path) -> None:
    older, _ = two_releases(Workspace(settings), tmp_path, encoder="another")
    serve(settings, older)
    assert release_now(settings, reachable=True) is None
    assert release_served(settings, DATA) is None and kept_ranker(settings, DATA) is None
