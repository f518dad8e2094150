"""Who goes next: the bound on waiting that cluster/centre/fairness.py states, and what tenants pay."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from cluster.centre.admission import Admission
from cluster.centre.books import Books
from cluster.centre.fairness import WaitingQueue
from cluster.centre.nouns import Request, State
from cluster.centre.placement import Place
from cluster.centre.pressure import Pressure
from cluster.centre.tenants import Tenants
from cluster.messages import Plan, Reason, Submit, ids
from cluster.sampling import SamplingParams
from cluster.settings import PreemptionName, SchedulerSettings
from cluster.sim.capacity import Capacity, PaperSite
from cluster.sim.costs import machine
from cluster.sim.load import ArrivingLoad
from cluster.sim.traces import TRACES
from tests.cluster.test_pressure import under_pressure
from tests.cluster.test_scheduler import Driver, starts, submit

MOST = 100.0


def request(tenants: Tenants, tenant: str, arrival: int, priority: int = 0) -> Request:
    sampling = SamplingParams(temperature=0.0, max_tokens=1)
    submit = Submit(f"q{arrival}", "g", arrival, "m", tenant, ids([1]), (), sampling, priority)
    made = Request(submit, arrival, tenants.get(tenant), 0.0)
    tenants.enter(made.tenant)
    return made


@examples(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_the_bound_on_waiting(seed: int) -> None:
    """While a request heads its tenant's queue, another tenant gets what it had got less, and one request more."""
    random = Random(seed)
    weights = {f"t{number}": random.choice((0.5, 1.0, 2.0, 4.0)) for number in range(random.randint(2, 5))}
    tenants, queue, arrival = Tenants(weights), WaitingQueue(), 0
    for name in weights:
        for _ in range(random.randint(10, 30)):
            arrival += 1
            queue.push(request(tenants, name, arrival), returns=False)
    # By tenant: what everybody had got when its present head became that.
    since = {name: {tenant.name: tenant.service for tenant in tenants} for name in weights}
    while len(queue):
        head = queue.head()
        assert head is not None
        waited = since[head.tenant.name]
        for other in tenants:
            if other is not head.tenant:
                got = other.service - waited[other.name]
                lead = max(0.0, waited[head.tenant.name] - waited[other.name])
                assert got <= lead + MOST / other.weight + 1e-9, f"{other.name} got {got} while {head} waited"
        queue.remove(head)
        head.tenant.charge(random.uniform(1.0, MOST))
        tenants.leave(head.tenant)
        since[head.tenant.name] = {tenant.name: tenant.service for tenant in tenants}


def test_weights_are_kept_over_time() -> None:
    tenants, queue = Tenants({"big": 3.0, "small": 1.0}), WaitingQueue()
    for arrival in range(1, 401):
        queue.push(request(tenants, ("big", "small")[arrival % 2], arrival), returns=False)
    served = {"big": 0, "small": 0}
    for _ in range(200):
        head = queue.head()
        assert head is not None
        queue.remove(head)
        head.tenant.charge(10.0)
        served[head.tenant.name] += 1
    assert served["big"] == pytest.approx(150, abs=2)


def test_nobody_saves_up_while_idle() -> None:
    tenants = Tenants({})
    busy = request(tenants, "busy", 1).tenant
    busy.charge(1000.0)
    late = request(tenants, "late", 2).tenant
    assert late.service == busy.service


def test_what_comes_back_heads_its_own_tenants_queue_and_no_other_tenants() -> None:
    tenants, queue = Tenants({}), WaitingQueue()
    mine, theirs = request(tenants, "a", 5), request(tenants, "b", 6)
    back = [request(tenants, "a", arrival) for arrival in (1, 2)]
    for each in (mine, theirs):
        queue.push(each, returns=False)
    for each in back:
        queue.push(each, returns=True)
    order = []
    while (head := queue.head()) is not None:
        order.append(head)
        queue.remove(head)
        head.tenant.charge(1.0)
    assert order == [back[0], theirs, back[1], mine]


def test_thirty_that_waited_for_a_prefix_do_not_go_before_another_tenant() -> None:
    driver = Driver(max_batch=1)
    first = starts(driver.turn(submit("a0", range(64), 8, "a")))["a0"]
    driver.turn(*(submit(f"a{number}", range(64), 8, "a") for number in range(1, 31)))
    driver.turn(submit("b", range(1000, 1100), 8, "b"))
    assert driver.scheduler.counters["parked on a prefix"] == 30
    driver.result([(first, 64, 1)])
    orders = driver.result(stopped=[(first, Reason.STOP, 66, 2)])
    assert list(starts(orders)) == ["b"]


