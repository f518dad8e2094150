"""What cannot be so is refused by name and counted, and whoever told it is the only one to lose anything.

That nothing at all ends the scheduler is tests/sim/test_hostile_events.py's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.messages import (
    Advances,
    Event,
    Expel,
    HostPoolJoined,
    HostPoolLost,
    Reason,
    Refused,
    ReplicaLost,
    Result,
    Seal,
    Sealed,
    Start,
    Stopped,
    Transferred,
    TurnAway,
    ids,
)
from tests.cluster.test_scheduler import Driver, joined, starts, submit

NAN, INF = float("nan"), float("inf")
POOL = HostPoolJoined("h0", 7, "node", 16, 4096, "f", 1e9)


@pytest.mark.parametrize(
    "pool",
    [
        replace(POOL, num_blocks=0),
        replace(POOL, num_blocks=-1),
        replace(POOL, num_blocks=1 << 40),
        replace(POOL, block_bytes=0),
        replace(POOL, bytes_per_s=NAN),
        replace(POOL, bytes_per_s=-INF),
        replace(POOL, pool=""),
    ],
    ids=str,
)
def test_a_host_pool_that_cannot_be_is_not_taken(pool: HostPoolJoined) -> None:
    driver = Driver()
    driver.turn(pool)
    assert not driver.scheduler.pools and driver.scheduler.counters["events refused"] == 1
    (note,) = driver.scheduler.notes.since(0)
    assert (note.kind, note.subject) == ("refused", "HostPoolJoined") and note.why
    driver.turn(POOL)
    assert list(driver.scheduler.pools) == ["h0"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_blocks", 0), ("num_blocks", 1 << 30), ("block_size", 0), ("max_batch", 0), ("max_model_len", -5),
     ("prefill_tokens_per_s", NAN), ("bytes_per_s", INF), ("block_bytes", -1), ("incarnation", -1)],
)  # fmt: skip
def test_a_replica_that_cannot_be_is_turned_away_with_the_figure(field: str, value: float) -> None:
    driver = Driver()
    (order,) = driver.turn(replace(joined("r1"), **{field: value}))
    assert isinstance(order, TurnAway) and order.replica == "r1" and f"{field} is {value}" in order.detail
    assert list(driver.scheduler.replicas) == ["r0"]


def test_a_lower_incarnation_never_joins_though_the_higher_one_is_gone() -> None:
    driver = Driver()
    driver.turn(replace(joined(), incarnation=5), ReplicaLost("r0", 5), replace(joined(), incarnation=3))
    driver.turn(POOL, HostPoolLost("h0", 7), replace(POOL, incarnation=6))
    assert not driver.scheduler.replicas and not driver.scheduler.pools
    assert driver.scheduler.counters["stale joins"] == 2
    driver.turn(replace(joined(), incarnation=6))
    assert list(driver.scheduler.replicas) == ["r0"]


def told(start: Start, **fields: object) -> Result:
    return replace(Result("r0", 1, 1, 1, 1, 1), **fields)  # type: ignore[arg-type]


def advance(start: Start, position: int, num_ids: int) -> Advances:
    from array import array

    return Advances(array("q", [start.seq]), ids([position]), ids([num_ids]), ids([7] * num_ids), ids([0]), b"")


@pytest.mark.parametrize("number", range(12))
def test_a_result_that_no_worker_can_have_loses_its_incarnation_and_its_requests_go_on(number: int) -> None:
    driver = Driver()
    driver.turn(joined("r1"))
    start = starts(driver.turn(submit("q", range(40), 30)))["q"]
    other = replace(advance(start, 41, 1), num_ids=ids([3]))
    wrong: list[Event] = [
        told(start, number=7),
        told(start, plan=99),
        told(start, advances=advance(start, 1000, 1)),
        told(start, advances=advance(start, -1, 1)),
        told(start, advances=advance(start, 41, 31)),
        told(start, advances=other),
        told(start, step_seconds=NAN),
        told(start, prefill_tokens_per_s=-1.0),
        told(start, transferred=(Transferred(5, True, "", 1, INF),)),
        told(start, stopped=(Stopped(start.seq, Reason.NONE, 40, ids()),)),
        told(start, stopped=(Stopped(start.seq, Reason.STOP, 4000, ids()),)),
        told(start, stopped=(Stopped(start.seq, Reason.STOP, 40, ids(), b"", "", (ids([63]),)),)),
    ]
    orders = driver.turn(wrong[number])
    (expelled,) = [order for order in orders if isinstance(order, Expel)]
    (seal,) = [order for order in orders if isinstance(order, Seal)]
    assert (expelled.replica, expelled.incarnation) == ("r0", 1) and expelled.detail
    assert list(driver.scheduler.replicas) == ["r1"] and driver.scheduler.counters["replicas expelled"] == 1
    assert (
        starts(driver.turn(Sealed("q", seal.gateway, seal.route, seal.attempt, (ids(),), (Reason.NONE,))))["q"].attempt
        > start.attempt
    )


def test_a_gateway_that_says_what_cannot_be_of_one_request_loses_that_one() -> None:
    driver = Driver()
    driver.turn(submit("q", range(40), 30, n=2), submit("other", range(100, 140), 30))
    driver.turn(ReplicaLost("r0", 1))
    asked = driver.scheduler.requests["q"]
    orders = driver.turn(Sealed("q", asked.gateway, asked.route, asked.attempt, (ids([7]),), (Reason.NONE,)))
    (refused,) = [order for order in orders if isinstance(order, Refused)]
    assert (refused.request_id, refused.code) == ("q", "ABORTED") and "1 of 2 sequences" in refused.detail
    assert list(driver.scheduler.requests) == ["other"]


def test_a_submit_that_cannot_be_is_refused_with_the_figure() -> None:
    driver = Driver()
    asked = submit("q", range(4), 4)
    for wrong in (
        replace(asked, prompt=ids()),
        replace(asked, priority=1 << 40),
        replace(asked, deadline=NAN),
        replace(asked, hashes=(b"short",)),
        replace(asked, request_id=""),
    ):
        (refused,) = driver.turn(wrong)
        assert isinstance(refused, Refused) and refused.code == "INVALID_ARGUMENT"
    assert not driver.scheduler.requests and driver.scheduler.counters["events refused"] == 5
