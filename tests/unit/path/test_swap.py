"""The two-phase swap with real replicas and artifacts: nobody serves what not everybody holds, whatever goes wrong."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np
import pytest

from models.artifacts import ArtifactStore
from models.items.change import ItemChange
from models.items.log import MemoryItemLog
from models.releases import Release
from models.retrieval.settings import RetrievalSettings
from models.store.board import MemoryBoard, Standing
from models.store.memory import MemoryStore
from pipelines.publish import Patience, Publisher, PublishError, Swap, cut_log
from serve.releases import KEPT, ReleaseHolder


class Fleet:
    """Replicas of one tenant over one store, board and artifact store; they look when `turn` is called."""

    def __init__(self, folder, tiny) -> None:
        shutil.copytree(tiny.artifacts.place[1], folder / "artifacts" / "main")
        self.artifacts = ArtifactStore(str(folder / "artifacts"), cache=folder / "cache")
        self.first: Release = tiny.release
        self.now = 0.0
        self.store, self.board = MemoryStore(), MemoryBoard(clock=lambda: self.now)
        self.replicas: list[ReleaseHolder] = []
        self.between: Callable[[], Awaitable[None]] | None = None

    def replica(self, *, encoder: str = "hash") -> ReleaseHolder:
        holder = ReleaseHolder(
            self.store,
            lambda tenant: self.artifacts,
            tenants=("main",),
            settings=RetrievalSettings(),
            warm=lambda bundle: bundle.engine,
            board=self.board,
            encoder=encoder,
        )
        self.replicas.append(holder)
        return holder

    def release(self, number: int) -> Release:
        return replace(self.first, item_log_seq=number)

    def changed(self, kind: str, name: str, data: bytes) -> Release:
        """Return a release whose artifact of `kind` holds `data` in file `name`, against its manifest."""
        ref = self.first.artifacts[kind]
        folder = self.artifacts.get(ref).path
        copy = self.artifacts.put(kind, folder, {**self.artifacts.meta(ref), "copy": 1})
        (self.artifacts.get(copy).path / name).write_bytes(data)
        return replace(self.first, artifacts={**self.first.artifacts, kind: copy})

    async def turn(self, seconds: float = 0.2) -> None:
        for holder in self.replicas:
            await holder.refresh()
            await holder.prepare()
            await holder.report()
        if self.between is not None:
            await self.between()
        self.now += seconds

    def publisher(self, **patience: float) -> Publisher:
        waits = Patience(**patience)
        return Publisher(self.store, self.board, tenant="main", patience=waits, clock=lambda: self.now, sleep=self.turn)

    async def publish(self, release: Release, **patience: float) -> Swap:
        return await self.publisher(**patience).swap(release)

    def serving(self) -> set[str]:
        return {holder.current("main") for holder in self.replicas}

    async def started(self, count: int = 2) -> Fleet:
        await self.publish(self.first)
        for _ in range(count):
            self.replica()
        await self.turn()
        return self


@pytest.fixture
async def fleet(tmp_path, tiny) -> Fleet:
    return await Fleet(tmp_path, tiny).started()


async def test_the_first_release_waits_for_nobody(tmp_path, tiny) -> None:
    swap = await Fleet(tmp_path, tiny).publish(tiny.release)
    assert swap == Swap(1, None, 0, moved=True)


async def test_the_pointer_moves_when_every_replica_holds_the_release_and_then_nobody_loads(fleet: Fleet) -> None:
    second = fleet.release(1)
    swap = await fleet.publish(second)
    assert swap.moved and swap.replicas == 2 and swap.before is not None
    prepared = [holder._prepared["main"] for holder in fleet.replicas]
    await fleet.turn()
    assert fleet.serving() == {second.release_id}
    assert [holder.bundle("main", second.release_id) for holder in fleet.replicas] == prepared
    assert all(fleet.first.release_id in holder.held("main") for holder in fleet.replicas)


async def test_a_replica_that_sees_the_proposal_go_first_holds_what_it_prepared_and_loads_nothing(fleet: Fleet) -> None:
    second = fleet.release(1)
    await fleet.publish(second)
    slow = fleet.replicas[0]
    prepared = slow.ready("main", second.release_id)
    await slow.prepare()  # the proposal is withdrawn by now, and the pointer was not looked at
    assert slow.current("main") == second.release_id and slow.bundle("main", second.release_id) is prepared


async def test_publishing_what_is_served_changes_nothing(fleet: Fleet) -> None:
    assert await fleet.publish(fleet.first) == Swap(1, fleet.first, 0, moved=False)


async def test_a_rollback_goes_to_what_was_served_before_and_loads_nothing(fleet: Fleet) -> None:
    await fleet.publish(fleet.release(1))
    await fleet.turn()
    now, _ = await fleet.publisher().current()
    assert now is not None and now.parent == fleet.first.release_id
    held = [holder.bundle("main", fleet.first.release_id) for holder in fleet.replicas]
    await fleet.publish(fleet.first)
    await fleet.turn()
    assert fleet.serving() == {fleet.first.release_id}
    assert [holder.bundle("main", fleet.first.release_id) for holder in fleet.replicas] == held


async def test_five_swaps_keep_two_releases_and_forget_the_rest(fleet: Fleet) -> None:
    for number in range(1, 6):
        await fleet.publish(fleet.release(number))
        await fleet.turn()
    for holder in fleet.replicas:
        assert holder.held("main") == (fleet.release(5).release_id, fleet.release(4).release_id)
        assert len(holder.bundles("main")) == KEPT and not holder._prepared


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_a_publisher_that_is_killed_leaves_the_old_release_and_the_next_run_completes(
    fleet: Fleet, turns: int
) -> None:
    """Before anybody prepared, while they do, and when all of them hold the release."""
    second = fleet.release(1)
    assert await fleet.board.propose("main", second, publisher="killed", ttl_s=15) is None
    for _ in range(turns):
        await fleet.turn()
    assert fleet.serving() == {fleet.first.release_id}
    assert (await fleet.publish(second)).moved
    await fleet.turn()
    assert fleet.serving() == {second.release_id}


async def test_a_proposal_of_a_killed_publisher_runs_out_and_is_forgotten(fleet: Fleet) -> None:
    await fleet.board.propose("main", fleet.release(1), publisher="killed", ttl_s=15)
    await fleet.turn()
    assert all(holder._prepared for holder in fleet.replicas)
    with pytest.raises(PublishError, match="is being published right now"):
        await fleet.publish(fleet.release(2))
    await fleet.turn(seconds=20)
    await fleet.turn()
    assert not any(holder._prepared for holder in fleet.replicas)
    assert (await fleet.publish(fleet.release(2))).moved


async def test_a_publisher_killed_after_the_pointer_moved_is_completed_by_the_next_run(fleet: Fleet) -> None:
    second = fleet.release(1)
    await fleet.board.propose("main", second, publisher="killed", ttl_s=15)
    await fleet.turn()
    assert await fleet.store.move_release("main", second.to_json(), expected_epoch=1)
    swap = await fleet.publish(second)
    assert swap.epoch == 2 and not swap.moved
    await fleet.turn()
    assert fleet.serving() == {second.release_id}


async def test_of_two_publishers_one_wins_and_the_other_says_so(fleet: Fleet) -> None:
    results = await asyncio.gather(
        fleet.publish(fleet.release(1)), fleet.publish(fleet.release(2)), return_exceptions=True
    )
    lost = [r for r in results if isinstance(r, PublishError)]
    assert len(lost) == 1 and "being published right now" in str(lost[0])
    await fleet.turn()
    assert len(fleet.serving()) == 1


async def test_a_publisher_that_was_overtaken_while_it_checked_says_so(fleet: Fleet) -> None:
    publisher = fleet.publisher()
    _, epoch = await publisher.current()
    await fleet.publish(fleet.release(1))
    with pytest.raises(PublishError, match=f"moved the release to {fleet.release(1).release_id} meanwhile"):
        await publisher.swap(fleet.release(2), expected_epoch=epoch)


async def test_a_pointer_moved_past_the_board_is_noticed(fleet: Fleet) -> None:
    async def overtake() -> None:
        fleet.between = None
        assert await fleet.store.move_release("main", fleet.release(9).to_json(), expected_epoch=1)

    fleet.between = overtake
    with pytest.raises(PublishError, match=fleet.release(9).release_id):
        await fleet.publish(fleet.release(1))
    assert await fleet.board.proposal("main") is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "manifest"])
async def test_a_damaged_artifact_is_refused_with_its_name_and_serving_goes_on(fleet: Fleet, damage: str) -> None:
    good = (fleet.artifacts.get(fleet.first.artifacts["embeddings"]).path / "embeddings.npy").read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    data = {"truncated": good[: len(good) // 2], "flipped": bytes(flipped)}.get(damage, good)
    bad = fleet.changed("embeddings", "embeddings.npy", data)
    folder = fleet.artifacts.place[1] + "/" + bad.artifacts["embeddings"]
    if damage in ("missing", "manifest"):
        from pathlib import Path

        (Path(folder) / ("manifest.json" if damage == "manifest" else "embeddings.npy")).unlink()
    said = "manifest missing" if damage == "manifest" else r"embeddings\.npy"
    with pytest.raises(PublishError, match=f"2 of 2 replicas refused .*{bad.artifacts['embeddings']}.*{said}"):
        await fleet.publish(bad)
    await fleet.turn()
    assert fleet.serving() == {fleet.first.release_id}
    assert (await fleet.publish(fleet.release(1))).moved


async def test_every_file_of_every_artifact_is_checked_before_a_replica_says_it_holds_it(fleet: Fleet) -> None:
    tried = 0
    for kind in fleet.first.artifacts:
        folder = fleet.artifacts.get(fleet.first.artifacts[kind]).path
        for file in sorted(p for p in folder.iterdir() if p.is_file() and p.name != "manifest.json"):
            good = file.read_bytes()
            flipped = bytearray(good)
            flipped[-1] ^= 1
            for data in (good[:-1], bytes(flipped), b""):
                bad = fleet.changed(kind, file.name, data)
                with pytest.raises(PublishError, match=rf"{bad.artifacts[kind]}.*{file.name}"):
                    await fleet.publish(bad)
                await fleet.turn()
                assert fleet.serving() == {fleet.first.release_id}
                tried += 1
                shutil.rmtree(f"{fleet.artifacts.place[1]}/{bad.artifacts[kind]}")
    assert tried >= 3 * len(fleet.first.artifacts)


async def test_vectors_of_other_dimensions_than_the_index_are_refused(fleet: Fleet, tmp_path) -> None:
    meta = dict(fleet.artifacts.meta(fleet.first.artifacts["embeddings"]))
    copy = tmp_path / "wide"
    copy.mkdir()
    np.save(copy / "embeddings.npy", np.ones((40, 33), np.float32), allow_pickle=False)
    wide = fleet.artifacts.put("embeddings", copy, meta)
    bad = replace(fleet.first, artifacts={**fleet.first.artifacts, "embeddings": wide})
    with pytest.raises(PublishError, match=r"index\.faiss"):
        await fleet.publish(bad)
    await fleet.turn()
    assert fleet.serving() == {fleet.first.release_id}


async def test_a_pointer_to_a_missing_release_is_refused_and_serving_goes_on(fleet: Fleet) -> None:
    lost = replace(fleet.first, artifacts={**fleet.first.artifacts, "index": "index/" + "0" * 64})
    assert await fleet.store.move_release("main", lost.to_json(), expected_epoch=1)
    await fleet.turn()
    assert fleet.serving() == {fleet.first.release_id}
    swap = await fleet.publish(fleet.release(1))
    await fleet.turn()
    assert swap.epoch == 3 and fleet.serving() == {fleet.release(1).release_id}


async def test_a_pointer_that_is_no_release_document_can_be_published_over(fleet: Fleet) -> None:
    assert await fleet.store.move_release("main", json.dumps({"half": 1}), expected_epoch=1)
    await fleet.turn()
    assert (await fleet.publish(fleet.release(1))).moved
    await fleet.turn()
    assert fleet.serving() == {fleet.release(1).release_id}


async def test_a_disk_that_fills_while_a_replica_prepares_is_named_and_the_next_try_completes(
    fleet: Fleet, monkeypatch
) -> None:
    def full(ref: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fleet.artifacts, "get", full)
    with pytest.raises(PublishError, match="No space left on device"):
        await fleet.publish(fleet.release(1))
    monkeypatch.undo()
    await fleet.turn()
    await fleet.turn()
    assert (await fleet.publish(fleet.release(1))).moved


async def test_a_replica_that_starts_in_the_middle_of_a_swap_is_waited_for(fleet: Fleet) -> None:
    async def join() -> None:
        fleet.between = None
        late = fleet.replica()
        await late.refresh()
        await late.report()

    fleet.between = join
    swap = await fleet.publish(fleet.release(1))
    assert swap.replicas == 3
    await fleet.turn()
    assert fleet.serving() == {fleet.release(1).release_id}


async def test_a_replica_that_starts_after_the_proposal_was_acknowledged_follows_the_pointer(fleet: Fleet) -> None:
    await fleet.publish(fleet.release(1))
    late = fleet.replica()
    await late.refresh(strict=True)
    assert late.current("main") == fleet.release(1).release_id


async def test_a_replica_that_is_silent_is_not_waited_for_and_a_slow_one_is(fleet: Fleet) -> None:
    await fleet.board.report("main", Standing("dead", (fleet.first.release_id,)))
    fleet.now += 4.9
    swap = await fleet.publish(fleet.release(1))
    assert swap.replicas == 2 and fleet.now > 5.0

    async def slow() -> None:
        await fleet.board.report("main", Standing("slow", (fleet.release(1).release_id,)))

    fleet.between = slow
    with pytest.raises(PublishError, match=r"1 of 3 replicas do not hold .* after 2 s \(slow\)"):
        await fleet.publish(fleet.release(2), replicas_s=2.0)
    assert await fleet.board.proposal("main") is None


async def test_the_log_is_cut_behind_the_release_before_and_never_ahead_of_what_is_served() -> None:
    log = MemoryItemLog()
    for n in range(6):
        await log.append_item("main", ItemChange("put", f"i{n}", 1, "x"))
    old, new = Release({}, item_log_seq=2), Release({}, item_log_seq=5)
    await cut_log(log, new, Swap(2, old, 1, moved=True), tenant="main")
    assert [n for n, _ in await log.read_items("main", after=0)] == [3, 4, 5, 6]
    await cut_log(log, old, Swap(3, new, 1, moved=True), tenant="main")
    assert [n for n, _ in await log.read_items("main", after=0)] == [3, 4, 5, 6]
