"""The yardstick itself: against torch's own attention, and against loops over single keys for what torch lacks."""

from __future__ import annotations

import math

import pytest
import torch

from kernels import reference
from kernels.batch import Scoring
from kernels.dispatch import BACKEND_NAMES, backend
from tests.kernels.cases import Case, Geometry, make_case


def one_by_one(
    case: Case, *, scale: float, window: int = 0, softcap: float = 0.0, sinks: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention key by key in Python floats, straight from the definition."""
    group = case.q.shape[1] // case.cache.num_kv_heads
    out = torch.zeros(*case.q.shape[:2], case.cache.value_dim, dtype=torch.float64)
    lse = torch.zeros(case.q.shape[:2], dtype=torch.float64)
    starts, contexts = case.batch.query_start.tolist(), case.batch.context_len.tolist()
    for seq, context in enumerate(contexts):
        k, v = reference.gather_tokens(case.cache, case.batch.tables[case.batch.rows[seq]], context)
        for token in range(starts[seq], starts[seq + 1]):
            position = context - (starts[seq + 1] - token)
            first = max(0, position - window + 1) if window else 0
            for head in range(case.q.shape[1]):
                scores = [
                    float(case.q[token, head].double() @ k[key, head // group].double()) * scale
                    for key in range(first, position + 1)
                ]
                if softcap:
                    scores = [softcap * math.tanh(score / softcap) for score in scores]
                total = sum(math.exp(score) for score in scores)
                if sinks is not None:
                    total += math.exp(float(sinks[head]))
                for score, key in zip(scores, range(first, position + 1), strict=True):
                    out[token, head] += math.exp(score) / total * v[key, head // group].double()
                lse[token, head] = math.log(total)
    return out, lse


@pytest.mark.parametrize(
    "features",
    [
        {},
        {"window": 1},
        {"window": 5},
        {"softcap": 1.5},
        {"sinks": torch.tensor([-1.0, 0.0, 0.5, 2.0])},
        {"window": 9, "softcap": 3.0, "sinks": torch.tensor([-1.0, 0.0, 0.5, 2.0])},
    ],
    ids=lambda features: "+".join(features) or "plain",
)
def test_against_the_definition(features: dict[str, object], seed: int) -> None:
    shape = Geometry(num_heads=4, num_kv_heads=2, head_dim=8, value_dim=6, block_size=4)
    case = make_case(shape, (1, 3, 6), (11, 7, 6), seed=seed)
    wanted, wanted_lse = one_by_one(case, scale=0.7, **features)  # type: ignore[arg-type]
    out, lse = reference.attention(case.q, case.cache, case.batch, Scoring(0.7, **features))  # type: ignore[arg-type]
    torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(lse, wanted_lse, rtol=1e-10, atol=1e-10)


def test_against_torch(seed: int) -> None:
    case = make_case(Geometry(), (1, 30), (100, 30), seed=seed)
    out, _ = reference.attention(case.q, case.cache, case.batch, Scoring(0.125))
    starts = case.batch.query_start.tolist()
    for seq, context in enumerate(case.batch.context_len.tolist()):
        k, v = reference.gather_tokens(case.cache, case.batch.tables[case.batch.rows[seq]], context)
        q = case.q[starts[seq] : starts[seq + 1]].transpose(0, 1).double()
        wanted = torch.nn.functional.scaled_dot_product_attention(
            q[None], k.transpose(0, 1)[None].double(), v.transpose(0, 1)[None].double(),
            is_causal=q.shape[1] > 1, scale=0.125, enable_gqa=True,
        )[0]  # fmt: skip
        torch.testing.assert_close(out[starts[seq] : starts[seq + 1]], wanted.transpose(0, 1), rtol=1e-10, atol=1e-10)


def test_merge_of_parts_is_exact(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn((n, 4, 8), generator=generator, dtype=torch.float64) for n in (1, 60, 60))
    whole, whole_lse = reference.sequence_attention(q, k, v, Scoring(0.5))
    cuts = [(0, 1), (1, 37), (37, 60)]
    parts = [reference.sequence_attention(q, k[a:b], v[a:b], Scoring(0.5)) for a, b in cuts]
    # A part over no keys at all has no weight.
    outs = torch.stack([*(out for out, _ in parts), torch.zeros_like(whole)])
    lses = torch.stack([*(lse for _, lse in parts), torch.full_like(whole_lse, float("-inf"))])
    out, lse = reference.merge(outs, lses)
    torch.testing.assert_close(out, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lse, whole_lse, rtol=1e-12, atol=1e-12)
    nothing, none_lse = reference.merge(torch.zeros(2, 1, 4, 8), torch.full((2, 1, 4), float("-inf")))
    assert not nothing.any() and none_lse.isneginf().all()


def test_dispatch() -> None:
    assert backend("cpu").name == "cpu"
    assert backend(torch.device("cpu"), "reference").name == "reference"
    with pytest.raises(ValueError, match="no kernels named 'cuda'; use one of reference, cpu, triton"):
        backend("cpu", "cuda")
    assert set(BACKEND_NAMES) == {"reference", "cpu", "triton"}
    with pytest.raises(ValueError, match="host memory, got device meta"):
        backend(torch.device("meta"), "cpu")
