"""Filters and draw against transformers' warpers, against each other, and against the distribution they promise."""

import math

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from kernels import sampling
from kernels.cpu.sampling import CpuDraw
from kernels.noise import noise_keys, token_noise
from kernels.sampling import DrawSettings

FILTERS = [  # temperature, top_k, top_p, min_p
    (1.0, 0, 1.0, 0.0),
    (0.7, 0, 1.0, 0.0),
    (1.0, 1, 1.0, 0.0),
    (1.0, 7, 1.0, 0.0),
    (0.8, 50, 0.9, 0.0),
    (1.3, 300, 0.95, 0.0),
    (1.0, 5000, 0.5, 0.0),
    (1.0, 0, 0.9, 0.0),
    (2.5, 0, 0.999, 0.0),
    (0.2, 0, 0.3, 0.0),
    (1.0, 0, 0.001, 0.0),
    (1.0, 0, 1.0, 0.1),
    (1.0, 0, 1.0, 1.0),
    (0.9, 40, 0.8, 0.05),
    (1.0, 40, 1.0, 1.0),
]


def settings_for(rows: int, temperature: float, top_k: int, top_p: float, min_p: float, position: int = 3):
    return DrawSettings(
        np.full(rows, temperature, np.float32),
        np.full(rows, top_k, np.int32),
        np.full(rows, top_p, np.float32),
        np.full(rows, min_p, np.float32),
        noise_keys(np.arange(rows, dtype=np.uint64), np.full(rows, position)),
    )


