"""A recorded run of the embedded engine, repeated in the simulator: the same decisions, every one of them."""

import pytest

from cluster.bench.capacity import run_recorded
from cluster.sim.costs import fit
from cluster.sim.recorded import Divergence, repeat

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("kv_blocks", "prefix_caching"), [(400, True), (44, True), (44, False)])
def test_the_simulator_decides_as_the_engine_did(kv_blocks: int, prefix_caching: bool) -> None:
    seen = run_recorded(kv_blocks, seed=1, prefix_caching=prefix_caching)
    repeated = repeat(seen, fit(seen.steps))
    print(repeated)
    assert repeated.num_turns == len(seen.turns) > 100
    assert repeated.num_orders > 200
    assert repeated.num_steps == len(seen.steps) > 300


def test_a_different_decision_is_seen() -> None:
    seen = run_recorded(44, seed=2, count=20)
    cost = fit(seen.steps)
    seen.token_budget += 16
    with pytest.raises(Divergence, match="turn"):
        repeat(seen, cost)
