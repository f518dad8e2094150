"""The steps of a simulated replica: the real batcher picks them, the device does them, their tokens are drawn.

Up to `depth` steps are issued at once, so a sequence that stops is found out one step late, while the step under way
still writes into its blocks: it counts as ended here, and leaves only once that step has retired. The worker adds and
removes sequences and is told what a step brought; this file knows no plan and no result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

from cluster.desk.batcher import Batch, Batcher
from cluster.messages import Reason, Tokens, ids
from cluster.sim.beams import best
from cluster.sim.clock import Process
from cluster.sim.device import Blocks, Stream
from cluster.sim.filled import Filled
from cluster.sim.model import draw
from cluster.sim.running import Running
from cluster.sim.shape import WorkerShape


@dataclass(slots=True)
class Part:
    """A sequence's share of a step: `count` tokens from `start` on, on its table as it was when the step was issued."""

    running: Running
    start: int
    count: int
    draws: bool
    table: list[int]
    forks: list[Running]


class Steps:
    """Batch rows, the device and the blocks of one replica.

    `on_advance` is called for each sequence after each of its steps (`filled_prompt`: the step filled a block of what
    was known at the start), `on_retire` once after each step with the tokens that it drew, by gateway.
    """

    def __init__(
        self,
        owner: Process,
        shape: WorkerShape,
        random: Random,
        on_advance: Callable[[Running, bool], None],
        on_retire: Callable[[dict[str, list[Tokens]]], None],
    ) -> None:
        self.shape = shape
        self.blocks = Blocks(shape.num_blocks, shape.block_size, random, shape.model)
        self.stream = Stream(owner)
        self.batcher = Batcher(shape.max_batch, shape.token_budget)
        self.filled = Filled()
        self.num_retired = 0
        self.num_dry = 0
        self.num_beam_swaps = 0
        self.step_seconds = 0.0
        self._random = random
        self._noise = random.randrange(shape.num_noises)
        self._on_advance = on_advance
        self._on_retire = on_retire
        self._rows: list[Running | None] = [None] * shape.max_batch
        self._num_issued = 0

    # -- rows

    def free_row(self) -> int:
        return self._rows.index(None)

    def add(self, running: Running, precedence: int, paused: bool) -> None:
        self._rows[running.row] = running
        # A fork without outputs draws its first token from its parent's step, so that token counts as known.
        length = max(len(running.tokens), running.position + 1)
        self.batcher.add(running.row, running.position, length, running.lease_end, precedence, paused=paused)
        # Behind the prompt the table of a beam group is a set.
        named = running.position if running.group is None else min(running.position, running.num_prompt)
        self.filled.note(running, running.table, 0, named)

    def set_lease(self, running: Running, lease_end: int) -> None:
        running.lease_end = lease_end
        self.batcher.lease_end[running.row] = lease_end

    def issued_position(self, running: Running) -> int:
        """Up to here steps write that can no longer be taken back."""
        return int(self.batcher.position[running.row])

    def end(self, running: Running, reason: Reason) -> None:
        """No further step for it."""
        if running.reason is Reason.NONE:
            self.batcher.remove(running.row)
        running.reason = reason

    def leave(self, running: Running) -> None:
        assert not running.num_in_flight
        self._rows[running.row] = None

    @property
    def prefill_waiting(self) -> int:
        return int((self.batcher.length - self.batcher.position)[self.batcher.resident].sum())

    # -- steps

    def issue(self) -> None:
        while self._num_issued < self.shape.depth:
            batch = self.batcher.next()
            self.num_dry += batch.num_dry
            if not batch.num_tokens:
                return
            parts = self._parts(batch)
            seconds = self.shape.step_base_s + self.shape.per_token_s * batch.num_tokens
            seconds *= 0.9 + 0.2 * self._random.random()
            self._num_issued += 1
            self.stream.issue(seconds, partial(self._retire, parts, seconds))

    def _parts(self, batch: Batch) -> list[Part]:
        batcher = self.batcher
        drawing = set(batcher.issue(batch).tolist())
        parts = []
        for row, start, count in zip(batch.rows.tolist(), batch.starts.tolist(), batch.counts.tolist(), strict=True):
            running = self._rows[row]
            assert running is not None
            end = start + count
            draws = row in drawing
            forks: list[Running] = []
            if running.forks and end >= running.num_prompt:
                forks = [fork for fork in running.forks if fork.reason is Reason.NONE]
                running.forks = []
                for fork in forks:
                    fork.num_in_flight += 1
                    # With one token to draw there is no step of its own.
                    batcher.paused[fork.row] = fork.max_tokens == 1
            running.num_in_flight += 1
            # Which tables a beam group goes on with is known only when the step has retired.
            if draws and (running.group is not None or end + 1 - running.num_prompt >= running.max_tokens):
                batcher.paused[row] = True
            parts.append(Part(running, start, count, draws, list(running.table), forks))
        return parts

    def _retire(self, parts: list[Part], seconds: float) -> None:
        """The step is over: its slots are written, its tokens drawn."""
        self._num_issued -= 1
        self.num_retired += 1
        self.step_seconds += 0.1 * (seconds - self.step_seconds)
        sent: dict[str, list[Tokens]] = {}
        for part in parts:
            running = part.running
            running.num_in_flight -= 1
            if running.group is not None and part.start >= running.num_prompt:
                self.filled.forget(*running.group.write(self.blocks, part.start))
            else:
                self.blocks.write(part.table, part.start, running.tokens[part.start : part.start + part.count])
                self.filled.note(running, part.table, part.start, part.start + part.count)
            running.position = min(max(running.position, part.start + part.count), running.last_position)
            for fork in part.forks:
                self._begin_fork(part, fork, sent)
            if part.draws and running.group is not None:
                self._search(running, part, sent)
            elif part.draws:
                self._draw(running, part.table, sent)
            filled_prompt = part.start < running.num_known - 1 and running.filled_blocks() > 0
            self._on_advance(running, filled_prompt)
        self.issue()
        self._on_retire(sent)

    def _search(self, running: Running, part: Part, sent: dict[str, list[Tokens]]) -> None:
        """A step of a beam group: tables are permuted; at the end all hypotheses go out at once."""
        group, sampling = running.group, running.start.sampling
        assert group is not None
        if running.reason is not Reason.NONE:
            return
        end = part.start + part.count
        if end == running.num_prompt:
            group.begin(part.table, running.num_prompt, self.shape.block_size)
        swaps = group.num_swaps
        group.noise = self._noise if group.noise is None else group.noise
        group.step(self.blocks, end - 1, (sampling.seed or 0) + group.noise, self.shape.end_one_in)
        self.num_beam_swaps += group.num_swaps - swaps
        if not group.is_over(running.max_tokens):
            self.batcher.paused[running.row] = False
            return
        results = best(group.results(), sampling.n)
        self.end(running, results[0].reason)
        running.tokens.extend(results[0].tokens)
        tokens = [
            Tokens(running.route, index, running.attempt, 0, ids(found.tokens), found.reason, score=float(found.score))
            for index, found in enumerate(results)
        ]
        sent.setdefault(running.gateway, []).extend(tokens)

    def _begin_fork(self, part: Part, fork: Running, sent: dict[str, list[Tokens]]) -> None:
        """The parent's prompt is written: its part-filled block is copied, and the fork draws from the same slots."""
        size, num_prompt = self.shape.block_size, fork.num_prompt
        fork.num_in_flight -= 1
        if num_prompt % size:
            last = num_prompt // size
            self.blocks.copy(part.table[last], fork.table[last], num_prompt % size)
        if not fork.outputs:
            self._draw(fork, fork.table, sent)
        self._on_advance(fork, False)

    def _draw(self, running: Running, table: list[int], sent: dict[str, list[Tokens]]) -> None:
        if running.reason not in (Reason.NONE, Reason.DROPPED):
            return  # it ended a step ago; what this step drew never existed
        last = len(running.tokens)
        read = self.blocks.read(table, last)
        sampling = running.start.sampling
        token = draw(read, (sampling.seed or 0) + self._noise, running.index, last - 1, self.shape.end_one_in)
        running.tokens.append(token)
        num_outputs = last + 1 - running.num_prompt
        reason = Reason.NONE
        if token in sampling.eos_token_ids:
            reason = Reason.STOP
        elif num_outputs == running.max_tokens:
            reason = Reason.LENGTH
        if reason is not Reason.NONE:
            self.end(running, reason)
            # A step under way may write one slot more, of a token that never existed.
            running.last_position = last
        sent.setdefault(running.gateway, []).append(running.say(num_outputs - 1, ids((token,)), reason))
