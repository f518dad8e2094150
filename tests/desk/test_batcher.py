"""Which sequences go into a step: decodes first, then chunks by precedence, and nobody passed over for ever."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.desk.batcher import Batcher, token_budget_for

FAR = 1 << 20


def test_decodes_go_first_and_prefill_gets_what_is_left_by_precedence() -> None:
    batcher = Batcher(max_batch=8, token_budget=20)
    batcher.add(0, 0, 30, FAR, precedence=2)
    batcher.add(1, 9, 10, FAR, precedence=9)
    batcher.add(2, 0, 12, FAR, precedence=1)
    batcher.add(3, 4, 5, FAR, precedence=8)
    batch = batcher.next()
    assert list(batch.rows) == [1, 3, 2, 0] and list(batch.counts) == [1, 1, 12, 6]
    assert (batch.num_decodes, batch.num_tokens) == (2, 20)
    batcher.issue(batch)
    assert list(batcher.position[:4]) == [6, 10, 12, 5]


def test_a_lease_ends_a_chunk_and_a_dry_one_is_counted() -> None:
    batcher = Batcher(max_batch=4, token_budget=64)
    batcher.add(0, 0, 40, 16, precedence=1)
    batcher.add(1, 16, 17, 16, precedence=2)
    batch = batcher.next()
    assert list(batch.rows) == [0] and list(batch.counts) == [16] and batch.num_dry == 1
    batcher.issue(batch)
    assert batcher.next().num_tokens == 0 and batcher.next().num_dry == 2


def test_a_held_row_gets_no_token_but_its_prompt_is_computed() -> None:
    batcher = Batcher(max_batch=4, token_budget=64)
    batcher.add(0, 0, 40, FAR, precedence=1)
    batcher.add(1, 16, 17, FAR, precedence=2)
    batcher.add(2, 20, 21, FAR, precedence=3)
    batcher.hold([0, 1])
    batch = batcher.next()
    assert list(batch.rows) == [2, 0] and list(batch.counts) == [1, 39] and batch.num_dry == 0
    assert list(batcher.issue(batch)) == [2]
    assert list(batcher.next().rows) == [2]
    batcher.hold([1])
    assert list(batcher.next().rows) == [0, 2]
    batcher.hold([])
    assert list(batcher.next().rows) == [0, 1, 2]


@pytest.mark.parametrize("max_passed_over", [1, 5, 32])
def test_the_bound_on_being_passed_over(max_passed_over: int) -> None:
    """Prompts of higher precedence come without end; the one behind them gets a chunk all the same."""
    batcher = Batcher(max_batch=2, token_budget=16, max_passed_over=max_passed_over)
    batcher.add(0, 0, 100, FAR, precedence=100)
    steps = 0
    waited = []
    for arrival in range(200):
        if not batcher.resident[1]:
            batcher.add(1, 0, 17, FAR, precedence=arrival % 100)
        batch = batcher.next()
        steps += 1
        if 0 in batch.rows:
            waited.append(steps)
            steps = 0
        batcher.issue(batch)
        batcher.position[1] = 0  # the next one of its kind
        if batcher.position[0] >= 96:
            break
    assert waited and max(waited) <= max_passed_over + 1


def test_a_prompt_goes_on_though_decodes_fill_every_step() -> None:
    batcher = Batcher(max_batch=5, token_budget=4, max_passed_over=32)
    for row in range(4):
        batcher.add(row, 9, 10, FAR, precedence=row)
    batcher.add(4, 0, 10, FAR, precedence=9)
    waited, longest = 0, 0
    for _ in range(400):
        batch = batcher.next()
        assert batch.num_tokens <= 4
        batcher.issue(batch)
        batcher.length[:4] = batcher.position[:4] + 1
        waited = 0 if 4 in batch.rows else waited + 1
        longest = max(longest, waited)
        if batcher.position[4] >= 9:
            break
    assert batcher.position[4] >= 9 and longest == 32
    assert batcher.passed_over[:4].max() <= 1, "nobody else waits for longer than one step"


def test_more_decodes_than_budget_take_turns() -> None:
    batcher = Batcher(max_batch=6, token_budget=4)
    for row in range(6):
        batcher.add(row, 5, 6, FAR, precedence=row)
    seen = np.zeros(6, int)
    for _ in range(6):
        batch = batcher.next()
        assert batch.num_tokens == 4
        seen[batch.rows] += 1
    assert seen.min() >= 3 and seen.sum() == 24


def test_a_beam_group_goes_whole_or_not_at_all() -> None:
    batcher = Batcher(max_batch=4, token_budget=5)
    for row in range(2):
        batcher.add(row, 5, 6, FAR, precedence=row)
        batcher.widen(row, 3)
    assert [list(batcher.next().rows) for _ in range(2)] == [[0], [1]]


def test_the_budget_that_keeps_an_inter_token_latency() -> None:
    # A step takes 4 ms and 0.1 ms a token: 36 ms are left of 40, which is 360 tokens.
    assert token_budget_for(0.040, 0.004, 0.0001, max_batch=64) == 360
    # The decodes of a full batch and some prefill always fit, whatever was asked for.
    assert token_budget_for(0.001, 0.004, 0.0001, max_batch=64) == 80
