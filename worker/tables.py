"""What is new in the block tables since a copy of them was last brought up to date: the blocks, and where they go.

One of these stands for each copy: the one on the device, and those of the other ranks. A block more in a table of many
thousands is one number that is sent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cluster.desk.rows import Rows
from kernels.cpu.host_loops import find_changes

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

NOTHING = np.zeros(0, np.int64), np.zeros(0, np.int32)


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
        if not changed.size:
            return NOTHING
        self._seen[changed] = rows.versions[changed]
        places = np.empty(int(rows.num_blocks[changed].sum()), np.int64)
        found = places[: find_changes(changed, rows.tables, rows.num_blocks, self._copy, places)]
        return found, rows.tables.reshape(-1)[found]

    def doubt(self) -> None:
        """What was taken last may not have reached the copy: nothing is known of it any more."""
        self._seen.fill(-1)
        self._copy.fill(-1)
