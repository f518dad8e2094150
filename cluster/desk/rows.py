"""The sequences of a desk as arrays indexed by batch row, changed by deltas only.

What a step needs lies in arrays, which a device reads as they are; what is asked rarely (who a sequence is, its
settings) lies beside them in one Resident per row. What runs next is the batcher's; nothing here decides anything.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cluster.desk.loops import GOES_ON, NEVER
from cluster.hashing import BlockHasher
from cluster.messages import Ids, Logprobs, Start
from cluster.sampling import SamplingParams, required

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


class RowResident:
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
        # Names of its blocks: made by this hasher, chained to the last named block; None: names are not wanted.
        self.hasher: BlockHasher | None = None
        self.chain = b""
        self.num_chained = 0
        # Of all tokens from `first_logprob` on, kept as long as the sequence lives here; None: none are asked for.
        self.logprobs: list[Logprobs] | None = None
        self.first_logprob = 0
        self.prompt_logprobs: list[Logprobs | None] | None = None
        # Rows that wait until a step writes the last of this one's prompt, and the row whose prompt is not written yet
        # for this one (-1: none).
        self.forks: list[int] = []
        self.parent = -1


class Rows:
    """Tokens and tables of every row. `known` tokens are here; the batcher's length may be ahead of it."""

    def __init__(self, max_batch: int, max_model_len: int, block_size: int) -> None:
        self.max_batch = max_batch
        self.block_size = block_size
        self.max_blocks = -(-max_model_len // block_size)
        # Zeroed memory is taken from the system only as it is written.
        self.tokens: Int32 = np.zeros((max_batch, max_model_len), np.int32)
        self.tables: Int32 = np.zeros((max_batch, self.max_blocks), np.int32)
        # Counts the changes of a row's table: whoever keeps a copy of the tables knows by it which rows are old.
        self.versions: Int64 = np.zeros(max_batch, np.int64)
        self.num_blocks = np.zeros(max_batch, np.int32)
        self.num_prompt = np.zeros(max_batch, np.int32)
        # Tokens that the Start brought, and those that are known by now.
        self.num_start = np.zeros(max_batch, np.int32)
        self.known = np.zeros(max_batch, np.int32)
        # Length at which a sequence ends.
        self.end = np.zeros(max_batch, np.int32)
        # Positions before this one are in blocks that others hold as well: computed if need be, never written.
        self.write_from = np.zeros(max_batch, np.int32)
        # Positions up to here are written by steps that have retired, or were when the sequence came.
        self.written = np.zeros(max_batch, np.int32)
        # How far tokens were sent to the gateway, and positions and tokens reported to the scheduler.
        self.sent = np.zeros(max_batch, np.int32)
        self.reported = np.zeros(max_batch, np.int32)
        self.reported_known = np.zeros(max_batch, np.int32)
        # Slots that were left of the lease when an extension was last asked for; NEVER: not asked for this lease.
        self.asked = np.full(max_batch, NEVER, np.int32)
        self.stops: Int32 = np.full((max_batch, 4), -1, np.int32)
        # Whether it leaves with the last step that is under way with it (GOES_ON, DROPPED, ENDED).
        self.stopping = np.zeros(max_batch, np.int8)
        self.residents: list[RowResident | None] = [None] * max_batch
        self.row_of: dict[int, int] = {}
        self.free = list(range(max_batch - 1, -1, -1))

    def take(self) -> int:
        """A row that nobody lives in: for a beam, or for a step that serves nobody."""
        assert self.free, f"all {self.max_batch} batch rows are taken"
        row = self.free.pop()
        self.num_blocks[row] = self.write_from[row] = 0
        # Nothing is ever sent from here.
        self.known[row] = self.sent[row] = 0
        self.stopping[row] = GOES_ON
        return row

    def give_back(self, row: int) -> None:
        self.free.append(row)

    def enter(self, resident: RowResident, tokens: Ids, position: int, table: Ids) -> int:
        """A sequence moves in, with all tokens that are known of it; returns its row."""
        row = self.take()
        resident.row = row
        self.residents[row] = resident
        self.row_of[resident.seq] = row
        num_prompt = resident.start.num_prompt
        max_tokens = required(resident.sampling.max_tokens)
        self.tokens[row, : len(tokens)] = tokens
        self.num_start[row] = self.known[row] = self.reported_known[row] = len(tokens)
        self.num_prompt[row] = self.sent[row] = num_prompt
        self.end[row] = num_prompt + max_tokens
        self.written[row] = self.reported[row] = position
        self.asked[row] = NEVER
        self._set_stops(row, resident.sampling.stop_ids)
        self.extend(row, 0, table)
        return row

    def _set_stops(self, row: int, stops: tuple[int, ...]) -> None:
        if len(stops) > self.stops.shape[1]:
            wider = np.full((self.max_batch, len(stops)), -1, np.int32)
            wider[:, : self.stops.shape[1]] = self.stops
            self.stops = wider
        self.stops[row] = -1
        self.stops[row, : len(stops)] = stops

    def leave(self, row: int) -> None:
        del self.row_of[self.at(row).seq]
        self.residents[row] = None
        self.stopping[row] = GOES_ON
        self.give_back(row)

    def extend(self, row: int, first: int, blocks: Sequence[int] | Int32) -> None:
        """Blocks number `first` on of a table; doing so again changes nothing."""
        assert first <= self.num_blocks[row], f"row {row} has {self.num_blocks[row]} blocks, and {first} is next"
        self.tables[row, first : first + len(blocks)] = blocks
        self.num_blocks[row] = first + len(blocks)
        self.versions[row] += 1

    def shorten(self, row: int, num_blocks: int) -> None:
        """The table ends after so many blocks from now on: nobody here names what came behind."""
        assert num_blocks <= self.num_blocks[row], f"row {row} has only {self.num_blocks[row]} blocks"
        self.num_blocks[row] = num_blocks

    def append(self, row: int, tokens: Ids) -> None:
        """Tokens that became known all at once."""
        first = int(self.known[row])
        self.tokens[row, first : first + len(tokens)] = tokens
        self.known[row] = first + len(tokens)

    def at(self, row: int) -> RowResident:
        resident = self.residents[row]
        assert resident is not None, f"batch row {row} is free"
        return resident

    def table(self, row: int) -> list[int]:
        blocks: list[int] = self.tables[row, : self.num_blocks[row]].tolist()
        return blocks

    def ids(self, row: int, first: int, last: int) -> Ids:
        """The tokens `first` to `last` - 1 of a row as a message carries them."""
        return array("i", self.tokens[row, first:last].tobytes())
