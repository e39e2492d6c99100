"""Many members, few calls: no timer, bounded, and nobody pays for a neighbour."""

import asyncio
import time

import pytest

from serve.batching import MAX_CALL_BYTES, MAX_MEMBERS, Coalescer
from serve.clients import LiveReplicas
from serve.errors import ContractViolation, DeadlineExceeded, DependencyError, InvalidRequest, OverloadError

LONG_MS = 10_000.0


class Callee:
    """Records the batches it gets and answers when told to."""

    def __init__(self, *, opened: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.remaining: list[list[float]] = []
        self.gate = asyncio.Event()
        if opened:
            self.gate.set()

    async def __call__(self, members):
        self.batches.append([m for m, _ in members])
        self.remaining.append([ms for _, ms in members])
        await self.gate.wait()
        return [m * 10 for m, _ in members]


def coalescer(send, *, replicas: int = 1, **options) -> Coalescer[int, int]:
    return Coalescer(send, replicas=lambda: replicas, **options)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_two_calls_per_replica_go_out_at_once_and_the_rest_join_the_next() -> None:
    callee = Callee()
    many = coalescer(callee)
    calls = [asyncio.create_task(many.call(n, LONG_MS)) for n in range(10)]
    await settle()
    assert callee.batches == [[0], [1]]
    callee.gate.set()
    assert await asyncio.gather(*calls) == [n * 10 for n in range(10)]
    assert callee.batches == [[0], [1], list(range(2, 10))]


async def test_more_replicas_take_more_calls_at_once() -> None:
    callee = Callee()
    many = coalescer(callee, replicas=3)
    calls = [asyncio.create_task(many.call(n, LONG_MS)) for n in range(10)]
    await settle()
    assert callee.batches == [[n] for n in range(6)]
    callee.gate.set()
    await asyncio.gather(*calls)


async def test_a_call_closes_at_sixty_four_members() -> None:
    callee = Callee()
    many = coalescer(callee)
    calls = [asyncio.create_task(many.call(n, LONG_MS)) for n in range(2 + MAX_MEMBERS + 10)]
    await settle()
    callee.gate.set()
    await asyncio.gather(*calls)
    assert sorted(len(b) for b in callee.batches) == [1, 1, 10, MAX_MEMBERS]


async def test_a_call_closes_at_one_mebibyte_and_a_larger_member_travels_alone() -> None:
    callee = Callee()
    sizes = {2: MAX_CALL_BYTES - 10, 3: 9, 4: 2, 5: 3 * MAX_CALL_BYTES, 6: 1}
    many = coalescer(callee, size_of=lambda m: sizes.get(m, 0))
    calls = [asyncio.create_task(many.call(n, LONG_MS)) for n in range(7)]
    await settle()
    callee.gate.set()
    assert await asyncio.gather(*calls) == [n * 10 for n in range(7)]
    assert callee.batches[2:] == [[2, 3], [4], [5], [6]]


async def test_members_that_expired_or_whose_caller_left_are_never_sent() -> None:
    callee = Callee()
    many = coalescer(callee)
    busy = [asyncio.create_task(many.call(n, LONG_MS)) for n in range(2)]
    expired = asyncio.create_task(many.call(2, 1.0))
    abandoned = asyncio.create_task(many.call(3, LONG_MS))
    alive = asyncio.create_task(many.call(4, LONG_MS))
    await asyncio.sleep(0.02)
    abandoned.cancel()
    await settle()
    callee.gate.set()
    assert await alive == 40
    with pytest.raises(DeadlineExceeded):
        await expired
    with pytest.raises(asyncio.CancelledError):
        await abandoned
    await asyncio.gather(*busy)
    assert callee.batches == [[0], [1], [4]]


async def test_a_member_that_waits_gets_less_time_than_it_came_with() -> None:
    callee = Callee()
    many = coalescer(callee)
    calls = [asyncio.create_task(many.call(n, 1000.0)) for n in range(3)]
    await asyncio.sleep(0.03)
    callee.gate.set()
    await asyncio.gather(*calls)
    assert callee.remaining[2][0] <= 971


async def test_one_bad_member_does_not_fail_the_others() -> None:
    async def send(members):
        return [InvalidRequest("bad") if m == 1 else m for m, _ in members]

    many = coalescer(send)
    results = await asyncio.gather(*(many.call(n, LONG_MS) for n in range(4)), return_exceptions=True)
    assert [r for r in results if not isinstance(r, Exception)] == [0, 2, 3]
    assert isinstance(results[1], InvalidRequest)


async def test_a_failed_call_fails_its_members_only_and_frees_its_slot() -> None:
    async def send(members):
        if members[0][0] == 0:
            raise DependencyError("replica gone")
        return [m for m, _ in members]

    many = coalescer(send)
    results = await asyncio.gather(*(many.call(n, LONG_MS) for n in range(5)), return_exceptions=True)
    assert isinstance(results[0], DependencyError) and results[1:] == [1, 2, 3, 4]


async def test_a_wrong_number_of_results_is_a_contract_violation() -> None:
    async def send(members):
        return []

    with pytest.raises(ContractViolation):
        await coalescer(send).call(1, LONG_MS)


async def test_too_many_waiting_is_refused_at_once() -> None:
    callee = Callee()
    many = coalescer(callee, max_waiting=3)
    calls = [asyncio.create_task(many.call(n, LONG_MS)) for n in range(5)]
    await settle()
    with pytest.raises(OverloadError):
        await many.call(99, LONG_MS)
    callee.gate.set()
    assert len(await asyncio.gather(*calls)) == 5


async def test_callers_who_left_do_not_fill_the_waiting_list() -> None:
    callee = Callee()
    many = coalescer(callee, max_waiting=3)
    busy = [asyncio.create_task(many.call(n, LONG_MS)) for n in range(2)]
    gone = [asyncio.create_task(many.call(n, LONG_MS)) for n in range(2, 5)]
    await settle()
    for task in gone:
        task.cancel()
    await settle()
    late = asyncio.create_task(many.call(9, LONG_MS))
    await settle()
    callee.gate.set()
    assert await late == 90
    await asyncio.gather(*busy)


async def test_the_sender_ends_a_call_whose_callee_never_answers_and_uses_the_slot_again() -> None:
    hanging = [True, True]
    cancelled = []

    async def send(members):
        if hanging:
            hanging.pop()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append([m for m, _ in members])
                raise
        return [m for m, _ in members]

    many = coalescer(send)
    stuck = [asyncio.create_task(many.call(n, 30.0)) for n in range(2)]
    waiting = asyncio.create_task(many.call(2, LONG_MS))
    started = time.monotonic()
    results = await asyncio.gather(*stuck, return_exceptions=True)
    assert all(isinstance(r, DeadlineExceeded) for r in results)
    assert await waiting == 2
    # Both deadlines may pass within one turn of the loop, in either order.
    assert time.monotonic() - started < 2 and sorted(cancelled) == [[0], [1]]


async def test_a_member_with_little_time_does_not_wait_for_neighbours_with_more() -> None:
    callee = Callee()
    many = coalescer(callee)
    busy = [asyncio.create_task(many.call(n, LONG_MS)) for n in range(2)]
    short, long = asyncio.create_task(many.call(2, 40.0)), asyncio.create_task(many.call(3, LONG_MS))
    await settle()
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await short
    assert time.monotonic() - started < 2
    callee.gate.set()
    assert await long == 30
    await asyncio.gather(*busy)


async def test_a_caller_that_is_cancelled_leaves_its_neighbours_alone() -> None:
    gates = {1: asyncio.Event(), 2: asyncio.Event()}
    sent = []

    async def send(members):
        sent.append([m for m, _ in members])
        await gates[len(members)].wait()
        return [m * 10 for m, _ in members]

    many = coalescer(send)
    busy = [asyncio.create_task(many.call(n, LONG_MS)) for n in range(2)]
    first, second = (asyncio.create_task(many.call(n, LONG_MS)) for n in (2, 3))
    await settle()
    gates[1].set()
    await asyncio.gather(*busy)
    await settle()
    assert sent[-1] == [2, 3]
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gates[2].set()
    assert await second == 30


async def test_a_callee_that_cancels_the_call_leaves_nobody_waiting() -> None:
    first = [True]

    async def send(members):
        if first:
            first.pop()
            raise asyncio.CancelledError
        return [m for m, _ in members]

    many = coalescer(send)
    calls = [asyncio.create_task(many.call(n, LONG_MS)) for n in range(4)]
    results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 2)
    assert isinstance(results[0], DependencyError) and results[1:] == [1, 2, 3]


