"""Short scripts with one client, in which something befalls the cluster at each frame in turn, one history for each.

A script is a small scenario of the simulator without weather; the judge of histories says whether all was kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster.gateway.door.notices import Notices
from cluster.links.frames import KIND_AT, PULSE
from cluster.messages import Claim
from cluster.sim.client import Ask
from cluster.sim.history import History
from cluster.sim.network import SimLink, SimWay, Weather, Wire
from cluster.sim.workload import Scenario, draw_scenario
from tests.sim.planted_doors import never_says

PROMPT = (5, 17, 300, 41, 9)
MOST_FRAMES = 400

SCRIPTS: dict[str, dict[str, Any]] = {
    "one stream": {},
    "two sequences": {"n": 2},
    "moves and comes back": {"moves": ((0.02, 1), (0.05, 0))},
    "comes back at once": {"moves": ((0.02, 0), (0.021, 1))},
    "elsewhere and back at once": {"moves": ((0.03, 1), (0.0301, 0))},
    "a stop string": {"n": 2, "stop_at": (1, 5), "moves": ((0.03, 1),)},
    "beams": {"n": 2, "beam_width": 2, "moves": ((0.02, 1),)},
    "cancelled": {"cancel_after_s": 0.04, "moves": ((0.02, 1),)},
    "by its name alone": {"seed": 5, "moves": ((0.02, 1), (0.05, 0))},
    "errs": {"errs_after_s": 0.015, "moves": ((0.02, 1),)},
}


def scenario(**how: Any) -> Scenario:
    drawn = draw_scenario(3, with_faults=False)
    first = replace(drawn.world.workers[0], num_blocks=40, end_one_in=1000, num_noises=1, model="m", max_batch=8)
    world = replace(
        drawn.world, workers=(first, first), host_blocks=(0,), num_gateways=2, weather=Weather(), restart_s=0.1
    )
    ask = Ask(
        **{
            "request_id": "r",
            "at": 0.02,
            "gateway": 0,
            "tenant": "t",
            "prompt": PROMPT,
            "max_tokens": 9,
            "seed": 11,
            **how,
        }
    )
    return Scenario(3, world, (ask,), (), full_check=True)


Strike = Callable[[History], None]
Hit = Callable[[History, SimLink, SimWay], Callable[[], None] | None]
"""What happens before a frame is written; returns what happens behind it."""

STRIKES: dict[str, Strike] = {
    "new scheduler": lambda history: history.mishaps.kill_scheduler(0.05),
    "scheduler usurped": lambda history: history.mishaps.usurp_scheduler(0.05),
    "gateway dies": lambda history: history.mishaps.kill_gateway(0, history.clients, history._come_back),
    "other gateway dies": lambda history: history.mishaps.kill_gateway(1, history.clients, history._come_back),
    "gateway is given up": lambda history: history.mishaps.lose_gateway(0, 0.1),
    "other gateway is given up": lambda history: history.mishaps.lose_gateway(1, 0.1),
    "worker dies": lambda history: history.mishaps.kill_worker(0),
}


class At(History):
    """A history in which something happens as frame number `at` of the whole cluster is written, pulses not counted."""

    def __init__(
        self,
        script: Scenario,
        at: int,
        patch: pytest.MonkeyPatch,
        strike: Hit,
    ):
        self.num_frames, self.has_begun = 0, False
        carry = SimLink.carry

        def counted(link: SimLink, wire: Wire, way: SimWay, raw: bytes) -> None:
            is_counted = self.has_begun and raw[KIND_AT] != PULSE
            self.num_frames += is_counted
            behind = strike(self, link, way) if is_counted and self.num_frames == at else None
            carry(link, wire, way, raw)
            if behind is not None:
                behind()

        patch.setattr(SimLink, "carry", counted)
        super().__init__(script)
        # Replicas have joined, gateways are there; none of their words of that is counted.
        self.world.clock.at(script.asks[0].at - 0.001, setattr, self, "has_begun", True)


def run_at_each(script: Scenario, strike: Hit) -> int:
    """How many boundaries there are."""
    for at in range(1, MOST_FRAMES):
        with pytest.MonkeyPatch.context() as patch:
            history = At(script, at, patch, strike)
            verdict = history.run()
        assert not verdict.failure, f"at frame {at}: {verdict.failure}\n{verdict.where}"
        if history.num_frames < at:
            return at - 1
    raise AssertionError(f"more than {MOST_FRAMES} frames in a short script")


@pytest.mark.parametrize("strike", STRIKES)
@pytest.mark.parametrize("script", SCRIPTS)
def test_something_dies_at_each_frame(script: str, strike: str) -> None:
    def struck(history: History, link: SimLink, way: SimWay) -> None:
        history.world.clock.after(0.0, STRIKES[strike], history)

    assert run_at_each(scenario(**SCRIPTS[script]), struck) > 15


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("how", ["lost", "said again", "late"])
def test_each_frame_is_lost_said_again_or_late(script: str, how: str) -> None:
    """A connection breaks before it, or behind it, so that it is said again though it came."""

    def struck(history: History, link: SimLink, way: SimWay) -> Callable[[], None] | None:
        if how == "lost":
            link.break_stream()
        elif how == "late":
            way.last_arrival = history.world.clock.now + 0.08
        return (lambda: link.break_stream(is_late=True)) if how == "said again" else None

    assert run_at_each(scenario(**SCRIPTS[script]), struck) > 15


def test_a_claim_that_is_lost_with_a_scheduler_would_be_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """These scripts see what no history of some hundreds does."""
    never_says(monkeypatch, Notices, "meet", Claim)

    def struck(history: History, link: SimLink, way: SimWay) -> None:
        history.world.clock.after(0.0, STRIKES["new scheduler"], history)

    with pytest.raises(AssertionError, match="at frame"):
        run_at_each(scenario(**SCRIPTS["elsewhere and back at once"]), struck)
