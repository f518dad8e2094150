"""Blocks on their way to host memory and back: something befalls the cluster at each frame and at each call in turn.

Two requests do not fit into one pool, so one of them is swapped out and comes back. `tests/gateway/test_boundaries.py`
does the same to what gateways and clients say; its machinery runs the scripts here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from cluster.register.steps import Outcome
from cluster.sim.client import Ask
from cluster.sim.history import History
from cluster.sim.network import SimLink, SimWay, Weather
from cluster.sim.transfers import SimCall
from cluster.sim.workload import Scenario, draw_scenario
from tests.gateway.test_boundaries import run_at_each

MOST_CALLS = 120

# Where host memory lies: on the worker's node it is reached through shared memory, on another one by messages.
ROADS = {"shared memory": (12, 0), "messages": (0, 12)}


def scenario(host_blocks: tuple[int, ...]) -> Scenario:
    drawn = draw_scenario(3, with_faults=False)
    settings = replace(drawn.world.settings, preemption="swap", prefix_caching=False, max_queue=100, clear_tenants=())
    worker = replace(
        drawn.world.workers[0],
        num_blocks=5,
        block_size=4,
        max_batch=4,
        max_model_len=96,
        end_one_in=1000,
        num_noises=1,
        num_ranks=1,
        model="m",
    )
    world = replace(
        drawn.world,
        workers=(worker,),
        host_blocks=host_blocks,
        num_gateways=1,
        settings=settings,
        weather=Weather(),
        restart_s=0.1,
        loses=False,
    )
    asks = tuple(Ask(f"r{number}", 0.02, 0, "t", (5, 17, 300 + number), 9, seed=11 + number) for number in range(2))
    return Scenario(3, world, asks, (), full_check=True)


Strike = Callable[[History], None]


def _pool_dies(history: History) -> None:
    for name in history.world.pools:
        history.mishaps.kill_pool(int(name[1:]))


def _pool_stops(history: History) -> None:
    for pool in history.world.pools.values():
        if pool.alive and not pool.stopped:
            pool.stop()
            history.world.clock.after(0.3, pool.wake)


STRIKES: dict[str, Strike] = {
    "host pool dies": _pool_dies,
    "host pool stands still": _pool_stops,
    "worker dies": lambda history: history.mishaps.kill_worker(0),
    "new scheduler": lambda history: history.mishaps.kill_scheduler(0.05),
}


@pytest.mark.parametrize("how", ["lost", "said again", "late"])
def test_each_frame_is_lost_said_again_or_late(how: str) -> None:
    def struck(history: History, link: SimLink, way: SimWay) -> Callable[[], None] | None:
        if how == "lost":
            link.break_stream()
        elif how == "late":
            way.last_arrival = history.world.clock.now + 0.08
        return (lambda: link.break_stream(is_late=True)) if how == "said again" else None

    assert run_at_each(scenario(ROADS["shared memory"]), struck) > 25


@pytest.mark.parametrize("strike", STRIKES)
def test_something_dies_at_each_frame(strike: str) -> None:
    def struck(history: History, link: SimLink, way: SimWay) -> None:
        history.world.clock.after(0.0, STRIKES[strike], history)

    assert run_at_each(scenario(ROADS["shared memory"]), struck) > 25


class AtCall(History):
    """A history in which something happens to the call of a transfer number `at`, or as it is made."""

    def __init__(self, script: Scenario, at: int, patch: pytest.MonkeyPatch, befalls: str) -> None:
        self.num_calls = 0
        begin, back = SimCall.begin, SimCall._back

        def counted(call: SimCall, timeout_s: float, answered: Callable[[Outcome], None]) -> None:
            self.num_calls += 1
            is_it = self.num_calls == at
            if is_it and befalls in STRIKES:
                self.world.clock.after(0.0, STRIKES[befalls], self)
            if is_it and befalls == "the call is lost":
                patch.setattr(call, "_arrive", lambda answers: None)
            if is_it and befalls == "the answer is lost":
                patch.setattr(call, "_back", lambda peer, outcome: None)
            if is_it and befalls == "the answer is late":
                late = lambda peer, outcome: self.world.clock.after(0.15, back, call, peer, outcome)  # noqa: E731
                patch.setattr(call, "_back", late)
            begin(call, timeout_s, answered)
            if is_it and befalls == "the call comes twice":
                self.world.clock.after(0.05, call._arrive, False)

        patch.setattr(SimCall, "begin", counted)
        super().__init__(script)


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize(
    "befalls", ["the call is lost", "the answer is lost", "the answer is late", "the call comes twice", *STRIKES]
)
def test_something_befalls_each_call_of_a_transfer(road: str, befalls: str) -> None:
    for at in range(1, MOST_CALLS):
        with pytest.MonkeyPatch.context() as patch:
            history = AtCall(scenario(ROADS[road]), at, patch, befalls)
            verdict = history.run()
        assert not verdict.failure, f"at call {at}: {verdict.failure}\n{verdict.where}"
        if history.num_calls < at:
            assert at > 6, f"{at - 1} calls: nothing was swapped"
            return
    raise AssertionError(f"more than {MOST_CALLS} calls in a short script")
