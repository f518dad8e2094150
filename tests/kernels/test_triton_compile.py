"""The Triton kernels compile for GPUs that are not here, and at their default choices none of them spills.

Prints what each takes (`pytest -s`). The compiler checks in seconds what a GPU would only show as lost speed.
"""

from __future__ import annotations

import pytest
import torch

from kernels.gpu.attention import attention_kernel
from kernels.gpu.choices import DeviceFacts
from kernels.gpu.copy import copy_kernel
from kernels.gpu.experts import CUTS, grouped_kernel, route_kernel
from kernels.gpu.experts import SPAN as ROUTE_SPAN
from kernels.gpu.merge import merge_kernel, merge_pieces_kernel
from kernels.gpu.plan import PLAN_SPAN, plan_kernel
from kernels.gpu.rows import GATE_SPAN, gate_kernel, rms_norm_kernel
from kernels.gpu.step import (
    PLAN_WARPS,
    PLAN_WAVES,
    AttentionShape,
    Group,
    constants,
    group_for,
    merge_constants,
)
from kernels.gpu.write import rotary_write_kernel, write_kernel
from tests.everyday import pairwise
from tests.kernels.triton_aot import (
    MAX_SHARED_BYTES,
    SM_REGISTERS,
    SM_SHARED_BYTES,
    TARGETS,
    TYPE_NAMES,
    Compiled,
    compile_kernel,
)

pytestmark = pytest.mark.timeout(300)

# heads, key/value heads, head size, features
MODELS: dict[str, tuple[int, int, int, dict[str, bool]]] = {
    "llama-8b": (32, 8, 128, {}),
    "llama-70b": (64, 8, 128, {}),
    "llama-1b": (32, 8, 64, {}),
    "qwen3-30b-a3b": (32, 4, 128, {}),
    "phi-3": (32, 32, 96, {}),
    "gemma-2-9b": (16, 8, 256, {"softcap": True, "window": True}),
    "gemma-3-4b": (8, 4, 256, {"window": True}),
    "gpt-oss": (64, 8, 64, {"sinks": True, "window": True}),
}
SCHEDULES = ("flat", "parts")
# Key tiles and block sizes: the default, and one where tiles lie inside blocks.
BLOCK_SIZES = (16, 128)


def group_of(family: str, shape: AttentionShape, schedule: str) -> Group:
    facts = DeviceFacts(family, 132)  # type: ignore[arg-type]
    if schedule == "flat":
        return group_for(shape, facts, "flat", first_seq=0, num_seqs=32, num_tokens=32, query_len=1)
    return group_for(shape, facts, "parts", first_seq=0, num_seqs=4, num_tokens=4096, query_len=2048)


def compile_attention(
    family: str, shape: AttentionShape, group: Group, dtype: torch.dtype, features: dict[str, bool]
) -> Compiled:
    asked = {"window": False, "softcap": False, "sinks": False, "lse": False, "widen": False} | features
    name = TYPE_NAMES[dtype]
    types = {f"{tensor}_ptr": f"*{name}" for tensor in ("q", "k", "v", "out", "sinks")}
    types |= {f"{tensor}_ptr": "*fp32" for tensor in ("lse", "part", "part_sums")}
    types |= {"scale": "fp32", "cap": "fp32"}
    return compile_kernel(
        attention_kernel,
        types,
        constants(group, shape, **asked),
        family,
        warps=group.choice.warps,
        stages=group.choice.stages,
    )


def check_attention(
    family: str, name: str, shape: AttentionShape, schedule: str, dtype: torch.dtype, features: dict[str, bool]
) -> None:
    group = group_of(family, shape, schedule)
    compiled = compile_attention(family, shape, group, dtype, features)
    print(f"{family:6} {name:14} {schedule:5} {TYPE_NAMES[dtype]} block {shape.block_size:3}: {compiled}")
    assert compiled.shared_bytes <= MAX_SHARED_BYTES[family]
    if family == "cdna3":
        assert "v_mfma" in compiled.asm["amdgcn"]
        return
    assert compiled.stack_bytes == 0
    # A kernel that the compiler threw away would spill nothing either.
    assert any(word in compiled.asm["ptx"] for word in ("mma.sync", "wgmma.mma_async", "tcgen05.mma"))
    if schedule == "flat" and dtype.itemsize == 2:
        # Keys stream into shared memory while others are computed with, in as many programs as the plan counts on.
        assert "cp.async" in compiled.asm["ptx"]
        resident = group.choice.programs_per_sm
        assert resident * (compiled.shared_bytes + 1024) <= SM_SHARED_BYTES[family]
        assert resident * compiled.registers * group.choice.warps * 32 <= SM_REGISTERS


@pytest.mark.parametrize(("family", "model", "schedule"), pairwise(TARGETS, MODELS, SCHEDULES))
def test_attention_of_models_compiles_without_spills(family: str, model: str, schedule: str) -> None:
    heads, kv_heads, dim, features = MODELS[model]
    shape = AttentionShape(heads, kv_heads, dim, dim, 16, 2)
    check_attention(family, model, shape, schedule, torch.bfloat16, features)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "family", [name if name == "sm90" else pytest.param(name, marks=pytest.mark.trust) for name in TARGETS]
)
def test_attention_in_large_blocks_and_in_float32(family: str, schedule: str) -> None:
    heads, kv_heads, dim, _ = MODELS["llama-8b"]
    large = AttentionShape(heads, kv_heads, dim, dim, 128, 2)
    check_attention(family, "llama-8b", large, schedule, torch.float16, {"lse": True})
    for dim in (128, 256):
        precise = AttentionShape(heads, kv_heads, dim, dim, 16, 4)
        check_attention(family, f"{dim} dims", precise, schedule, torch.float32, {})


