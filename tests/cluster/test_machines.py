"""Random steps on ledger, prefix index, batcher, fairness and tables, each compared with a simple model of it."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.cluster.machines import STEPS, Counted, LedgerMachine, PrefixMachine
from tests.cluster.machines_order import BatcherMachine, FairnessMachine, TableMachine

MACHINES = (LedgerMachine, PrefixMachine, BatcherMachine, FairnessMachine, TableMachine)
FEWEST_STEPS = 2_200
"""Of each machine, in every run: more than 10,000 together."""

SETTINGS = settings(max_examples=70, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.__name__)
def test_a_part_does_what_its_model_does(machine: type[Counted]) -> None:
    STEPS.pop(machine.__name__, None)
    run_state_machine_as_test(machine, settings=SETTINGS)  # type: ignore[no-untyped-call]
    print(f"{STEPS[machine.__name__]:,} steps")
    assert STEPS[machine.__name__] >= FEWEST_STEPS
