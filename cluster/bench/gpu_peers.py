"""Other implementations of the attention that the GPU benchmark times, each as one callable over the same numbers.

torch's own (contiguous keys, keys gathered from blocks at each call, variable lengths, FlexAttention) and, where they
are installed, FlashInfer on the very same blocks and flash-attn. A peer that cannot do a workload says why. All return
[tokens, heads, dim], so that the caller can check them too. Preparing (plans, masks, copies) happens before timing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as functional

from cluster.bench.gpu_batches import Built, contiguous
from kernels.device.seam import device_of

Peer = Callable[[], torch.Tensor]
# Gathering into padded tensors wants this much memory at most.
MAX_GATHER_BYTES = 24 << 30


class NotForThis(Exception):
    """The peer cannot do this workload; the message says why."""


def peers(built: Built, names: list[str]) -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that can do this workload, and for the others the reason."""
    makers: dict[str, Callable[[Built], Peer]] = {
        "sdpa": contiguous_sdpa,
        "gather+sdpa": gather_sdpa,
        "varlen": torch_varlen,
        "flex": flex,
        "flashinfer": flashinfer,
        "flash-attn": flash_attn,
    }
    able: dict[str, Peer] = {}
    reasons: dict[str, str] = {}
    for name in names:
        try:
            able[name] = makers[name](built)
        except (NotForThis, ImportError) as error:
            reasons[name] = str(error)
        except Exception as error:  # a peer that breaks must not end our run
            reasons[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return able, reasons


def _plain(built: Built) -> None:
    if built.shape.softcap:
        raise NotForThis("has no softcap")


def contiguous_sdpa(built: Built) -> Peer:
    """`scaled_dot_product_attention` over keys [batch, kv heads, keys, dim] that lie in one run."""
    _plain(built)
    workload, shape = built.workload, built.shape
    if not workload.uniform:
        raise NotForThis("sequences differ in length")
    if shape.window and shape.window < workload.contexts[0]:
        raise NotForThis("has no window without a mask")
    batch, query, context = len(workload.contexts), workload.queries[0], workload.contexts[0]
    k, v = (
        x.view(batch, context, shape.num_kv_heads, shape.dim).transpose(1, 2).contiguous() for x in contiguous(built)
    )
    if query == 1:
        # The query heads of a group as if they were queries: nothing is read twice.
        q = built.q.view(batch, shape.num_kv_heads, shape.group, shape.dim)
        return lambda: functional.scaled_dot_product_attention(q, k, v, scale=built.scale).flatten(1, 2)
    q = built.q.view(batch, query, shape.num_heads, shape.dim).transpose(1, 2)
    mask: Any = None
    if query != context:
        mask = import_module("torch.nn.attention.bias").causal_lower_right(query, context)
    grouped = shape.group > 1
    return lambda: (
        functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=built.scale, enable_gqa=grouped
        )
        .transpose(1, 2)
        .flatten(0, 1)
    )


def gather_sdpa(built: Built) -> Peer:
    """Blocks gathered into padded keys at each call, then `scaled_dot_product_attention` under a mask."""
    _plain(built)
    workload, shape, cache, batch = built.workload, built.shape, built.caches[0], built.batch
    seqs, longest, query = len(workload.contexts), max(workload.contexts), max(workload.queries)
    if len(set(workload.queries)) > 1:
        raise NotForThis("queries differ in length")
    padded = -(-longest // cache.block_size) * cache.block_size
    wanted = 2 * seqs * padded * shape.token_bytes(built.q.dtype)
    if wanted > MAX_GATHER_BYTES:
        raise NotForThis(f"padding takes {wanted >> 30} GiB")
    if query > 1 and seqs * query * padded > 1 << 31:
        raise NotForThis("the mask takes too much memory")
    context = batch.context_len[:, None, None].long()
    key_at = torch.arange(padded, device=built.q.device)[None, None]
    query_at = context - query + torch.arange(query, device=built.q.device)[None, :, None]
    mask = key_at <= query_at
    if shape.window:
        mask &= key_at > query_at - shape.window
    mask = mask[:, None]  # [batch, 1, query, keys]
    table = batch.tables.clamp(min=0)
    grouped = query > 1 and shape.group > 1
    if query == 1:
        q = built.q.view(seqs, shape.num_kv_heads, shape.group, shape.dim)
    else:
        q = built.q.view(seqs, query, shape.num_heads, shape.dim).transpose(1, 2)

    def call() -> torch.Tensor:
        k, v = (x[table].transpose(1, 2).flatten(2, 3) for x in (cache.k, cache.v))
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=built.scale, enable_gqa=grouped)
        return out.flatten(1, 2) if query == 1 else out.transpose(1, 2).flatten(0, 1)

    return call


