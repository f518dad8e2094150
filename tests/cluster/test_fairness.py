"""Who goes next: the bound on waiting that cluster/centre/fairness.py states, and what tenants pay."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.centre.fairness import Tenants, WaitingQueue
from cluster.centre.sequences import Request
from cluster.messages import Submit, ids
from cluster.sampling import SamplingParams

MOST = 100.0


def request(tenants: Tenants, tenant: str, arrival: int, priority: int = 0) -> Request:
    sampling = SamplingParams(temperature=0.0, max_tokens=1)
    submit = Submit(f"q{arrival}", "g", arrival, "m", tenant, ids([1]), (), sampling, priority)
    made = Request(submit, arrival, tenants.get(tenant), 0.0)
    tenants.enter(made.tenant)
    return made


@settings(max_examples=60, deadline=None)
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
        queue.pop(head)
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
        queue.pop(head)
        head.tenant.charge(10.0)
        served[head.tenant.name] += 1
    assert served["big"] == pytest.approx(150, abs=2)


def test_nobody_saves_up_while_idle() -> None:
    tenants = Tenants({})
    busy = request(tenants, "busy", 1).tenant
    busy.charge(1000.0)
    late = request(tenants, "late", 2).tenant
    assert late.service == busy.service


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
        queue.pop(head)
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
