"""The net catches fish: each mistake that is planted into the code is found by a few histories."""

from collections.abc import Callable

import pytest

from cluster.sim.campaign import run_seed
from tests.sim.planted import PLANTS

MOST_HISTORIES = 200


def test_there_are_enough_of_them() -> None:
    assert len(PLANTS) >= 15


@pytest.mark.timeout(300)
@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_a_planted_fault_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    for seed in range(MOST_HISTORIES):
        verdict = run_seed(seed, with_faults=True)
        if verdict.failure:
            print(f"caught by history {seed + 1}: {verdict.failure[:160]}")
            return
    pytest.fail(f"{MOST_HISTORIES} histories did not see it")
