"""A release of another encoder, from the command line: published, served by the next `up`, not undone by accident."""

from __future__ import annotations

import time

import pytest

from cluster import reembed as command
from cluster.errors import OperatorError
from cluster.prepare import build_release, keep_release
from cluster.publish import current, refuse_other_encoder, rollback
from cluster.reembed import Wish, reembed, with_encoder
from cluster.stack import Stack
from cluster.train import Wish as TrainingWish
from cluster.train import train
from cluster.workspace import Workspace
from models.encoder import HashEncoder
from models.hub import HubError
from models.progress import silent
from models.releases import Release
from pipelines.embedding.assemble import Embedder
from pipelines.embedding.runners import InlineRunner

pytestmark = pytest.mark.timeout(120)


def other(settings, uri: str, dimension: int):
    encoder = settings.models.encoder.model_copy(update={"uri": uri, "dimension": dimension})
    return settings.model_copy(update={"models": settings.models.model_copy(update={"encoder": encoder})})


def built(place, settings, dimension: int) -> Release:
    workspace = Workspace(settings)
    runner = InlineRunner(lambda: HashEncoder(dimension))
    embedder = Embedder(workspace.artifacts(), workspace.encoder_spec(), runner, None)
    return build_release(settings, place.dataset, embedder=embedder, progress=silent).release


@pytest.mark.parametrize("dimension", [32, 48])
def test_a_release_of_another_encoder_is_published_and_what_goes_by_the_settings_does_not_undo_it(
    place, dimension: int
) -> None:
    first = place.build().release
    keep_release(place.settings, first)
    wide = other(place.settings, "wide", dimension)
    with place.replica():
        time.sleep(0.3)
        second = built(place, wide, dimension)
        keep_release(wide, second)
        serving, _ = current(place.settings)
        assert serving is not None and serving.release_id == second.release_id
        workspace = Workspace(place.settings)
        assert workspace.release_to_serve() == second and workspace.encoder_of(second) == "wide"
        assert workspace.newest_release() == first, "a build goes on from vectors of its own encoder"
        said = f"{second.release_id} was built by the encoder wide, and models.encoder.uri is hash"
        for refused in (lambda: reembed(place.settings, Wish()), lambda: train(place.settings, TrainingWish())):
            with pytest.raises(OperatorError, match=said):
                refused()
        refuse_other_encoder(wide)
        assert rollback(place.settings)[0].release_id == first.release_id
    refuse_other_encoder(place.settings)
    assert Workspace(place.settings).release_to_serve() == first


def test_up_serves_the_newest_release_whatever_its_encoder_and_fetches_that_or_names_it(place, tmp_path) -> None:
    folder, said = tmp_path / "model", []
    folder.mkdir()
    for uri in (str(folder), str(tmp_path / "gone")):
        settings = other(place.settings, uri, 48)
        keep_release(settings, built(place, settings, 48))
    stack, workspace = Stack(place.settings, say=said.append), Workspace(place.settings)
    gone = workspace.release_to_serve()
    with pytest.raises(HubError, match="gone: no such file"):
        stack._fetch_encoder(gone)
    there = next(r for n in workspace.releases().names() if (r := workspace.releases().get(n)) != gone)
    stack._fetch_encoder(there)
    assert said[-1] == f"{there.release_id} was built by the encoder {folder}; models.encoder.uri is hash"


def test_an_encoder_that_cannot_be_had_is_named_before_anything_is_embedded(place, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(command, "job_ray", lambda *_, **__: pytest.fail("nothing is to be embedded"))
    with pytest.raises(HubError, match="nowhere: no such file"):
        reembed(place.settings, Wish(encoder=str(tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(OperatorError, match=r"the encoder .*empty cannot be loaded"):
        reembed(place.settings, Wish(encoder=str(tmp_path / "empty")))


def test_another_encoder_brings_its_own_dimension(place, tmp_path, tiny_bert) -> None:
    uri = str(tiny_bert(tmp_path / "tiny", ["film", "water"]))
    found = with_encoder(place.settings, uri).models.encoder
    assert (found.uri, found.dimension) == (uri, 16)
    assert with_encoder(place.settings, "hash") is place.settings


def test_changes_that_came_during_the_build_are_told(place, monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(command, "say", said.append)
    monkeypatch.setattr(command, "online", lambda settings: True)
    settings = other(place.settings, "wide", 48)
    release = built(place, settings, 48)
    keep_release(settings, release)
    command._tell_late_changes(settings, release)
    assert said == []
    place.put("late")
    command._tell_late_changes(settings, release)
    assert len(said) == 1 and said[0].startswith(f"1 changes of items came after those in {release.release_id}")
