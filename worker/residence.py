"""How sequences move in and out of a worker's batch: starts, forks, ends.

The worker calls it when a plan says so or a step ends a sequence. A row is set up in the state, the batcher and the
sampler together and taken down together; in debug mode blocks that hold nothing yet are made unreadable here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cluster.batcher import Batch
from cluster.hashing import BlockHasher
from cluster.messages import Fork, Ids, Reason, Start, ids
from worker.sampling.beam_search import Hypothesis
from worker.state import Resident

if TYPE_CHECKING:
    from worker.worker import Worker


class Residence:
    """The comings and goings of one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        # Parents that are still at the prompt their forks wait for.
        self._parents: set[int] = set()

    def move_in(self, start: Start) -> None:
        """One sequence and its forks. A Start that can't be obeyed ends at once as FAILED."""
        if start.seq in self._worker.state.row_of:
            return
        wrong = self._wrong(start)
        if wrong:
            self._refuse(start, wrong)
            return
        outputs = self._worker.beams.first_tokens(start)
        tokens, table = ids(start.tokens), start.table
        if outputs:
            assert start.beams is not None
            tokens.extend(outputs[0])
            table = start.beams.tables[0]
        else:
            self._forget_behind(table, start.position)
        row = self._enter(start, start.seq, start.index, tokens, start.position, table, start.lease_end)
        if start.sampling.prompt_logprobs is not None and start.position == 0:
            self._worker.prompt_logprobs.enter(row)
        if start.beams is not None:
            self._worker.beams.enter(row, start, outputs)
        parent = self._worker.state.at(row)
        waits = start.position < start.num_prompt
        for fork in start.forks:
            self._enter_fork(start, fork, parent, waits)
        if parent.forks:
            self._parents.add(row)
            if not waits:
                self._wake(parent)

    def _wrong(self, start: Start) -> str:
        """Why this Start can't be obeyed; empty if it can."""
        worker = self._worker
        budget = worker.batcher.token_budget
        if start.beams is not None and start.beams.width > budget:
            return f"{start.beams.width} beams take as many tokens of a step, and token_budget is {budget}; raise it"
        end = start.num_prompt + (start.sampling.max_tokens or 0)
        if end > worker.parts.max_model_len:
            return f"prompt and max_tokens are {end:,} tokens, and the model takes {worker.parts.max_model_len:,}"
        tokens = np.array(start.tokens)
        vocabulary = worker.parts.model.vocab_size
        if tokens.min() < 0 or tokens.max() >= vocabulary:
            return f"token ids must be 0 to {vocabulary - 1:,}, got {tokens.min()} to {tokens.max():,}"
        return ""

    def _refuse(self, start: Start, detail: str) -> None:
        worker = self._worker
        for seq in [start.seq, *(fork.seq for fork in start.forks)]:
            worker.reporter.stop_unknown(seq, detail)
        indexes = [start.index, *(fork.index for fork in start.forks)]
        for index in indexes if start.beams is None else range(start.sampling.n):
            worker.outbox.refuse(start.gateway, start.route, index, start.attempt, detail)

    def _enter(self, start: Start, seq: int, index: int, tokens: Ids, position: int, table: Ids, lease_end: int) -> int:
        worker, sampling = self._worker, start.sampling
        resident = Resident(seq, index, start)
        settings = worker.settings
        # Blocks that beams write are never shared with other requests.
        if settings.prefix_caching and start.beams is None:
            resident.hasher = BlockHasher(settings.hash_key, worker.parts.digest, start.salt, settings.block_size)
            resident.chain = start.chain
            resident.num_chained = start.num_prompt // settings.block_size
        if sampling.logprobs is not None:
            resident.logprobs, resident.first_logprob = [], len(tokens)
        row = worker.state.enter(resident, tokens, start.num_prompt, position, table)
        worker.batcher.add(row, position, len(tokens), lease_end, start.precedence)
        worker.sampler.enter(row, sampling, index, worker.state.tokens[row, : len(tokens)], start.num_prompt)
        return row

    def _enter_fork(self, start: Start, fork: Fork, parent: Resident, waits: bool) -> None:
        """A fork stands still until its parent has written the prompt. With nothing known behind the prompt it then
        computes the last prompt token again, for its logits, without writing it: that block has other holders."""
        worker, num_prompt = self._worker, start.num_prompt
        tokens = ids(start.tokens[:num_prompt])
        tokens.extend(fork.outputs)
        position = num_prompt if fork.outputs else num_prompt - 1
        row = self._enter(start, fork.seq, fork.index, tokens, position, fork.table, fork.lease_end)
        worker.state.write_from[row] = num_prompt
        worker.state.reported[row] = num_prompt
        worker.batcher.paused[row] = True
        self._forget_behind(fork.table, num_prompt)
        parent.forks.append(row)
        worker.state.at(row).parent = parent.row

    def _forget_behind(self, table: Ids, position: int) -> None:
        pool, size = self._worker.parts.pool, self._worker.state.block_size
        first = position // size
        if position % size:
            pool.forget_slots(table[first], position % size)
            first += 1
        pool.forget(table[first:])

    def wake_forks(self, batch: Batch) -> None:
        """After a launch: forks whose parent has written the prompt go on by themselves."""
        if not self._parents:
            return
        state, position = self._worker.state, self._worker.batcher.position
        for row in self._parents.intersection(batch.rows.tolist()):
            if position[row] >= state.num_prompt[row]:
                self._wake(state.at(row))

    def _wake(self, parent: Resident) -> None:
        state, parts = self._worker.state, self._worker.parts
        num_prompt = int(state.num_prompt[parent.row])
        tail = num_prompt // state.block_size
        if num_prompt % state.block_size:
            sources = [int(state.tables[parent.row, tail])] * len(parent.forks)
            parts.copy_blocks(sources, state.tables[parent.forks, tail].tolist())
        for row in parent.forks:
            self._worker.batcher.paused[row] = False
            state.at(row).parent = -1
        parent.forks = []
        self._parents.discard(parent.row)

    def move_out(self, row: int, reason: Reason, detail: str = "") -> None:
        """An attempt ends here; no step that could touch its blocks is under way."""
        worker, state = self._worker, self._worker.state
        resident = state.at(row)
        hypotheses: list[Hypothesis] | None = None
        tables: tuple[Ids, ...] = ()
        raw = b""
        # A step may have been launched behind the last token that counts; what it wrote there means nothing.
        written = min(int(worker.batcher.position[row]), int(state.known[row]))
        if row in worker.beams.groups:
            if reason is Reason.DROPPED:
                # Whoever dropped it may have it go on elsewhere.
                written, tables, raw = worker.beams.dump(row)
            search = worker.beams.leave(row).search
            hypotheses = search.hypotheses() if reason in (Reason.STOP, Reason.LENGTH) else []
            if hypotheses:
                state.append(row, hypotheses[0].ids)
        worker.reporter.stop(resident, max(written, int(state.write_from[row])), reason, detail, (tables, raw))
        if hypotheses is None:
            worker.outbox.end(resident, Reason.NONE if reason is Reason.DROPPED else reason, detail)
        else:
            worker.outbox.end_group(resident, hypotheses, reason, detail)
        worker.batcher.remove(row)
        worker.sampler.leave(row)
        worker.prompt_logprobs.leave(row)
        if resident.parent >= 0:
            state.at(resident.parent).forks.remove(row)
        self._parents.discard(row)
        state.leave(row)
        for fork in resident.forks:
            # Nobody will write their prompt any more.
            state.at(fork).parent = -1
            self.move_out(fork, reason, detail)
