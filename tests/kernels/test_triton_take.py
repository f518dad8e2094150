"""Ids that only the device knows, taken over as the reference takes them."""

from __future__ import annotations

import pytest
import torch

from kernels import reference
from kernels.gpu.take import SPAN, take_ids
from tests.kernels.triton_device import DEVICE


@pytest.mark.parametrize("rows", [0, 1, 63, SPAN, SPAN + 3])
def test_ids_are_taken_where_a_place_is_named(rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    last = torch.randint(1, 2**40, (rows + 2,), device=DEVICE)
    taken = torch.randint(-1, rows + 2, (rows,), dtype=torch.int32, device=DEVICE)
    # Behind the rows are other tokens of the step, which stay.
    ids = -torch.arange(1, rows + 6, device=DEVICE)
    wanted = ids.clone()
    reference.take_ids(wanted, taken, last)
    take_ids(ids, taken, last)
    assert torch.equal(ids, wanted)
    assert rows < 9 or not torch.equal(ids[:rows], -torch.arange(1, rows + 1, device=DEVICE))


def test_nothing_named_changes_nothing() -> None:
    ids = torch.arange(7, device=DEVICE)
    take_ids(ids, torch.full((7,), -1, dtype=torch.int32, device=DEVICE), torch.full((3,), 99, device=DEVICE))
    assert ids.tolist() == list(range(7))


def test_wrong_arguments_are_refused() -> None:
    ids, taken = torch.zeros(2, dtype=torch.int64, device=DEVICE), torch.zeros(3, dtype=torch.int32, device=DEVICE)
    with pytest.raises(ValueError, match="taken has 3 rows, and there are 2 ids"):
        take_ids(ids, taken, ids)
    with pytest.raises(ValueError, match="taken must be"):
        take_ids(ids, ids, ids)
