"""The persistent state of all sequences that a worker holds: arrays indexed by batch row, changed by deltas only.

The worker enters, extends and removes rows; `worker/batch.py` builds steps from the arrays without touching Python per
token. What is asked rarely (who a sequence is, its settings) lies beside them in one Resident per row. Positions and
leases belong to the batcher; nothing here decides what runs.
"""

from __future__ import annotations

from array import array

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.hashing import BlockHasher
from cluster.messages import Ids, Logprobs, Start
from cluster.sampling import SamplingParams
from kernels.cpu.host_loops import NEVER
from kernels.device.seam import device_of
from kernels.sampling import send

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


class Resident:
    """Who lives in a batch row: the cold side of a sequence."""

    __slots__ = (
        "attempt",
        "chain",
        "first_logprob",
        "forks",
        "gateway",
        "hasher",
        "index",
        "logprobs",
        "num_chained",
        "parent",
        "prompt_logprobs",
        "request_id",
        "route",
        "row",
        "sampling",
        "seq",
        "start",
    )

    def __init__(self, seq: int, index: int, start: Start) -> None:
        self.seq = seq
        self.row = -1
        self.index = index
        # As it was started; a fork by its parent's Start. A new scheduler is told.
        self.start = start
        self.request_id = start.request_id
        self.attempt = start.attempt
        self.gateway = start.gateway
        self.route = start.route
        self.sampling: SamplingParams = start.sampling
        # Names of generated blocks: made by this hasher, chained to the last named block; None: names are not wanted.
        self.hasher: BlockHasher | None = None
        self.chain = b""
        self.num_chained = 0
        # Of all tokens from `first_logprob` on, kept as long as the sequence lives here; None: none are asked for.
        self.logprobs: list[Logprobs] | None = None
        self.first_logprob = 0
        self.prompt_logprobs: list[Logprobs | None] | None = None
        # Rows that wait until this one has written the prompt, and the row that this one waits for (-1: none).
        self.forks: list[int] = []
        self.parent = -1


