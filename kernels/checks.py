"""What every backend checks of its arguments before it touches memory: shapes, strides, dtypes, devices, bounds.

A kernel works on raw addresses, so a wrong argument would read or write somebody else's block. Each function raises a
ValueError that names the argument, what it was and what it must be. The bounds checks read the tensors' values and are
for the debug mode of a backend.
"""

from __future__ import annotations

import torch

from kernels.batch import AttentionBatch, Scoring
from kernels.layout import LayerCache

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 256


def expect(
    name: str,
    tensor: torch.Tensor,
    shape: tuple[int | None, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device,
) -> None:
    """Raises unless `tensor` has this shape (None: any), dtype and device, and a dense last dimension."""
    found = tensor.shape
    if found != shape and (
        len(found) != len(shape) or any(want not in (None, got) for want, got in zip(shape, found, strict=True))
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have shape [{wanted}], got {list(found)}")
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name} must be {' or '.join(str(dtype) for dtype in dtypes)}, got {tensor.dtype}")
    if tensor.device != device and tensor.device.type != device.type:
        raise ValueError(f"{name} must be on {device.type}, got {tensor.device}")
    if found and found[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{name} must be dense in its last dimension, got strides {tensor.stride()}")


def check_attention(
    q: torch.Tensor,
    cache: LayerCache,
    batch: AttentionBatch,
    scoring: Scoring,
    *,
    out: torch.Tensor | None,
    lse: torch.Tensor | None,
) -> None:
    """The arguments of `Backend.attention`; of the batch only if no `prepare` has checked it."""
    device, tokens, head_dim, value_dim = q.device, batch.num_tokens, cache.head_dim, cache.value_dim
    heads = q.shape[1] if q.dim() == 3 else 0
    expect("q", q, (tokens, heads, head_dim), FLOATS, device)
    if head_dim > MAX_HEAD_DIM or value_dim > MAX_HEAD_DIM:
        raise ValueError(f"head sizes go up to {MAX_HEAD_DIM}, got {head_dim} and {value_dim}")
    if heads == 0 or heads % cache.num_kv_heads:
        raise ValueError(f"q's {heads} heads cannot be shared out over {cache.num_kv_heads} key/value heads")
    if cache.k.device != device and cache.k.device.type != device.type:
        raise ValueError(f"q is on {device}, the cache on {cache.k.device}")
    if scoring.window < 0:
        raise ValueError(f"window must be 0 (none) or a number of keys, got {scoring.window}")
    if not scoring.softcap >= 0.0:
        raise ValueError(f"softcap must be 0 (none) or positive, got {scoring.softcap}")
    if scoring.sinks is not None:
        expect("sinks", scoring.sinks, (heads,), FLOATS, device)
    if out is not None:
        expect("out", out, (tokens, heads, value_dim), (q.dtype,), device)
    if lse is not None:
        expect("lse", lse, (tokens, heads), (torch.float32,), device)
    if batch.tasks is None:
        check_batch(batch, device)


def check_batch(batch: AttentionBatch, device: torch.device) -> None:
    """Shapes and dtypes of a batch, without looking at its values."""
    seqs = batch.num_seqs
    expect("batch.query_start", batch.query_start, (seqs + 1,), (torch.int32,), device)
    expect("batch.context_len", batch.context_len, (seqs,), (torch.int32,), device)
    expect("batch.tables", batch.tables, (None, None), (torch.int32,), device)
    expect("batch.rows", batch.rows, (seqs,), (torch.int32,), device)
    expect("batch.slots", batch.slots, (None,), (torch.int64,), device)
    if not 0 <= batch.num_decodes <= seqs:
        raise ValueError(f"batch.num_decodes must be 0 to {seqs} sequences, got {batch.num_decodes}")


def check_write(k: torch.Tensor, v: torch.Tensor, cache: LayerCache, slots: torch.Tensor) -> None:
    """The arguments of `Backend.write_kv`."""
    device = cache.k.device
    expect("slots", slots, (None,), (torch.int64,), device)
    expect("k", k, (slots.shape[0], cache.num_kv_heads, cache.head_dim), FLOATS, device)
    expect("v", v, (slots.shape[0], cache.num_kv_heads, cache.value_dim), FLOATS, device)


def check_copy(pool: torch.Tensor, src: torch.Tensor, dst: torch.Tensor) -> None:
    """The arguments of `Backend.copy_blocks`, block ids as tensors."""
    expect("pool", pool, (None, None), (torch.uint8,), pool.device)
    if not pool.is_contiguous():
        raise ValueError(f"pool must be contiguous, got strides {pool.stride()}")
    expect("src", src, (None,), (torch.int64,), src.device)
    expect("dst", dst, (src.shape[0],), (torch.int64,), src.device)


def check_copy_bounds(pool: torch.Tensor, src: torch.Tensor, dst: torch.Tensor) -> None:
    """Reads the ids: all inside the pool, none written twice, none both read and written."""
    for name, ids in (("src", src), ("dst", dst)):
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= pool.shape[0]):
            raise ValueError(
                f"{name} must name blocks 0 to {pool.shape[0] - 1}, got {int(ids.min())}, {int(ids.max())}"
            )
    targets = set(dst.tolist())
    if len(targets) != dst.numel():
        raise ValueError(f"dst names a block twice: {dst.numel()} copies go to {len(targets)} blocks")
    both = sorted(targets.intersection(src.tolist()))
    if both:
        raise ValueError(f"block {both[0]} is both read and written in one call; order the copies in two calls")


def check_write_bounds(cache: LayerCache, slots: torch.Tensor) -> None:
    """Reads the slots: all -1 or inside the pool."""
    total = cache.num_blocks * cache.block_size
    if slots.numel() and (int(slots.min()) < -1 or int(slots.max()) >= total):
        raise ValueError(f"slots must be -1 to {total - 1}, got {int(slots.min())} to {int(slots.max())}")


def check_batch_bounds(batch: AttentionBatch, cache: LayerCache) -> None:
    """Reads the batch: lengths that fit the tables, rows and blocks that exist."""
    starts, contexts, rows = batch.query_start.tolist(), batch.context_len.tolist(), batch.rows.tolist()
    if starts[0] != 0 or starts[-1] != batch.num_tokens:
        raise ValueError(f"batch.query_start must go from 0 to {batch.num_tokens}, got {starts[0]} to {starts[-1]}")
    num_rows, max_blocks = batch.tables.shape
    for seq, (context, row) in enumerate(zip(contexts, rows, strict=True)):
        query = starts[seq + 1] - starts[seq]
        if query < 0 or query > batch.max_query_len or (seq < batch.num_decodes and query != 1):
            raise ValueError(f"sequence {seq} of the batch has {query} query tokens, which its host counts deny")
        if context < 0 or context > batch.max_context_len:
            raise ValueError(f"batch.context_len[{seq}] is {context}, batch.max_context_len {batch.max_context_len}")
        num_blocks = -(-context // cache.block_size)
        if not 0 <= row < num_rows or num_blocks > max_blocks:
            raise ValueError(
                f"sequence {seq} needs row {row} and {num_blocks} blocks of tables {num_rows}x{max_blocks}"
            )
        used = batch.tables[row, :num_blocks]
        if num_blocks and (int(used.min()) < 0 or int(used.max()) >= cache.num_blocks):
            raise ValueError(
                f"the table of sequence {seq} names block {int(used.min())} or {int(used.max())}; "
                f"the pool has 0 to {cache.num_blocks - 1}"
            )
