"""The mask of structured answers in one pass, against what numpy makes of the same bits."""

import numpy as np
import pytest

from kernels.cpu.masks import mask_rows


@pytest.mark.parametrize("vocabulary", [1, 31, 32, 33, 63, 111, 500, 4096])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 1.0])
def test_what_has_no_bit_is_banned_and_the_rest_is_kept(seed: int, vocabulary: int, share: float) -> None:
    random = np.random.default_rng(seed)
    num_words = -(-vocabulary // 32)
    bits = random.random((6, 32 * num_words)) < share
    # Whole words of one kind, as masks of JSON have them.
    bits[1:3, : 32 * (num_words // 2)] = share > 0.3
    masks = np.packbits(bits, axis=1, bitorder="little").view(np.uint32)
    allowed = bits[:, :vocabulary]
    values = random.normal(size=(9, vocabulary)).astype(np.float32)
    rows = np.array([0, 2, 3, 5, 6, 8])
    values[3] = -np.inf
    values[5, ::2] = -np.inf
    values[6, :1] = np.nan
    expected = values.copy()
    for row, may_come in zip(rows, allowed, strict=True):
        left = np.where(may_come, values[row], -np.inf)
        expected[row] = np.where(may_come, 0.0, -np.inf) if (left == -np.inf).all() else left
    mask_rows(values, rows, masks)
    np.testing.assert_array_equal(values, expected)
