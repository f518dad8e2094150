"""Beam search as a simulated worker does it.

`choose` is the search itself, on checksums and scores alone; `search` runs it without any block and says what must come
out; `MadeUpSearch` runs it on what a worker's blocks hold. All beams are at one position.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from cluster.desk.words import NO_IDS, GroupStep, Hypothesis
from cluster.messages import Ids, Reason, Start, ids
from cluster.sim.model import END_TOKEN, SLOT_BYTES, before_first, draw, slot_value


@dataclass(frozen=True, slots=True)
class FoundBeam:
    """A hypothesis that is complete."""

    tokens: tuple[int, ...]
    score: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class NextBeam:
    """A beam of the next step: which beam it continues, and with what."""

    parent: int
    token: int
    score: int


def choose(
    beams: Sequence[tuple[int, tuple[int, ...], int]], width: int, noise: tuple[int, int], end_one_in: int
) -> tuple[list[NextBeam], list[FoundBeam]]:
    """The best continuations of beams, each given by the checksum of its slots, its tokens and its score.

    `noise` is the seed and the position. Among the 2 * width best, end tokens complete a hypothesis.
    """
    seed, position = noise
    candidates = []
    for parent, (read, tokens, score) in enumerate(beams):
        drawn: set[int] = set()
        for rank in range(2 * width):
            token = draw(read, seed, 1000 + rank, position, end_one_in)
            if token not in drawn:
                drawn.add(token)
                loss = crc32(token.to_bytes(4, "little"), read) % 1000
                candidates.append((-(score - loss), parent, rank, token, tokens))
    candidates.sort()
    children: list[NextBeam] = []
    found: list[FoundBeam] = []
    for loss, parent, _, token, tokens in candidates[: 2 * width]:
        if token == END_TOKEN:
            found.append(FoundBeam((*tokens, token), -loss, Reason.STOP))
        elif len(children) < width:
            children.append(NextBeam(parent, token, -loss))
    return children, found


def best(found: list[FoundBeam], count: int) -> list[FoundBeam]:
    """The hypotheses that go out, best first."""
    return sorted(found, key=lambda each: (-each.score, each.tokens))[:count]


def search(
    model: str, prompt: Sequence[int], seed: int, width: int, max_tokens: int, end_one_in: int
) -> list[FoundBeam]:
    """What a beam search must find, computed on chains of slots alone."""
    before, read = before_first(model), 0
    for token in prompt:
        before = slot_value(before, token)
        read = crc32(before.to_bytes(SLOT_BYTES, "little"), read)
    states: list[tuple[int, int, tuple[int, ...], int]] = [(before, read, (), 0)]
    found: list[FoundBeam] = []
    position = len(prompt) - 1
    while True:
        children, ended = choose([state[1:] for state in states], width, (seed, position), end_one_in)
        found += ended
        grown = []
        for child in children:
            before, read, tokens, _ = states[child.parent]
            before = slot_value(before, child.token)
            read = crc32(before.to_bytes(SLOT_BYTES, "little"), read)
            grown.append((before, read, (*tokens, child.token), child.score))
        states = grown
        position += 1
        if len(found) >= width or position - len(prompt) + 1 == max_tokens or not states:
            return found + [FoundBeam(tokens, score, Reason.LENGTH) for _, _, tokens, score in states]


class MadeUpSearch:
    """The search of one beam group on a simulated worker. Tables are the desk's, which follows what `step` says.

    A beam lives in a slot: a parent's first child stays in the parent's slot, further ones go to slots whose beam was
    dropped; in a slot that is left over the best child runs once more and counts for nothing.
    """

    def __init__(self, start: Start, noise: int, end_one_in: int) -> None:
        assert start.beams is not None
        self._sampling = start.sampling
        self._width = start.beams.width
        self._end_one_in = end_one_in
        # What its draws are made with: a search goes on with that wherever it is moved to.
        self._noise = noise
        # Tokens and scores by slot, in the order of their ranks.
        self.beams: dict[int, tuple[tuple[int, ...], int]] = {0: ((), 0)}
        self._found: list[FoundBeam] = []
        # Steps after which a beam went on in another slot than its parent's.
        self.num_swaps = 0
        if start.beams.search:
            self._load(start.beams.search)

    def dump(self) -> bytes:
        """All of it, to go on with elsewhere."""
        state = {
            "beams": [(slot, tokens, score) for slot, (tokens, score) in self.beams.items()],
            "found": [(each.tokens, each.score, int(each.reason)) for each in self._found],
            "noise": self._noise,
        }
        return json.dumps(state).encode()

    def _load(self, search: bytes) -> None:
        state = json.loads(search)
        self._noise = state["noise"]
        self.beams = {slot: (tuple(tokens), score) for slot, tokens, score in state["beams"]}
        self._found = [FoundBeam(tuple(tokens), score, Reason(reason)) for tokens, score, reason in state["found"]]

    def outputs(self) -> list[Ids]:
        """What the beam in each slot has written."""
        best_beam, _ = next(iter(self.beams.values()))
        return [ids(self.beams.get(slot, (best_beam, 0))[0]) for slot in range(self._width)]

    def step(self, row: int, reads: dict[int, int], position: int) -> GroupStep:
        """Beams are chosen. `row` is their leader's, `reads` the checksums of all slots up to `position`, by slot."""
        slots, beams = list(self.beams), self.beams
        noise = ((self._sampling.seed or 0) + self._noise, position)
        children, ended = choose([(reads[slot], *beams[slot]) for slot in slots], self._width, noise, self._end_one_in)
        self._found += ended
        parents, tokens = np.zeros(self._width, np.int64), np.zeros(self._width, np.int64)
        self.beams = {}
        for slot, child in zip(self._seats(slots, children), children, strict=True):
            parents[slot], tokens[slot] = slots[child.parent], child.token
            self.beams[slot] = ((*beams[slots[child.parent]][0], child.token), child.score)
        written = len(next(iter(self.beams.values()))[0]) if children else 0
        if not children or len(self._found) >= self._width or written == self._sampling.max_tokens:
            return self._over(row)
        for slot in range(self._width):
            if slot not in self.beams:
                parents[slot], tokens[slot] = slots[children[0].parent], children[0].token
        self.num_swaps += len(slots) == self._width and parents.tolist() != list(range(self._width))
        return GroupStep(row, parents, tokens)

    def _seats(self, slots: list[int], children: list[NextBeam]) -> list[int]:
        """The slot of each child."""
        stay: dict[int, NextBeam] = {}
        for child in children:
            stay.setdefault(slots[child.parent], child)
        free = iter([slot for slot in range(self._width) if slot not in stay])
        return [slots[child.parent] if stay[slots[child.parent]] is child else next(free) for child in children]

    def _over(self, row: int) -> GroupStep:
        left = [FoundBeam(tokens, score, Reason.LENGTH) for tokens, score in self.beams.values()]
        found = best(self._found + left, self._sampling.n)
        outputs = tuple([Hypothesis(ids(each.tokens), float(each.score), each.reason) for each in found])
        return GroupStep(row, NO_IDS, NO_IDS, found[0].reason, "", outputs)
