"""Roads as latency and rate: what transfers of all sizes say of them, and what a replica loses to one."""

from __future__ import annotations

from random import Random

import pytest

from cluster.centre.rates import Rates, standing_s

MIB = 2**20


def noted(sizes: list[int], latency_s: float, bytes_per_s: float, spread: float = 0.0, network: float = 1e9) -> Rates:
    """A road between two nodes after transfers of these sizes, each up to `spread` quicker or slower."""
    random, rates = Random(1), Rates(network)
    for size in sizes:
        seconds = (latency_s + size / bytes_per_s) * (1 + spread * (2 * random.random() - 1))
        rates.note("a", "b", size, seconds)
    return rates


def seconds(rates: Rates, size: int) -> float:
    """Of a transfer whose latency nobody shares."""
    return rates.lost_s("b", "a", size, 1.0, 1)


@pytest.mark.parametrize("spread", [0.0, 0.3])
@pytest.mark.parametrize(("latency_s", "bytes_per_s"), [(0.005, 2e9), (0.0002, 1e8), (0.05, 5e9)])
def test_latency_and_rate_are_told_apart(latency_s: float, bytes_per_s: float, spread: float) -> None:
    rates = noted([64 * 1024, 16 * MIB, MIB, 128 * 1024, 64 * MIB] * 8, latency_s, bytes_per_s, spread)
    # A line through transfers that scatter is off by more than one of them at its ends, and means nothing beyond.
    allowed = 0.02 + 2 * spread
    for size in (64 * 1024, 4 * MIB, 64 * MIB if spread else 256 * MIB):
        assert seconds(rates, size) == pytest.approx(latency_s + size / bytes_per_s, rel=allowed)


def test_small_transfers_do_not_make_a_road_look_slow() -> None:
    # 64 KiB in 5 ms are 13 MB/s, which a transfer a thousand times as large would not take.
    rates = noted([64 * 1024] * 20, 0.005, 1e9)
    assert seconds(rates, 64 * 1024) == pytest.approx(0.005, rel=0.1)
    assert seconds(rates, 64 * MIB) < 2 * (64 * MIB / 1e9)


def test_a_slow_road_is_found_out_by_large_transfers_alone() -> None:
    rates = noted([64 * MIB] * 10, 0.0, 1e7)
    assert seconds(rates, 64 * MIB) == pytest.approx(6.7, rel=0.1)
    assert seconds(rates, 640 * MIB) == pytest.approx(67, rel=0.1)


def test_what_changed_is_believed_soon() -> None:
    rates = noted([MIB, 64 * MIB] * 20, 0.001, 4e9)
    for _ in range(12):
        rates.note("a", "b", 64 * MIB, 64 * MIB / 4e8)
    assert seconds(rates, 64 * MIB) == pytest.approx(64 * MIB / 4e8, rel=0.35)


def test_sizes_that_say_nothing_leave_a_sane_road() -> None:
    rates = noted([MIB, 2 * MIB] * 20, 0.0, 1e9)
    for turn in range(40):
        # The larger ones are the faster ones.
        rates.note("a", "b", (1 + turn % 2) * MIB, 0.004 - 0.001 * (turn % 2))
    assert 0.002 < seconds(rates, MIB) < 0.005
    assert seconds(rates, 100 * MIB) > seconds(rates, MIB)


def test_the_latency_counts_for_one_of_those_that_run() -> None:
    rates = noted([64 * 1024, 64 * MIB] * 10, 0.01, 1e9)
    alone, shared = (rates.lost_s("a", "b", MIB, 0.5, num) for num in (1, 10))
    assert alone == pytest.approx(0.01 + 0.5 * MIB / 1e9, rel=0.05)
    assert shared == pytest.approx(0.001 + 0.5 * MIB / 1e9, rel=0.05)


def test_before_any_transfer() -> None:
    rates = Rates(1e9)
    assert rates.lost_s("a", "b", 10**9, 0.5, 4) == pytest.approx(0.5)
    assert rates.lost_s("a", "a", 10**9, 0.5, 4) == float("inf")
    rates.at_start("a", 4e9)
    rates.at_start("a", 2e9)
    rates.at_start("a", 8e9)
    assert rates.lost_s("a", "a", 10**9, 1.0, 4) == pytest.approx(0.5)


def test_who_waits_for_blocks_stands_still_once_its_own_is_full() -> None:
    # One slot in a block: after half of the first step on average all stand still.
    assert standing_s(0.008, 0.008, 1) == pytest.approx(0.004)
    assert standing_s(0.024, 0.008, 1) == pytest.approx(0.020)
    # Sixteen: in the first step a sixteenth of them at its end, half of that on average.
    assert standing_s(0.008, 0.008, 16) == pytest.approx(0.008 / 32)
    assert standing_s(0.008, 0.0, 16) == 0.0
