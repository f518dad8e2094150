"""The scheduler's own decisions, turn by turn, without any worker: what it orders for what it is told."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace

import pytest

from cluster.centre.scheduler import Scheduler
from cluster.hashing import BlockHasher
from cluster.messages import (
    Accepted,
    Advances,
    Cancel,
    Closed,
    Done,
    Event,
    Order,
    Pin,
    Plan,
    Reason,
    Refused,
    Replay,
    ReplicaJoined,
    ReplicaLost,
    Result,
    Seal,
    Sealed,
    Start,
    Stopped,
    Submit,
    Transfer,
    ids,
)
from cluster.sampling import SamplingParams
from cluster.settings import SchedulerSettings

SIZE = 16
HASHER = BlockHasher(b"key", b"", b"", SIZE)


def joined(name: str = "r0", num_blocks: int = 64, max_batch: int = 8) -> ReplicaJoined:
    return ReplicaJoined(name, 1, "node", "m", num_blocks, SIZE, 4096, "f", max_batch, 2048)


def submit(
    name: str, prompt: Sequence[int], max_tokens: int, tenant: str = "t", n: int = 1, priority: int = 0
) -> Submit:
    tokens = ids(prompt)
    sampling = SamplingParams(n=n, temperature=0.0, max_tokens=max_tokens)
    return Submit(name, "g", hash(name) & 0xFFFF, "m", tenant, tokens, HASHER.prompt(tokens), sampling, priority)


def starts(orders: Sequence[Order]) -> dict[str, Start]:
    return {start.request_id: start for order in orders if isinstance(order, Plan) for start in order.starts}


def transfers_of(orders: Sequence[Order]) -> list[Transfer]:
    return [transfer for order in orders if isinstance(order, Plan) for transfer in order.transfers]


def names_of(start: Start, blocks: range) -> bytes:
    """Names of generated blocks as a worker would give them: no two sequences have the same."""
    return b"".join(start.request_id.encode().ljust(8, b".") + block.to_bytes(8, "little") for block in blocks)


class Driver:
    """A scheduler, its time, and one replica that is told what to say."""

    def __init__(self, settings: SchedulerSettings | None = None, **replica: int) -> None:
        self.scheduler = Scheduler(settings or SchedulerSettings())
        self.now = 0.0
        self.number = 0
        self.plan = 0
        self.turn(joined(**replica))  # type: ignore[arg-type]

    def turn(self, *events: Event) -> list[Order]:
        self.now += 0.01
        orders = self.scheduler.turn(events, self.now)
        for order in orders:
            if isinstance(order, Plan):
                self.plan = order.number
        self.scheduler.check()
        return orders

    def result(
        self, advances: Sequence[tuple[Start, int, int]] = (), stopped: Sequence[tuple[Start, Reason, int, int]] = ()
    ) -> list[Order]:
        """(start, position, tokens that became known) and (start, reason, position, tokens that became known)."""
        columns = Advances()
        hashes = b""
        for start, position, num_ids in advances:
            first = start.num_prompt // SIZE
            filled = max(0, position // SIZE - first)
            columns.seqs.append(start.seq)
            columns.positions.append(position)
            columns.num_ids.append(num_ids)
            columns.ids.extend(array("i", [7] * num_ids))
            columns.num_hashes.append(filled)
            hashes += names_of(start, range(first, position // SIZE))
        ended = tuple(
            Stopped(start.seq, reason, position, array("i", [7] * num_ids), names_of(start, range(position // SIZE)))
            for start, reason, position, num_ids in stopped
        )
        self.number += 1
        advanced = Advances(columns.seqs, columns.positions, columns.num_ids, columns.ids, columns.num_hashes, hashes)
        return self.turn(Result("r0", 1, 1, self.number, self.plan, self.number, advanced, ended))


def test_what_can_never_fit_is_refused_at_once_with_the_figures() -> None:
    driver = Driver(num_blocks=8)
    (refused,) = driver.turn(submit("big", range(100), 100))
    assert isinstance(refused, Refused) and refused.code == "INVALID_ARGUMENT"
    assert "needs 13 blocks of 16 tokens" in refused.detail and "the largest pool has 8" in refused.detail
    # One token less than the pool holds: the last sampled token is never written.
    assert "fits" in starts(driver.turn(submit("fits", range(100), 29)))


def test_an_unknown_model_is_refused_by_name() -> None:
    driver = Driver()
    request = submit("q", range(4), 4)
    (refused,) = driver.turn(Submit(request.request_id, "g", 1, "other", "t", request.prompt, (), request.sampling))
    assert isinstance(refused, Refused) and refused.code == "NOT_FOUND" and "there is m" in refused.detail


def test_a_full_queue_refuses_with_a_time_to_try_again() -> None:
    driver = Driver(SchedulerSettings(max_queue=2), max_batch=1)
    driver.turn(submit("runs", range(4), 4))
    orders = driver.turn(*(submit(f"q{number}", range(4), 4) for number in range(3)))
    assert [type(order) for order in orders] == [Accepted, Accepted, Refused]
    refused = orders[-1]
    assert isinstance(refused, Refused) and refused.code == "RESOURCE_EXHAUSTED" and refused.retry_after_s > 0


def test_who_waits_for_a_prefix_takes_a_place_of_the_queue() -> None:
    driver = Driver(SchedulerSettings(max_queue=2))
    owner = starts(driver.turn(submit("owner", range(40), 4)))["owner"]
    for name in ("waits", "waits too"):
        driver.turn(submit(name, range(41), 4))
    (refused,) = driver.turn(submit("late", range(41), 4))
    assert isinstance(refused, Refused) and "2 requests wait" in refused.detail
    driver.turn(Cancel("waits"))
    driver.turn(submit("late", range(41), 4))
    assert starts(driver.result([(owner, 32, 0)])).keys() == {"waits too", "late"}
    assert driver.scheduler.waiting.num_waiting("m") == 0


def test_who_waits_is_told_its_place_and_the_reason() -> None:
    driver = Driver(num_blocks=8, max_batch=3)
    prompt = range(48)
    told = driver.turn(submit("first", prompt, 4), submit("same", prompt, 4), submit("large", range(100, 195), 4))
    told += driver.turn(submit("small", range(3), 4), submit("urgent", range(3), 4, priority=-1))
    said = {order.request_id: (order.place, order.reason) for order in told if isinstance(order, Accepted)}
    assert said == {
        "first": (0, ""),
        "same": (1, "first computes its prefix"),
        "large": (2, "needs 7 blocks on r0, 4 are free beside the reserve"),
        "small": (2, "requests that go before it wait for room"),
        "urgent": (3, ""),
    }
    assert "urgent" in starts(told)


def test_steady_decode_asks_once_a_block_and_leases_one_block() -> None:
    driver = Driver()
    start = starts(driver.turn(submit("q", range(10), 200)))["q"]
    assert list(start.table) == [0] and start.lease_end == 16
    position = 10
    for block in range(1, 6):
        asked_at = block * SIZE - 4
        orders = driver.result([(start, asked_at, asked_at - position + 1)])
        position = asked_at + 1
        (plan,) = [order for order in orders if isinstance(order, Plan)]
        assert list(plan.extends.firsts) == [block] and list(plan.extends.lease_ends) == [(block + 1) * SIZE]
        assert len(plan.extends.blocks) == 1


def test_a_lease_never_passes_the_end_of_the_request() -> None:
    driver = Driver()
    start = starts(driver.turn(submit("q", range(10), 4)))["q"]
    assert start.lease_end == 13
    assert not any(isinstance(order, Plan) for order in driver.result([(start, 12, 3)]))


def test_two_requests_with_one_prompt_compute_it_once() -> None:
    driver = Driver()
    orders = driver.turn(submit("first", range(64), 4), submit("second", range(64), 4))
    assert list(starts(orders)) == ["first"]
    assert driver.scheduler.counters["parked on a prefix"] == 1
    first = starts(orders)["first"]
    second = starts(driver.result([(first, 64, 1)]))["second"]
    # All but the last token is a hit: three blocks are shared, the fourth is copied but for its last slot.
    assert list(second.table[:3]) == list(first.table[:3]) and second.table[3] != first.table[3]
    assert second.position == 63


def test_who_waits_for_a_prefix_computes_it_when_its_owner_goes() -> None:
    driver = Driver()
    first = starts(driver.turn(submit("first", range(64), 4), submit("second", range(64), 4)))["first"]
    driver.turn(Cancel("first"))
    orders = driver.result(stopped=[(first, Reason.DROPPED, 16, 0)])
    second = starts(orders)["second"]
    # The block that was filled is used, what the first did not reach is computed.
    assert second.position == 16 and second.table[0] == first.table[0]


def test_forks_share_full_prompt_blocks_and_own_their_tails() -> None:
    driver = Driver()
    start = starts(driver.turn(submit("q", range(40), 40, n=3)))["q"]
    assert len(start.forks) == 2
    for fork in start.forks:
        assert list(fork.table[:2]) == list(start.table[:2])
        assert not set(fork.table[2:]) & set(start.table)
    assert not set(start.forks[0].table[2:]) & set(start.forks[1].table[2:])


def test_under_pressure_the_last_comer_goes_and_comes_back_first() -> None:
    driver = Driver(num_blocks=6)
    started = starts(driver.turn(submit("old", range(30), 60), submit("new", range(100, 130), 60)))
    assert set(started) == {"old", "new"}
    driver.result([(started["old"], 28, 0), (started["new"], 28, 0)])
    driver.result([(started["old"], 44, 15), (started["new"], 44, 15)])
    orders = driver.result([(started["old"], 48, 4), (started["new"], 48, 4)])
    dropped = [drop.seq for order in orders if isinstance(order, Plan) for drop in order.drops]
    assert dropped == [started["new"].seq]
    driver.turn(submit("newest", range(200, 210), 4))
    orders = driver.result(stopped=[(started["new"], Reason.DROPPED, 48, 0)])
    assert "newest" not in starts(orders), "nothing overtakes what was preempted"
    orders = driver.result(stopped=[(started["old"], Reason.STOP, 60, 12)])
    again = starts(orders)["new"]
    assert again.attempt == 2 and len(again.tokens) == 30 + 19
    (done,) = [order for order in orders if isinstance(order, Done)]
    assert done.request_id == "old" and done.device_block_seconds > 0


def test_priority_goes_first_and_tenants_take_turns() -> None:
    driver = Driver(max_batch=1)
    running = starts(driver.turn(submit("runs", range(4), 4, tenant="a")))["runs"]
    driver.turn(*(submit(f"a{number}", range(4), 4, tenant="a") for number in range(3)))
    driver.turn(submit("b0", range(4), 4, tenant="b"), submit("urgent", range(4), 4, tenant="a", priority=-1))
    order: list[str] = []
    while len(order) < 5:
        ((name, start),) = starts(driver.result(stopped=[(running, Reason.LENGTH, 7, 4)])).items()
        order.append(name)
        running = start
    assert order[0] == "urgent"
    assert order.index("b0") == 1, "a tenant that has got nothing goes before one that has"
    assert [name for name in order if name.startswith("a")] == ["a0", "a1", "a2"]


def test_a_tenant_that_asks_has_its_blocks_overwritten_and_nothing_cached() -> None:
    driver = Driver(SchedulerSettings(clear_tenants=("secret",)))
    start = starts(driver.turn(submit("q", range(40), 9, tenant="secret")))["q"]
    orders = driver.result(stopped=[(start, Reason.LENGTH, 48, 9)])
    (plan,) = [order for order in orders if isinstance(order, Plan)]
    assert sorted(plan.clears) == sorted(start.table)
    assert driver.scheduler.replicas["r0"].ledger.counts().cached == 0


def test_a_pin_keeps_its_blocks_until_its_time_and_gives_way_to_work() -> None:
    driver = Driver(num_blocks=8)
    prompt = ids(range(32))
    pin = Pin("pin", "g", 1, "m", "t", prompt, HASHER.prompt(prompt), until=100.0)
    start = starts(driver.turn(pin))["pin"]
    driver.result(stopped=[(start, Reason.LENGTH, 32, 1)])
    assert driver.scheduler.replicas["r0"].ledger.counts().held == 2
    # All eight blocks are needed: the pin goes.
    assert "big" in starts(driver.turn(submit("big", range(500, 600), 29)))
    assert driver.scheduler.counters["pins given up"] == 1


def test_a_pin_that_can_never_fit_is_refused_for_good_and_one_too_many_for_now() -> None:
    """Both were told to try again in no time at all, which a client may do for ever."""
    driver = Driver(num_blocks=8)

    def pin(name: str, first: int, num_tokens: int) -> Pin:
        prompt = ids(range(first, first + num_tokens))
        return Pin(name, "g", 1, "m", "t", prompt, HASHER.prompt(prompt), until=100.0)

    (never,) = driver.turn(pin("large", 0, 96))
    assert isinstance(never, Refused) and (never.code, never.retry_after_s) == ("INVALID_ARGUMENT", 0.0)
    start = starts(driver.turn(pin("kept", 0, 32)))["kept"]
    driver.result(stopped=[(start, Reason.LENGTH, 32, 1)])
    (later,) = driver.turn(pin("more", 500, 32))
    assert isinstance(later, Refused) and (later.code, later.retry_after_s) == ("RESOURCE_EXHAUSTED", 1.0)
    orders = driver.turn(ReplicaLost("r0", 1), pin("again", 900, 32))
    refused = [order for order in orders if isinstance(order, Refused) and order.request_id == "again"]
    assert [(one.code, one.detail) for one in refused] == [("UNAVAILABLE", "no replica of m is here; try again")]


def test_closed_requests_leave_nothing_behind() -> None:
    driver = Driver()
    start = starts(driver.turn(submit("q", range(40), 4)))["q"]
    driver.result(stopped=[(start, Reason.LENGTH, 43, 4)])
    driver.turn(Closed("q", start.gateway, start.route))
    assert not driver.scheduler.requests and not driver.scheduler.unclosed
    assert not driver.scheduler.books.computing
    assert driver.scheduler.replicas["r0"].ledger.counts().held == 0


def test_what_a_gateway_has_whole_runs_no_further() -> None:
    """A new scheduler makes a request again whose last tokens come to the gateway from the old one."""
    driver = Driver()
    start = starts(driver.turn(submit("q", range(40), 4)))["q"]
    late = Closed("q", start.gateway, start.route - 1)
    assert not [plan for plan in driver.turn(late) if isinstance(plan, Plan) and plan.drops]
    (plan,) = [order for order in driver.turn(Closed("q", start.gateway, start.route)) if isinstance(order, Plan)]
    assert [drop.seq for drop in plan.drops] == [start.seq]
    driver.result(stopped=[(start, Reason.DROPPED, 40, 0)])
    assert not driver.scheduler.requests


def test_a_new_scheduler_refuses_no_model_before_its_replicas_had_time_to_report() -> None:
    scheduler = Scheduler(SchedulerSettings(rebuild_s=2.0), epoch=2)
    (accepted,) = scheduler.turn([submit("a", range(8), 4)], 10.0)
    assert isinstance(accepted, Accepted)
    assert accepted.reason == "no replica of m is here yet: the scheduler has just started"
    (refused,) = scheduler.turn([Pin("p", "g", 7, "m", "t", ids(range(16)), HASHER.prompt(ids(range(16))), 20.0)], 10.5)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.retry_after_s) == ("UNAVAILABLE", 2.0)
    orders = scheduler.turn([joined()], 11.0)
    assert list(starts(orders)) == ["a"]
    assert not any(isinstance(order, Refused) for order in scheduler.turn([], 12.0))


def test_a_new_scheduler_refuses_a_model_that_no_replica_came_back_with() -> None:
    """All replicas of a model may have died with the scheduler before: they start for longer than this one listens."""
    scheduler = Scheduler(SchedulerSettings(rebuild_s=2.0, replica_return_s=30.0), epoch=2)
    scheduler.turn([submit("a", range(8), 4)], 10.0)
    assert scheduler.next_deadline == 12.0
    assert scheduler.turn([], 12.0) == [] and scheduler.next_deadline == 42.0
    pin = Pin("p", "g", 7, "m", "t", ids(range(16)), HASHER.prompt(ids(range(16))), 60.0)
    accepted, refused = scheduler.turn([submit("b", range(8), 4), pin], 41.9)
    assert isinstance(accepted, Accepted) and isinstance(refused, Refused) and refused.code == "UNAVAILABLE"
    orders = scheduler.turn([], 42.0)
    refused_ones = [(order.request_id, order.code) for order in orders if isinstance(order, Refused)]
    assert refused_ones == [("a", "NOT_FOUND"), ("b", "NOT_FOUND")]
    assert sum(isinstance(order, Done) for order in orders) == 2 and scheduler.next_deadline is None
    (again,) = scheduler.turn([submit("c", range(8), 4)], 42.1)
    assert isinstance(again, Refused)
    assert again.code == "NOT_FOUND"


@pytest.mark.parametrize("logprobs", [None, 1])
@pytest.mark.parametrize("has_ended", [False, True])
def test_tokens_whose_logprobs_died_with_their_worker_are_drawn_again(logprobs: int | None, has_ended: bool) -> None:
    """The worker told the scheduler of 20 tokens, and the gateway got 5 of them before it died."""
    driver = Driver()
    asked = submit("q", range(40), 30)
    begun = starts(driver.turn(replace(asked, sampling=replace(asked.sampling, logprobs=logprobs))))["q"]
    driver.result(advances=[(begun, 44, 5)])
    if has_ended:
        driver.result(stopped=[(begun, Reason.STOP, 59, 15)])
    else:
        driver.result(advances=[(begun, 59, 15)])
    (seal,) = [one for one in driver.turn(ReplicaLost("r0", 1), joined("r1")) if isinstance(one, Seal)]
    orders = driver.turn(Sealed("q", seal.gateway, seal.route, seal.attempt, (ids([7] * 5),), (Reason.NONE,)))
    again = starts(orders)
    if logprobs is not None:
        assert len(again["q"].tokens) == 45 and again["q"].attempt > begun.attempt
    elif has_ended:
        (told,) = [one for one in orders if isinstance(one, Replay)]
        assert not again and len(told.tokens.ids) == 20 and told.tokens.reason is Reason.STOP
    else:
        assert len(again["q"].tokens) == 60
