"""What is new in the block tables since a copy of them was last brought up to date: the blocks, and where they go.

One of these stands for each copy: the one on the device, and those of the other ranks. A block more in a table of many
thousands is one number that is sent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cluster.desk.rows import Rows

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


class TableChanges:
    """What a copy of these rows' tables lacks."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._seen = np.full_like(rows.versions, -1)
        # What the copy holds: zeros at first, which take memory from the system only as they are written.
        self._copy = np.zeros_like(rows.tables)

    def take(self) -> tuple[Int64, Int32]:
        """Places in the flat tables, and the blocks that stand there now."""
        rows = self._rows
        changed = np.flatnonzero(rows.versions != self._seen)
        self._seen[changed] = rows.versions[changed]
        places: list[Int64] = []
        for row in changed.tolist():
            count = rows.num_blocks[row]
            table, copy = rows.tables[row, :count], self._copy[row, :count]
            new = np.flatnonzero(table != copy)
            copy[new] = table[new]
            places.append(new + row * rows.max_blocks)
        found = np.concatenate([np.zeros(0, np.int64), *places])
        return found, rows.tables.reshape(-1)[found]
