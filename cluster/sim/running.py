"""One attempt of a sequence as a simulated worker holds it, and what its next report says of it.

The worker changes its table, tokens and position; this file turns what has changed since the last report into the ids
and names that `Advances` and `Stopped` carry. It decides nothing.
"""

from __future__ import annotations

from cluster.hashing import BlockHasher
from cluster.messages import Fork, Ids, Reason, Resident, Start, Tokens, ids
from cluster.sim.beams import BeamGroup


class Running:
    """`position` counts retired positions; the batcher's own runs ahead of it by the steps under way."""

    __slots__ = (
        "attempt",
        "chain",
        "dry_told",
        "forks",
        "gateway",
        "group",
        "hashed",
        "hasher",
        "index",
        "last_position",
        "lease_end",
        "lease_told",
        "max_tokens",
        "names_from",
        "num_in_flight",
        "num_known",
        "num_prompt",
        "position",
        "reason",
        "route",
        "row",
        "seq",
        "start",
        "table",
        "tokens",
        "tokens_told",
    )

    def __init__(self, start: Start, row: int, hasher: BlockHasher, fork: Fork | None = None) -> None:
        self.start = start
        self.seq = fork.seq if fork else start.seq
        self.index = fork.index if fork else start.index
        self.attempt = start.attempt
        self.gateway = start.gateway
        self.route = start.route
        self.row = row
        self.num_prompt = start.num_prompt
        self.tokens = ids(start.tokens)
        if fork:
            self.tokens = ids(start.tokens[: start.num_prompt])
            self.tokens.extend(fork.outputs)
        self.num_known = len(self.tokens)  # what the Start said; the rest was drawn here
        self.max_tokens = start.sampling.max_tokens or 1
        self.position = start.num_prompt if fork else start.position
        self.last_position = 1 << 30  # what it may count as written, once its last token is drawn
        self.table = list(fork.table if fork else start.table)
        self.lease_end = fork.lease_end if fork else start.lease_end
        beams = start.beams
        self.group: BeamGroup | None = None
        if beams is not None:
            self.group = BeamGroup(beams.width, beams.purse, len(self.table), hasher.block_size)
            if beams.search:
                self.group.load(beams.tables, beams.search)
        self.reason = Reason.NONE
        self.num_in_flight = 0
        # Forks that wait until this sequence's prompt is written.
        self.forks: list[Running] = []
        self.hasher = hasher
        self.chain = start.chain
        self.hashed = start.num_prompt // hasher.block_size  # blocks that `chain` covers
        self.names_from = self.position // hasher.block_size  # names of blocks before this one were told, or are known
        self.tokens_told = self.num_known
        self.lease_told = -1
        self.dry_told = -1

    @property
    def outputs(self) -> Ids:
        return self.tokens[self.num_prompt :]

    def near_lease_end(self, ahead: int) -> bool:
        """True when the scheduler is to be told that the lease runs out; once per lease, and once more when it has."""
        left = self.lease_end - self.position
        if left <= 0 and self.dry_told != self.lease_end:
            self.dry_told = self.lease_told = self.lease_end
            return True
        if left <= ahead and self.lease_told != self.lease_end:
            self.lease_told = self.lease_end
            return True
        return False

    def say(self, position: int, new: Ids, reason: Reason = Reason.NONE) -> Tokens:
        """Tokens for its gateway, from output `position` on."""
        return Tokens(self.route, self.index, self.attempt, position, new, reason)

    def as_resident(self) -> Resident:
        """What a new scheduler is told of it."""
        table = ids(self.table) if self.group is None or not self.group.beams else self.group.held()
        if self.group is not None and not self.group.beams:
            table.extend(self.group.purse)
        return Resident(self.seq, self.index, self.start, self.tokens[:], self.position, table, self.lease_end)

    def filled_blocks(self) -> int:
        """Blocks filled since the last report."""
        return self.position // self.hasher.block_size - self.names_from

    def news(self) -> tuple[Ids, bytes]:
        """Ids and names since the last report; they count as told from here on."""
        size = self.hasher.block_size
        names = b""
        # What beams write is theirs alone: only the prompt's blocks have names.
        end = (self.position if self.group is None else min(self.position, self.num_prompt)) // size
        while self.hashed < end:
            block = self.tokens[self.hashed * size : (self.hashed + 1) * size]
            self.chain = self.hasher.extend(self.chain, block.tobytes())
            if self.hashed >= self.names_from:
                names += self.chain
            self.hashed += 1
        self.names_from = max(self.names_from, end)
        new = self.tokens[self.tokens_told :]
        self.tokens_told = len(self.tokens)
        return new, names
