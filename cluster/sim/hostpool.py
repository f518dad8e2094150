"""A simulated host pool: memory of a node that workers write and read by transfer, and the real register of it.

Its memory dies with its process; a pool that starts again is a new one with a higher incarnation and junk inside.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from cluster.messages import HostPoolJoined, HostPoolSettled
from cluster.register.states import layout_of
from cluster.sim.clock import Clock, Process
from cluster.sim.device import Blocks, StackedBlocks
from cluster.sim.pool_end import LOOK_S, Mover, register_of
from cluster.sim.shape import fingerprint_of


class SimHostPool(Process):
    def __init__(
        self,
        name: str,
        incarnation: int,
        node: str,
        size: tuple[int, int, int],
        clock: Clock,
        seed: str,
        tell: Callable[[HostPoolSettled], None],
    ) -> None:
        """`size` is the number of blocks, the slots of each, and of how many slices they are; `tell` says a word to the
        scheduler."""
        super().__init__(name, clock)
        self.incarnation = incarnation
        self.node = node
        self.random = Random(f"{seed}/{name}/{incarnation}")
        self.num_blocks, block_size, num_ranks = size
        self.blocks = Blocks(self.num_blocks, num_ranks * block_size, self.random)
        self.stacked = StackedBlocks((self.blocks,))
        self.layout = layout_of(fingerprint_of(num_ranks), self.stacked.num_bytes)
        self.register = register_of(self.layout, self.num_blocks, incarnation, own_content=False)
        self._tell = tell
        # Processes that can reach the memory by themselves, by session.
        self._sessions: dict[int, Mover] = {}
        self._next_session = 1
        self._looks = False

    def session_of(self, caller: Mover) -> int:
        for session, process in self._sessions.items():
            if process is caller:
                return session
        session, self._next_session = self._next_session, self._next_session + 1
        self._sessions[session] = caller
        self.register.session_began(session, caller.name, caller.incarnation, write=True)
        return session

    def when_written(self, then: Callable[[], None]) -> None:
        """Nobody but transfers writes here, and the scheduler orders a read only of what has committed."""
        then()

    def give_up(self, epoch: int, transfers: tuple[int, ...]) -> None:
        for transfer in transfers:
            self.register.give_up(epoch, transfer, self.clock.now)
        self.look()

    def adopt_epoch(self, epoch: int) -> None:
        self.register.adopt_epoch(epoch, self.clock.now)
        self.look()

    def look(self) -> None:
        if not self._looks:
            self._looks = True
            self.after(LOOK_S, self._look)

    def _look(self) -> None:
        """Deadlines, deaths, and what the scheduler is to hear of them."""
        self._looks = False
        register = self.register
        register.expire(self.clock.now)
        for session, process in list(self._sessions.items()):
            if not process.alive:
                del self._sessions[session]
                register.session_died(session, self.clock.now)
        register.check()
        for number in register.take_settled():
            self._tell(HostPoolSettled(self.name, self.incarnation, number))
        if any(moving.live or moving.quarantined for moving in register.transfers()):
            self.look()

    @property
    def joined(self) -> HostPoolJoined:
        return HostPoolJoined(
            pool=self.name,
            incarnation=self.incarnation,
            node=self.node,
            num_blocks=self.num_blocks,
            block_bytes=self.stacked.num_bytes,
            fingerprint=self.layout.fingerprint,
            bytes_per_s=self.stacked.num_bytes / 0.001,
        )
