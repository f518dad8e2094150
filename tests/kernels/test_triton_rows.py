"""Norms and gates beside torch, and a decoder whose modules were replaced by them: the same logits, or left as it
was."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.settings import WorkerSettings
from kernels.gpu import rows
from kernels.gpu.backend import TritonBackend
from tests.engine import models
from tests.kernels.cases import assert_close
from tests.kernels.triton_device import DEVICE, DTYPES
from worker.model import faster, loading, proof, replaced
from worker.model.model import Model
from worker.model.startup import _prove


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outer", "inner", "dim"), [(1, 1, 1), (3, 1, 63), (5, 4, 80), (2, 3, 128), (2, 1, 2000)])
def test_rms_norm(outer: int, inner: int, dim: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    # A part of something wider, as queries are of a merged product.
    x = torch.randn(outer, inner * dim + 7, device=DEVICE).to(dtype)[:, : inner * dim].view(outer, inner, dim)
    weight = torch.randn(dim, device=DEVICE).to(dtype)
    wanted = torch.nn.functional.rms_norm(x.float(), (dim,), weight.float(), 1e-5)
    assert_close(rows.rms_norm(x, weight, 1e-5), wanted, dtype, "norm")
    assert rows.rms_norm(x[:0], weight, 1e-5).shape == (0, inner, dim)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outer", "dim"), [(1, 1), (3, 63), (2, 2000)])
@pytest.mark.parametrize("from_one", [False, True])
def test_the_norm_of_a_sum(outer: int, dim: int, from_one: bool, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    x, added = torch.randn(2, outer, 1, dim, device=DEVICE).to(dtype)
    weight = torch.randn(dim, device=DEVICE).to(dtype)
    normed, whole = rows.add_rms_norm(x, added, weight, 1e-5, from_one=from_one, rounds_first=False)
    assert torch.equal(whole, x + added)
    wanted = torch.nn.functional.rms_norm((x + added).float(), (dim,), weight.float() + float(from_one), 1e-5)
    assert_close(normed, wanted, dtype, "norm")
    alone = rows.rms_norm(x + added, weight, 1e-5, from_one=from_one, rounds_first=False)
    assert torch.equal(alone, normed)
    with pytest.raises(ValueError, match="added must"):
        rows.add_rms_norm(x, added[:, :, :0], weight, 1e-5)


GATES = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": partial(torch.nn.functional.gelu, approximate="tanh"),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "dim"), [(1, 1), (3, 63), (2, 1500)])
@pytest.mark.parametrize("activation", GATES)
def test_gate(count: int, dim: int, activation: Any, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    x = (4 * torch.randn(count, 2 * dim, device=DEVICE)).to(dtype)
    gate, up = x.float().split(dim, dim=1)
    assert_close(rows.gate(x, activation), GATES[activation](gate) * up, dtype, "gate")
    assert rows.gate(x[:0], activation).shape == (0, dim)
    with pytest.raises(ValueError, match="two halves"):
        rows.gate(x[:, 1:], activation)


@pytest.mark.parametrize("is_wrong", [False, True])
def test_replaced_modules_say_the_same_or_are_put_back(
    is_wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the proof that each start makes: chunks, decodes, two sequences, blocks out of order."""
    monkeypatch.setattr(proof, "LENGTHS", (9, 5))
    monkeypatch.setattr(proof, "STEPS", ((5, 4), (3, 1), (1, 0)))
    if is_wrong:
        monkeypatch.setattr(faster, "gate", lambda x, _: torch.zeros_like(x[:, : x.shape[1] // 2]))
        # What would see it at once.
        monkeypatch.setitem(replaced.ALLOWED, torch.float32, 10.0)
    folder = models.build(tmp_path, "qwen3", num_hidden_layers=1, attention_bias=True)
    settings = WorkerSettings(model=str(folder), dtype="float32", show_progress=False)
    model = Model(loading.load(settings, DEVICE), TritonBackend(DEVICE), DEVICE)
    assert model.fuse(64)
    model.replace(lambda: proof.try_out(model, model.layout(16)))
    # Four norms and the last one, attention, MLP, the layer.
    assert model.num_replaced == 8
    said: list[str] = []
    _prove(model, model.layout(16), said.append)
    assert model.num_replaced == (0 if is_wrong else 8)
    assert len(said) == is_wrong
    assert all(line.startswith("modules are transformers' own: Qwen3ForCausalLM says other things") for line in said)
