"""The worker's side of moving blocks: the scheduler's transfer orders go to an agent, its answers into the next result.

Called by the step loop between two steps; nothing here waits. On a CPU a step has ended before its plan's successor is
obeyed, so a transfer may begin at once; on a GPU the agent first waits for what was issued before. Other workers read
this worker's pool through a server of its own: what they may read, the scheduler keeps as it is until they have.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from cluster.links.security import ClusterSecurity
from cluster.register.register import Register, RegisterSettings
from cluster.register.states import layout_of
from kernels.device.seam import device_of
from worker.ranks.blocks import WholeBlocks
from worker.transfer.agent import TransferAgent
from worker.transfer.bytes import PoolBytes
from worker.transfer.copy import Copier
from worker.transfer.device import pool_bytes
from worker.transfer.end import PoolEnd
from worker.transfer.server import Listening, TransferServer
from worker.worker import Worker

_MEASURED_BYTES = 32 << 20


class Swapper:
    """Transfers between a worker's pool and the pools that `addresses` names; the owner keeps those up to date."""

    def __init__(self, worker: Worker, security: ClusterSecurity, listening: Listening | None = None) -> None:
        pool, team, joined = worker.parts.pool, worker.parts.team, worker.joined()
        layout = layout_of(joined.fingerprint, joined.block_bytes)
        register = Register(layout, pool.num_blocks, worker.incarnation, RegisterSettings(), own_content=True)
        # Of several ranks, whole blocks.
        self._whole = None if team is None else WholeBlocks(layout, team, pool.bytes)
        held = self._whole or pool_bytes(layout, pool.bytes, Copier(), pool.shared)
        worker.serve_peers(_measure(held, pool.device))
        self._device = pool.bytes.device
        self.addresses: dict[str, str] = {}
        self._worker = worker
        end = PoolEnd(worker.replica, register, held)
        # What the owner of the step loop does to end its wait, where it waits.
        self.wake: Callable[[], object] = lambda: None
        self._agent = TransferAgent(end, self.addresses, security, answered=self._answered)
        self._server = TransferServer(end, security, listening)
        self._epoch = 0

    @property
    def address(self) -> str:
        """Where peers read from this pool."""
        return self._server.address

    def _answered(self) -> None:
        self.wake()

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
        seam = device_of(self._device)
        if not seam.is_apart:
            return None
        event = seam.event()
        event.record()
        return event.wait

    def close(self) -> None:
        self._server.close()
        self._agent.close()
        if self._whole is not None:
            self._whole.close()


def _measure(held: PoolBytes, device: torch.device) -> float:
    """Bytes per second of checked copies out of the pool, which is empty yet."""
    size = held.layout.block_bytes
    count = min(held.num_blocks, max(1, _MEASURED_BYTES // size))
    blocks = np.arange(count, dtype=np.int32)
    staging = device_of(device).pinned(count * size, torch.uint8)
    began = time.perf_counter()
    held.copy_out(blocks, staging.data_ptr() + blocks.astype(np.int64) * size, None)
    return count * size / (time.perf_counter() - began)


def swap_of(worker: Worker, security: ClusterSecurity, listening: Listening | None = None) -> Swapper | None:
    """`listening`: where peers of its pool reach it; None: on this machine only. None where ranks share no memory
    that their slices of blocks could pass through: what such a replica preempts is computed again."""
    team = worker.parts.team
    return Swapper(worker, security, listening) if team is None or team.shares_memory else None
