"""Replicas follow the release pointer, keep two releases, and never stop serving because of a bad new one."""

import asyncio
from dataclasses import replace

import pytest

from models.artifacts import ArtifactError, ArtifactStore
from models.retrieval.settings import RetrievalSettings
from models.store.memory import MemoryStore
from models.store.port import StoreUnavailable
from serve.errors import DependencyError, ReleaseMissing
from serve.releases import KEPT, ReleaseHolder


class Cluster:
    """A store with a release pointer, and one replica that follows it."""

    def __init__(self, tiny) -> None:
        self.tiny = tiny
        self.store = MemoryStore()
        self.warmed: list[str] = []
        self.artifacts: ArtifactStore | None = tiny.artifacts
        self.holder = ReleaseHolder(
            self.store,
            self._open,
            tenants=("main",),
            settings=RetrievalSettings(),
            warm=lambda bundle: self.warmed.append(bundle.release_id),
        )

    def _open(self, tenant: str) -> ArtifactStore:
        if self.artifacts is None:
            raise ConnectionError("the bucket is away")
        return self.artifacts

    def release(self, number: int):
        return replace(self.tiny.release, item_log_seq=number)

    async def publish(self, text: str) -> None:
        _, epoch = await self.store.read_release("main")
        assert await self.store.move_release("main", text, expected_epoch=epoch)


@pytest.fixture
def cluster(tiny) -> Cluster:
    return Cluster(tiny)


async def test_before_the_first_release_nothing_is_served(cluster: Cluster) -> None:
    assert not await cluster.holder.refresh()
    with pytest.raises(ReleaseMissing):
        cluster.holder.current("main")
    with pytest.raises(DependencyError, match="raycommend build"):
        await cluster.holder.start(poll_s=0.01, wait_s=0.05)


async def test_a_release_is_warmed_before_it_is_served_and_loaded_once(cluster: Cluster) -> None:
    await cluster.publish(cluster.release(0).to_json())
    assert await cluster.holder.refresh() and await cluster.holder.refresh()
    current = cluster.holder.current("main")
    assert cluster.warmed == [current] == [cluster.release(0).release_id]
    assert len(cluster.holder.bundle("main", current).catalog) == 40


async def test_a_replica_holds_the_release_before_and_forgets_the_one_before_that(cluster: Cluster) -> None:
    for number in range(KEPT + 1):
        await cluster.publish(cluster.release(number).to_json())
        await cluster.holder.refresh()
    assert cluster.holder.current("main") == cluster.release(KEPT).release_id
    assert cluster.holder.bundle("main", cluster.release(KEPT - 1).release_id)
    with pytest.raises(ReleaseMissing):
        cluster.holder.bundle("main", cluster.release(0).release_id)
    with pytest.raises(ReleaseMissing):
        cluster.holder.bundle("other", cluster.release(KEPT).release_id)


def _broken(tiny, tmp_path, kind: str) -> str:
    release = replace(tiny.release, item_log_seq=99)
    if kind == "no document":
        return "{"
    if kind == "an unknown artifact":
        return replace(release, artifacts={**release.artifacts, "index": "index/" + "0" * 64}).to_json()
    (tmp_path / "catalog.arrow").write_bytes(b"not arrow")
    ref = tiny.artifacts.put("catalog", tmp_path, {})
    return replace(release, artifacts={**release.artifacts, "catalog": ref}).to_json()


@pytest.mark.parametrize("kind", ["no document", "an unknown artifact", "a catalog that is none"])
async def test_a_release_that_cannot_be_loaded_is_refused_once_and_the_next_good_one_is_served(
    cluster: Cluster, tiny, tmp_path, kind: str, caplog
) -> None:
    await cluster.publish(cluster.release(0).to_json())
    await cluster.holder.start(poll_s=0.01, wait_s=5)
    await cluster.publish(_broken(tiny, tmp_path, kind))
    await asyncio.sleep(0.1)
    assert cluster.holder.current("main") == cluster.release(0).release_id
    assert caplog.text.count("refused") == 1
    await cluster.publish(cluster.release(1).to_json())
    await _until(lambda: cluster.holder.current("main") == cluster.release(1).release_id)
    await cluster.holder.stop()


async def test_what_a_warm_up_raises_refuses_the_release(cluster: Cluster) -> None:
    await cluster.publish(cluster.release(0).to_json())
    await cluster.holder.refresh()

    def explode(bundle) -> None:
        raise RuntimeError("native code said no")

    cluster.holder._warm = explode
    await cluster.publish(cluster.release(1).to_json())
    assert await cluster.holder.refresh()
    assert cluster.holder.current("main") == cluster.release(0).release_id


async def test_storage_that_is_away_for_a_while_is_tried_again(cluster: Cluster) -> None:
    await cluster.publish(cluster.release(0).to_json())
    await cluster.holder.refresh()
    cluster.artifacts = None
    await cluster.publish(cluster.release(1).to_json())
    await cluster.holder.refresh()
    assert cluster.holder.current("main") == cluster.release(0).release_id
    cluster.artifacts = cluster.tiny.artifacts
    await cluster.holder.refresh()
    assert cluster.holder.current("main") == cluster.release(1).release_id


async def test_a_first_release_that_is_damaged_fails_the_start_with_its_reason(
    cluster: Cluster, tiny, tmp_path
) -> None:
    await cluster.publish(_broken(tiny, tmp_path, "an unknown artifact"))
    with pytest.raises(ArtifactError, match="index/"):
        await cluster.holder.start(poll_s=0.01, wait_s=5)


@pytest.mark.parametrize("error", [StoreUnavailable("away"), RuntimeError("nobody foresaw this")])
async def test_a_store_that_is_away_leaves_the_loaded_release_in_service(
    cluster: Cluster, monkeypatch, error: Exception
) -> None:
    await cluster.publish(cluster.release(0).to_json())
    await cluster.holder.start(poll_s=0.01, wait_s=5)
    away = [True]
    read = cluster.store.read_release

    async def flaky(tenant: str):
        if away:
            raise error
        return await read(tenant)

    monkeypatch.setattr(cluster.store, "read_release", flaky)
    await asyncio.sleep(0.05)
    assert cluster.holder.current("main") == cluster.release(0).release_id
    away.clear()
    await cluster.publish(cluster.release(1).to_json())
    await _until(lambda: cluster.holder.current("main") == cluster.release(1).release_id)
    await cluster.holder.stop()


async def test_a_replica_that_starts_while_the_store_is_away_asks_again(cluster: Cluster, monkeypatch) -> None:
    await cluster.publish(cluster.release(0).to_json())
    tries, read = [], cluster.store.read_release

    async def back_after_a_while(tenant: str):
        tries.append(tenant)
        if len(tries) < 3:
            raise StoreUnavailable("away")
        return await read(tenant)

    monkeypatch.setattr(cluster.store, "read_release", back_after_a_while)
    await cluster.holder.start(poll_s=0.01, wait_s=5)
    assert cluster.holder.current("main") == cluster.release(0).release_id
    await cluster.holder.stop()


async def test_a_store_that_stays_away_is_the_reason_a_replica_does_not_start(cluster: Cluster, monkeypatch) -> None:
    async def away(tenant: str):
        raise StoreUnavailable("away")

    monkeypatch.setattr(cluster.store, "read_release", away)
    with pytest.raises(DependencyError, match="could not be read: away"):
        await cluster.holder.start(poll_s=0.01, wait_s=0.05)


async def _until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
