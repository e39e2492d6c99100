"""Warming: the worker writes what the live path will look up, on a real cache server."""

import pytest

from models.explain.evidence import EMPTY, Evidence, Liked
from models.explain.evidence_json import evidence_from_json, evidence_to_json
from models.explain.generator import ReasonRequest, ScriptedGenerator
from models.explain.positives import Attribute
from models.explain.reason_cache import TieredReasons
from models.settings import GeneratorSettings
from models.store.cache_store import RedisCache
from pipelines.warm import WarmOptions, WarmReasons

CRIME = Attribute("Crime", "genre")
RECORD = Evidence(
    'Heat "1995" \\ ::= \n',
    (Liked("Fargo", "liked", ("shared", "meaning"), (CRIME,), 0.6),),
    (CRIME,),
    1995,
    "semantic",
    ("popular",),
    "v1",
)


def scripted(folder: str, settings: GeneratorSettings) -> ScriptedGenerator:
    def write(request: ReasonRequest) -> str:
        return "Something else to explore." if request.evidence == EMPTY else "Heat at http://evil.example"

    return ScriptedGenerator(write, model=folder)


def test_a_record_comes_back_whole_from_json() -> None:
    for evidence in (RECORD, EMPTY):
        assert evidence_from_json(evidence_to_json(evidence)) == evidence
    for text in ("", "[]", "{}", '{"liked": 1}', '{"liked": [], "attributes": [], "claims": [], "stranger": 1}'):
        with pytest.raises(ValueError):
            evidence_from_json(text)


async def test_what_was_warmed_is_found_by_the_live_path_and_false_sentences_are_not_kept(
    start_server, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    server = start_server(role="cache")
    monkeypatch.setenv("TEST_CACHE_URL", server.url)
    options = WarmOptions("m", GeneratorSettings(), "TEST_CACHE_URL", 60.0, make_generator=scripted)

    def twice() -> list[dict[str, list[str]]]:
        worker = WarmReasons(options)
        batch = {"evidence": [evidence_to_json(EMPTY), evidence_to_json(RECORD)]}
        try:
            return [worker(batch), worker(batch)]
        finally:
            worker.close()

    assert await asyncio.to_thread(twice) == [{"source": ["llm", "template"]}, {"source": ["cache", "template"]}]
    store = RedisCache(server.url, timeout_s=2.0)
    found = await TieredReasons("m", shared=store).find([EMPTY, RECORD], language="en", tenant="main")
    assert found.texts == ("Something else to explore.", None) and found.complete
    await store.close()
