"""Whatever comes over a stream, the scheduler goes on and its books are right."""

from __future__ import annotations

from collections import Counter

import pytest

from cluster.centre.scheduler import Scheduler
from cluster.messages import Plan
from cluster.wire.plans import encode_plan
from tests.sim.hostile import Hostile, recorded

COUNTED: Counter[str] = Counter()


@pytest.mark.parametrize("seed", range(24))
def test_hostile_events_end_nothing(seed: int, request: pytest.FixtureRequest) -> None:
    first = request.config.getoption("--seed") or 0
    settings, epochs = recorded(first + seed)
    for share in (0.004, 0.02, 0.2):
        hostile = Hostile(first + seed)
        for epoch, turns in epochs.items():
            scheduler = Scheduler(settings, epoch)
            for now, events in turns:
                told = [hostile.change(event, share) for event in events]
                try:
                    orders = scheduler.turn(told, now)
                    scheduler.check()
                    for order in orders:
                        if isinstance(order, Plan):
                            encode_plan(order)
                except Exception as error:
                    raise AssertionError(f"seed {first + seed}, share {share}, at {now:.4f}: {told}") from error
            COUNTED.update(scheduler.counters)


def test_they_were_seen() -> None:
    """Behind the others: much of it was refused, much could be so."""
    if COUNTED:
        print(
            {
                name: count
                for name, count in COUNTED.items()
                if "refused" in name or "expelled" in name or "turned" in name
            }
        )
        assert COUNTED["events refused"] > 200 and COUNTED["replicas expelled"] > 20 and COUNTED["finished"] > 100
