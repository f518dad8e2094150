"""What the tests of Triton kernels share: the device, how small batches come to be split, the comparison.

Without a GPU the tests run in Triton's interpreter, which is chosen when Triton is imported: a process of its own that
`test_triton_interpreted.py` starts. The interpreter computes in numpy: cases are small, and bf16 needs a GPU.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch

from kernels.batch import Scoring

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs in Triton's interpreter through test_triton_interpreted.py", allow_module_level=True)

from kernels import reference
from kernels.gpu.backend import TritonBackend
from kernels.gpu.choices import DeviceFacts, choose, device_facts
from kernels.gpu.plan import HEADER_WORDS, MERGE_WORDS, UNIT_WORDS
from tests.kernels.cases import Case, assert_close

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * GPU
NAN = float("nan")


def facts_with(**changes: Any) -> DeviceFacts:
    """Few multiprocessors, so that small batches are split; the table's rows with some figures changed."""
    facts = device_facts(DEVICE)
    fixed = []
    for schedule in ("flat", "parts"):
        choice = choose(facts, schedule, 128, 4)  # type: ignore[arg-type]
        fixed.append((schedule, replace(choice, **changes)))
    return DeviceFacts(facts.family, 3, tuple(fixed))  # type: ignore[arg-type]


def run(
    case: Case, *, scale: float = 0.125, backend: TritonBackend | None = None, **features: Any
) -> tuple[TritonBackend, torch.Tensor]:
    """Attends and compares output and log-sum-exp, both of which begin as NaN."""
    backend = backend or TritonBackend(DEVICE, facts=facts_with())
    heads, value_dim = case.q.shape[1], case.cache.value_dim
    out = torch.full((*case.q.shape[:2], value_dim), NAN, dtype=case.q.dtype, device=DEVICE)
    lse = torch.full(case.q.shape[:2], NAN, device=DEVICE)
    backend.prepare(
        case.batch,
        num_heads=heads,
        num_kv_heads=case.cache.num_kv_heads,
        head_dim=case.cache.head_dim,
        block_size=case.cache.block_size,
    )
    got = backend.attention(case.q, case.cache, case.batch, Scoring(scale, **features), out=out, lse=lse)
    assert got is out
    wanted, wanted_lse = reference.attention(case.q, case.cache, case.batch, Scoring(scale, **features))
    assert_close(out, wanted, case.q.dtype, "out")
    assert_close(lse, wanted_lse, case.q.dtype, "lse")
    again = backend.attention(case.q, case.cache, case.batch, Scoring(scale, **features))
    assert torch.equal(again, out), "without lse, or on a plan used before, the output is another"
    return backend, out


def plans(case: Case) -> list[Any]:
    assert isinstance(case.batch.tasks, dict)
    return [launch for launches in case.batch.tasks.values() for launch in launches]


def units_of(launch: Any) -> list[list[int]]:
    """The plan's records of units."""
    plan = launch.plan.tolist()
    return [plan[at : at + UNIT_WORDS] for at in range(HEADER_WORDS, HEADER_WORDS + plan[0] * UNIT_WORDS, UNIT_WORDS)]


def merges_of(launch: Any) -> list[list[int]]:
    """The plan's records of what is merged."""
    plan, layout = launch.plan.tolist(), launch.layout
    records = [plan[layout.merges_at + MERGE_WORDS * i :][:MERGE_WORDS] for i in range(layout.merges)]
    return [record for record in records if record[0]]
