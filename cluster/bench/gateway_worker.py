"""A replica whose desk is the worker's own, and whose tokens are made up as fast as it is told to.

Benchmarks of the front door use it, where a model would take more time than what is measured. A token is a function of
the prompt and its position, so that readers can check every one. Blocks are not named: it belongs to a scheduler
without prefix caching.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cluster.desk.desk import Desk
from cluster.desk.words import DeskSettings, Drawn, Flight
from cluster.messages import Plan, ReplicaJoined, Result, Tokens

FIRST_TOKEN, NUM_TOKENS = 300, 1200
N = TypeVar("N", int, NDArray[np.int64])
BLOCK_SIZE = 16
TOKEN_BUDGET = 1 << 16


def made_up(first: N, position: N) -> N:
    """The output token at this position of a request whose prompt begins with `first`; or of many of them."""
    return FIRST_TOKEN + (first * 613 + position * 17) % NUM_TOKENS


def retire_made_up(desk: Desk, flight: Flight) -> NDArray[np.int64]:
    """A step is over, its tokens are made up; returns at which output position each of its rows got one."""
    rows, which = desk.rows, flight.rows
    outputs = rows.known[which].astype(np.int64) - rows.num_prompt[which]
    ids = made_up(rows.tokens[which, 0].astype(np.int64), outputs)
    desk.retire(flight, Drawn.of(ids[None]))
    return outputs


class MadeUpReplica:
    """One replica of `max_batch` requests, each of which runs once."""

    def __init__(self, name: str, model: str, max_batch: int, max_tokens: int) -> None:
        self.name = name
        self.times = np.zeros((max_batch, max_tokens))
        """When the token at each output position of each row was made."""
        self.row_of_first: dict[int, int] = {}
        self.num_made = 0
        self.num_dry = 0
        num_blocks = max_batch * (max_tokens // BLOCK_SIZE + 4)
        self.joined = ReplicaJoined(
            name, 1, "n0", model, num_blocks, BLOCK_SIZE, 1, "made up", max_batch, 2048, 1e6
        )  # fmt: skip
        self._desk = Desk(self.joined, DeskSettings(TOKEN_BUDGET, FIRST_TOKEN + NUM_TOKENS, names_blocks=False))

    def obey(self, plan: Plan) -> None:
        self._desk.obey(plan)
        for start in plan.starts:
            self.row_of_first[start.tokens[0]] = self._desk.rows.row_of[start.seq]

    def step(self, now: float) -> tuple[list[Tokens], Result | None]:
        """Every sequence with leave makes a token; returns what the gateway and the scheduler are told."""
        desk = self._desk
        # There are no bytes: nothing is to be done for the desk.
        desk.take_orders()
        batch = desk.next()
        self.num_dry += batch.num_dry
        if batch.num_tokens:
            flight = desk.launched(batch)
            which, outputs = flight.rows, retire_made_up(desk, flight)
            self.times[which, outputs] = now
            self.num_made += len(which)
        tokens = [one for batch_of in desk.take_tokens().values() for one in batch_of]
        return tokens, desk.take_result()
