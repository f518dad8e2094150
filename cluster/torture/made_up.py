"""A worker that makes up tokens at a fixed pace: a worker's own desk, links and process, and no model.

What a cluster's processes do when one of them dies is timed with it, where a model would take the processors that the
others need. A token is a function of the prompt and its position, so every answer is known. It holds no bytes: blocks
have no names, and go nowhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cluster.bench.gateway_worker import FIRST_TOKEN, NUM_TOKENS, made_up, retire_made_up
from cluster.desk import loops
from cluster.desk.desk import Desk
from cluster.desk.words import DeskSettings
from cluster.messages import Plan, ReplicaJoined, ReplicaState, Result, Tokens

BLOCK_SIZE, MAX_MODEL_LEN, TOKEN_BUDGET = 16, 2048, 1 << 14


def answer(prompt: list[int], max_tokens: int) -> tuple[int, ...]:
    """Of every sequence of a request with this prompt."""
    return tuple(made_up(prompt[0], position) for position in range(max_tokens))


class MadeUpWorker:
    """`Served` by a step loop: each step takes `step_s`, and gives every sequence with leave a token."""

    def __init__(
        self, replica: str, incarnation: int, node: str, model: str, num_blocks: int, max_batch: int, step_s: float
    ) -> None:
        joined = ReplicaJoined(
            replica, incarnation, node, model, num_blocks, BLOCK_SIZE, 64, "made up", max_batch, MAX_MODEL_LEN, 1e6
        )
        settings = DeskSettings(TOKEN_BUDGET, FIRST_TOKEN + NUM_TOKENS, names_blocks=False)
        self._desk = Desk(joined, settings)
        # Before it joins, as a worker's: its first step would be silent for as long.
        loops.warm_up()
        self._step_s = step_s
        self._num_proofs = 0

    @property
    def replica(self) -> str:
        return self._desk.joined.replica

    @property
    def incarnation(self) -> int:
        return self._desk.joined.incarnation

    @property
    def num_steps(self) -> int:
        return self._desk.steps.num_steps + self._num_proofs

    def joined(self) -> ReplicaJoined:
        return self._desk.joined

    def wake_by(self, wake: Callable[[], None]) -> None:
        """Whether a step can run, plans alone say here."""

    def watch(self, descriptor: int) -> None:
        """It runs one step at a time."""

    def begin_epoch(self, epoch: int) -> None:
        self._desk.begin_epoch(epoch)

    def hold_for(self, epoch: int) -> ReplicaState:
        return self._desk.hold_for(epoch)

    def obey(self, plan: Plan) -> None:
        self._desk.obey(plan)
        # There are no bytes: nothing is to be done for the desk.
        self._desk.take_orders()

    def step_within(self, seconds: float) -> int:
        desk = self._desk
        batch = desk.next()
        desk.take_orders()
        if not batch.num_tokens:
            return 0
        flight = desk.launched(batch)
        time.sleep(self._step_s)
        retire_made_up(desk, flight)
        desk.take_orders()
        return 1

    def prove(self) -> bool:
        self._num_proofs += 1
        return True

    def cannot_reach(self, gateways: tuple[str, ...]) -> None:
        self._desk.cannot_reach(gateways)

    def take_result(self) -> Result | None:
        return self._desk.take_result(self._step_s)

    def take_tokens(self) -> dict[str, list[Tokens]]:
        return self._desk.take_tokens()