@pytest.mark.parametrize("family", TARGETS)
def test_the_other_kernels_compile_without_spills(family: str) -> None:
    shape = AttentionShape(32, 8, 128, 128, 16, 2)
    bf16 = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "k_cache_ptr", "v_cache_ptr", "out_ptr", "outs_ptr"), "*bf16")
    fp32 = dict.fromkeys(("part_ptr", "part_sums_ptr", "lse_ptr", "lses_ptr", "cos_ptr", "sin_ptr"), "*fp32")
    ids = dict.fromkeys(("slots_ptr", "src_ptr", "dst_ptr", "pool_ptr"), "*i64")
    rows = dict.fromkeys(("x_ptr", "weight_ptr", "added_ptr", "sum_ptr"), "*bf16") | {"epsilon": "fp32"}
    types = bf16 | fp32 | ids | rows
    jobs = []
    for schedule in SCHEDULES:
        group = group_of(family, shape, schedule)
        plan = {
            "KV_HEADS": 8,
            "BLOCK_Q": group.block_q,
            "TILE": group.choice.tile,
            "FLAT": group.flat,
            "HAS_WINDOW": True,
            "SPAN": PLAN_SPAN,
            "WAVES": PLAN_WAVES,
        }
        jobs.append((f"plan {schedule}", plan_kernel, plan, PLAN_WARPS))
        jobs.append((f"merge {schedule}", merge_pieces_kernel, merge_constants(group, shape, lse=True), 4))
    jobs.append(("merge", merge_kernel, {"DIM": 128, "DIM_PAD": 128, "ROWS": 16}, 4))
    written = {"KV_HEADS": 8, "DIM": 128, "VALUE_DIM": 128, "BLOCK_SIZE": 16, "V_LANES": 1024}
    jobs.append(("write", write_kernel, written | {"K_LANES": 1024}, 4))
    rotary = {"NUM_HEADS": 32, "HEAD_TILE": 16, "HEAD_TILES": 2, "KV_PAD": 8, "HALF": 64, "HALF_PAD": 64, "REST_PAD": 1}
    jobs.append(("rotary write", rotary_write_kernel, written | rotary | {"INTERLEAVED": False}, 4))
    jobs.append(("copy", copy_kernel, {"SPAN": 2048}, 4))
    norm = {"INNER": 1, "DIM": 4096, "LANES": 4096, "FROM_ONE": False, "ROUNDS_FIRST": True}
    jobs.append(("norm", rms_norm_kernel, norm | {"ADDS": False}, 4))
    jobs.append(("norm of a sum", rms_norm_kernel, norm | {"ADDS": True}, 4))
    for activation in ("silu", "gelu_tanh", "gelu"):
        gate = {"DIM": 14336, "SPAN": GATE_SPAN, "ACTIVATION": activation}
        jobs.append((f"gate {activation}", gate_kernel, gate, 4))
    for name, kernel, compiled_for, warps in jobs:
        compiled = compile_kernel(kernel, types, compiled_for, family, warps=warps)
        print(f"{family:6} {name:14}: {compiled}")
        assert compiled.shared_bytes <= MAX_SHARED_BYTES[family]
        assert compiled.stack_bytes == 0


@pytest.mark.parametrize(("family", "cut", "gathers"), pairwise(TARGETS, CUTS, (True, False)))
def test_products_of_experts_compile_without_spills(family: str, cut: tuple[int, int], gathers: bool) -> None:
    """Qwen3-30B-A3B's, up with what gathers rows and down with what scales them."""
    rows, size = cut
    name, (width, span, warps, stages) = "bf16" if size == 2 else "fp32", CUTS[cut]
    types = {f"{tensor}_ptr": f"*{name}" for tensor in ("x", "weight", "bias", "scale", "out")}
    columns, depth = (1536, 2048) if gathers else (2048, 768)
    constants = {"TOP": 8, "EXPERTS": 128, "EXPERTS_PAD": 128, "ROWS": rows, "WIDTH": width, "DEPTH": span}
    constants |= {"GATHERS": gathers, "HAS_BIAS": False, "HAS_SCALE": not gathers, "COLUMNS": columns}
    constants |= {"DEPTH_OF": depth, "COLUMN_STRIDE": depth, "DEPTH_STRIDE": 1}
    compiled = compile_kernel(grouped_kernel, types, constants, family, warps=warps, stages=stages)
    print(f"{family:6} experts {'up' if gathers else 'down':4} {name} {rows:3} rows: {compiled}")
    assert compiled.shared_bytes <= MAX_SHARED_BYTES[family]
    assert compiled.stack_bytes == 0
    if family != "cdna3" and size == 2:
        # Tiles stream into shared memory while others are multiplied.
        assert "cp.async" in compiled.asm["ptx"]
        assert any(word in compiled.asm["ptx"] for word in ("mma.sync", "wgmma.mma_async", "tcgen05.mma"))


@pytest.mark.parametrize("family", TARGETS)
def test_what_brings_pairs_of_experts_in_order_compiles_without_spills(family: str) -> None:
    routed = compile_kernel(route_kernel, {"expert_ptr": "*i64"}, {"SPAN": ROUTE_SPAN}, family, warps=4)
    assert routed.stack_bytes == 0
