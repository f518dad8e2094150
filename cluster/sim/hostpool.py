"""A simulated host pool: memory of a node that workers write and read by transfer. It decides nothing.

Its memory dies with its process; a pool that starts again is a new one with a higher incarnation and junk inside.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from cluster.messages import HostPoolJoined
from cluster.sim.clock import Clock, Process
from cluster.sim.device import Blocks


class SimHostPool(Process):
    def __init__(self, name: str, incarnation: int, node: str, size: tuple[int, int], clock: Clock, seed: str) -> None:
        """`size` is the number of blocks and the slots of each."""
        super().__init__(name, clock)
        self.incarnation = incarnation
        self.node = node
        self.epoch = 0
        self.random = Random(f"{seed}/{name}/{incarnation}")
        self.num_blocks, self.block_size = size
        self.blocks = Blocks(self.num_blocks, self.block_size, self.random)
        # What the scheduler gave up before anything came of it: it is refused from then on.
        self.given_up: set[int] = set()

    def when_written(self, then: Callable[[], None]) -> None:
        """Nobody but transfers writes here, and the scheduler orders a read only of what has committed."""
        self.run(then)

    @property
    def joined(self) -> HostPoolJoined:
        return HostPoolJoined(
            pool=self.name,
            incarnation=self.incarnation,
            node=self.node,
            num_blocks=self.num_blocks,
            block_bytes=self.blocks.num_bytes,
            fingerprint="simulated",
            bytes_per_s=self.blocks.num_bytes / 0.001,
        )
