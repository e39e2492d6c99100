"""What a catalogue says about repeats holds unless a request says otherwise."""

import numpy as np
import pytest

from cluster.config import load_settings
from models.features import features_from_events
from serve.context import RequestContext
from serve.deadline import Deadline
from serve.fakes import FakeFeatureFetcher, FakeQueryEncoder, FakeRanker, FakeRetriever
from serve.pipeline import RecommendationPipeline
from serve.runner import SilentRecorder
from serve.schemas import RecommendRequest


@pytest.mark.parametrize(
    ("env", "asked", "excluded"),
    [("local", None, True), ("shop", None, False), ("local", False, False), ("shop", True, True)],
)
async def test_a_shop_may_recommend_what_was_bought_before(tiny, env: str, asked: bool | None, excluded: bool) -> None:
    known = features_from_events(["i01"], np.full(1, 6, np.uint8), np.ones(1, np.float32), np.ones(1, np.int64))
    pipeline = RecommendationPipeline(
        fetcher=FakeFeatureFetcher({"u1": known}, {}),
        encoder=FakeQueryEncoder(),
        retriever=FakeRetriever(lambda tenant, release: tiny.bundle),
        ranker=FakeRanker(),
        bundle_of=lambda tenant, release: tiny.bundle,
        settings=load_settings(env, environ={}).serve.pipeline,
        recorder=SilentRecorder(),
    )
    ctx = RequestContext("req", "main", "r", Deadline.after_ms(5000), now_ms=1_700_000_000_000)
    slate = await pipeline.recommend(ctx, RecommendRequest(user_id="u1", k=100, exclude_seen=asked))
    assert slate.query.exclude_seen is excluded
    assert ("i01" in slate.item_ids) is not excluded
