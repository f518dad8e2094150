"""Experts of a mixture against the reference: routings of all kinds, odd sizes, weights either way round; and modules
of transformers with our function in them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from triton.runtime import interpreter

from kernels import reference
from kernels.gpu import experts
from tests.engine import models
from tests.kernels.cases import assert_close
from tests.kernels.triton_device import DEVICE, DTYPES, NAN
from worker.model.replaced_experts import Experts, mixture


def routings(num_experts: int, top: int, seed: int) -> dict[str, torch.Tensor]:
    """int64 [tokens, top] each."""
    torch.manual_seed(seed)

    def drawn(tokens: int, among: int) -> torch.Tensor:
        return torch.stack([torch.randperm(among, device=DEVICE)[:top] for _ in range(tokens)])

    return {
        "one token": drawn(1, num_experts),
        "even": drawn(37, num_experts),
        "few experts": drawn(21, top),
        "one expert": torch.full((40, 1), num_experts - 1, device=DEVICE).expand(40, top).contiguous(),
        "none": torch.empty((0, top), dtype=torch.int64, device=DEVICE),
    }


@pytest.mark.parametrize(("num_experts", "top"), [(1, 1), (5, 2), (16, 4)])
def test_pairs_come_in_the_order_of_their_experts(num_experts: int, top: int, seed: int) -> None:
    for name, index in routings(num_experts, top, seed).items():
        expert = index.reshape(-1)
        order, starts = experts.route(expert, num_experts)
        wanted = expert.cpu().argsort(stable=True)
        assert order.tolist() == wanted.tolist(), name
        counts = expert.cpu().bincount(minlength=num_experts)
        assert starts.tolist() == [0, *counts.cumsum(0).tolist()], name


def test_more_pairs_than_are_looked_at_at_once(seed: int) -> None:
    torch.manual_seed(seed)
    expert = torch.randint(0, 3, (2 * experts.SPAN + 5,), device=DEVICE)
    order, starts = experts.route(expert, 3)
    assert order.tolist() == expert.cpu().argsort(stable=True).tolist()
    assert starts.tolist() == [0, *expert.cpu().bincount(minlength=3).cumsum(0).tolist()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("columns", "depth"), [(1, 1), (63, 80), (130, 64)])
@pytest.mark.parametrize(("is_transposed", "height"), [(False, 16), (True, 64)])
def test_products_are_those_of_each_rows_own_expert(
    columns: int, depth: int, is_transposed: bool, height: int, dtype: torch.dtype, seed: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(experts, "rows_of_tile", lambda each, size_bytes: height)
    num_experts, top = 5, 2
    # Memory in which nothing of use lies.
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **more: _spoiled(empty(*size, **more)))
    weight = (torch.randn(num_experts, columns, depth, device=DEVICE) / depth**0.5).to(dtype)
    if is_transposed:
        weight = weight.transpose(1, 2).contiguous().transpose(1, 2)
    bias = torch.randn(num_experts, columns, device=DEVICE).to(dtype)
    for name, index in routings(num_experts, top, seed).items():
        expert = index.reshape(-1)
        order, starts = experts.route(expert, num_experts)
        x = torch.randn(len(index), depth, device=DEVICE).to(dtype)
        got = experts.grouped_product(x, weight, order, starts, top=top, gathers=True, bias=bias)
        if not len(index):
            assert got.shape == (0, columns)
            continue
        rows = x.repeat_interleave(top, 0)
        wanted = reference.grouped_product(rows, weight, expert)
        inner = order.long()
        assert_close(got, (wanted + bias[expert])[inner], dtype, f"{name}, up")
        scale = torch.rand(len(expert), device=DEVICE).to(dtype)
        out = experts.grouped_product(
            rows[inner].contiguous(), weight, order, starts, top=top, gathers=False, scale=scale
        )
        assert_close(out, wanted * scale[:, None], dtype, f"{name}, down")


def _spoiled(made: torch.Tensor) -> torch.Tensor:
    return made.fill_(NAN if made.is_floating_point() else -7)


def test_a_row_says_the_same_whatever_is_beside_it(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter a tile is a product of NumPy's, and on some processors that sums a row in another order where
    it lies elsewhere in its tile: here it sums each row as every other, as a GPU does."""

    def in_order(a: Any, b: Any, dtype: Any) -> Any:
        return np.einsum("ik,kj->ij", a.astype(dtype), b.astype(dtype))

    monkeypatch.setattr(interpreter, "np", SimpleNamespace(**{**vars(np), "matmul": in_order}))
    torch.manual_seed(seed)
    weight, x = torch.randn(4, 48, 70, device=DEVICE), torch.randn(30, 70, device=DEVICE)
    expert = torch.randint(0, 4, (30,), device=DEVICE)

    def said(rows: slice) -> torch.Tensor:
        order, starts = experts.route(expert[rows].contiguous(), 4)
        made = experts.grouped_product(x[rows].contiguous(), weight, order, starts, top=1, gathers=True)
        return made[order.long().argsort()]

    assert torch.equal(said(slice(0, 30))[7:19], said(slice(7, 19)))


def test_wrong_arguments_are_refused() -> None:
    x, weight = torch.zeros(2, 8, device=DEVICE), torch.zeros(3, 4, 8, device=DEVICE)
    order, starts = experts.route(torch.zeros(2, dtype=torch.int64, device=DEVICE), 3)
    with pytest.raises(ValueError, match="weight must be"):
        experts.grouped_product(x, weight.half(), order, starts, top=1, gathers=True)
    with pytest.raises(ValueError, match="x must have shape"):
        experts.grouped_product(x[:1], weight, order, starts, top=1, gathers=True)
    with pytest.raises(ValueError, match="bias must have shape"):
        experts.grouped_product(x, weight, order, starts, top=1, gathers=True, bias=weight[0])
    with pytest.raises(ValueError, match="expert must be"):
        experts.route(order, 3)


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_modules_of_transformers_say_the_same(kind: str, tmp_path: Any, seed: int) -> None:
    """Gated by silu with both halves behind each other; and with biases, transposed, the gate between."""
    model = models.reference(models.build(tmp_path, kind))
    found = Experts(model)
    torch.manual_seed(seed)
    assert len(found._modules) >= 3
    for module in found._modules:
        hidden, weights = torch.randn(19, 48), torch.rand(19, 2)
        index = torch.stack([torch.randperm(4)[:2] for _ in range(19)])
        with torch.inference_mode():
            wanted = module(hidden, index, weights)
            assert_close(mixture(module, hidden, index, weights), wanted, torch.float32, kind)