def test_what_was_preempted_does_not_hold_up_another_tenant() -> None:
    driver, (old, new) = under_pressure("recompute", 0)
    driver.result([(old, 48, 4), (new, 48, 4)])
    driver.turn(*(submit(f"b{number}", range(1000 + 100 * number, 1005 + 100 * number), 6, "b") for number in range(6)))
    orders = driver.result(stopped=[(new, Reason.DROPPED, 48, 0)])
    assert list(starts(orders)) == ["b0"], "there is room for it, and its tenant has got less"
    # Five tokens were computed for it: when the other tenant has got more than that again, the next one goes.
    assert not starts(driver.result([(old, 52, 4)]))
    assert list(starts(driver.result([(old, 56, 4)]))) == ["b1"]


def test_who_comes_back_has_leave_for_one_block_more_and_nobody_takes_that() -> None:
    driver, (old, new) = under_pressure("recompute", 0)
    driver.result([(old, 48, 4), (new, 48, 4)])
    driver.result(stopped=[(new, Reason.DROPPED, 48, 0)])
    again = starts(driver.result(stopped=[(old, Reason.STOP, 58, 10)]))["new"]
    assert again.lease_end == 80, "49 tokens, 16 more, and room to ask for a further block in time"
    other = starts(driver.turn(submit("other", range(1000, 1010), 60, "b", priority=-1)))["other"]
    (plan,) = [order for order in driver.result([(other, 15, 6)]) if isinstance(order, Plan)]
    assert not plan.revokes and [drop.seq for drop in plan.drops] == [other.seq]


class Watch:
    """Looks at each start and each preemption of a run as they happen, and proves the two rules."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.num_starts = self.num_again = 0
        self.must_reach: dict[str, int] = {}
        start, preempt, watch = Admission._start, Pressure.preempt, self

        def watched_start(self: Admission, request: Request, place: Place, hits: dict[int, list[int]]) -> None:
            watch.started(self._books, request)
            start(self, request, place, hits)

        def watched_preempt(self: Pressure, request: Request, why: str, cause: str) -> None:
            watch.preempted(request)
            preempt(self, request, why, cause)

        patch.setattr(Admission, "_start", watched_start)
        patch.setattr(Pressure, "preempt", watched_preempt)

    def started(self, books: Books, request: Request) -> None:
        self.num_starts += 1
        for other in books.requests.values():
            if other.state is State.QUEUED and other.priority == request.priority:
                assert request.tenant.service <= other.tenant.service, f"{request} starts before {other}"

    def preempted(self, request: Request) -> None:
        (sequence,) = request.sequences
        must_reach = self.must_reach.get(request.request_id)
        if must_reach is not None:
            self.num_again += 1
            assert sequence.position >= must_reach, f"{request} had to reach {must_reach}, and is at {sequence}"
        self.must_reach[request.request_id] = min(sequence.limit, sequence.length - 1 + 16)


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_in_a_storm_tenants_alternate_by_service_and_nobody_is_preempted_again_without_a_block_of_progress(
    preemption: PreemptionName, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    short = machine("h100", "8b", 16, kv_bytes=0.7e9)
    load = ArrivingLoad(TRACES["sharegpt"], 1.0, 2048, clients=64)
    site = PaperSite(2, short, token_budget=2048, host_blocks=4 * short.num_blocks)
    settings = SchedulerSettings(preemption=preemption, tokens_per_block_second=0.5)
    capacity = Capacity(site, load, settings, until_s=15.0)
    outcome = capacity.run()
    print(f"{watch.num_starts} starts, {watch.num_again} preempted again, {outcome.finished} finished")
    assert watch.num_starts > 150 and watch.num_again > 20 and outcome.finished > 50
    capacity.scheduler.check()


def test_what_comes_back_goes_before_new_work_of_its_priority_and_not_of_a_higher_one() -> None:
    tenants, queue = Tenants({}), WaitingQueue()
    new, urgent, back, earlier = (
        request(tenants, "a", arrival, priority) for arrival, priority in ((4, 0), (5, -1), (3, 0), (2, 0))
    )
    queue.push(new, returns=False)
    queue.push(urgent, returns=False)
    queue.push(back, returns=True)
    queue.push(earlier, returns=True)
    order = []
    while (head := queue.head()) is not None:
        order.append(head)
        queue.remove(head)
    assert order == [urgent, earlier, back, new]


def test_a_withdrawn_request_is_passed_over_wherever_it_stood() -> None:
    tenants, queue = Tenants({}), WaitingQueue()
    requests = [request(tenants, "a", arrival) for arrival in range(1, 5)]
    for number, each in enumerate(requests):
        queue.push(each, returns=number == 0)
    queue.remove(requests[0])
    queue.remove(requests[2])
    assert len(queue) == 2 and list(queue) == [requests[1], requests[3]]
    assert queue.head() is requests[1]
