"""The host side of one attention call: which sequences share a schedule, how their plan lies, what is launched.

`backend` makes one `Launch` per group of sequences, shape and window and keeps it in the batch for all layers.
Everything here follows from counts that the host knows (sequences, tokens, the longest query) and never from context
lengths, so that a captured step stays right while its sequences grow. Nothing here waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from kernels.batch import AttentionBatch, Scoring
from kernels.gpu.attention import attention_kernel
from kernels.gpu.choices import MAX_GROUP, Choice, DeviceFacts, Schedule, choose
from kernels.gpu.issuing import issue
from kernels.gpu.merge import merge_pieces_kernel
from kernels.gpu.plan import PLAN_SPAN, PlanShape, plan_kernel
from kernels.layout import LayerCache

# Queries of so few rows (tokens x heads of a group) are bound by reading keys, as decodes are.
FLAT_ROWS = 32
# Split parts per program that the parts schedule may make at most.
SPLITS_PER_PROGRAM = 2
PLAN_WAVES = 4
PLAN_WARPS = 4
LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class AttentionShape:
    """What the kernels are compiled for, apart from features."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    block_size: int
    itemsize: int  # of what is computed with: 4 where queries and cache differ in dtype

    @property
    def group(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def dim_pad(self) -> int:
        return padded(self.head_dim)

    @property
    def value_pad(self) -> int:
        return padded(self.value_dim)


@dataclass(frozen=True)
class Group:
    """Sequences of a batch that are attended to in one launch."""

    first_seq: int
    num_seqs: int
    num_tokens: int
    schedule: Schedule
    block_m: int  # rows of a tile
    block_q: int  # query tokens of a tile
    choice: Choice
    programs: int

    @property
    def flat(self) -> bool:
        return self.schedule == "flat"


@dataclass(frozen=True)
class Launch:
    """A group with its plan on the device."""

    group: Group
    layout: PlanShape
    plan: torch.Tensor


def padded(dim: int) -> int:
    """The power of two that a head is computed in."""
    return max(16, int(triton.next_power_of_2(dim)))


def groups_of(batch: AttentionBatch, shape: AttentionShape, facts: DeviceFacts) -> list[Group]:
    """Decodes, and what is left: flat too if its queries are short, in parts otherwise."""
    if shape.group > MAX_GROUP:
        raise ValueError(f"{shape.group} query heads share a key/value head; the kernels take up to {MAX_GROUP}")
    decodes, others = batch.num_decodes, batch.num_seqs - batch.num_decodes
    groups = []
    if decodes:
        groups.append(group_for(shape, facts, "flat", first_seq=0, num_seqs=decodes, num_tokens=decodes, query_len=1))
    if others:
        query_len = max(batch.max_query_len, 1)
        schedule: Schedule = "flat" if query_len * shape.group <= FLAT_ROWS else "parts"
        rest = batch.num_tokens - decodes
        groups.append(
            group_for(shape, facts, schedule, first_seq=decodes, num_seqs=others, num_tokens=rest, query_len=query_len)
        )
    return groups


def group_for(
    shape: AttentionShape,
    facts: DeviceFacts,
    schedule: Schedule,
    *,
    first_seq: int,
    num_seqs: int,
    num_tokens: int,
    query_len: int,
) -> Group:
    """How these sequences are cut on a device of `facts`. query_len: of the longest."""
    wide = max(shape.dim_pad, shape.value_pad)
    if schedule == "parts":
        choice = choose(facts, "parts", wide, shape.itemsize)
        block_m = max(choice.rows, int(triton.next_power_of_2(shape.group)))
        block_q = block_m // shape.group
    else:
        # Two heights only, so that no length of a query meets a kernel that was not compiled ahead.
        block_q = 1 if query_len == 1 else FLAT_ROWS // shape.group
        block_m = max(16, int(triton.next_power_of_2(block_q * shape.group)))
        # A tall tile of a wide group is cut as a prefill tile is.
        choice = choose(facts, "flat" if block_m <= FLAT_ROWS else "parts", wide, shape.itemsize)
    programs = facts.num_sms * choice.programs_per_sm
    return Group(first_seq, num_seqs, num_tokens, schedule, block_m, block_q, choice, programs)


def plan_shape(group: Group, shape: AttentionShape) -> PlanShape:
    if group.flat:
        return PlanShape(group.num_seqs, group.programs, group.programs)
    max_units = min(group.num_seqs + group.num_tokens // group.block_q, group.num_tokens)
    split_parts = max_split_parts(group, shape)
    return PlanShape(max(max_units, 1), max_units + split_parts, split_parts // 2)


def max_split_parts(group: Group, shape: AttentionShape) -> int:
    """Parts of split units per head that there is workspace for."""
    return max(2, SPLITS_PER_PROGRAM * group.programs // shape.num_kv_heads)


def num_slots(group: Group, shape: AttentionShape) -> int:
    """Partials that one launch can leave."""
    return 2 * group.programs if group.flat else max_split_parts(group, shape) * shape.num_kv_heads


def build_launch(batch: AttentionBatch, shape: AttentionShape, group: Group, window: int) -> Launch:
    """Launches the kernel that builds the group's plan."""
    layout = plan_shape(group, shape)
    plan = torch.empty(layout.num_words(group.num_seqs), dtype=torch.int32, device=batch.context_len.device)
    issue(
        plan_kernel,
        (1,),
        plan,
        batch.query_start,
        batch.context_len,
        batch.rows,
        layout.owners_at,
        layout.merges_at,
        layout.scratch_at,
        group.first_seq,
        group.num_seqs,
        _first_step(group.num_seqs),
        _first_step(layout.max_units),
        window,
        group.programs,
        max_split_parts(group, shape),
        layout.merges,
        KV_HEADS=shape.num_kv_heads,
        BLOCK_Q=group.block_q,
        TILE=group.choice.tile,
        FLAT=group.flat,
        HAS_WINDOW=window > 0,
        SPAN=PLAN_SPAN,
        WAVES=PLAN_WAVES,
        num_warps=PLAN_WARPS,
    )
    return Launch(group, layout, plan)


def _first_step(count: int) -> int:
    """Where a binary search over `count` entries begins."""
    return 1 << max(count - 1, 1).bit_length() - 1


def constants(
    group: Group, shape: AttentionShape, *, window: bool, softcap: bool, sinks: bool, lse: bool, widen: bool
) -> dict[str, object]:
    """What the attention kernel is compiled for."""
    return {
        "FLAT": group.flat,
        "KV_HEADS": shape.num_kv_heads,
        "GROUP": shape.group,
        "DIM": shape.head_dim,
        "DIM_PAD": shape.dim_pad,
        "VALUE_DIM": shape.value_dim,
        "VALUE_PAD": shape.value_pad,
        "BLOCK_M": group.block_m,
        "BLOCK_Q": group.block_q,
        "TILE": group.choice.tile,
        "BLOCK_SIZE": shape.block_size,
        "HAS_WINDOW": window,
        "HAS_CAP": softcap,
        "HAS_SINKS": sinks,
        "HAS_LSE": lse,
        "WIDEN": widen,
        "PRECISION": group.choice.precision,
        "SPLIT_EDGES": group.choice.split_edges,
        "EDGE_STAGES": group.choice.edge_stages,
    }


def merge_constants(group: Group, shape: AttentionShape, *, lse: bool) -> dict[str, object]:
    """What the kernel that merges the group's partials is compiled for."""
    # A decode has few rows and many parts, a prefill tile many rows and few parts.
    rows, parts = (1, 16) if group.flat else (8, 4)
    return {
        "FLAT": group.flat,
        "KV_HEADS": shape.num_kv_heads,
        "GROUP": shape.group,
        "VALUE_DIM": shape.value_dim,
        "VALUE_PAD": shape.value_pad,
        "BLOCK_M": group.block_m,
        "BLOCK_Q": group.block_q,
        "HAS_LSE": lse,
        "ROWS": rows,
        "PARTS": parts,
    }


def launch_attention(
    launch: Launch,
    shape: AttentionShape,
    q: torch.Tensor,
    cache: LayerCache,
    batch: AttentionBatch,
    partials: torch.Tensor,  # float32 [slots, block_m, value_pad]
    sums: torch.Tensor,  # float32 [slots, block_m, 2]
    scoring: Scoring,
    *,
    out: torch.Tensor,
    lse: torch.Tensor | None,
) -> None:
    """Attention of one group, then the merge of what its plan split."""
    group, layout = launch.group, launch.layout
    scale, window, softcap, sinks = scoring
    # Inside the kernel scores are in units of log2, and the softcap's tanh is written with one exponential.
    factor, cap = scale * LOG2_E, 0.0
    if softcap > 0.0:
        factor, cap = 2.0 * LOG2_E * scale / softcap, softcap * LOG2_E
    programs = group.programs if group.flat else layout.owners * shape.num_kv_heads
    lse_or_any, lse_stride = (sums, 0) if lse is None else (lse, lse.stride(0))
    issue(
        attention_kernel,
        (programs,),
        q,
        cache.k,
        cache.v,
        batch.tables,
        launch.plan,
        out if sinks is None else sinks,
        out,
        lse_or_any,
        partials,
        sums,
        layout.owners_at,
        group.programs,
        factor,
        cap,
        window,
        q.stride(0),
        q.stride(1),
        out.stride(0),
        out.stride(1),
        lse_stride,
        cache.k.stride(0),
        batch.tables.stride(0),
        **constants(
            group,
            shape,
            window=window > 0,
            softcap=softcap > 0.0,
            sinks=sinks is not None,
            lse=lse is not None,
            widen=q.dtype != cache.k.dtype,
        ),
        num_warps=group.choice.warps,
        num_stages=group.choice.stages,
    )
    _launch_merge(launch, shape, partials, sums, out, lse)


def _launch_merge(
    launch: Launch,
    shape: AttentionShape,
    partials: torch.Tensor,
    sums: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor | None,
) -> None:
    """The merge of what the plan of one group split."""
    group, layout = launch.group, launch.layout
    merge = merge_constants(group, shape, lse=lse is not None)
    programs = layout.merges * (1 if group.flat else shape.num_kv_heads)
    issue(
        merge_pieces_kernel,
        (programs, triton.cdiv(group.block_q * shape.group, merge["ROWS"])),
        launch.plan,
        partials,
        sums,
        out,
        sums if lse is None else lse,
        layout.merges_at,
        out.stride(0),
        out.stride(1),
        0 if lse is None else lse.stride(0),
        **merge,
        num_warps=4,
    )
