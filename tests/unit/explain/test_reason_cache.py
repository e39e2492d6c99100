"""Reasons written before: found by everything that shaped them, believed only when the record still backs them."""

from dataclasses import replace

import pytest

from models.explain.cache import ReasonCache
from models.explain.evidence import Evidence, Liked, evidence_hash
from models.explain.explainer import ReasonWriter
from models.explain.generator import ReasonRequest, ScriptedGenerator
from models.explain.positives import Attribute
from models.explain.reason_cache import TieredReasons
from models.store.cache_store import MemoryCache
from models.store.port import StoreUnavailable

CRIME = Attribute("Crime", "genre")
HEAT = Evidence("Heat", (Liked("Fargo", "liked", ("shared",), (CRIME,), 0.6),), (CRIME,), 1995, item_version="v1")
TEXT = "Because you liked Fargo, you may enjoy the crime side of Heat."


async def looked_up(cache: TieredReasons, evidence: Evidence = HEAT, language: str = "en", tenant: str = "main"):
    return (await cache.find([evidence], language=language, tenant=tenant)).texts[0]


async def shared_with_heat() -> MemoryCache:
    shared = MemoryCache()
    writer = TieredReasons("m", shared=shared)
    writer.keep(HEAT, "en", "main", TEXT)
    await writer.flush()
    return shared


async def test_what_one_process_wrote_another_one_finds() -> None:
    shared = await shared_with_heat()
    other = TieredReasons("m", shared=shared)
    assert await looked_up(other) == TEXT and other.counts["shared"] == 1
    shared.error = StoreUnavailable("gone")
    assert await looked_up(other) == TEXT and other.counts["local"] == 1


@pytest.mark.parametrize(
    ("cache_model", "evidence", "language", "tenant"),
    [
        ("other model", HEAT, "en", "main"),
        ("m", replace(HEAT, item_version="v2"), "en", "main"),
        ("m", replace(HEAT, year=1996), "en", "main"),
        ("m", HEAT, "zh", "main"),
        ("m", HEAT, "en", "shop"),
    ],
)
async def test_nothing_is_found_when_any_part_of_the_key_differs(cache_model, evidence, language, tenant) -> None:
    other = TieredReasons(cache_model, shared=await shared_with_heat())
    assert await looked_up(other, evidence, language, tenant) is None
    assert other.counts["miss"] == 1


def test_a_new_description_misses_the_cache_and_changes_no_sentence() -> None:
    again = replace(HEAT, item_version="v2")
    assert evidence_hash(again) == evidence_hash(HEAT)
    keys = {TieredReasons("m").key(e, "en", "main").name() for e in (HEAT, again)}
    assert len(keys) == 2 and all(k.startswith("reason:main:") and "Heat" not in k for k in keys)


@pytest.mark.parametrize(
    "value",
    [
        b"1:Because you liked Alien, you may enjoy the crime side of Heat.",
        b"1:Visit http://evil.example",
        b"1:",
        b"2:" + TEXT.encode(),
        TEXT.encode(),
        b"1:\xff\xfe",
    ],
)
async def test_a_stored_sentence_that_the_record_does_not_back_is_not_believed(value: bytes) -> None:
    shared = MemoryCache()
    cache = TieredReasons("m", shared=shared)
    await shared.put(cache.key(HEAT, "en", "main").name(), value, ttl_s=60)
    assert await looked_up(cache) is None
    assert cache.counts["refused"] == 1


async def test_a_store_that_is_away_costs_nothing_but_the_sharing() -> None:
    shared = MemoryCache()
    shared.error = StoreUnavailable("gone")
    told: list[tuple[str, int]] = []
    cache = TieredReasons("m", shared=shared, observe=lambda outcome, count: told.append((outcome, count)))
    found = await cache.find([HEAT], language="en", tenant="main")
    assert (found.texts, found.complete) == ((None,), False)
    cache.keep(HEAT, "en", "main", TEXT)
    await cache.flush()
    assert await looked_up(cache) == TEXT
    assert told == [("unavailable", 1), ("not_shared", 1), ("local", 1)]


async def test_shared_reasons_expire_too() -> None:
    now = [0.0]
    shared = MemoryCache(clock=lambda: now[0])
    writer = TieredReasons("m", shared=shared, ttl_s=10)
    writer.keep(HEAT, "en", "main", TEXT)
    await writer.flush()
    now[0] = 9.0
    assert await looked_up(TieredReasons("m", local=ReasonCache(size=0), shared=shared)) == TEXT
    now[0] = 10.0
    assert await looked_up(TieredReasons("m", shared=shared)) is None


async def test_a_writer_finds_in_the_shared_store_what_another_replica_wrote() -> None:
    def write(request: ReasonRequest) -> str:
        return TEXT

    shared = MemoryCache()
    first, second = ScriptedGenerator(write, model="m"), ScriptedGenerator(write, model="m")
    for generator in (first, second):
        cache = TieredReasons("m", shared=shared)
        reasons = [r async for r in ReasonWriter(generator, cache=cache).write([(7, HEAT)])]
        await cache.flush()
        assert [(r.slot, r.text) for r in reasons] == [(7, TEXT)]
    assert (len(first.requests), len(second.requests)) == (1, 0)


async def test_one_list_is_one_round_trip() -> None:
    shared = MemoryCache()
    records = [replace(HEAT, item=f"Heat {n}") for n in range(10)]
    await TieredReasons("m", shared=shared).find(records, language="en", tenant="main")
    assert shared.calls == 1