class _FakeTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of sleeping."""

    def __init__(self) -> None:
        super().__init__()
        self._fake_s = 0.0
        self._poll = self._selector.select
        self._selector.select = self._jump

    def time(self) -> float:
        return self._fake_s

    def _jump(self, timeout: float | None = None):
        assert timeout is not None, "everybody waits and no timer is set"
        self._fake_s += timeout
        return self._poll(0)


async def _members_per_second(replicas: int, members: int) -> float:
    """Throughput of a stage of `replicas`, each of which sleeps 5 ms per member, one member at a time."""
    loop = asyncio.get_running_loop()
    turns = [asyncio.Lock() for _ in range(replicas)]
    calls = 0

    async def send(batch):
        nonlocal calls
        turn = turns[calls % replicas]
        calls += 1
        async with turn:
            await asyncio.sleep(0.005 * len(batch))
        return [m for m, _ in batch]

    many = coalescer(send, replicas=replicas)

    async def caller(count: int) -> None:
        for n in range(count):
            await many.call(n, LONG_MS)

    started = loop.time()
    await asyncio.gather(*(caller(members // 64) for _ in range(64)))
    return members / (loop.time() - started)


def test_four_replicas_of_a_sleeping_stage_give_three_and_a_half_times_the_throughput_of_one() -> None:
    def measured(replicas: int) -> float:
        with asyncio.Runner(loop_factory=_FakeTimeLoop) as runner:
            return runner.run(_members_per_second(replicas, 1024))

    one, two, four = measured(1), measured(2), measured(4)
    assert one == pytest.approx(200, rel=0.01)
    assert two / one >= 1.85 and four / one >= 3.5


def test_replicas_are_counted_by_who_answered_lately(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("serve.clients.time.monotonic", lambda: now[0])
    live = LiveReplicas(2)
    assert live() == 2
    for name in ("a", "b", "c"):
        live.saw(name)
    assert live() == 3
    now[0] += 11
    live.saw("a")
    assert live() == 2


async def test_a_member_without_time_is_not_sent_even_when_a_slot_is_free() -> None:
    callee = Callee(opened=True)
    with pytest.raises(DeadlineExceeded, match="before it was sent"):
        await coalescer(callee).call(1, 0.0)
    assert callee.batches == []
