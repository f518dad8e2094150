"""Beam search as a simulated worker does it: tables permuted and tails copied inside a purse, step by step.

`choose` is the search itself, on checksums and scores alone; `search` runs it without any block and says what must come
out; `BeamGroup` runs it on a worker's blocks. All beams are at one position. A full block is never copied: beams share
it, and it goes back to the purse once no beam names it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

from cluster.messages import GroupTables, Ids, Reason, ids
from cluster.sim.device import Blocks
from cluster.sim.model import END_TOKEN, SLOT_BYTES, before_first, draw, slot_value


@dataclass(frozen=True, slots=True)
class Found:
    """A hypothesis that is complete."""

    tokens: tuple[int, ...]
    score: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Child:
    """A beam of the next step: which beam it continues, and with what."""

    parent: int
    token: int
    score: int


def choose(
    beams: Sequence[tuple[int, tuple[int, ...], int]], width: int, noise: tuple[int, int], end_one_in: int
) -> tuple[list[Child], list[Found]]:
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
    children: list[Child] = []
    found: list[Found] = []
    for loss, parent, _, token, tokens in candidates[: 2 * width]:
        if token == END_TOKEN:
            found.append(Found((*tokens, token), -loss, Reason.STOP))
        elif len(children) < width:
            children.append(Child(parent, token, -loss))
    return children, found


def best(found: list[Found], count: int) -> list[Found]:
    """The hypotheses that go out, best first."""
    return sorted(found, key=lambda each: (-each.score, each.tokens))[:count]


def search(model: str, prompt: Sequence[int], seed: int, width: int, max_tokens: int, end_one_in: int) -> list[Found]:
    """What a beam search must find, computed on chains of slots alone."""
    before, read = before_first(model), 0
    for token in prompt:
        before = slot_value(before, token)
        read = crc32(before.to_bytes(SLOT_BYTES, "little"), read)
    states: list[tuple[int, int, tuple[int, ...], int]] = [(before, read, (), 0)]
    found: list[Found] = []
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
            return found + [Found(tokens, score, Reason.LENGTH) for _, _, tokens, score in states]


@dataclass(slots=True)
class Beam:
    table: list[int]
    tokens: tuple[int, ...]
    score: int


class BeamGroup:
    """The beams of one request on a worker's blocks. `table` of the Start belongs to the prompt until `begin`."""

    def __init__(self, width: int, purse: Ids, num_table: int, block_size: int) -> None:
        self.width = width
        self.block_size = block_size
        self.purse = list(purse)
        self.num_given = num_table + len(purse)
        # What its draws are made with: a search goes on with that wherever it is moved to.
        self.noise: int | None = None
        self.beams: list[Beam] = []
        self.found: list[Found] = []
        self.num_swaps = 0  # steps after which a beam continued another one than itself

    def take(self, first: int, blocks: Ids) -> None:
        """More blocks, of which the first is the group's number `first`."""
        fresh = blocks[self.num_given - first :]
        self.purse.extend(fresh)
        self.num_given += len(fresh)

    def dump(self, num_prompt: int) -> tuple[int, tuple[Ids, ...], bytes]:
        """All of a search that has begun, to go on with elsewhere: the next position, tables, and the rest of it."""
        state = {
            "beams": [(beam.tokens, beam.score) for beam in self.beams],
            "found": [(each.tokens, each.score, int(each.reason)) for each in self.found],
            "noise": self.noise,
        }
        position = num_prompt + len(self.beams[0].tokens) - 1
        num_blocks = -(-position // self.block_size)
        return position, tuple(ids(beam.table[:num_blocks]) for beam in self.beams), json.dumps(state).encode()

    def load(self, tables: tuple[Ids, ...], search: bytes) -> None:
        state = json.loads(search)
        self.noise = state["noise"]
        self.beams = [
            Beam(list(table), tuple(tokens), score)
            for table, (tokens, score) in zip(tables, state["beams"], strict=True)
        ]
        self.found = [Found(tuple(tokens), score, Reason(reason)) for tokens, score, reason in state["found"]]

    def begin(self, table: list[int], num_prompt: int, block_size: int) -> None:
        """The prompt is written: one beam stands at its end, and what the table has beyond it is spare."""
        used = -(-num_prompt // block_size)
        self.purse += table[used:]
        self.beams = [Beam(table[:used], (), 0)]

    def step(self, blocks: Blocks, position: int, seed: int, end_one_in: int) -> None:
        """The slots up to `position` are written in every beam's table: beams are chosen and their tables made."""
        reads = [(blocks.read(beam.table, position + 1), beam.tokens, beam.score) for beam in self.beams]
        children, ended = choose(reads, self.width, (seed, position), end_one_in)
        self.found += ended
        if len(self.beams) == self.width and [child.parent for child in children] != list(range(self.width)):
            self.num_swaps += 1
        parents = self.beams
        kept = {child.parent for child in children}
        for number, beam in enumerate(parents):
            if number not in kept:
                self._release(beam.table, [parents[other].table for other in kept])
        at, taken = position + 1, set()
        self.beams = []
        for child in children:
            table = list(parents[child.parent].table)
            if child.parent in taken and at % blocks.block_size:
                # The tail is not full: its second heir gets a copy of its own.
                target = self.purse.pop()
                blocks.copy(table[-1], target, at % blocks.block_size)
                table[-1] = target
            taken.add(child.parent)
            self.beams.append(Beam(table, (*parents[child.parent].tokens, child.token), child.score))

    def _release(self, table: list[int], others: list[list[int]]) -> None:
        """Blocks of a dropped beam that no other beam names are spare again."""
        named = {block for other in others for block in other}
        self.purse += [block for block in table if block not in named and block not in self.purse]

    def write(self, blocks: Blocks, position: int) -> list[int]:
        """Every beam writes its last token at `position`; returns the blocks that were written."""
        written = []
        for beam in self.beams:
            if position // blocks.block_size == len(beam.table):
                beam.table.append(self.purse.pop())
            blocks.write(beam.table, position, beam.tokens[-1:])
            written.append(beam.table[-1])
        return written

    def is_over(self, max_tokens: int) -> bool:
        return len(self.found) >= self.width or not self.beams or len(self.beams[0].tokens) == max_tokens

    def results(self) -> list[Found]:
        return self.found + [Found(beam.tokens, beam.score, Reason.LENGTH) for beam in self.beams]

    def held(self) -> Ids:
        """Every block of the group once, those of the beams first."""
        return ids(dict.fromkeys([block for beam in self.beams for block in beam.table] + self.purse))

    def tables(self, seq: int, position: int) -> GroupTables:
        return GroupTables(seq, position, tuple(ids(beam.table) for beam in self.beams), ids(self.purse))