def _starts(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device=device)


def torch_varlen(built: Built) -> Peer:
    """torch's FlashAttention over sequences of different lengths, keys in one run."""
    _plain(built)
    if device_of(built.q.device).facts().family == "interpreter":
        raise NotForThis("needs a GPU")
    function = import_module("torch.nn.attention.varlen").varlen_attn
    known = inspect.signature(function).parameters
    options: dict[str, object] = {}
    if "window_size" in known:
        options["window_size"] = (built.shape.window - 1 if built.shape.window else -1, 0)
    elif built.shape.window:
        raise NotForThis("has no window in this version")
    else:
        options["is_causal"] = True
    if "enable_gqa" in known:
        options["enable_gqa"] = built.shape.group > 1
    k, v = contiguous(built)
    workload, device = built.workload, built.q.device
    starts, key_starts = _starts(workload.queries, device), _starts(workload.contexts, device)
    longest_query, longest = max(workload.queries), max(workload.contexts)
    return lambda: function(built.q, k, v, starts, key_starts, longest_query, longest, **options)


def flex(built: Built) -> Peer:
    """FlexAttention, compiled, over contiguous keys of one length."""
    workload, shape, device = built.workload, built.shape, built.q.device
    if not workload.uniform:
        raise NotForThis("sequences differ in length")
    module = import_module("torch.nn.attention.flex_attention")
    batch, query, context = len(workload.contexts), workload.queries[0], workload.contexts[0]
    window, cap = shape.window, shape.softcap

    def visible(b: Any, h: Any, q_at: Any, key_at: Any) -> Any:
        at = q_at + (context - query)
        seen = key_at <= at
        return seen & (key_at > at - window) if window else seen

    def capped(score: Any, b: Any, h: Any, q_at: Any, key_at: Any) -> Any:
        return cap * torch.tanh(score / cap)

    mask = module.create_block_mask(visible, None, None, query, context, device=device)
    function = module.flex_attention
    if device_of(device).facts().family != "interpreter":
        function = torch.compile(function, dynamic=False)
    k, v = (
        x.view(batch, context, shape.num_kv_heads, shape.dim).transpose(1, 2).contiguous() for x in contiguous(built)
    )
    q = built.q.view(batch, query, shape.num_heads, shape.dim).transpose(1, 2)
    score_mod = capped if cap else None
    grouped = shape.group > 1
    return lambda: (
        function(q, k, v, score_mod=score_mod, block_mask=mask, scale=built.scale, enable_gqa=grouped)
        .transpose(1, 2)
        .flatten(0, 1)
    )


def flashinfer(built: Built) -> Peer:
    """FlashInfer on the very same blocks."""
    module = import_module("flashinfer")
    workload, shape, cache = built.workload, built.shape, built.caches[0]
    device, dtype = built.q.device, built.q.dtype
    counts = tuple(-(-context // cache.block_size) for context in workload.contexts)
    pages = torch.cat([built.batch.tables[row, :count] for row, count in enumerate(counts)])
    last = torch.tensor([(c - 1) % cache.block_size + 1 for c in workload.contexts], dtype=torch.int32, device=device)
    page_starts = _starts(counts, device)
    workspace = torch.empty(512 << 20, dtype=torch.uint8, device=device)
    common: dict[str, Any] = {
        "window_left": shape.window - 1 if shape.window else -1,
        "logits_soft_cap": shape.softcap or None,
        "q_data_type": dtype,
        "kv_data_type": dtype,
        "sm_scale": built.scale,
    }
    sizes = (shape.num_heads, shape.num_kv_heads, shape.dim, cache.block_size)
    if workload.decode:
        wrapper = module.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=shape.group >= 4)
        wrapper.plan(page_starts, pages, last, *sizes, **common)
    else:
        wrapper = module.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND")
        wrapper.plan(_starts(workload.queries, device), page_starts, pages, last, *sizes, causal=True, **common)
    blocks = (cache.k, cache.v)
    return lambda: wrapper.run(built.q, blocks)


def flash_attn(built: Built) -> Peer:
    """flash-attn over sequences of different lengths, keys in one run."""
    function = import_module("flash_attn").flash_attn_varlen_func
    k, v = contiguous(built)
    workload, device = built.workload, built.q.device
    window = (built.shape.window - 1 if built.shape.window else -1, 0 if built.shape.window else -1)
    options = {"softmax_scale": built.scale, "causal": True, "window_size": window, "softcap": built.shape.softcap}
    starts, key_starts = _starts(workload.queries, device), _starts(workload.contexts, device)
    lengths = (max(workload.queries), max(workload.contexts))
    return lambda: function(built.q, k, v, starts, key_starts, *lengths, **options)
