"""The writer: every slot gets one reason in time, from the model where it may, else from the template."""

import asyncio
from collections.abc import Iterator

import pytest

from models.explain.cache import ReasonCache
from models.explain.evidence import EMPTY, Evidence, Liked
from models.explain.explainer import Reason, ReasonWriter
from models.explain.generator import GeneratorBusy, GeneratorError, ReasonRequest, ScriptedGenerator
from models.explain.positives import Attribute
from models.explain.reason_cache import TieredReasons
from models.explain.template import template_reason

CRIME = Attribute("Crime", "genre")


def record(n: int = 0) -> Evidence:
    return Evidence(f"Heat {n}", (Liked("Fargo", "liked", ("shared",), (CRIME,), 0.6),), (CRIME,), 1995)


def honest(request: ReasonRequest) -> str:
    return f"Because you liked Fargo, you may enjoy the crime side of {request.evidence.item}."


async def written(writer: ReasonWriter, *records: Evidence, **options: object) -> list[Reason]:
    return [r async for r in writer.write(list(enumerate(records)), **options)]  # type: ignore[arg-type]


async def test_reasons_are_the_models_words_one_per_slot() -> None:
    reasons = await written(ReasonWriter(ScriptedGenerator(honest)), *(record(n) for n in range(5)))
    assert sorted(r.slot for r in reasons) == list(range(5))
    assert {r.source for r in reasons} == {"llm"}
    assert all(r.text == f"Because you liked Fargo, you may enjoy the crime side of Heat {r.slot}." for r in reasons)


async def test_the_first_items_are_the_most_urgent() -> None:
    generator = ScriptedGenerator(honest)
    await written(ReasonWriter(generator), *(record(n) for n in range(4)))
    assert [(r.evidence.item, r.priority) for r in generator.requests] == [(f"Heat {n}", n) for n in range(4)]


async def test_a_second_time_comes_from_the_cache_unless_tenant_language_or_evidence_differ() -> None:
    generator = ScriptedGenerator(honest)
    writer = ReasonWriter(generator)
    await written(writer, record())
    assert [r.source for r in await written(writer, record())] == ["cache"]
    assert [r.source for r in await written(writer, record(), tenant="other")] == ["llm"]
    assert [r.source for r in await written(writer, record(), language="zh")] == ["template"]
    assert [r.source for r in await written(writer, record(1))] == ["llm"]
    assert [r.source for r in await written(writer, record(), language="fr")] == ["cache"]


async def test_cached_reasons_expire() -> None:
    now = [0.0]
    cache = TieredReasons("scripted", local=ReasonCache(ttl_s=10, clock=lambda: now[0]))
    writer = ReasonWriter(ScriptedGenerator(honest), cache=cache)
    await written(writer, record())
    now[0] = 9.9
    assert [r.source for r in await written(writer, record())] == ["cache"]
    now[0] = 10.0
    assert [r.source for r in await written(writer, record())] == ["llm"]


async def test_the_cache_forgets_what_was_used_least() -> None:
    cache = ReasonCache(size=2)
    cache.put("a", "A")
    cache.put("b", "B")
    assert cache.get("a") == "A"
    cache.put("c", "C")
    assert (cache.get("a"), cache.get("b"), cache.get("c"), len(cache)) == ("A", None, "C", 2)


@pytest.mark.parametrize("options", [{"allow_llm": False}, {"deadline_s": 0.0}])
async def test_without_time_or_permission_the_model_is_not_asked(options: dict[str, object]) -> None:
    generator = ScriptedGenerator(honest)
    writer = ReasonWriter(generator)
    reasons = await written(writer, record(), **options)
    assert [(r.source, r.fallback) for r in reasons] == [("template", "no_llm")]
    assert generator.requests == []
    await written(writer, record())
    assert [r.source for r in await written(writer, record(), **options)] == ["cache"]


async def test_a_writer_without_a_generator_gives_templates() -> None:
    reasons = await written(ReasonWriter(None), record(), EMPTY)
    assert [r.text for r in reasons] == [template_reason(record()), template_reason(EMPTY)]


async def test_a_late_reason_is_a_template_and_its_slot_is_freed() -> None:
    generator = ScriptedGenerator(honest, gate=asyncio.Event())
    writer = ReasonWriter(generator)
    reasons = await written(writer, record(0), record(1), deadline_s=0.05)
    assert [(r.source, r.fallback) for r in reasons] == [("template", "deadline")] * 2
    await asyncio.sleep(0)
    assert (generator.cancelled, generator.running, writer.pending) == (2, 0, 0)


