"""The noise of a draw: a number that depends on seed, position and token id, and on nothing else.

A token is drawn by an exponential race, which is Gumbel-max with one logarithm less: every candidate gets an
exponential variable e, and the smallest e / weight wins. e comes from a counter hash of (key, token id), the key from
(seed, position); so a draw is the same alone, in any batch and after a restart. This file says what the noise is, for
hosts (numpy) and in plain torch for any device; `cpu/noise.py` has the same arithmetic for the CPU kernels.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

# splitmix64: increment and multipliers.
GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
MIX_A: Final = np.uint64(0xBF58476D1CE4E5B9)
MIX_B: Final = np.uint64(0x94D049BB133111EB)

# triple32, a mixer of 32-bit integers that has no measurable bias; the key's halves come in before and after its
# first round.
SPREAD: Final = 0x9E3779B1
ROUND_1: Final = 0xED5AD4BB
ROUND_2: Final = 0xAC4C1B51
ROUND_3: Final = 0x31848BAB

SCALE: Final = 2.0**-32
LARGEST: Final = 1.0 - 2.0**-24
"""The largest fp32 below one: a uniform number of one would give endless noise."""

_LOW: Final = 0xFFFFFFFF


def noise_keys(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """One key per draw. `positions` count the tokens that stand before the one to be drawn."""
    return _mix(seeds ^ _mix(positions.astype(np.uint64) + GOLDEN))


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * MIX_A
    z = (z ^ (z >> np.uint64(27))) * MIX_B
    return z ^ (z >> np.uint64(31))


def token_noise(keys: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Exponential noise, fp32 [rows, tokens]; keys: int64 [rows], the bits of uint64; token ids: int64 [tokens]."""
    first = (keys & _LOW)[:, None]
    second = ((keys >> 32) & _LOW)[:, None]
    # Products of two 32-bit numbers wrap in int64, and their low halves are right all the same.
    x = (tokens[None, :] * SPREAD + first) & _LOW
    x = ((x ^ (x >> 17)) * ROUND_1) & _LOW
    x = x ^ second
    x = ((x ^ (x >> 11)) * ROUND_2) & _LOW
    x = ((x ^ (x >> 15)) * ROUND_3) & _LOW
    x = x ^ (x >> 14)
    uniform = ((x.float() + 0.5) * SCALE).clamp_max(LARGEST)
    return -torch.log1p(-uniform)
