"""The mask of structured answers in one pass over each row of logits, for the CPU.

The worker's structures call it with the rows that have one; elsewhere the same is done in torch. Most masks of JSON
allow a few tokens of all, or all but a few: runs of words with no bit, or with all, take a fill, or nothing.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from kernels.cpu.inner import inner

_BITS = 32
F32 = np.float32
U32 = np.uint32
_NONE = U32(0)
_ALL = U32(0xFFFFFFFF)


@inner
def keep(part, word):
    """Bans what the bits of one word do not allow."""
    for bit in range(part.size):
        part[bit] = part[bit] if (word >> U32(bit)) & U32(1) else F32(-np.inf)


@inner
def has_left(part):
    at = 0
    while at < part.size and part[at] == F32(-np.inf):
        at += 1
    return at < part.size


@njit(error_model="numpy", nogil=True, cache=True)
def mask_rows(values, rows, masks):
    """Bans in values[rows], fp32 [, vocabulary], all tokens whose bit in `masks`, uint32 [rows, words], is not set.
    Where nothing of what is allowed can come any more, all of that becomes equally likely."""
    for n in range(rows.size):
        row, mask = values[rows[n]], masks[n]
        is_left = False
        begin = 0
        while begin < mask.size:
            word = mask[begin]
            # All of them may come, or none.
            is_even = word in (_NONE, _ALL)
            end = begin + 1
            while end < mask.size and mask[end] == word and is_even:
                end += 1
            part = row[begin * _BITS : min(end * _BITS, row.size)]
            if word == _NONE:
                part[:] = F32(-np.inf)
            else:
                if word != _ALL:
                    keep(part, word)
                is_left = is_left or has_left(part)
            begin = end
        if not is_left:
            for i in range(row.size):
                if (mask[i // _BITS] >> U32(i % _BITS)) & U32(1):
                    row[i] = F32(0.0)