class BatchState:
    """Tokens and tables of every row. `known` tokens are on the host; the batcher's length may be ahead of it."""

    def __init__(self, max_batch: int, max_model_len: int, block_size: int, device: torch.device) -> None:
        self.max_batch = max_batch
        self.block_size = block_size
        self.max_blocks = -(-max_model_len // block_size)
        self.device = device
        # Zeroed memory is taken from the system only as it is written.
        self.tokens: Int32 = np.zeros((max_batch, max_model_len), np.int32)
        self.tables: Int32 = np.zeros((max_batch, self.max_blocks), np.int32)
        on_cpu = not device_of(device).is_apart
        self.device_tables = torch.from_numpy(self.tables)
        if not on_cpu:
            self.device_tables = torch.zeros(self.tables.shape, dtype=torch.int32, device=device)
        # Rows whose table on the device is older than the one here; on a CPU they are the same memory.
        self._stale_tables: set[int] | None = None if on_cpu else set()
        # Rows whose table has changed since the other ranks were last told; None: there are no others.
        self.untold_tables: set[int] | None = None
        self.num_blocks = np.zeros(max_batch, np.int32)
        self.num_prompt = np.zeros(max_batch, np.int32)
        self.known = np.zeros(max_batch, np.int32)
        # Length at which a sequence ends, and the end of what it can ever write: the last token is never written.
        self.end = np.zeros(max_batch, np.int32)
        self.limit = np.zeros(max_batch, np.int32)
        # Positions before this one are in blocks that others hold as well: computed if need be, never written.
        self.write_from = np.zeros(max_batch, np.int32)
        # How far tokens were sent to the gateway, and positions and tokens reported to the scheduler.
        self.sent = np.zeros(max_batch, np.int32)
        self.reported = np.zeros(max_batch, np.int32)
        self.reported_known = np.zeros(max_batch, np.int32)
        # Slots that were left of the lease when an extension was last asked for; NEVER: not asked for this lease.
        self.asked = np.full(max_batch, NEVER, np.int32)
        self.stops: Int32 = np.full((max_batch, 4), -1, np.int32)
        self.residents: list[Resident | None] = [None] * max_batch
        self.row_of: dict[int, int] = {}
        self._free = list(range(max_batch - 1, -1, -1))

    def enter(self, resident: Resident, tokens: Ids, num_prompt: int, position: int, table: Ids) -> int:
        """A sequence moves in, with all tokens that are known of it; returns its row."""
        assert self._free, f"all {self.max_batch} batch rows are taken"
        row = self._free.pop()
        resident.row = row
        self.residents[row] = resident
        self.row_of[resident.seq] = row
        max_tokens = resident.sampling.max_tokens
        assert max_tokens is not None
        self.tokens[row, : len(tokens)] = tokens
        self.known[row] = len(tokens)
        self.num_prompt[row] = num_prompt
        self.end[row] = num_prompt + max_tokens
        self.limit[row] = num_prompt + max_tokens - 1
        self.write_from[row] = 0
        self.sent[row] = num_prompt
        self.reported[row] = position
        self.reported_known[row] = len(tokens)
        self.asked[row] = NEVER
        self._set_stops(row, resident.sampling.stop_ids)
        self.num_blocks[row] = 0
        self.extend(row, 0, table)
        return row

    def _set_stops(self, row: int, stops: tuple[int, ...]) -> None:
        if len(stops) > self.stops.shape[1]:
            wider = np.full((self.max_batch, len(stops)), -1, np.int32)
            wider[:, : self.stops.shape[1]] = self.stops
            self.stops = wider
        self.stops[row] = -1
        self.stops[row, : len(stops)] = stops

    def extend(self, row: int, first: int, blocks: Ids | Int32) -> None:
        """Blocks number `first` on of a table; doing so again changes nothing."""
        assert first <= self.num_blocks[row], f"row {row} has {self.num_blocks[row]} blocks, and {first} is next"
        self.tables[row, first : first + len(blocks)] = blocks
        self.num_blocks[row] = first + len(blocks)
        if self._stale_tables is not None:
            self._stale_tables.add(row)
        if self.untold_tables is not None:
            self.untold_tables.add(row)

    def shorten(self, row: int, num_blocks: int) -> None:
        """The table ends after so many blocks from now on: nobody here names what came behind."""
        assert num_blocks <= self.num_blocks[row], f"row {row} has only {self.num_blocks[row]} blocks"
        self.num_blocks[row] = num_blocks

    def append(self, row: int, tokens: Ids) -> None:
        """Tokens that became known all at once."""
        first = int(self.known[row])
        self.tokens[row, first : first + len(tokens)] = tokens
        self.known[row] = first + len(tokens)

    @property
    def num_free_rows(self) -> int:
        return len(self._free)

    def enter_beam(self) -> int:
        """A row for a further beam of a group: a table and a last token, and nobody who lives there."""
        assert self._free, f"all {self.max_batch} batch rows are taken"
        row = self._free.pop()
        self.num_blocks[row] = self.write_from[row] = 0
        # Nothing is ever sent from here.
        self.known[row] = self.sent[row] = 0
        return row

    def leave_beam(self, row: int) -> None:
        self._free.append(row)

    def leave(self, row: int) -> None:
        resident = self.residents[row]
        assert resident is not None, f"batch row {row} is free already"
        del self.row_of[resident.seq]
        self.residents[row] = None
        self._free.append(row)

    def at(self, row: int) -> Resident:
        resident = self.residents[row]
        assert resident is not None, f"batch row {row} is free"
        return resident

    def sync_tables(self) -> None:
        """Brings the tables on the device up to date, before a step."""
        if self._stale_tables:
            rows = np.array(sorted(self._stale_tables), np.int64)
            self.device_tables.index_copy_(0, send(rows, self.device), send(self.tables[rows], self.device))
            self._stale_tables.clear()

    def ids(self, row: int, first: int, last: int) -> Ids:
        """The tokens `first` to `last` - 1 of a row as a message carries them."""
        return array("i", self.tokens[row, first:last].tobytes())
