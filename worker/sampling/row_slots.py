"""Slots of a vocabulary's width that only some batch rows need, and access to some rows of a batch.

A batch of hundreds of rows times a vocabulary of a hundred thousand is too much to hold for what few requests ask, so
tensors grow with the number of rows that use them at once. `penalties.py` and `bans.py` keep their state in such slots.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.sampling import send

Ints = NDArray[np.integer]


def some(tensor: torch.Tensor, which: Ints) -> torch.Tensor:
    """The rows `which` (ascending) of a tensor; the tensor itself where that is all of them."""
    return tensor if which.size == tensor.shape[0] else tensor.index_select(0, send(which, tensor.device))


def put(tensor: torch.Tensor, which: Ints, new: torch.Tensor) -> None:
    """Replaces the rows `which`."""
    tensor.index_copy_(0, send(which, tensor.device), new)


class RowSlots:
    """Hands out slots of per-sequence tensors to batch rows; grows them by doubling, up to one for each row."""

    def __init__(self, max_batch: int, device: torch.device) -> None:
        self.device = device
        self._of_row = np.full(max_batch, -1, np.int64)
        self._free: list[int] = []
        self._num_slots = 0

    def take(self, row: int) -> int:
        """A slot for `row`. Every tensor must go through `grown` before it is used again."""
        assert self._of_row[row] < 0, f"batch row {row} has a slot"
        if not self._free:
            num_slots = min(max(4, 2 * self._num_slots), self._of_row.size)
            self._free = list(range(num_slots - 1, self._num_slots - 1, -1))
            self._num_slots = num_slots
        slot = self._free.pop()
        self._of_row[row] = slot
        return slot

    def give_back(self, row: int) -> None:
        """Does nothing for a row without a slot."""
        if self._of_row[row] >= 0:
            self._free.append(int(self._of_row[row]))
            self._of_row[row] = -1

    def of(self, rows: Ints) -> NDArray[np.int64]:
        slots = self._of_row[rows]
        assert (slots >= 0).all(), f"rows {rows[slots < 0]} have no slot"
        return slots

    def on_device(self, rows: Ints) -> torch.Tensor:
        """The slots of these rows, int64."""
        return send(self.of(rows), self.device)

    def grown(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` [slots, ...] with as many slots as there are now; what is new is not filled."""
        missing = self._num_slots - tensor.shape[0]
        if missing <= 0:
            return tensor
        return torch.cat([tensor, tensor.new_empty(missing, *tensor.shape[1:])])
