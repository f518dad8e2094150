"""The beam search of one group: which continuations live on, which are hypotheses, and when it is over.

Arithmetic on the likeliest continuations of each beam, token by token, as `generate` of transformers does it. The
worker's `Searches` call `choose` and `take` in each step; rows, tables and blocks are the desk's. A beam lives in a
slot: a parent's first child stays in the parent's slot, further children go to slots whose beam was dropped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.desk.words import Hypothesis
from cluster.messages import Ids, Logprobs, Reason, ids
from cluster.sampling import SamplingParams, required

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_NOBODY = -np.inf


@dataclass(frozen=True, slots=True)
class Pick:
    """A beam and the token that goes on with it. `total`: the sum of the log-probabilities of all tokens up to it."""

    parent: int
    token: int
    total: float


@dataclass(frozen=True, slots=True)
class BeamChoice:
    """What a step chose: one child for each slot, or none if nothing can go on; and what ended."""

    children: list[Pick]
    ended: list[Pick]

    @property
    def parents(self) -> Ints:
        return np.array([child.parent for child in self.children], np.int64)

    @property
    def tokens(self) -> Ints:
        return np.array([child.token for child in self.children], np.int64)


@dataclass(frozen=True, slots=True)
class _Found:
    """Where a hypothesis ends: its last token, and the slot of the token before that."""

    pick: Pick
    num_tokens: int
    score: float
    logprobs: tuple[Logprobs, ...]


class BeamSearch:
    """One search: `choose` and `take` go on by a token, until it `is_over`."""

    def __init__(self, params: SamplingParams, width: int) -> None:
        self.width = width
        self.is_over = False
        self.num_tokens = 0
        self._num_wanted = params.n
        self._max_tokens = required(params.max_tokens)
        self._stops = frozenset(params.stop_ids)
        self._length_penalty = required(params.length_penalty)
        self._early_stopping = required(params.early_stopping)
        # Of so many candidates at least `width` are not ended by a stop id.
        self.num_candidates = width * max(2, 1 + len(self._stops))
        # By slot; minus infinity where no beam lives.
        self._totals = np.full(width, _NOBODY, np.float32)
        self._totals[0] = 0.0
        # What was chosen in each step, by slot. Zeroed memory is taken from the system only as it is written.
        self._tokens = np.zeros((self._max_tokens, width), np.int32)
        self._parents = np.zeros((self._max_tokens, width), np.int8)
        self._logprobs: list[list[Logprobs]] = []
        # Best first, at most `width`.
        self._found: list[_Found] = []

    def lives(self, slot: int) -> bool:
        """Whether a beam lives there: where few tokens are allowed there are fewer beams than slots."""
        return bool(self._totals[slot] > _NOBODY)

    def choose(self, best: Floats, tokens: Ints) -> BeamChoice:
        """The best continuations of all. [slots, k]: the k likeliest `tokens` of each slot and their log-probabilities;
        in the first step there is one slot, the prompt's. Changes nothing."""
        totals = (self._totals[: len(best), None] + best).ravel()
        order = np.argsort(-totals, kind="stable")[: self.num_candidates]
        is_last = self.num_tokens + 1 == self._max_tokens
        children: list[Pick] = []
        ended: list[Pick] = []
        for rank, at in enumerate(order[totals[order] > _NOBODY].tolist()):
            pick = Pick(at // best.shape[1], int(tokens.flat[at]), float(totals[at]))
            if not is_last and pick.token not in self._stops:
                if len(children) < self.width:
                    children.append(pick)
            elif rank < self.width:
                # An end counts only among the best `width` of all: the others are there to be gone on with.
                ended.append(pick)
        return BeamChoice(self._seated(children), ended)

    def _seated(self, children: list[Pick]) -> list[Pick]:
        """The children in the order of their slots."""
        if not children:
            return []
        seats: dict[int, Pick] = {}
        late: list[Pick] = []
        for child in children:
            if seats.setdefault(child.parent, child) is not child:
                late.append(child)
        # In a slot that is left over the best child runs once more and counts for nothing.
        late.extend([Pick(children[0].parent, children[0].token, _NOBODY)] * (self.width - len(children)))
        unseated = iter(late)
        return [seats.get(slot) or next(unseated) for slot in range(self.width)]

    def take(self, choice: BeamChoice, logprobs: Sequence[Logprobs] = ()) -> None:
        """Goes on with this choice. `logprobs`, where asked for: those of the children's tokens, then of the ends'."""
        self.num_tokens += 1
        num_children = len(choice.children)
        for i, pick in enumerate(choice.ended):
            own = tuple(logprobs[num_children + i : num_children + i + 1])
            self._found.append(_Found(pick, self.num_tokens, self._score(pick.total, self.num_tokens), own))
        self._found.sort(key=lambda found: -found.score)
        del self._found[self.width :]
        if not num_children:
            self.is_over = True
            return
        self._tokens[self.num_tokens - 1] = choice.tokens
        self._parents[self.num_tokens - 1] = choice.parents
        self._logprobs.append(list(logprobs[:num_children]))
        self._totals = np.array([child.total for child in choice.children], np.float32)
        self.is_over = len(self._found) == self.width and (self._early_stopping is True or not self._can_improve())

    def _can_improve(self) -> bool:
        """Whether the best beam may still beat the worst hypothesis: an estimate, the same as transformers makes."""
        hopes_for_longest = self._early_stopping == "never" and self._length_penalty > 0
        length = self._max_tokens if hopes_for_longest else self.num_tokens
        return self._score(float(self._totals.max()), length) > self._found[-1].score

    def _score(self, total: float, num_tokens: int) -> float:
        # In fp32, so that comparisons fall as they do in transformers; extreme penalties leave its range.
        with np.errstate(over="ignore", divide="ignore"):
            return float(np.float32(total) / np.float32(num_tokens**self._length_penalty))

    def dump(self) -> bytes:
        """All of it, to go on with on another worker. Logprobs stay behind: a search with those is not moved."""
        num = self.num_tokens
        found = [[f.pick.parent, f.pick.token, f.pick.total, f.num_tokens, f.score] for f in self._found]
        state = {
            "totals": self._totals.tolist(),
            "tokens": self._tokens[:num].tolist(),
            "parents": self._parents[:num].tolist(),
            "found": found,
        }
        return json.dumps(state).encode()

    def load(self, raw: bytes) -> None:
        """Goes on where `dump` was. ValueError: this is not what `dump` gave for a search of this kind."""
        try:
            state = json.loads(raw)
            num = self.num_tokens = len(state["tokens"])
            self._totals[:] = state["totals"]
            self._tokens[:num] = state["tokens"]
            self._parents[:num] = state["parents"]
            self._logprobs = [[] for _ in range(num)]
            self._found = [
                _Found(Pick(int(parent), int(token), float(total)), int(num_tokens), float(score), ())
                for parent, token, total, num_tokens, score in state["found"]
            ]
        except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError) as error:
            raise ValueError(f"a beam search can't be read: {type(error).__name__}: {error}") from error
        parents = [*self._parents[:num].ravel().tolist(), *(found.pick.parent for found in self._found)]
        lengths = [found.num_tokens for found in self._found]
        if min(parents) < 0 or max(parents) >= self.width or not all(1 <= length <= num for length in lengths):
            raise ValueError("a beam search can't be read: it names slots or steps that it does not have")

    def outputs(self) -> list[Ids]:
        """The tokens of the beam in each slot."""
        found = []
        for slot in range(self.width):
            tokens = []
            for step in range(self.num_tokens - 1, -1, -1):
                tokens.append(int(self._tokens[step, slot]))
                slot = int(self._parents[step, slot])
            found.append(ids(reversed(tokens)))
        return found

    def verdict(self) -> tuple[Reason, str]:
        """How a search that is over has ended, for the request as a whole: as its best hypothesis did."""
        if len(self._found) < self._num_wanted:
            detail = f"the search found {len(self._found)} outputs and n asks for {self._num_wanted}"
            return Reason.FAILED, f"{detail}: bans and allowed ids leave no more; lower n"
        return self._reason(self._found[0]), ""

    def hypotheses(self) -> list[Hypothesis]:
        """As many as were asked for, best first."""
        return [self._hypothesis(found) for found in self._found[: self._num_wanted]]

    def _hypothesis(self, found: _Found) -> Hypothesis:
        tokens, logprobs, slot = [found.pick.token], list(found.logprobs), found.pick.parent
        for step in range(found.num_tokens - 2, -1, -1):
            tokens.append(int(self._tokens[step, slot]))
            if found.logprobs:
                logprobs.append(self._logprobs[step][slot])
            slot = int(self._parents[step, slot])
        return Hypothesis(ids(reversed(tokens)), found.score, self._reason(found), tuple(reversed(logprobs)))

    def _reason(self, found: _Found) -> Reason:
        return Reason.STOP if found.pick.token in self._stops else Reason.LENGTH
