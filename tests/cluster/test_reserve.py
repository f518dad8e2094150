"""Reservations of whole runs, which paging is measured against: how much each takes, when it waits, what is refused."""

from __future__ import annotations

import pytest

from cluster import LLM, SamplingParams
from cluster.errors import ConfigError
from cluster.messages import Reason, Refused
from cluster.settings import ReserveName, SchedulerSettings
from tests.cluster.test_scheduler import Driver, starts, submit

RESERVED: tuple[ReserveName, ...] = ("oracle", "power_of_two", "longest")


def reserving(reserve: ReserveName) -> SchedulerSettings:
    return SchedulerSettings(reserve=reserve, allocator="buddy", prefix_caching=False)


def held(driver: Driver) -> int:
    return driver.scheduler.replicas["r0"].ledger.counts().held


@pytest.mark.parametrize(("reserve", "blocks"), [("oracle", 8), ("power_of_two", 16), ("longest", 128)])
def test_a_request_takes_one_aligned_run_for_all_that_it_may_write(reserve: ReserveName, blocks: int) -> None:
    driver = Driver(reserving(reserve), num_blocks=128)
    # Ends at 49 + 65 tokens: 8 blocks; with the next power of two, 128, it is 12 blocks, a run of 16.
    start = starts(driver.turn(submit("q", range(49), 65)))["q"]
    table = list(start.table)
    assert held(driver) == blocks and start.lease_end == 113
    assert len(table) == 8 and table == list(range(table[0], table[0] + 8)) and table[0] % blocks == 0
    driver.result(stopped=[(start, Reason.LENGTH, 113, 65)])
    assert held(driver) == 0 and driver.scheduler.replicas["r0"].ledger.longest_run == 128


def test_whoever_finds_no_run_waits_though_blocks_are_free() -> None:
    driver = Driver(reserving("oracle"), num_blocks=16)
    started = starts(driver.turn(*(submit(f"q{i}", range(40), 20) for i in range(4))))
    assert len(started) == 4
    # The second and the fourth run are free now, eight blocks that are not adjacent.
    driver.result(stopped=[(started[name], Reason.LENGTH, 59, 20) for name in ("q1", "q3")])
    assert held(driver) == 8
    assert not starts(driver.turn(submit("long", range(100), 20)))
    (late,) = starts(driver.result(stopped=[(started["q0"], Reason.LENGTH, 59, 20)])).values()
    assert late.request_id == "long" and len(late.table) == 8


def test_what_no_run_could_hold_and_several_sequences_are_refused() -> None:
    driver = Driver(reserving("oracle"), num_blocks=24)
    (refused,) = driver.turn(submit("big", range(300), 40))
    assert isinstance(refused, Refused) and "needs 32 blocks" in refused.detail
    (refused,) = driver.turn(submit("two", range(30), 4, n=2))
    assert isinstance(refused, Refused) and "ask with n of 1" in refused.detail


def test_runs_need_an_allocator_that_has_them() -> None:
    with pytest.raises(ConfigError, match="set allocator to 'buddy'"):
        SchedulerSettings(reserve="longest")


def test_tokens_are_the_same_in_runs_and_in_pages() -> None:
    prompts = [{"prompt_token_ids": list(range(5, 5 + count))} for count in (3, 40, 17, 90, 61)]
    params = [SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True) for count in (30, 9, 50, 21, 2)]
    said = []
    for settings in (SchedulerSettings(prefix_caching=False), *map(reserving, RESERVED)):
        llm = LLM("demo", quiet=True, kv_blocks=32, max_model_len=256, scheduler=settings)
        said.append([result.outputs[0].token_ids for result in llm.generate(prompts, params)])
    assert all(other == said[0] for other in said[1:])
