"""Swaps all the time beside a step loop that decodes: tokens and swapped bytes stay right, and steps go on."""

import pytest

from cluster.bench.report import Report
from tests.bench.transfer_steps import measure


def _measured(rounds: int) -> Report:
    report = Report("transfer", ["--steps"], quiet=True)
    measure(report, rounds)
    assert not report.failed, report.checks
    return report


@pytest.mark.timeout(150)
def test_steps_go_on_while_blocks_are_swapped_all_the_time() -> None:
    report = _measured(2)
    quiet, busy = report.tables["steps while blocks are swapped"]
    assert busy["swapped GB/s"] and not quiet["swapped GB/s"]


@pytest.mark.trust
@pytest.mark.timeout(300)
def test_steps_keep_their_speed_while_blocks_are_swapped() -> None:
    """`tests/bench/transfer_steps.py` asks for 0.95. A step loop that waits for a lock, for Python or for a copy shows
    here; so does anybody else at work on a machine of two cores, hence not every day."""
    (own, *_) = _measured(7).tables["throughput with swaps, of that without"]
    assert isinstance(own["ratio"], float) and own["ratio"] > 0.7, own
