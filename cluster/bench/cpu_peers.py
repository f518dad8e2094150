"""Other ways to the CPU's attention, each as one callable over the same numbers, and what torch alone can do.

They come from torch: attention over contiguous keys (grouped and packed), over keys gathered from blocks at each call,
sequence by sequence, FlexAttention. A peer that cannot do a workload says why. All return [tokens, heads, dim].
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module

import torch
import torch.nn.functional as functional

from cluster.bench.gpu_batches import Built, contiguous
from cluster.bench.gpu_peers import NotForThis, Peer, contiguous_sdpa, flex, gather_sdpa

# Beside a gather that pads to the longest sequence this much memory must suffice.
MAX_GATHER_BYTES = 4 << 30


def grouped_sdpa(built: Built) -> Peer:
    """A decode over contiguous keys that leaves the groups to torch (`contiguous_sdpa` packs them itself)."""
    workload, shape = built.workload, built.shape
    if not (workload.uniform and workload.decode) or shape.softcap or shape.window:
        raise NotForThis("is for plain decodes of one length")
    batch, context = len(workload.contexts), workload.contexts[0]
    k, v = (
        x.view(batch, context, shape.num_kv_heads, shape.dim).transpose(1, 2).contiguous() for x in contiguous(built)
    )
    q = built.q.view(batch, shape.num_heads, 1, shape.dim)
    return lambda: (
        functional.scaled_dot_product_attention(q, k, v, scale=built.scale, enable_gqa=True)
        .flatten(0, 1)[:, 0]
        .view(batch, shape.num_heads, shape.dim)
    )


def sdpa_per_sequence(built: Built) -> Peer:
    """One call per sequence over its own contiguous keys, for batches of different lengths."""
    workload, shape = built.workload, built.shape
    if shape.softcap or shape.window:
        raise NotForThis("has neither softcap nor window")
    k, v = contiguous(built)
    parts, at, token = [], 0, 0
    for query, context in zip(workload.queries, workload.contexts, strict=True):
        keys, values = (x[at : at + context].transpose(0, 1).contiguous()[None] for x in (k, v))
        rows = built.q[token : token + query].transpose(0, 1)[None]
        mask = None
        if query == 1:
            rows = built.q[token].view(1, shape.num_kv_heads, shape.group, shape.dim)
        elif query != context:
            mask = import_module("torch.nn.attention.bias").causal_lower_right(query, context)
        parts.append((rows, keys, values, mask, query))
        at, token = at + context, token + query

    def call() -> torch.Tensor:
        outs = []
        for rows, keys, values, mask, query in parts:
            causal, grouped = mask is None and query > 1, query > 1 and shape.group > 1
            out = functional.scaled_dot_product_attention(
                rows, keys, values, attn_mask=mask, is_causal=causal, scale=built.scale, enable_gqa=grouped
            )
            outs.append(out.flatten(1, 2) if query == 1 else out[0].transpose(0, 1))
        return torch.cat(outs)

    return call


def bounded_gather(built: Built) -> Peer:
    longest, seqs = max(built.workload.contexts), len(built.workload.contexts)
    wanted = 2 * seqs * longest * built.shape.token_bytes(built.q.dtype)
    if wanted > MAX_GATHER_BYTES:
        raise NotForThis(f"padding to the longest takes {wanted / (1 << 30):.1f} GiB")
    return gather_sdpa(built)


def uncompiled_flex(built: Built) -> Peer:
    """FlexAttention as it runs on any machine: compiling it for a CPU needs a C++ compiler, which users lack."""
    scores = (
        len(built.workload.contexts) * built.shape.num_heads * built.workload.queries[0] * built.workload.contexts[0]
    )
    if built.workload.decode or scores > 1 << 24:
        raise NotForThis(
            "compiling it needs a C++ compiler; without, all scores lie in memory: tried on small prefills"
        )
    warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
    return flex(built)


PEERS: Mapping[str, Callable[[Built], Peer]] = {
    "sdpa": contiguous_sdpa,
    "sdpa gqa": grouped_sdpa,
    "sdpa per seq": sdpa_per_sequence,
    "gather+sdpa": bounded_gather,
    "flex": uncompiled_flex,
}
