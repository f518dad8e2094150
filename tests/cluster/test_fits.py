"""Pools that come back smaller, or not at all: what fits nowhere is refused with the figures, and the rest goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.centre.scheduler import Scheduler
from cluster.messages import (
    Accepted,
    Event,
    GatewayState,
    OpenRequest,
    Order,
    Plan,
    Reason,
    Refused,
    ReplicaJoined,
    ReplicaLost,
    ReplicaState,
    Seal,
    Sealed,
    Submit,
    ids,
)
from cluster.settings import PlacementName, SchedulerSettings
from tests.cluster.test_scheduler import Driver, joined, starts, submit

LARGE, SMALL = 64, 8
BIG = submit("big", range(100), 200)
"""Nineteen blocks, when it has run to its end."""


def again(num_blocks: int, incarnation: int = 2, **figures: int) -> ReplicaJoined:
    return replace(joined(num_blocks=num_blocks), incarnation=incarnation, **figures)


def refusals(orders: list[Order]) -> list[Refused]:
    return [order for order in orders if isinstance(order, Refused)]


def test_what_runs_on_a_pool_that_comes_back_smaller_is_refused_and_the_rest_goes_on() -> None:
    driver = Driver(num_blocks=LARGE)
    assert "big" in starts(driver.turn(BIG))
    orders = driver.turn(ReplicaLost("r0", 1), again(SMALL))
    (seal,) = [order for order in orders if isinstance(order, Seal)]
    orders = driver.turn(
        Sealed("big", seal.gateway, seal.route, seal.attempt, (ids([7]),), (Reason.NONE,)),
        submit("small", range(500, 520), 4),
    )
    (refused,) = refusals(orders)
    assert (refused.request_id, refused.code) == ("big", "INVALID_ARGUMENT")
    assert "needs 19 blocks of 16 tokens" in refused.detail and "the largest pool has 8" in refused.detail
    assert list(starts(orders)) == ["small"]


def test_what_waits_is_measured_again_when_the_pool_comes_back_smaller() -> None:
    driver = Driver(num_blocks=LARGE, max_batch=1)
    driver.turn(submit("runs", range(4), 4), BIG, submit("small", range(500, 520), 4))
    orders = driver.turn(ReplicaLost("r0", 1), again(SMALL))
    assert [refused.request_id for refused in refusals(orders)] == ["big"]
    assert list(starts(orders)) == ["small"]


def test_a_model_that_comes_back_with_a_shorter_context_or_a_smaller_batch_refuses_what_needs_more() -> None:
    driver = Driver(num_blocks=LARGE, max_batch=4)
    driver.turn(submit("runs", range(4), 400), submit("many", range(4), 4, n=4), BIG)
    orders = driver.turn(ReplicaLost("r0", 1), again(LARGE, max_model_len=128, max_batch=2))
    assert {refused.request_id for refused in refusals(orders)} >= {"many", "big"}
    assert any("128 tokens that the model takes" in refused.detail for refused in refusals(orders))


def test_what_fits_only_a_replica_that_is_lost_waits_for_it_and_holds_nobody_up() -> None:
    settings = SchedulerSettings(replica_return_s=5.0)
    driver = Driver(settings, num_blocks=LARGE)
    driver.turn(replace(joined("r1", num_blocks=SMALL)))
    driver.turn(ReplicaLost("r0", 1))
    orders = driver.turn(BIG, submit("small", range(500, 520), 4))
    assert list(starts(orders)) == ["small"] and not refusals(orders)
    told = {order.request_id: order.reason for order in orders if isinstance(order, Accepted)}
    assert told["big"] == "no replica that is here could hold it, and one that could may come back"
    assert list(starts(driver.turn(again(LARGE)))) == ["big"]


def test_what_fits_only_a_replica_that_never_comes_back_is_refused_after_a_while() -> None:
    driver = Driver(SchedulerSettings(replica_return_s=5.0), num_blocks=LARGE)
    driver.turn(replace(joined("r1", num_blocks=SMALL)))
    driver.turn(BIG, ReplicaLost("r0", 1))
    due = driver.scheduler.next_deadline
    assert due == pytest.approx(driver.now + 5.0)
    driver.now = due
    assert [refused.request_id for refused in refusals(driver.turn())] == ["big"]
    assert [refused.request_id for refused in refusals(driver.turn(replace(BIG, request_id="later")))] == ["later"]


def test_where_no_single_replica_has_all_that_is_needed_it_is_refused_and_never_placed() -> None:
    driver = Driver(num_blocks=LARGE, max_batch=2)
    driver.turn(replace(joined("r1", num_blocks=SMALL, max_batch=8), max_model_len=4096))
    (refused,) = driver.turn(submit("q", range(100), 200, n=4))
    assert isinstance(refused, Refused) and "no replica has all of these" in refused.detail
    long = submit("long", range(2000), 4)
    long = Submit(long.request_id, "g", 1, "m", "t", ids(range(2050)), (), long.sampling)
    assert [type(order) for order in driver.turn(long)] == [Refused]


def test_a_request_of_an_earlier_scheduler_waits_for_a_replica_that_this_one_has_not_met() -> None:
    scheduler = Scheduler(SchedulerSettings(replica_return_s=5.0, rebuild_s=1.0), epoch=2)

    def turn(now: float, *events: Event) -> list[Order]:
        orders = scheduler.turn(events, now)
        scheduler.check()
        return orders

    state = GatewayState("g", (OpenRequest(BIG, 1, (ids([7]),), (Reason.NONE,)),))
    turn(0.0, state, ReplicaState(joined("r1", num_blocks=SMALL), (), (), ()))
    (seal,) = [order for order in turn(1.1) if isinstance(order, Seal)]
    sealed = Sealed("big", seal.gateway, seal.route, seal.attempt, (ids([7]),), (Reason.NONE,))
    orders = turn(1.2, sealed, replace(BIG, request_id="new"), submit("small", range(500, 520), 4))
    assert not refusals(orders), "the new one may fit there as well"
    assert "small" in starts(orders)
    assert "big" in starts(turn(2.0, again(LARGE))), "the replica that had run it is back"


def test_after_that_time_it_is_refused() -> None:
    scheduler = Scheduler(SchedulerSettings(replica_return_s=5.0, rebuild_s=1.0), epoch=2)
    state = GatewayState("g", (OpenRequest(BIG, 1, (ids([7]),), (Reason.NONE,)),))
    scheduler.turn([state, ReplicaState(joined("r1", num_blocks=SMALL), (), (), ())], 0.0)
    (seal,) = [order for order in scheduler.turn([], 1.1) if isinstance(order, Seal)]
    assert not any(isinstance(order, Refused) for order in scheduler.turn(
        [Sealed("big", seal.gateway, seal.route, seal.attempt, (ids([7]),), (Reason.NONE,))], 1.2
    ))  # fmt: skip
    assert not any(isinstance(order, Plan) and order.starts for order in scheduler.turn([], 3.0))
    assert scheduler.next_deadline == pytest.approx(6.0)
    assert [refused.request_id for refused in refusals(scheduler.turn([], 6.0))] == ["big"]


@pytest.mark.parametrize("placement", ["scored", "round_robin", "least_loaded"])
@pytest.mark.parametrize("width", [None, 3])
def test_nothing_starts_where_it_could_never_end(placement: PlacementName, width: int | None) -> None:
    """It was preempted when the small pool was full and began there again, for ever: beams begin with their prompt."""
    driver = Driver(SchedulerSettings(placement=placement), num_blocks=SMALL)
    driver.turn(joined("r1", num_blocks=LARGE))
    for number in range(2):
        asked = submit(f"big{number}", range(100 * number, 100 * number + 60), 120 if width is None else 40)
        asked = replace(asked, sampling=replace(asked.sampling, beam_width=width))
        plans = [order for order in driver.turn(asked) if isinstance(order, Plan)]
        assert [plan.replica for plan in plans] == ["r1"]
    assert [plan.replica for plan in driver.turn(submit("small", range(500, 520), 4)) if isinstance(plan, Plan)]


def test_nothing_moves_to_where_it_could_never_end() -> None:
    driver = Driver(num_blocks=LARGE)
    start = starts(driver.turn(BIG))["big"]
    driver.result(advances=[(start, 100, 1)])
    scheduler = driver.scheduler
    driver.turn(joined("r1", num_blocks=18), joined("r2", num_blocks=19))
    request, targets = scheduler.requests["big"], list(scheduler.replicas.values())
    able = [replace(target.joined, bytes_per_s=1.0) for target in targets]
    for target, told in zip(targets, able, strict=True):
        target.joined = told
    assert [target.name for target in scheduler.movable.with_room(request, targets)] == ["r2"]


def test_what_a_new_scheduler_accepted_while_it_listened_waits_for_replicas_that_report_late() -> None:
    """It was refused for good when everybody had had time to tell, and the replica that held it came a little later."""
    scheduler = Scheduler(SchedulerSettings(rebuild_s=2.0, replica_return_s=30.0), epoch=2)
    scheduler.turn([ReplicaState(joined("r0", num_blocks=SMALL), (), (), ())], 0.0)
    assert [type(order) for order in scheduler.turn([BIG], 1.0)] == [Accepted]
    assert scheduler.turn([], 2.1) == []
    assert "big" in starts(scheduler.turn([ReplicaState(joined("r1", num_blocks=LARGE), (), (), ())], 3.0))
    # What is asked when no replica may come any more is measured by those that are here.
    assert not refusals(scheduler.turn([submit("huge", range(500), 2000)], 31.9))
    assert [refused.request_id for refused in refusals(scheduler.turn([], 32.0))] == ["huge"]
    assert refusals(scheduler.turn([submit("huger", range(500), 2000)], 32.1))
    # Nobody comes who could hold it.
    late = Scheduler(SchedulerSettings(rebuild_s=2.0, replica_return_s=30.0), epoch=2)
    late.turn([ReplicaState(joined("r0", num_blocks=SMALL), (), (), ()), BIG], 0.0)
    assert not refusals(late.turn([], 31.0)) and late.next_deadline == 32.0
    assert refusals(late.turn([], 32.0))
