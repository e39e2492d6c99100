"""A new release arrives at the ingress before every stage has loaded it: answers stay whole meanwhile."""

from dataclasses import replace

from serve.errors import ReleaseMissing


async def _publish_newer(edge):
    newer = replace(edge.tiny.release, item_log_seq=1)
    assert await edge.store.move_release("main", newer.to_json(), expected_epoch=1)
    await edge.releases.refresh()
    assert edge.releases.current("main") == newer.release_id
    return newer


async def test_while_a_stage_lacks_a_new_release_the_one_before_answers_in_full(edge) -> None:
    newer = await _publish_newer(edge)
    whole = edge.retriever._bundle_of

    def older_only(tenant, release_id):
        if release_id == newer.release_id:
            raise ReleaseMissing("not loaded yet")
        return whole(tenant, release_id)

    edge.retriever._bundle_of = older_only
    answer = (await edge.recommend({"user_id": "u1", "k": 3})).json()
    assert answer["release"] == edge.tiny.release.release_id
    assert answer["degraded"] is False and len(answer["items"]) == 3
    edge.retriever._bundle_of = whole
    assert (await edge.recommend({"user_id": "u1"})).json()["release"] == newer.release_id


async def test_a_stage_that_holds_no_release_at_all_costs_its_part_only(edge) -> None:
    await _publish_newer(edge)
    edge.retriever.trouble.error = ReleaseMissing("nothing here")
    response = await edge.recommend({"user_id": "u1", "k": 3})
    assert response.status_code == 200 and len(response.json()["items"]) == 3
    assert response.json()["degraded_reasons"] == ["retrieve_unavailable"]
