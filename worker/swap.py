"""The worker's side of moving blocks: the scheduler's transfer orders go to an agent, its answers into the next result.

Called by the step loop between two steps; nothing here waits. On a CPU a step has ended before its plan's successor is
obeyed, so a transfer may begin at once; on a GPU the agent first waits for what was issued before.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from worker.transfer import TransferAgent
from worker.transfer_copy import Copier
from worker.transfer_device import new_event, pool_bytes
from worker.transfer_end import PoolEnd
from worker.transfer_register import RegisterSettings, TransferRegister
from worker.transfer_security import TransferSecurity
from worker.transfer_states import layout_of
from worker.worker import Worker


class Swap:
    """Transfers between a worker's pool and the pools that `addresses` names; the owner keeps those up to date."""

    def __init__(self, worker: Worker, security: TransferSecurity) -> None:
        pool = worker.parts.pool
        layout = layout_of(pool.layout.fingerprint(), pool.layout.block_bytes)
        register = TransferRegister(layout, pool.num_blocks, worker.incarnation, RegisterSettings(), own_content=True)
        held = pool_bytes(layout, pool.bytes, Copier())
        self._device = pool.bytes.device
        self.addresses: dict[str, str] = {}
        self._worker = worker
        self._agent = TransferAgent(PoolEnd(worker.replica, register, held), self.addresses, security)
        self._epoch = 0

    def direct(self, entries: dict[str, str]) -> None:
        """Where everybody is, as the scheduler says."""
        self.addresses.clear()
        self.addresses.update(entries)

    def begin_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._agent.adopt_epoch(epoch)

    def step(self) -> None:
        """Begins what was ordered, gives up what was aborted, and hands over what has ended."""
        orders, aborts = self._worker.take_transfers()
        for order in orders:
            self._agent.submit(order, self._epoch, self._issued())
        for transfer in aborts:
            self._agent.abort(transfer)
        for answer in self._agent.take_answers():
            self._worker.transferred(answer)

    def _issued(self) -> Callable[[], None] | None:
        """What the agent's thread waits with, until all that this thread has issued to a GPU is done."""
        if self._device.type != "cuda":
            return None
        event = new_event()
        event.record(torch.cuda.current_stream(self._device))
        synchronize: Callable[[], None] = event.synchronize
        return synchronize

    def close(self) -> None:
        self._agent.close()
