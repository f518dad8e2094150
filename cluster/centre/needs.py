"""How many blocks a request needs: arithmetic on its prompt, its sequences and its beams, for whoever finds room.

A request with n > 1 shares the full blocks of its prompt. A beam group is one sequence, whose table is a set of blocks:
every beam must be able to write up to the lease's end whatever the others do.
"""

from __future__ import annotations

from cluster.centre.nouns import Request


def num_blocks(request: Request, block_size: int, lengths: list[int]) -> int:
    """Blocks that its sequences need together at these lengths, the full prompt blocks shared."""
    if len(lengths) == 1:
        return num_group_blocks(request, block_size, lengths[0]) if request.width else -(-lengths[0] // block_size)
    shared = len(request.prompt) // block_size
    return shared + sum(max(0, -(-length // block_size) - shared) for length in lengths)


def num_group_blocks(request: Request, block_size: int, end: int) -> int:
    """Blocks with which every beam can write up to `end` whatever the others do: full prompt blocks shared."""
    shared = len(request.prompt) // block_size
    return shared + request.width * (-(-end // block_size) - shared)


def num_purse(request: Request, block_size: int, position: int, end: int) -> int:
    """Blocks that its beams need from a position on up to `end` beside those that they hold."""
    return request.width * (-(-end // block_size) - -(-position // block_size))
