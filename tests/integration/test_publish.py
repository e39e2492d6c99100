"""Publishing over a real store: canary, swap, rollback, the cut log, collection, a publisher killed with kill -9."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace

import pytest
from threadpoolctl import threadpool_info

from cluster import prepare, releases, stack
from cluster.errors import OperatorError
from cluster.prepare import keep_release
from cluster.publish import current, folded, publish, rollback, waiting_changes
from cluster.workspace import Workspace
from models.items.change import ItemChange

pytestmark = pytest.mark.timeout(120)


def test_a_release_takes_the_log_in_and_the_log_is_cut_one_release_later(place) -> None:
    first = place.build().release
    keep_release(place.settings, first)
    place.put("new")
    place.change(ItemChange("remove", "i03", 1_700_000_000_000))
    assert waiting_changes(place.settings, now_ms=1_700_000_060_000) == (2, 60.0)
    second = place.build().release
    keep_release(place.settings, second)
    assert second.item_log_seq == 2 and second.notes["items"] == 40
    assert place.numbers() == [1, 2], "the release before may be served again"
    place.put("newer")
    third = place.build().release
    keep_release(place.settings, third)
    assert third.notes["items"] == 41 and place.numbers() == [3]
    assert waiting_changes(place.settings, now_ms=0)[0] == 0


def test_without_a_store_what_was_folded_before_stays(place) -> None:
    place.put("new")
    keep_release(place.settings, place.build().release)
    assert set(folded(place.settings, place.dataset, reachable=False).items) == {"new"}


def test_a_rollback_serves_the_release_before_and_a_second_one_comes_back(place) -> None:
    first = place.build().release
    keep_release(place.settings, first)
    place.put("new")
    second = place.build().release
    with place.replica():
        time.sleep(0.3)
        keep_release(place.settings, second)
        release, swap = rollback(place.settings)
        assert release.release_id == first.release_id and swap.replicas == 1
        assert Workspace(place.settings).newest_release() == first, "`up` would bring back what was taken back"
        assert rollback(place.settings)[0].release_id == second.release_id
    with pytest.raises(OperatorError, match="there is no release r-nothing"):
        rollback(place.settings, to="r-nothing")


def test_a_rollback_beyond_the_cut_log_is_refused(place) -> None:
    first = place.build().release
    keep_release(place.settings, first)
    for name in ("a", "b", "c"):
        place.put(name)
        keep_release(place.settings, place.build().release)
    with pytest.raises(OperatorError, match="no longer holds the changes"):
        rollback(place.settings, to=first.release_id)


def test_a_release_that_fails_the_canary_is_not_published_and_not_kept(place) -> None:
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
    place.put("new")
    with pytest.raises(OperatorError, match="made by the encoder hash"):
        keep_release(strange, place.build().release)
    serving, _ = current(place.settings)
    latest = Workspace(place.settings).releases().latest()
    assert serving is not None and latest is not None
    assert serving.release_id == latest.release_id == first.release_id


def test_the_canary_has_less_priority_and_one_thread_and_the_command_does_not(place, monkeypatch) -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info()]

    seen, own, before = [], niceness(), threads()
    monkeypatch.setattr("cluster.publish.canary", lambda *_, **__: seen.append((niceness(), set(threads()))))
    keep_release(place.settings, place.build().release)
    assert seen == [(10, {1})]
    assert niceness() == own and threads()[: len(before)] == before


def test_collection_keeps_what_is_served_held_or_went_before(place, monkeypatch) -> None:
    made = []
    for name in ("a", "b", "c", "d"):
        place.put(name)
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


def test_verification_names_the_damaged_file(place) -> None:
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
    place,
) -> None:
    first = place.build().release
    keep_release(place.settings, first)
    second = replace(first, item_log_seq=first.item_log_seq + 1)
    Workspace(place.settings).releases().save(second)
    with place.replica(willing=False) as replica:
        time.sleep(0.3)
        process = place.start(PUBLISHER, second.release_id)
        assert replica.asked.wait(60)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
        serving, _ = current(place.settings)
        assert serving is not None and serving.release_id == first.release_id
        with pytest.raises(OperatorError, match=f"{second.release_id} is being published right now"):
            publish(place.settings, replace(first, item_log_seq=first.item_log_seq + 2))
        replica.willing = True
        assert publish(place.settings, second).moved
    serving, _ = current(place.settings)
    assert serving is not None and serving.release_id == second.release_id


def test_with_an_external_store_a_release_is_published_though_no_cluster_runs_here(place, monkeypatch) -> None:
    monkeypatch.setattr(prepare, "online", stack.online)
    assert not stack.online(place.settings)
    cluster = place.settings.cluster
    external = cluster.model_copy(update={"store": cluster.store.model_copy(update={"mode": "external"})})
    place.settings = place.settings.model_copy(update={"cluster": external})
    place.put("new")
    release = place.build().release
    keep_release(place.settings, release)
    serving, _ = current(place.settings)
    assert serving is not None and serving.release_id == release.release_id and release.item_log_seq == 1
