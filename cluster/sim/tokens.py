"""What the sequences of a planned fleet say. No model is computed.

`MadeUp` gives ids that mean nothing: enough to plan capacity, where every request runs to its max_tokens. `Said`
(cluster/sim/recorded.py) repeats what a real engine said. A fleet asks one of them.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.desk.rows import Int32, Rows

Int64 = NDArray[np.int64]


class MadeUpTokens(Protocol):
    """Says what is generated."""

    def draw(self, rows: Rows, which: Int32, num_steps: int) -> Int64:
        """The next tokens of these rows, [steps, rows]."""


class MadeUp:
    """Always the same token."""

    def draw(self, rows: Rows, which: Int32, num_steps: int) -> Int64:
        return np.zeros((num_steps, len(which)), np.int64)
