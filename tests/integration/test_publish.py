"""Publishing over a real store: canary, swap, rollback, the cut log, collection, a publisher killed with kill -9."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cluster import prepare, releases
from cluster.config import Settings, load_settings
from cluster.errors import OperatorError
from cluster.prepare import build_release, keep_release
from cluster.publish import current, folded, publish, rollback, waiting_changes
from cluster.valkey import start_valkey
from cluster.workspace import Workspace
from models.encoder import HashEncoder
from models.items.change import ItemChange
from models.items.log import RedisItemLog
from models.progress import silent
from models.releases import Release
from models.store.board import RedisBoard, Standing
from pipelines.build import BuildReport
from pipelines.dataset import Dataset, write_dataset
from pipelines.embedding.assemble import Embedder
from pipelines.embedding.runners import InlineRunner
from serve.deployments.replica import STORE_URL

pytestmark = pytest.mark.timeout(120)
PORT = 16790


@dataclass
class Place:
    """A state folder with a store, and builds of a small data set in it."""

    settings: Settings
    dataset: Dataset

    def build(self) -> BuildReport:
        workspace = Workspace(self.settings)
        embedder = Embedder(
            workspace.artifacts(), workspace.encoder_spec(), InlineRunner(lambda: HashEncoder(32)), None
        )
        return build_release(self.settings, self.dataset, embedder=embedder, progress=silent)

    def change(self, *changes: ItemChange) -> None:
        async def run() -> None:
            log = RedisItemLog(os.environ[STORE_URL])
            for change in changes:
                await log.append_item("main", change)
            await log.close()

        asyncio.run(run())

    def numbers(self) -> list[int]:
        async def run() -> list[int]:
            log = RedisItemLog(os.environ[STORE_URL])
            found = [number for number, _ in await log.read_items("main", after=0)]
            await log.close()
            return found

        return asyncio.run(run())


@pytest.fixture
def place(tmp_path: Path, items_of, log_of, monkeypatch) -> Iterator[Place]:
    overrides = {
        "cluster.state": tmp_path / "state",
        "cluster.dataset": "tiny",
        "cluster.store.port": PORT,
        "models.encoder.uri": "hash",
        "models.encoder.dimension": 32,
        "pipelines.train_ranker": False,
    }
    settings = load_settings("local", [f"{n}={v}" for n, v in overrides.items()], environ=None)
    workspace = Workspace(settings)
    dataset = Dataset("tiny", items_of(40), log_of())
    write_dataset(dataset, workspace.dataset_folder())
    server = start_valkey(tmp_path / "store", port=PORT, role="store", password=workspace.store_password())
    for name, value in workspace.secrets().items():
        monkeypatch.setenv(name, value)
    for module in (prepare, releases):
        monkeypatch.setattr(module, "online", lambda settings: True)
    yield Place(settings, dataset)
    server.stop()


class Replica:
    """Says on the board what it holds, in a thread of its own; holds whatever is proposed once it is willing."""

    def __init__(self, *, willing: bool = True) -> None:
        self.willing = willing
        self.asked = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Replica:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        board = RedisBoard(os.environ[STORE_URL])
        held: tuple[str, ...] = ()
        while not self._stop.is_set():
            text = await board.proposal("main")
            if text is not None:
                self.asked.set()
                if self.willing:
                    held = (Release.from_json(text).release_id, *held[:1])
            await board.report("main", Standing("r1", held))
            await asyncio.sleep(0.05)
        await board.close()


def put(name: str) -> ItemChange:
    return ItemChange("put", name, 1_700_000_000_000, f"Film {name}", "water")


def test_a_release_takes_the_log_in_and_the_log_is_cut_one_release_later(place: Place) -> None:
    first = place.build().release
    keep_release(place.settings, first)
    place.change(put("new"), ItemChange("remove", "i03", 1_700_000_000_000))
    assert waiting_changes(place.settings, now_ms=1_700_000_060_000) == (2, 60.0)
    second = place.build().release
    keep_release(place.settings, second)
    assert second.item_log_seq == 2 and second.notes["items"] == 40
    assert place.numbers() == [1, 2], "the release before may be served again"
    place.change(put("newer"))
    third = place.build().release
    keep_release(place.settings, third)
    assert third.notes["items"] == 41 and place.numbers() == [3]
    assert waiting_changes(place.settings, now_ms=0)[0] == 0


def test_without_a_store_what_was_folded_before_stays(place: Place) -> None:
    place.change(put("new"))
    keep_release(place.settings, place.build().release)
    assert set(folded(place.settings, place.dataset, reachable=False).items) == {"new"}


def test_a_rollback_serves_the_release_before_and_a_second_one_comes_back(place: Place) -> None:
    first = place.build().release
    keep_release(place.settings, first)
    place.change(put("new"))
    second = place.build().release
    with Replica():
        time.sleep(0.3)
        keep_release(place.settings, second)
        release, swap = rollback(place.settings)
        assert release.release_id == first.release_id and swap.replicas == 1
        assert rollback(place.settings)[0].release_id == second.release_id
    with pytest.raises(OperatorError, match="there is no release r-nothing"):
        rollback(place.settings, to="r-nothing")


def test_a_rollback_beyond_the_cut_log_is_refused(place: Place) -> None:
    first = place.build().release
    keep_release(place.settings, first)
    for name in ("a", "b", "c"):
        place.change(put(name))
        keep_release(place.settings, place.build().release)
    with pytest.raises(OperatorError, match="no longer holds the changes"):
        rollback(place.settings, to=first.release_id)


def test_a_release_that_fails_the_canary_is_not_published_and_not_kept(place: Place) -> None:
    first = place.build().release
    keep_release(place.settings, first)
    settings = place.settings
    strange = settings.model_copy(
        update={
            "models": settings.models.model_copy(
                update={"encoder": settings.models.encoder.model_copy(update={"uri": "other"})}
            )
        }
    )
    place.change(put("new"))
    with pytest.raises(OperatorError, match="made by the encoder hash"):
        keep_release(strange, place.build().release)
    serving, _ = current(place.settings)
    latest = Workspace(place.settings).releases().latest()
    assert serving is not None and latest is not None
    assert serving.release_id == latest.release_id == first.release_id


def test_collection_keeps_what_is_served_held_or_went_before(place: Place, monkeypatch) -> None:
    made = []
    for name in ("a", "b", "c", "d"):
        place.change(put(name))
        made.append(place.build().release)
        keep_release(place.settings, made[-1])
    assert releases.collect(place.settings)["artifacts"] == [], "they are young"
    monkeypatch.setattr(releases, "YOUNG_S", -1.0)
    assert releases.collect(place.settings, dry_run=True)["artifacts"]
    releases.collect(place.settings)
    left = [row["release"] for row in releases.list_releases(place.settings)]
    assert left == [made[3].release_id, made[2].release_id]
    for name in left:
        assert releases.verify_release(place.settings, name) == []
    with pytest.raises(OperatorError, match="there is no release"):
        releases.show_release(place.settings, made[0].release_id)


def test_verification_names_the_damaged_file(place: Place) -> None:
    release = place.build().release
    keep_release(place.settings, release)
    folder = Workspace(place.settings).artifacts().get(release.artifacts["index"]).path
    (folder / "index.faiss").write_bytes(b"half")
    (wrong,) = releases.verify_release(place.settings, release.release_id)
    assert release.artifacts["index"] in wrong and "index.faiss" in wrong


PUBLISHER = """
    import sys
    from cluster.config import Settings
    from cluster.publish import publish
    from cluster.workspace import Workspace

    settings = Settings.model_validate_json(sys.argv[1])
    publish(settings, Workspace(settings).releases().get(sys.argv[2]))
"""


def test_a_publisher_killed_while_replicas_prepare_leaves_the_old_release_and_the_next_run_completes(
    place: Place,
) -> None:
    first = place.build().release
    keep_release(place.settings, first)
    second = replace(first, item_log_seq=first.item_log_seq + 1)
    Workspace(place.settings).releases().save(second)
    with Replica(willing=False) as replica:
        time.sleep(0.3)
        process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-c",
                textwrap.dedent(PUBLISHER),
                place.settings.model_dump_json(),
                second.release_id,
            ],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )
        assert replica.asked.wait(60)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        serving, _ = current(place.settings)
        assert serving is not None and serving.release_id == first.release_id
        with pytest.raises(OperatorError, match=f"{second.release_id} is being published right now"):
            publish(place.settings, replace(first, item_log_seq=first.item_log_seq + 2))
        replica.willing = True
        assert publish(place.settings, second).moved
    serving, _ = current(place.settings)
    assert serving is not None and serving.release_id == second.release_id
