"""The GPU's draw against plain torch; without a GPU in the interpreter that `test_triton_interpreted.py` starts."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from kernels import sampling
from kernels.gpu import sampling as gpu_sampling
from kernels.gpu.cuts import NUM_LISTED
from kernels.gpu.sampling import draw, shares
from kernels.noise import noise_keys
from kernels.sampling import DrawSettings
from tests.kernels.triton_device import DEVICE, DTYPES, GPU

FILTERS = [  # temperature, top_k, top_p, min_p
    (0.0, 0, 1.0, 0.0),
    (1.3, 0, 1.0, 0.0),
    (0.8, 20, 0.9, 0.0),
    (1.0, 0, 0.9, 0.0),
    (1.0, 400, 0.01, 0.0),
    (0.9, 40, 1.0, 0.05),
]


def settings_of(rows: int, position: int) -> DrawSettings:
    columns = np.array([FILTERS[row % len(FILTERS)] for row in range(rows)], np.float32).T
    keys = noise_keys(np.arange(rows, dtype=np.uint64), np.full(rows, position))
    return DrawSettings(columns[0], columns[1].astype(np.int32), columns[2], columns[3], keys)


@pytest.mark.parametrize(
    ("vocabulary", "dtype"), [(1, torch.float32), (5003, torch.float32), *((300, t) for t in DTYPES)]
)
def test_the_tokens_of_plain_torch(vocabulary: int, dtype: torch.dtype) -> None:
    rows = len(FILTERS) * (20 if GPU else 1)
    logits = (torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * 3).to(dtype)
    logits = logits.to(DEVICE)
    settings = settings_of(rows, position=vocabulary)
    ids, broken = draw(logits, settings)
    assert not broken.any()
    assert ids.tolist() == sampling.draw(logits, settings)[0].tolist()


def test_equal_values_at_the_cut() -> None:
    """All equal, or few different values: top-p keeps as many equals as it needs, those of the highest ids."""
    rows, vocabulary = len(FILTERS), 100
    logits = torch.randint(-2, 3, (rows, vocabulary), generator=torch.Generator().manual_seed(5)).float()
    logits[::2] = 1.25
    for position in range(20 if GPU else 1):
        settings = settings_of(rows, position)
        assert draw(logits.to(DEVICE), settings)[0].tolist() == sampling.draw(logits, settings)[0].tolist()


def test_banned_tokens_and_broken_rows() -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(6))
    logits[:, 100:] = -math.inf
    logits[3, 5], logits[4, 6] = math.nan, math.inf
    logits[5] = -math.inf
    settings = settings_of(6, 1)
    ids, broken = draw(logits.to(DEVICE), settings)
    wanted, wanted_broken = sampling.draw(logits, settings)
    assert broken.tolist() == wanted_broken.tolist() == [False] * 3 + [True] * 3
    assert ids.tolist() == wanted.tolist()
    assert (ids < 100).all()


def test_rows_that_do_not_lie_side_by_side() -> None:
    wide = torch.randn(3, 300, generator=torch.Generator().manual_seed(7)).to(DEVICE)
    settings = settings_of(3, 2)
    narrow = wide[:, 100:200]
    assert draw(narrow, settings)[0].tolist() == draw(narrow.clone(), settings)[0].tolist()


# Of many tokens the kept ones are listed, or those close to the cut, or there are too many of either.
WAYS = {
    "peaked": (6.0, (0.7, 30, 0.9, 0.0)),
    "flat, wide nucleus": (0.5, (1.0, 0, 0.9, 0.0)),
    "more than are listed": (0.5, (1.0, NUM_LISTED + 900, 1.0, 0.0)),
    "more than are listed, and a nucleus of them": (0.5, (1.3, NUM_LISTED + 900, 0.7, 0.0)),
    "all equal": (0.0, (1.0, 0, 0.5, 0.0)),
    "cold": (3.0, (0.02, 0, 0.999, 0.01)),
}


@pytest.mark.parametrize("way", WAYS)
def test_large_vocabularies(way: str) -> None:
    """Rows in several parts, whose tokens are close to the cut in some of them only."""
    spread, chosen = WAYS[way]
    vocabulary = 9001
    assert shares(2, vocabulary, 3)[0] > 1
    logits = torch.randn(2, vocabulary, generator=torch.Generator().manual_seed(9)) * spread
    logits[1] = logits[1].sort().values
    columns = np.array([chosen] * 2, np.float32).T
    keys = noise_keys(np.arange(2, dtype=np.uint64), np.full(2, 3))
    settings = DrawSettings(columns[0], columns[1].astype(np.int32), columns[2], columns[3], keys)
    assert draw(logits.to(DEVICE), settings)[0].tolist() == sampling.draw(logits, settings)[0].tolist()


def test_four_passes_over_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the programs of the last kernel there is one per row, and it reads what was listed."""
    launched: list[tuple[str, int]] = []
    issue = gpu_sampling.issue

    def noted(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        launched.append((kernel.fn.__name__, len(grid)))
        issue(kernel, grid, *args, **constants)

    monkeypatch.setattr(gpu_sampling, "issue", noted)
    draw(torch.randn(2, 600).to(DEVICE), settings_of(4, 1).part(2, 4))
    assert launched == [*[(f"{name}_kernel", 2) for name in ("top", "weigh", "weigh", "race")], ("finish_kernel", 1)]