def joined(parts: list[DrawSettings]) -> DrawSettings:
    names = ("temperature", "top_k", "top_p", "min_p", "keys")
    return DrawSettings(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def warped(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """What transformers makes of the logits, in fp64: minus infinity where a token is filtered out."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)] if temperature != 1.0 else [])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    return warpers(torch.zeros(len(logits), 1, dtype=torch.int64), logits.double())


def first_of_order(logits: torch.Tensor, counts: np.ndarray) -> torch.Tensor:
    """Masks of the first `counts[i]` tokens of each row in the order (value, id), highest first."""
    mask = torch.zeros_like(logits, dtype=torch.bool)
    for row, count in enumerate(counts.tolist()):
        ranked = sorted(range(logits.shape[1]), key=lambda token: (logits[row, token].item(), token), reverse=True)
        mask[row, ranked[:count]] = True
    return mask


def check_kept(mask: torch.Tensor, logits: torch.Tensor, filters: tuple[float, int, float, float]) -> None:
    """The sets are those of transformers, but for tokens at which the mass above meets top_p to 1e-6: there fp32 and
    fp64 may round to different sides."""
    temperature, top_k, top_p, _ = filters
    expected = ~torch.isneginf(warped(logits, *filters))
    for row in torch.nonzero((mask != expected).any(1)).flatten().tolist():
        before = warped(logits[row : row + 1], temperature, top_k, 1.0, 0.0)[0].softmax(0)
        for token in torch.nonzero(mask[row] != expected[row]).flatten().tolist():
            above = before[logits[row] > logits[row, token]].sum().item()
            assert abs(above - top_p) < 1e-6, (filters, row, token, above)


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("vocabulary", [1, 2, 63, 500, 4096])
def test_filters_keep_what_transformers_keeps(filters, vocabulary: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for scale in (0.3, 3.0, 12.0):
        logits = torch.randn(4, vocabulary, generator=generator) * scale
        settings = settings_for(4, *filters)
        mask, weights = sampling.kept(logits, settings)
        check_kept(mask, logits, filters)
        cpu = CpuDraw(4, vocabulary)
        ids, broken = cpu.draw(logits, settings)
        assert not broken.any()
        check_kept(first_of_order(logits, cpu.num_kept[:4]), logits, filters)
        assert mask.gather(1, ids[:, None]).all(), "a token that the filters took away was drawn"
        # What is left has the probabilities of transformers.
        ours = torch.where(mask, weights, 0).double()
        theirs = warped(logits, *filters).softmax(-1)
        same_set = (mask == ~torch.isneginf(warped(logits, *filters))).all(1)
        torch.testing.assert_close(
            (ours / ours.sum(-1, keepdim=True))[same_set], theirs[same_set], atol=1e-6, rtol=1e-4
        )


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("vocabulary", [64, 5000])
def test_filters_on_equal_values(filters, vocabulary: int, seed: int) -> None:
    """bf16 logits are full of equals. Top-k keeps all at its cut, top-p as many as it needs, as transformers does."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(4, vocabulary, generator=generator) * 2).round().div(2)
    logits[3] = 1.5
    settings = settings_for(4, *filters)
    mask, _ = sampling.kept(logits, settings)
    cpu = CpuDraw(4, vocabulary)
    cpu.draw(logits, settings)
    assert (mask == first_of_order(logits, cpu.num_kept[:4])).all()
    expected = ~torch.isneginf(warped(logits, *filters))
    # Both keep the first ones of the order of values, so that numbers tell all; which of the equals at the cut of
    # top-p stay depends on a sort there. Sums that meet top_p to the last bit may differ by one.
    assert (mask.sum(1) - expected.sum(1)).abs().max() <= (1 if filters[2] < 1 else 0)
    assert ((mask.sum(1) == expected.sum(1)).sum() >= 3).all()


def test_filters_leave_banned_tokens_out() -> None:
    logits = torch.full((3, 300), -math.inf)
    logits[:, 17] = 2.0
    logits[1:, 250] = 1.5
    cpu = CpuDraw(3, 300)
    for filters in FILTERS:
        for position in range(20):
            settings = settings_for(3, *filters, position=position)
            for ids in (cpu.draw(logits, settings)[0], sampling.draw(logits, settings)[0]):
                assert ids[0] == 17
                assert set(ids.tolist()) <= {17, 250}
            assert cpu.num_kept[0] == 1 and cpu.num_kept[1] <= 2


def test_cpu_kernel_draws_what_plain_torch_draws() -> None:
    """Same noise, same filters: the same tokens, for every kind of row in one batch."""
    generator = torch.Generator().manual_seed(0)
    for vocabulary in (1, 15, 16, 17, 255, 257, 4096, 32003):
        rows = 4 * len(FILTERS)
        settings = joined([settings_for(4, *filters, position=at) for at, filters in enumerate(FILTERS)])
        logits = torch.randn(rows, vocabulary, generator=generator) * 3
        ids, _ = CpuDraw(rows, vocabulary).draw(logits, settings)
        assert ids.tolist() == sampling.draw(logits, settings)[0].tolist(), vocabulary


def test_bf16_logits_are_read_as_they_are() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(8, 1000, generator=generator) * 3).bfloat16()
    cpu = CpuDraw(8, 1000)
    for filters in [(0.0, 0, 1.0, 0.0), *FILTERS]:
        settings = settings_for(8, *filters)
        assert cpu.draw(logits, settings)[0].tolist() == cpu.draw(logits.float(), settings)[0].tolist()
    assert cpu.draw(logits.half(), settings)[0].tolist() == cpu.draw(logits.half().float(), settings)[0].tolist()


def test_greedy_is_argmax_and_takes_the_first_of_equals(seed: int) -> None:
    logits = torch.randn(16, 5001, generator=torch.Generator().manual_seed(seed))
    logits[3] = 0.0
    logits[4, 100] = logits[4, 4000] = 9.0
    logits[5] = -3.0
    logits[5, 7], logits[5, 8] = -0.0, 0.0
    settings = settings_for(16, 0.0, 0, 1.0, 0.0)
    expected = logits.argmax(-1)
    expected[3], expected[4], expected[5] = 0, 100, 7
    for draw in (CpuDraw(16, 5001).draw, sampling.draw):
        ids, broken = draw(logits, settings)
        assert ids.tolist() == expected.tolist()
        assert not broken.any()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_are_told_and_hurt_nobody_else(temperature: float) -> None:
    logits = torch.randn(6, 100, generator=torch.Generator().manual_seed(2))
    settings = settings_for(6, temperature, 0, 0.9, 0.0)
    whole = CpuDraw(6, 100).draw(logits, settings)[0]
    logits[0, 99] = math.nan
    logits[1, 5] = -math.nan
    logits[2] = math.nan
    logits[3, 50] = math.inf
    logits[4] = -math.inf
    for draw in (CpuDraw(6, 100).draw, sampling.draw):
        ids, broken = draw(logits, settings)
        assert broken.tolist() == [True] * 5 + [False]
        assert ids.tolist() == [0] * 5 + [whole[5].item()]


def test_a_draw_depends_on_nothing_else_in_the_batch() -> None:
    """Bit for bit: alone, in any batch, in any order, with other settings beside it."""
    generator = torch.Generator().manual_seed(3)
    settings = joined([settings_for(3, *filters, position=at) for at, filters in enumerate(FILTERS)])
    rows = len(settings.keys)
    logits = torch.randn(rows, 2000, generator=generator)
    together = CpuDraw(rows, 2000).draw(logits, settings)[0]
    alone = [CpuDraw(1, 2000).draw(logits[i : i + 1], settings.part(i, i + 1))[0].item() for i in range(rows)]
    assert together.tolist() == alone
    order = torch.randperm(rows, generator=generator)
    shuffled = joined([settings.part(i, i + 1) for i in order.tolist()])
    assert CpuDraw(rows, 2000).draw(logits[order], shuffled)[0].tolist() == together[order].tolist()


def test_threads_share_the_rows_and_draw_the_same() -> None:
    generator = torch.Generator().manual_seed(5)
    settings = joined([settings_for(2, *filters, position=at) for at, filters in enumerate(FILTERS)])
    rows, threads = len(settings.keys), torch.get_num_threads()
    vocabulary = 60_003  # enough for several threads
    cpu = CpuDraw(rows, vocabulary)
    for dtype in (torch.float32, torch.bfloat16):
        logits = (torch.randn(rows, vocabulary, generator=generator) * 3).to(dtype)
        drawn = {}
        try:
            for number in (1, 2, 5):
                torch.set_num_threads(number)
                ids, _ = cpu.draw(logits, settings)
                drawn[number] = (ids.tolist(), cpu.num_kept.tolist())
        finally:
            torch.set_num_threads(threads)
        assert drawn[1] == drawn[2] == drawn[5]


@pytest.mark.parametrize(
    "filters", [(1e-3, 0, 0.9, 0.0), (1e-3, 0, 1.0, 0.3), (0.01, 0, 0.5, 0.01), (50.0, 0, 0.7, 0.0)]
)
def test_filters_where_logits_are_far_from_zero(filters) -> None:
    """What is left out beforehand is judged by values that fp32 rounds coarsely here; nothing that counts may go."""
    generator = torch.Generator().manual_seed(6)
    for offset in (-1e4, 0.0, 1e4):
        logits = torch.randn(4, 3000, generator=generator) * 0.01 + offset
        settings = settings_for(4, *filters)
        cpu = CpuDraw(4, 3000)
        ids, _ = cpu.draw(logits, settings)
        mask, _ = sampling.kept(logits, settings)
        assert (abs(mask.sum(1).numpy() - cpu.num_kept) <= 1).all(), (offset, mask.sum(1), cpu.num_kept)
        assert first_of_order(logits, cpu.num_kept).gather(1, ids[:, None]).all()


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """The statistic in standard deviations from its mean, with cells that expect too little put together."""
    order = np.argsort(expected)
    counts, expected = counts[order], expected[order]
    cut = int(np.searchsorted(np.cumsum(expected), 10.0)) + 1
    counts = np.concatenate([[counts[:cut].sum()], counts[cut:]])
    expected = np.concatenate([[expected[:cut].sum()], expected[cut:]])
    freedom = len(expected) - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float((statistic - freedom) / math.sqrt(2 * freedom))


@pytest.mark.parametrize("filters", [(1.0, 0, 1.0, 0.0), (0.7, 20, 1.0, 0.0), (1.0, 0, 0.9, 0.0), (1.5, 0, 1.0, 0.02)])
def test_draws_follow_the_distribution(filters) -> None:
    """40,000 positions of one seed, and 40,000 seeds at one position."""
    logits = torch.randn(1, 200, generator=torch.Generator().manual_seed(4)) * 1.5
    expected = warped(logits, *filters).softmax(-1)[0].numpy()
    number = 40_000
    cpu = CpuDraw(number, 200)
    many = logits.expand(number, -1).contiguous()
    settings = settings_for(number, *filters)
    counting = np.arange(number)
    one_seed = noise_keys(np.full(number, 1234, np.uint64), counting)
    one_place = noise_keys(counting.astype(np.uint64), np.full(number, 77))
    for keys in (one_seed, one_place):
        drawn = DrawSettings(settings.temperature, settings.top_k, settings.top_p, settings.min_p, keys)
        counts = np.bincount(cpu.draw(many, drawn)[0].numpy(), minlength=200)
        assert (counts[expected == 0] == 0).all()
        kept = expected > 0
        assert abs(chi_square(counts[kept], expected[kept] * number)) < 4


def test_noise_is_exponential_and_independent() -> None:
    keys = torch.from_numpy(noise_keys(np.full(500, 9, np.uint64), np.arange(500)).view(np.int64))
    noise = token_noise(keys, torch.arange(4000)).double()
    uniform = (1 - torch.exp(-noise)).numpy()
    number = uniform.size
    cells = np.bincount((uniform * 256).astype(int).ravel().clip(0, 255), minlength=256)
    assert abs(chi_square(cells, np.full(256, number / 256))) < 4
    # Neighbours in token id, in position, and 2**k tokens apart: cells of pairs are equally full.
    for a, b in [
        (uniform[:, :-1], uniform[:, 1:]),
        (uniform[:-1], uniform[1:]),
        *((uniform[:, : -(1 << k)], uniform[:, 1 << k :]) for k in range(1, 11)),
    ]:
        pairs = np.bincount(((a * 16).astype(int) * 16 + (b * 16).astype(int)).ravel(), minlength=256)
        assert abs(chi_square(pairs, np.full(256, a.size / 256))) < 4
    assert abs(noise.mean().item() - 1) < 4 / math.sqrt(number)


def test_keys_are_all_different() -> None:
    seeds = np.repeat(np.arange(2000, dtype=np.uint64), 200)
    positions = np.tile(np.arange(200), 2000)
    assert np.unique(noise_keys(seeds, positions)).size == seeds.size
