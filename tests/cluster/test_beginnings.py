"""A prefix that ends inside a block: the slots that agree are copied, the rest is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from cluster.hashing import BlockHasher
from cluster.messages import Copy, Order, Plan, Reason, Start, Submit
from tests.cluster.test_scheduler import SIZE, Driver, starts, submit

OLD = list(range(100))


def plan_of(orders: Sequence[Order]) -> Plan:
    (plan,) = [order for order in orders if isinstance(order, Plan)]
    return plan


def after_old(driver: Driver) -> Start:
    """A request of a hundred tokens has come and gone: six full blocks of its prompt, and the one in which it ends."""
    start = starts(driver.turn(submit("old", OLD, 30)))["old"]
    driver.result([(start, 108, 9)])
    driver.result([(start, 124, 16)])
    driver.result(stopped=[(start, Reason.LENGTH, 129, 5)])
    return start


def ask(driver: Driver, prompt: Sequence[int], **changes: object) -> tuple[Start, tuple[Copy, ...]]:
    plan = plan_of(driver.turn(replace(submit("new", prompt, 4), **changes)))  # type: ignore[arg-type]
    return plan.starts[0], plan.copies


@pytest.mark.parametrize("num_same", [2, 4, 15, 16 + 7, 34, 40, 95, 99])
def test_what_agrees_is_copied(num_same: int) -> None:
    driver = Driver()
    old = after_old(driver)
    start, copies = ask(driver, [*OLD[:num_same], 999, 998, 997])
    full, slots = divmod(num_same, SIZE)
    assert list(start.table[:full]) == list(old.table[:full])
    if slots >= 2:
        assert start.position == num_same and copies == (Copy(old.table[full], start.table[full], slots),)
        assert start.table[full] != old.table[full]
    else:
        assert start.position == full * SIZE and not copies


def test_a_single_token_is_computed() -> None:
    driver = Driver()
    after_old(driver)
    start, copies = ask(driver, [*OLD[: 2 * SIZE + 1], 999])
    assert start.position == 2 * SIZE and not copies


def test_the_same_prompt_again_shares_all_but_its_last_token() -> None:
    driver = Driver()
    old = after_old(driver)
    start, copies = ask(driver, OLD)
    # 96 positions are full blocks; four tokens stand in the seventh, and the last of them is computed for its logits.
    assert start.position == 99 and copies == (Copy(old.table[6], start.table[6], 3),)
    driver = Driver()
    old = after_old(driver)
    start, copies = ask(driver, OLD[:95])
    assert start.position == 94 and copies == (Copy(old.table[5], start.table[5], 14),)


def test_a_copy_needs_its_source_until_it_is_made() -> None:
    driver = Driver()
    old = after_old(driver)
    ask(driver, [*OLD[:40], 999])
    ledger = driver.scheduler.replicas["r0"].ledger
    assert ledger.state(old.table[2]) == "held"
    driver.result()
    assert ledger.state(old.table[2]) == "cached"


def test_a_block_that_holds_something_else_by_now_is_not_found() -> None:
    driver = Driver(num_blocks=16)
    old = after_old(driver)
    # All but the first block is overwritten: the pool is needed for another prompt.
    big = starts(driver.turn(submit("big", range(1000, 1000 + 15 * SIZE - 4), 4)))["big"]
    driver.result(stopped=[(big, Reason.LENGTH, 15 * SIZE - 1, 4)])
    start, copies = ask(driver, [*OLD[: SIZE + 10], 999])
    assert list(start.table[:1]) == list(old.table[:1]) and old.table[1] in big.table
    assert start.position == SIZE and not copies


def test_another_salt_finds_nothing() -> None:
    driver = Driver()
    after_old(driver)
    prompt = submit("new", [*OLD[:10], 999], 4).prompt
    hashes = BlockHasher(b"key", b"", b"other", SIZE).prompt(prompt)
    start, copies = ask(driver, [*OLD[:10], 999], salt=b"other", hashes=hashes)
    assert start.position == 0 and not copies


def test_who_wants_logprobs_of_the_prompt_computes_it() -> None:
    driver = Driver()
    after_old(driver)
    asked: Submit = submit("new", [*OLD[:40], 999], 4)
    start, copies = ask(driver, asked.prompt, sampling=replace(asked.sampling, prompt_logprobs=1))
    assert start.position == 0 and not copies


def test_no_copy_where_it_would_take_the_last_room() -> None:
    driver = Driver(num_blocks=10)
    after_old(driver)
    # Nine blocks are cached or free beside the one that would be copied from, and all ten are needed.
    start, copies = ask(driver, [*OLD[:10], *range(500, 500 + 144)])
    assert len(start.table) == 10 and start.position == 0 and not copies
