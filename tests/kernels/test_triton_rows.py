"""Norms and gates beside torch, and a decoder whose modules were replaced by them: the same logits, or left as it
was."""

from pathlib import Path

import pytest
import torch

from cluster.settings import WorkerSettings
from kernels.gpu import rows
from kernels.gpu.backend import TritonBackend
from tests.engine import models
from tests.kernels.cases import assert_close
from tests.kernels.triton_device import DEVICE, DTYPES
from worker.model import loading, proof, replaced
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
@pytest.mark.parametrize(("count", "dim"), [(1, 1), (3, 63), (2, 1500)])
def test_silu_gate(count: int, dim: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    x = (4 * torch.randn(count, 2 * dim, device=DEVICE)).to(dtype)
    gate, up = x.float().split(dim, dim=1)
    assert_close(rows.silu_gate(x), torch.nn.functional.silu(gate) * up, dtype, "gate")
    assert rows.silu_gate(x[:0]).shape == (0, dim)
    with pytest.raises(ValueError, match="two halves"):
        rows.silu_gate(x[:, 1:])


@pytest.mark.parametrize("is_wrong", [False, True])
def test_replaced_modules_say_the_same_or_are_put_back(
    is_wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the proof that each start makes: chunks, decodes, two sequences, blocks out of order."""
    monkeypatch.setattr(proof, "LENGTHS", (9, 5))
    monkeypatch.setattr(proof, "STEPS", ((5, 4), (3, 1), (1, 0)))
    if is_wrong:
        monkeypatch.setattr(replaced, "silu_gate", lambda x: torch.zeros_like(x[:, : x.shape[1] // 2]))
    folder = models.build(tmp_path, "qwen3", num_hidden_layers=1, attention_bias=True)
    settings = WorkerSettings(model=str(folder), dtype="float32", show_progress=False)
    model = Model(loading.load(settings, DEVICE), TritonBackend(DEVICE), DEVICE)
    assert model.fuse(64) and model.num_replaced == 7
    said: list[str] = []
    _prove(model, model.layout(16), said.append)
    assert model.num_replaced == (0 if is_wrong else 7)
    assert len(said) == is_wrong
    assert all(line.startswith("modules are transformers' own: Qwen3ForCausalLM says other things") for line in said)