async def test_a_false_sentence_is_replaced_counted_and_not_cached() -> None:
    writer = ReasonWriter(ScriptedGenerator(lambda r: "Because you liked Alien, try this."))
    for _ in range(2):
        reasons = await written(writer, record())
        assert [(r.source, r.fallback, r.text) for r in reasons] == [("template", "checker", template_reason(record()))]
    assert writer.stats.refusals.total() == 2


@pytest.mark.parametrize(
    ("error", "fallback"),
    [(GeneratorError("dead"), "engine"), (GeneratorBusy("full"), "queue_full"), (ValueError("grammar"), "engine")],
)
async def test_a_failing_generator_gives_templates(error: Exception, fallback: str) -> None:
    def fail(request: ReasonRequest) -> str:
        raise error

    reasons = await written(ReasonWriter(ScriptedGenerator(fail)), record())
    assert [(r.source, r.fallback) for r in reasons] == [("template", fallback)]


async def test_beyond_the_bound_templates_come_at_once() -> None:
    gate = asyncio.Event()
    writer = ReasonWriter(ScriptedGenerator(honest, gate=gate), max_pending=3)
    stream = writer.write([(n, record(n)) for n in range(5)])
    early = [await anext(stream), await anext(stream)]
    assert [(r.slot, r.source, r.fallback) for r in early] == [
        (3, "template", "queue_full"),
        (4, "template", "queue_full"),
    ]
    gate.set()
    assert [(r.slot, r.source) async for r in stream] == [(0, "llm"), (1, "llm"), (2, "llm")]


async def test_equal_reasons_under_way_are_written_once() -> None:
    gate = asyncio.Event()
    generator = ScriptedGenerator(honest, gate=gate)
    writer = ReasonWriter(generator)
    both = [asyncio.create_task(written(writer, record())) for _ in range(2)]
    await asyncio.sleep(0.01)
    gate.set()
    assert [[r.source for r in reasons] for reasons in await asyncio.gather(*both)] == [["llm"], ["llm"]]
    assert len(generator.requests) == 1 and writer.stats.joined == 1


async def test_one_of_two_waiting_callers_may_leave_without_harm_to_the_other() -> None:
    gate = asyncio.Event()
    generator = ScriptedGenerator(honest, gate=gate)
    writer = ReasonWriter(generator)
    leaves = asyncio.create_task(written(writer, record()))
    stays = asyncio.create_task(written(writer, record()))
    await asyncio.sleep(0.01)
    leaves.cancel()
    await asyncio.gather(leaves, return_exceptions=True)
    await asyncio.sleep(0.01)
    assert generator.cancelled == 0
    gate.set()
    assert [r.source for r in await stays] == ["llm"]


async def test_closing_the_stream_cancels_what_is_under_way() -> None:
    order: Iterator[int] = iter(range(100))
    gate = asyncio.Event()
    generator = ScriptedGenerator(lambda r: honest(r) if next(order) >= 0 else "", gate=gate)
    writer = ReasonWriter(generator, max_pending=2)
    stream = writer.write([(n, record(n)) for n in range(3)])
    assert (await anext(stream)).fallback == "queue_full"
    await stream.aclose()
    await asyncio.sleep(0.01)
    assert (generator.cancelled, generator.running, writer.pending) == (2, 0, 0)


async def test_a_caller_cancelled_before_anything_ran_leaves_no_generation_behind() -> None:
    generator = ScriptedGenerator(honest, gate=asyncio.Event())
    writer = ReasonWriter(generator, max_pending=1)
    stream = writer.write([(0, record(0)), (1, record(1))])
    await anext(stream)  # the template of slot 1; the waiter of slot 0 has not had its first step
    await stream.aclose()
    await asyncio.sleep(0.01)
    assert (generator.running, writer.pending) == (0, 0)


async def test_an_empty_list_ends_at_once() -> None:
    assert await written(ReasonWriter(ScriptedGenerator(honest))) == []


async def test_the_scripted_generator_is_a_generator() -> None:
    generator = ScriptedGenerator(honest)
    assert not await generator.healthy()
    await generator.start()
    assert await generator.healthy() and generator.model == "scripted"
    await generator.close()
    assert not await generator.healthy()
