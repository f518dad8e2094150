"""How key and value vectors lie in the bytes of a block, over all layers of a model.

The worker builds one BlockLayout from the model's shapes and sizes its pools with it; kernels get one LayerCache per
layer, which is a view and owns nothing. Transfers and swaps only see whole blocks as bytes, and compare fingerprints
so that a pool of another layout is refused. Nothing here allocates or copies.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

# How the keys and values of one head lie inside a block.
#   slot_dim: both [slot, dim], what GPUs like.
#   dim_slot: keys [dim, slot], so that one vector register holds the scores of a block's slots; values [slot, dim].
#   pairs: as dim_slot, with two neighbours in one 32-bit word: keys [dim / 2, slot, 2], values [slot / 2, dim, 2], so
#          that bf16 needs no widening load and feeds the processor's pair products as it lies (16 bits, even sizes).
KeyOrder = Literal["slot_dim", "dim_slot", "pairs"]

BLOCK_ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class LayerShape:
    """What one layer keeps per token: `num_kv_heads` keys of `head_dim`, values of `value_dim` (0: head_dim)."""

    num_kv_heads: int
    head_dim: int
    value_dim: int = 0

    def __post_init__(self) -> None:
        if self.value_dim == 0:
            object.__setattr__(self, "value_dim", self.head_dim)
        if min(self.num_kv_heads, self.head_dim, self.value_dim) < 1:
            raise ValueError(f"a layer needs at least one head of one dim, got {self}")

    def num_elements(self, block_size: int) -> int:
        """Elements of one block in this layer, keys and values."""
        return self.num_kv_heads * (self.head_dim + self.value_dim) * block_size


@dataclass(frozen=True)
class LayerCache:
    """The keys and values of one layer in every block of a pool: views, as the kernels take them.

    k: [blocks, kv_heads, slot, dim] for slot_dim, [blocks, kv_heads, dim, slot] for dim_slot,
       [blocks, kv_heads, dim / 2, slot, 2] for pairs.
    v: [blocks, kv_heads, slot, value_dim], for pairs [blocks, kv_heads, slot / 2, value_dim, 2].
    Everything of one block and head is contiguous; the stride over blocks is the whole block over all layers.
    """

    k: torch.Tensor
    v: torch.Tensor
    block_size: int
    keys: KeyOrder

    @property
    def num_blocks(self) -> int:
        return self.v.shape[0]

    @property
    def num_kv_heads(self) -> int:
        return self.v.shape[1]

    @property
    def head_dim(self) -> int:
        if self.keys == "pairs":
            return self.k.shape[2] * 2
        return self.k.shape[3] if self.keys == "slot_dim" else self.k.shape[2]

    @property
    def value_dim(self) -> int:
        return self.v.shape[3]

    def slot_dim_keys(self, blocks: torch.Tensor) -> torch.Tensor:
        """A copy of the keys of these blocks as [len(blocks), kv_heads, slot, dim], for the reference and tests."""
        k = self.k[blocks]
        if self.keys == "slot_dim":
            return k
        return k.transpose(2, 3) if self.keys == "dim_slot" else k.permute(0, 1, 3, 2, 4).flatten(3)

    def slot_dim_values(self, blocks: torch.Tensor) -> torch.Tensor:
        """A copy of the values of these blocks as [len(blocks), kv_heads, slot, value_dim]."""
        v = self.v[blocks]
        return v.permute(0, 1, 2, 4, 3).flatten(2, 3) if self.keys == "pairs" else v


@dataclass(frozen=True)
class BlockLayout:
    """One block: [layer][keys, then values][kv_head][as `keys` says], rounded up to 64 bytes."""

    layers: tuple[LayerShape, ...]
    block_size: int
    dtype: torch.dtype
    keys: KeyOrder

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a block layout needs at least one layer")
        if not 1 <= self.block_size <= 256:
            raise ValueError(f"block size must be 1 to 256 slots, got {self.block_size}")
        if self.keys == "pairs":
            if self.dtype.itemsize != 2:
                raise ValueError(f"keys in pairs are of 2 bytes each, got {self.dtype}")
            if self.block_size % 2 or any(shape.head_dim % 2 for shape in self.layers):
                raise ValueError(
                    f"pairs need an even block size and even head sizes, got {self.block_size}, {self.layers}"
                )

    @cached_property
    def token_bytes(self) -> int:
        """Bytes of one token over all layers, without the rounding of a block."""
        return sum(shape.num_elements(1) for shape in self.layers) * self.dtype.itemsize

    @cached_property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers, a multiple of 64."""
        return -(-self.token_bytes * self.block_size // BLOCK_ALIGNMENT_BYTES) * BLOCK_ALIGNMENT_BYTES

    def fingerprint(self) -> str:
        """Names the byte layout: two pools can exchange blocks exactly if theirs are equal."""
        shapes = ";".join(f"{s.num_kv_heads},{s.head_dim},{s.value_dim}" for s in self.layers)
        digest = hashlib.sha256(shapes.encode()).hexdigest()[:16]
        dtype = str(self.dtype).removeprefix("torch.")
        return f"kv1-{dtype}-{self.block_size}-{self.keys}-{len(self.layers)}-{digest}"

    def views(self, pool: torch.Tensor) -> list[LayerCache]:
        """One LayerCache per layer over `pool`, uint8 [num_blocks, block_bytes], contiguous. Nothing is copied."""
        if pool.dtype != torch.uint8 or pool.dim() != 2 or pool.shape[1] != self.block_bytes:
            raise ValueError(
                f"pool must be uint8 [num_blocks, {self.block_bytes}], got {pool.dtype} {list(pool.shape)}"
            )
        if not pool.is_contiguous():
            raise ValueError(f"pool must be contiguous, got strides {pool.stride()}")
        elements = pool.view(self.dtype)
        offset = int(elements.storage_offset())
        caches = []
        for shape in self.layers:
            caches.append(self._layer_view(elements, shape, offset))
            offset += shape.num_elements(self.block_size)
        return caches

    def _layer_view(self, elements: torch.Tensor, shape: LayerShape, offset: int) -> LayerCache:
        blocks, block_stride = elements.shape
        heads, dim, value_dim, slots = shape.num_kv_heads, shape.head_dim, shape.value_dim, self.block_size
        k_size: tuple[int, ...] = (slots, dim) if self.keys == "slot_dim" else (dim, slots)
        v_size: tuple[int, ...] = (slots, value_dim)
        if self.keys == "pairs":
            k_size, v_size = (dim // 2, slots, 2), (slots // 2, value_dim, 2)
        k = self._heads_view(elements, (blocks, heads, *k_size), offset, block_stride)
        v = self._heads_view(elements, (blocks, heads, *v_size), offset + heads * dim * slots, block_stride)
        return LayerCache(k, v, slots, self.keys)

    @staticmethod
    def _heads_view(elements: torch.Tensor, size: tuple[int, ...], offset: int, block_stride: int) -> torch.Tensor:
        strides = [1]
        for inner in reversed(size[2:]):
            strides.append(strides[-1] * inner)
        return elements.as_strided(size, (block_stride, *reversed(strides)), offset)
