"""Whether a Start can be obeyed. What comes over a stream may say anything, and is looked at before a row is touched.

The desk asks once for each Start and refuses what is wrong by Stopped with the reason. What only the device can find
wrong (a search that it can't read, settings that it doesn't know) it says when it enters the sequence (`Desk.fail`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cluster.desk.rows import Rows
from cluster.messages import Beams, Ids, Start


@dataclass(frozen=True, slots=True)
class StartBounds:
    """What a desk has room for."""

    num_blocks: int
    block_size: int
    max_model_len: int
    token_budget: int
    vocab_size: int

    def alien(self, blocks: Sequence[int]) -> str:
        """What is wrong with these as the numbers of different blocks; empty: nothing."""
        if len(blocks) and (min(blocks) < 0 or max(blocks) >= self.num_blocks):
            return f"blocks must be 0 to {self.num_blocks - 1:,}, got {min(blocks):,} to {max(blocks):,}"
        return "a block is named twice" if len(set(blocks)) < len(blocks) else ""

    def short(self, num_blocks: int, positions: int) -> str:
        """What is wrong with so many blocks for so many positions; empty: nothing."""
        held = num_blocks * self.block_size
        return f"{num_blocks} blocks hold {held:,} positions, and {positions:,} are leased" if held < positions else ""


def problem(start: Start, rows: Rows, bounds: StartBounds) -> str:
    """Why this Start can't be obeyed; empty if it can."""
    sampling = start.sampling
    if sampling.max_tokens is None or (sampling.temperature is None and sampling.beam_width is None):
        return "its sampling settings are not resolved"
    if not sampling.is_greedy and sampling.seed is None:
        return "a draw needs a seed, and the door gave none"
    end = start.num_prompt + sampling.max_tokens
    if end > bounds.max_model_len:
        return f"prompt and max_tokens are {end:,} tokens, and the model takes {bounds.max_model_len:,}"
    outputs = [len(start.tokens) - start.num_prompt, *(len(fork.outputs) for fork in start.forks)]
    if start.num_prompt < 1 or min(outputs) < 0 or max(outputs) >= sampling.max_tokens:
        return f"{start.num_prompt} tokens of prompt and {outputs} known behind it leave nothing to do"
    for tokens in (start.tokens, *(fork.outputs for fork in start.forks)):
        found = np.array(tokens, np.int32)
        if len(found) and (found.min() < 0 or found.max() >= bounds.vocab_size):
            return f"token ids must be 0 to {bounds.vocab_size - 1:,}, got {found.min()} to {found.max():,}"
    return (
        _wrong_rows(start, rows)
        or _wrong_table(start.table, start.position, start.lease_end, start, bounds)
        or (_wrong_forks(start, bounds) if start.beams is None else _wrong_beams(start, start.beams, bounds))
    )


def _wrong_rows(start: Start, rows: Rows) -> str:
    seqs = [start.seq, *(fork.seq for fork in start.forks)]
    if len(set(seqs)) < len(seqs) or not rows.row_of.keys().isdisjoint(seqs):
        return f"a sequence of {seqs} is here already"
    wanted = len(seqs) if start.beams is None else start.beams.width
    if wanted > len(rows.free):
        return f"it needs {wanted} batch rows, and {len(rows.free)} of {rows.max_batch} are free"
    return ""


def _wrong_table(table: Ids, position: int, lease_end: int, start: Start, bounds: StartBounds) -> str:
    limit = start.num_prompt + (start.sampling.max_tokens or 0) - 1
    goes_on = start.beams is not None and bool(start.beams.search)
    if not (0 <= position < len(start.tokens) or (goes_on and start.num_prompt <= position < limit)):
        return f"position {position:,} leaves nothing to compute of {len(start.tokens):,} tokens"
    # A group pays for what is behind its prompt from its purse.
    held = min(lease_end, start.num_prompt) if start.beams is not None else lease_end
    return bounds.alien(table) or bounds.short(len(table), max(held, position if not goes_on else 0))


def _wrong_forks(start: Start, bounds: StartBounds) -> str:
    num_shared = start.num_prompt // bounds.block_size
    for fork in start.forks:
        wrong = bounds.alien(fork.table) or bounds.short(len(fork.table), max(fork.lease_end, start.num_prompt))
        if not wrong and fork.table[:num_shared] != start.table[:num_shared]:
            wrong = f"its table does not begin with the {num_shared} full blocks of the prompt"
        if wrong:
            return f"fork {fork.index}: {wrong}"
    return ""


def _wrong_beams(start: Start, beams: Beams, bounds: StartBounds) -> str:
    if beams.width > bounds.token_budget:
        return f"{beams.width} beams take as many tokens of a step, and token_budget is {bounds.token_budget}; raise it"
    if start.forks or beams.width < 1:
        return f"a group of {beams.width} beams with {len(start.forks)} forks"
    if len(beams.tables) != (beams.width if beams.search else 0):
        return f"{len(beams.tables)} tables for a group of {beams.width} beams"
    held, num_shared = set(start.table), start.num_prompt // bounds.block_size
    for table in beams.tables:
        wrong = bounds.alien(table) or bounds.short(len(table), start.position)
        if not wrong and (table[:num_shared] != beams.tables[0][:num_shared] or not held.issuperset(table)):
            wrong = "blocks that are not the group's"
        if wrong:
            return f"the table of a beam: {wrong}"
    return bounds.alien([*start.table, *beams.purse])
