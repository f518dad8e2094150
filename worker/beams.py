"""The beam searches of one worker: what touches tensors of them. Rows, tables and purses are the desk's.

The launcher ranks the continuations of a step's beams before it is over (`rank`), and the worker has each search choose
from them when it retires (`choose`): who goes on from whom is all that the desk is told.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cluster.desk.groups import BeamGroup, BeamGroups
from cluster.desk.words import NO_IDS, NOT_NUMBERS, GroupStep
from cluster.messages import Ids, Logprobs, Reason
from kernels.device.seam import Event, device_of
from kernels.sampling import send
from worker.sampling.beam_search import BeamChoice, BeamSearch, Floats, Ints
from worker.sampling.logprobs import token_logprobs
from worker.sampling.row_slots import some
from worker.sampling.sampler import Sampler
from worker.state import Int32


@dataclass(frozen=True, slots=True)
class Ranked:
    """The likeliest continuations of a step's beams, which may still be under way on the device."""

    groups: list[tuple[BeamGroup, int, int]]  # whose, and which rows of the tensors
    best: torch.Tensor  # fp32 [rows, k]
    tokens: torch.Tensor  # int64 [rows, k]
    logits: torch.Tensor  # [rows, vocabulary], on the device
    done: Event  # the others have come to the host


class Searches:
    """All searches of one worker, by the row of their group's leader."""

    def __init__(self, groups: BeamGroups, sampler: Sampler, device: torch.device) -> None:
        self._groups = groups
        self._seam = device_of(device)
        self._sampler = sampler
        self._searches: dict[int, BeamSearch] = {}

    def __bool__(self) -> bool:
        return bool(self._searches)

    def enter(self, row: int) -> list[Ids]:
        """A group begins its search; one that goes on returns what each of its beams has written. ValueError: its
        search can't be read."""
        start = self._groups.groups[row].start
        assert start.beams is not None
        search = BeamSearch(start.sampling, start.beams.width)
        if start.beams.search:
            search.load(start.beams.search)
        self._searches[row] = search
        return search.outputs() if start.beams.search else []

    def dump(self, row: int) -> bytes:
        """All of a search, to go on with on another worker."""
        return self._searches[row].dump()

    def leave(self, row: int) -> None:
        """Does nothing for a row that leads no group."""
        self._searches.pop(row, None)

    def rank(self, logits: torch.Tensor, rows: Int32) -> tuple[torch.Tensor, Int32, Ranked | None]:
        """Of the rows that get a token: the logits and rows of those that are no beams, and the beams ranked."""
        if not self._searches:
            return logits, rows, None
        is_beam = self._groups.is_beam[rows]
        which = np.flatnonzero(is_beam)
        if not which.size:
            return logits, rows, None
        rest = np.flatnonzero(~is_beam)
        beams, own = some(logits, which), rows[which]
        groups, at = [], 0
        while at < len(own):
            group = self._groups.groups[int(own[at])]
            end = at + (1 if group.is_at_prompt else len(group.rows))
            groups.append((group, at, end))
            at = end
        widest = max(self._searches[group.leader].num_candidates for group, _, _ in groups)
        best, tokens = self._sampler.rank(beams, own, min(logits.shape[1], widest))
        best, tokens, done = self._seam.fetch(best), self._seam.fetch(tokens), self._seam.event()
        done.record()
        return some(logits, rest), rows[rest], Ranked(groups, best, tokens, beams, done)

    def choose(self, ranked: Ranked) -> list[GroupStep]:
        """The step is done: each search goes on by a token, or is over."""
        ranked.done.wait()
        best: Floats = ranked.best.numpy()
        tokens: Ints = ranked.tokens.numpy()
        steps: list[GroupStep] = []
        for group, first, end in ranked.groups:
            search = self._searches[group.leader]
            alive = [first + slot for slot in range(end - first) if search.lives(slot)]
            if np.isnan(best[alive, 0]).any() or np.isposinf(best[alive, 0]).any():
                steps.append(GroupStep(group.leader, NO_IDS, NO_IDS, Reason.FAILED, NOT_NUMBERS))
                continue
            choice = search.choose(best[first:end], tokens[first:end])
            search.take(choice, self._logprobs(group, ranked.logits[first:end], choice))
            if search.is_over:
                reason, detail = search.verdict()
                outputs = search.hypotheses() if reason is not Reason.FAILED else []
                steps.append(GroupStep(group.leader, NO_IDS, NO_IDS, reason, detail, tuple(outputs)))
            else:
                steps.append(GroupStep(group.leader, choice.parents, choice.tokens))
        self._go_on(steps)
        return steps

    def _logprobs(self, group: BeamGroup, logits: torch.Tensor, choice: BeamChoice) -> list[Logprobs]:
        num_top = group.start.sampling.logprobs
        if num_top is None:
            return []
        picks = [*choice.children, *choice.ended]
        slots = send(np.array([pick.parent for pick in picks], np.int64), logits.device)
        tokens = send(np.array([pick.token for pick in picks], np.int64), logits.device)
        found = token_logprobs(logits[slots], tokens, num_top).leaving()
        self._seam.current().wait()
        return found.messages([num_top] * len(picks))

    def _go_on(self, steps: list[GroupStep]) -> None:
        """The sampler's state of the rows follows, in one call."""
        going = [(self._groups.groups[step.row].rows, step) for step in steps if step.reason is Reason.NONE]
        if going:
            self._sampler.go_on(
                np.concatenate([rows for rows, _ in going]),
                np.concatenate([rows[step.parents] for rows, step in going]),
                np.concatenate([step.tokens for _, step in going]),
            )
