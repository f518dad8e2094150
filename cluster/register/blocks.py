"""What transfers have made of each block of one pool: may it be written, may it be read, what does it sum to.

A block is
  empty        holds nothing that came by transfer (in a worker's pool: the steps own its content)
  writing      a live transfer writes it
  quarantined  its transfer was given up, but a late writer could still touch it
  committed    whole and checked; readers may hold on to it
Arrays, one entry per block. `cluster/register/register.py` is the only user and has the transfers; which block belongs
to whom is the scheduler's ledger, never decided here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cluster.register.states import Blocks, NotObeyed, PoolLayout, Sums, TransferKey, WhyRefused

EMPTY, WRITING, QUARANTINED, COMMITTED = 0, 1, 2, 3

Flags = npt.NDArray[np.bool_]


class PoolBlocks:
    """The states of all blocks. With `own_content` a worker's steps fill the blocks, so any may be read."""

    def __init__(self, layout: PoolLayout, num_blocks: int, *, own_content: bool) -> None:
        self.num_blocks = num_blocks
        self.own_content = own_content
        self.states = np.zeros(num_blocks, np.uint8)
        self.readers = np.zeros(num_blocks, np.int32)
        # By which transfer of which epoch a committed block came, and what its chunks sum to.
        self._transfers = np.zeros(num_blocks, np.int64)
        self._epochs = np.zeros(num_blocks, np.int64)
        self._crcs = np.zeros((num_blocks, layout.chunks_per_block), np.uint32)

    def check_claim(self, key: TransferKey, blocks: Blocks, write: bool) -> None:
        """Raises Refused if these blocks cannot be written (or read) by the transfer `key`."""
        self._check_inside(key, blocks)
        states = self.states[blocks]
        _refuse_any(key, blocks, states == QUARANTINED, WhyRefused.QUARANTINED, "is in quarantine")
        _refuse_any(key, blocks, states == WRITING, WhyRefused.OCCUPIED, "is being written by another transfer")
        if not write:
            if not self.own_content:
                _refuse_any(key, blocks, states != COMMITTED, WhyRefused.UNREADABLE, "holds nothing committed")
            return
        if not self.own_content:
            # A reader lets go a moment after it has told that it has everything: the writer asks again until then. Who
            # reads what steps own is the scheduler's care: it keeps such blocks, or throws away what was read.
            _refuse_any(key, blocks, self.readers[blocks] > 0, WhyRefused.BUSY, "is being read")
        # A reservation that was held up for long must not push out what came after it.
        epochs, transfers = self._epochs[blocks], self._transfers[blocks]
        newer = (epochs > key.epoch) | ((epochs == key.epoch) & (transfers >= key.transfer))
        _refuse_any(key, blocks, newer & (states == COMMITTED), WhyRefused.STALE, "holds what a newer transfer wrote")

    def _check_inside(self, key: TransferKey, blocks: Blocks) -> None:
        if not len(blocks):
            raise NotObeyed(WhyRefused.OUTSIDE, f"{key} names no block")
        low, high = int(blocks.min()), int(blocks.max())
        if low < 0 or high >= self.num_blocks:
            bad = low if low < 0 else high
            raise NotObeyed(WhyRefused.OUTSIDE, f"block {bad} is outside the pool of {self.num_blocks:,} blocks")
        if len(np.unique(blocks)) != len(blocks):
            raise NotObeyed(WhyRefused.OUTSIDE, f"{key} names a block twice")

    def claim_write(self, blocks: Blocks) -> None:
        self.states[blocks] = WRITING

    def claim_read(self, blocks: Blocks) -> None:
        self.readers[blocks] += 1

    def let_read_go(self, blocks: Blocks) -> None:
        self.readers[blocks] -= 1

    def quarantine(self, blocks: Blocks) -> None:
        self.states[blocks] = QUARANTINED

    def empty(self, blocks: Blocks) -> None:
        self.states[blocks] = EMPTY

    def commit(self, key: TransferKey, blocks: Blocks, crcs: Sums) -> None:
        if self.own_content:
            self.states[blocks] = EMPTY
            return
        self.states[blocks] = COMMITTED
        self._transfers[blocks] = key.transfer
        self._epochs[blocks] = key.epoch
        self._crcs[blocks] = crcs.reshape(len(blocks), -1)

    def crcs(self, blocks: Blocks) -> Sums | None:
        """What committed blocks summed to as they came, chunk by chunk; None where the steps own the content."""
        return None if self.own_content else self._crcs[blocks].reshape(-1)


def _refuse_any(key: TransferKey, blocks: Blocks, bad: Flags, refusal: WhyRefused, what: str) -> None:
    if bad.any():
        raise NotObeyed(refusal, f"{key}: block {int(blocks[bad.argmax()])} {what} ({int(bad.sum())} such)")
