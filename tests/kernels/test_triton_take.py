"""Ids that only the device knows, and blocks that are new in tables, taken over as the reference takes them."""

from __future__ import annotations

import pytest
import torch

from kernels import reference
from kernels.gpu.take import SPAN, take
from tests.kernels.triton_device import DEVICE

NONE = torch.zeros((1, 2), dtype=torch.int32, device=DEVICE)
TABLES = torch.zeros((1, 4), dtype=torch.int32, device=DEVICE)


@pytest.mark.parametrize("num_changes", [0, 1, SPAN - 1, 3 * SPAN + 5])
@pytest.mark.parametrize("rows", [0, 1, 63, SPAN, SPAN + 3])
def test_what_is_named_is_taken(rows: int, num_changes: int, seed: int) -> None:
    torch.manual_seed(seed)
    last = torch.randint(1, 2**40, (rows + 2,), device=DEVICE)
    taken = torch.randint(-1, rows + 2, (rows,), dtype=torch.int32, device=DEVICE)
    # Behind the rows are other tokens of the step, which stay.
    ids = -torch.arange(1, rows + 6, device=DEVICE)
    tables = torch.randint(0, 2**31 - 1, (7, 160), dtype=torch.int32, device=DEVICE)
    # Behind the last change stand those of earlier steps, which mean nothing.
    changes = torch.randint(0, 1120, (num_changes + 9, 2), dtype=torch.int32, device=DEVICE)
    changes[0, 0] = num_changes
    changes[1 : 1 + num_changes, 0] = torch.randperm(1120, device=DEVICE)[:num_changes]
    before, wanted, wanted_tables = tables.clone(), ids.clone(), tables.clone()
    reference.take(wanted, taken, last, wanted_tables, changes)
    take(ids, taken, last, tables, changes)
    assert torch.equal(ids, wanted) and torch.equal(tables, wanted_tables)
    assert rows < 9 or not torch.equal(ids[:rows], -torch.arange(1, rows + 1, device=DEVICE))
    assert int((tables != before).sum()) >= num_changes - 1


def test_nothing_named_changes_nothing() -> None:
    ids, tables = torch.arange(7, device=DEVICE), torch.ones((2, 3), dtype=torch.int32, device=DEVICE)
    none = torch.full((7,), -1, dtype=torch.int32, device=DEVICE)
    take(ids, none, torch.full((3,), 99, device=DEVICE), tables, NONE)
    assert ids.tolist() == list(range(7)) and tables.tolist() == [[1, 1, 1]] * 2


def test_wrong_arguments_are_refused() -> None:
    ids, taken = torch.zeros(2, dtype=torch.int64, device=DEVICE), torch.zeros(3, dtype=torch.int32, device=DEVICE)
    with pytest.raises(ValueError, match="taken has 3 rows, and there are 2 ids"):
        take(ids, taken, ids, TABLES, NONE)
    with pytest.raises(ValueError, match="taken must be"):
        take(ids, ids, ids, TABLES, NONE)
    with pytest.raises(ValueError, match="tables and changes must be dense"):
        take(ids, taken[:2], ids, torch.zeros((2, 4), dtype=torch.int32, device=DEVICE)[:, :3], NONE)
