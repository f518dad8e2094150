"""The net catches fish: each mistake that is planted into the code is found by a few histories."""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pytest

from cluster.sim.history import History
from cluster.sim.workload import Scenario, draw_scenario
from tests.sim.planted import PLANTS
from tests.sim.planted_doors import DOOR_PLANTS
from tests.sim.planted_kinds import KIND_PLANTS
from tests.sim.planted_links import LINK_PLANTS

ALL = PLANTS | LINK_PLANTS

MOST_HISTORIES = 200
MOST_OF_A_KIND = 40

SEEN_BY: dict[str, int] = json.loads((Path(__file__).parent / "seen_by.json").read_text())
"""The history that saw a fault when it was last looked for; it goes first, and the others behind it. None is named for
what the first one sees."""


def _scenarios(name: str, *, always_moves: bool = False) -> Iterable[Scenario]:
    """Of the everyday range."""
    first = SEEN_BY.get(name, 0)
    for seed in sorted(range(1_800), key=lambda seed: seed != first):
        yield draw_scenario(seed, with_faults=True, always_moves=always_moves)


def _look_for_it(scenarios: Iterable[Scenario], most: int) -> None:
    for scenario in islice(scenarios, most):
        verdict = History(scenario).run()
        if verdict.failure:
            raised_in = verdict.where.rpartition('  File "')[2].partition('"')[0]
            assert Path(raised_in).parent != Path(__file__).parent, f"the plant itself breaks: {verdict.failure}"
            print(f"caught by history {scenario.seed}: {verdict.failure[:160]}")
            return
    pytest.fail(f"{most} histories did not see it")


def test_there_are_enough_of_them() -> None:
    assert len(PLANTS) >= 15
    assert not SEEN_BY.keys() - (ALL | DOOR_PLANTS).keys() - KIND_PLANTS.keys()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ALL)
def test_a_planted_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ALL[name](monkeypatch)
    _look_for_it(_scenarios(name), MOST_HISTORIES)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", DOOR_PLANTS)
def test_a_fault_that_is_planted_into_the_door_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    DOOR_PLANTS[name](monkeypatch)
    _look_for_it(_scenarios(name, always_moves=True), MOST_HISTORIES)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", KIND_PLANTS)
def test_a_fault_that_one_kind_of_histories_can_see_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one of the first histories that have what it takes."""
    put, is_of_kind = KIND_PLANTS[name]
    put(monkeypatch)
    _look_for_it(filter(is_of_kind, _scenarios(name)), MOST_OF_A_KIND)
