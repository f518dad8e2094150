"""Swaps all the time beside a step loop that decodes: tokens and swapped bytes stay right, and steps go on."""

import pytest

from cluster.bench.report import Report
from cluster.bench.transfer_steps import measure


@pytest.mark.timeout(150)
def test_steps_go_on_while_blocks_are_swapped_all_the_time() -> None:
    """`quire bench transfer --steps` asks for 0.95 on a quiet machine. Here a step loop that waits for a lock, for
    Python or for a copy would show: what others take of the processors is not counted."""
    report = Report("transfer", ["--steps"], quiet=True)
    measure(report, 3)
    assert not report.failed, report.checks
    (own, *_) = report.tables["throughput with swaps, of that without"]
    assert isinstance(own["ratio"], float) and own["ratio"] > 0.7, own
    quiet, busy = report.tables["steps while blocks are swapped"]
    assert busy["swapped GB/s"] and not quiet["swapped GB/s"]
