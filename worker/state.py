"""The desk's rows as the device sees them: tokens and tables as they lie on the host, and the tables on the device.

`worker/batch.py` builds steps from these arrays without touching Python per token. On a CPU the tables are the same
memory; elsewhere what is new in them goes over before a step.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.desk.rows import Rows
from kernels.device.seam import device_of
from kernels.sampling import send
from worker.tables import NOTHING, TableChanges

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


class BatchState:
    """Reads the rows of a desk; whoever has no desk (a proof, a trial) fills rows of its own."""

    def __init__(self, rows: Rows, device: torch.device) -> None:
        self.rows = rows
        self.device = device
        self.max_batch = rows.max_batch
        self.block_size = rows.block_size
        self.max_blocks = rows.max_blocks
        self.tokens: Int32 = rows.tokens
        self.tables: Int32 = rows.tables
        self.num_blocks: Int32 = rows.num_blocks
        self.num_prompt: Int32 = rows.num_prompt
        self.write_from: Int32 = rows.write_from
        self.known: Int32 = rows.known
        self._is_apart = device_of(device).is_apart
        self.device_tables = torch.from_numpy(rows.tables)
        if self._is_apart:
            self.device_tables = torch.zeros(rows.tables.shape, dtype=torch.int32, device=device)
        self._changes = TableChanges(rows)

    @property
    def stops(self) -> Int32:
        """int32 [max_batch, width], -1: none."""
        return self.rows.stops

    def take_changes(self) -> tuple[Int64, Int32]:
        """What the tables on the device lack: places in the flat tables, and the blocks that stand there now. Whoever
        takes it sees to it that it gets there."""
        return self._changes.take() if self._is_apart else NOTHING

    def put(self, places: Int64, blocks: Int32) -> None:
        """Many changes go to the device by themselves."""
        if self._is_apart:
            self.device_tables.view(-1).index_copy_(0, send(places, self.device), send(blocks, self.device))
        else:
            self.tables.reshape(-1)[places] = blocks

    def doubt_tables(self) -> None:
        """A step failed, and what it brought may not have come: all of the tables goes to the device anew."""
        self._changes.doubt()
