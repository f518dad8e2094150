"""What a checkpoint hands over for products on a CPU, and the form in which it lies once it is packed.

`decoder` takes a whole decoder's weights, `linear` those of single modules. Nothing is multiplied here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels.cpu.product import Activation, ProductShape, interleave, pack


@dataclass
class Linear:
    """A product's weight [out, in] and bias, as the checkpoint has them."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None


@dataclass
class Norm:
    """A norm as the checkpoint has it: a root mean square's, or with a bias a layer norm's."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None


@dataclass
class LayerWeights:
    """One layer, as the checkpoint has it."""

    input_norm: Norm
    query: Linear
    key: Linear
    value: Linear
    output: Linear
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    post_norm: Norm
    gate: Linear | None  # for silu(gate) * up; None: a function of `up` alone
    up: Linear
    down: Linear
    window: int = 0


@dataclass
class DecoderWeights:
    """A whole decoder. cosines and sines: float32 [positions, head_dim / 2], or one row for all positions."""

    embedding: torch.Tensor
    places: torch.Tensor | None  # what is learned of each position, [positions, hidden]
    layers: list[LayerWeights]
    activation: Activation
    norm: Norm
    head: Linear
    num_heads: int
    num_kv_heads: int
    head_dim: int
    epsilon: float
    scale: float
    cosines: torch.Tensor
    sines: torch.Tensor


@dataclass(frozen=True)
class Packed:
    """A product ready to be multiplied. The bias is float32 and fills whole panels."""

    weights: torch.Tensor
    bias: torch.Tensor
    depth: int
    columns: int

    @property
    def panels(self) -> int:
        return self.weights.shape[0]

    @property
    def size_bytes(self) -> int:
        return self.weights.nbytes + self.bias.nbytes


@dataclass(frozen=True)
class PackedLayer:
    """One layer ready to be multiplied; norms are float32."""

    heads: Packed
    output: Packed
    inner: Packed  # gate and up, or what stands in their place
    down: Packed
    input_norm: Norm
    post_norm: Norm
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    window: int

    @property
    def size_bytes(self) -> int:
        return sum(product.size_bytes for product in (self.heads, self.output, self.inner, self.down))


def pack_linears(parts: list[Linear], shape: ProductShape) -> Packed:
    """Products of the same inputs as one, their columns side by side."""
    weight = parts[0].weight if len(parts) == 1 else torch.cat([part.weight for part in parts])
    columns, depth = weight.shape
    packed = pack(weight, shape)
    bias = torch.zeros(packed.shape[0] * shape.panel)
    bias[:columns] = torch.cat([_bias(part) for part in parts])
    return Packed(packed, bias, depth, columns)


def pack_layer(layer: LayerWeights, shape: ProductShape) -> PackedLayer:
    return PackedLayer(
        heads=pack_linears([layer.query, layer.key, layer.value], shape),
        output=pack_linears([layer.output], shape),
        inner=pack_linears([layer.up], shape) if layer.gate is None else _gate_up(layer.gate, layer.up, shape),
        down=pack_linears([layer.down], shape),
        input_norm=float_norm(layer.input_norm),
        post_norm=float_norm(layer.post_norm),
        query_norm=None if layer.query_norm is None else layer.query_norm.float(),
        key_norm=None if layer.key_norm is None else layer.key_norm.float(),
        window=layer.window,
    )


def float_norm(norm: Norm) -> Norm:
    """The norm in float32, as rows are."""
    return Norm(norm.weight.float(), None if norm.bias is None else norm.bias.float())


def _gate_up(gate: Linear, up: Linear, shape: ProductShape) -> Packed:
    packed = pack(interleave(gate.weight, up.weight, shape), shape)
    bias = interleave(_bias(gate), _bias(up), shape)
    return Packed(packed, bias, gate.weight.shape[1], len(bias))


def _bias(part: Linear) -> torch.Tensor:
    return torch.zeros(part.weight.shape[0]) if part.bias is None else part.bias.float()
