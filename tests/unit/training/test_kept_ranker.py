"""Which ranker a release goes on with: one of the same data set, with the notes that say how it did."""

from dataclasses import replace

import pytest

from cluster.config import load_settings
from cluster.reembed import _ranker_stays
from cluster.workspace import Workspace
from models.artifacts import ArtifactStore
from models.catalog import Item
from models.encoder import HashEncoder
from models.events import EventLog
from models.releases import new_release
from models.retrieval.settings import RetrievalSettings
from pipelines.build import Builder
from pipelines.dataset import Dataset
from pipelines.settings import PipelinesSettings


@pytest.mark.parametrize(("name", "space", "stays"), [("ours", "", True), ("other", "", False), ("ours", "x", False)])
def test_the_ranker_stays_with_its_data_set_and_its_vectors(tmp_path, name: str, space: str, stays: bool) -> None:
    workspace = Workspace(load_settings("local", [f"cluster.state={tmp_path / 'state'}"], environ={}))
    (tmp_path / "vectors").mkdir()
    (tmp_path / "vectors" / "file").write_text("any")
    meta = {"space": space + workspace.encoder_spec().space}
    ref = workspace.artifacts().put("embeddings", tmp_path / "vectors", meta)
    before = new_release({"embeddings": ref}, dataset="ours")
    assert _ranker_stays(workspace, before, Dataset(name, [Item("i", "film")], EventLog.empty())) is stays


def test_no_ranker_stays_where_there_was_no_release(tmp_path) -> None:
    workspace = Workspace(load_settings("local", [f"cluster.state={tmp_path / 'state'}"], environ={}))
    assert _ranker_stays(workspace, None, Dataset("ours", [Item("i", "film")], EventLog.empty())) is False


def test_kept_rankers_keep_what_is_noted_of_them(tmp_path, make_taste_log) -> None:
    def build(**options):
        return Builder(
            ArtifactStore(str(tmp_path / "artifacts"), cache=tmp_path / "cache"),
            settings=PipelinesSettings(train_ranker=False),
            retrieval=RetrievalSettings(),
            encoder=lambda: HashEncoder(16),
            encoder_uri="hash",
            **options,
        ).run(Dataset("taste", [Item(f"i{k}", f"film {k}") for k in range(100)], make_taste_log(10)))

    release = build().release
    noted = {"ranker": {"switch_on": True}, "cascade": {"switch_on": True, "cascade_ndcg10": 0.5}}
    kept = build(keep_ranker_of=replace(release, notes={**release.notes, **noted})).release
    assert {k: kept.notes[k] for k in noted} == noted
    assert "cascade" not in build(keep_ranker_of=release).release.notes
