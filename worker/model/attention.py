"""Where transformers' attention modules meet our kernels: the function that they call instead of their own attention.

`register()` makes the attention implementation "quire" known to transformers. It has no mask function, so that
transformers builds no mask and does not ask the device whether sequences are packed. Each attention module of a loaded
model is given a PagedLayer by `worker/model/model.py`; the function finds it there, so that several models live in one
process. Keys and values go to the blocks that the step's AttentionBatch names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from cluster.errors import ModelError
from kernels.batch import AttentionBatch, Scoring
from kernels.dispatch import Backend
from kernels.layout import LayerCache, LayerShape
from worker.model.probe import LayerCall, Probe

IMPLEMENTATION = "quire"
# The same while a model is probed, with masks that the probe hands out.
PROBED = "quire_probe"
_ATTRIBUTE = "quire_layer"


@dataclass
class StepContext:
    """What all layers of one model share in a step. `probe` set: layers note what they ask for and compute nothing."""

    backend: Backend
    # By layer shape and heads: a backend prepares its tasks for one shape at a time. Most models have one.
    batches: dict[tuple[int, LayerShape], AttentionBatch] = field(default_factory=dict)
    probe: Probe | None = None


class PagedLayer:
    """One layer's attention over paged keys. `call` and `window` are set when the model has been probed, `cache` and
    `batch_key` once the pool stands."""

    __slots__ = ("batch_key", "cache", "call", "context", "index", "window")

    def __init__(self, index: int, context: StepContext) -> None:
        self.index = index
        self.context = context
        self.cache: LayerCache | None = None
        self.batch_key: tuple[int, LayerShape] | None = None
        self.call: LayerCall | None = None
        self.window = 0

    def run(
        self,
        q: torch.Tensor,  # [1, heads, tokens, head_dim]
        k: torch.Tensor,  # [1, kv_heads, tokens, head_dim]
        v: torch.Tensor,  # [1, kv_heads, tokens, value_dim]
        *,
        scale: float | None,
        softcap: float,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attention of one step, [1, tokens, heads, value_dim]."""
        context = self.context
        assert self.cache is not None and self.batch_key is not None, "the pool is not attached"
        batch = context.batches[self.batch_key]
        q, k, v = q[0].transpose(0, 1), k[0].transpose(0, 1), v[0].transpose(0, 1)
        context.backend.write_kv(k, v, self.cache, batch.slots)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        scoring = Scoring(scale, self.window, softcap, sinks)
        out = context.backend.attention(q, self.cache, batch, scoring)
        return out.unsqueeze(0)


def attach(module: torch.nn.Module, layer: PagedLayer) -> None:
    setattr(module, _ATTRIBUTE, layer)


def find_layer(module: torch.nn.Module) -> PagedLayer | None:
    layer = getattr(module, _ATTRIBUTE, None)
    return layer if isinstance(layer, PagedLayer) else None


def layer_of(module: torch.nn.Module) -> PagedLayer:
    layer = find_layer(module)
    assert layer is not None
    return layer


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """The signature that transformers calls. What else it passes (dropout, positions) means nothing here."""
    layer = layer_of(module)
    probe = layer.context.probe
    if probe is not None:
        shape = LayerShape(key.shape[1], key.shape[3], value.shape[3])
        call = LayerCall(query.shape[1], shape, sliding_window or 0, softcap or 0.0, s_aux is not None)
        probe.note(layer.index, call, attention_mask, is_causal=getattr(module, "is_causal", True) is not False)
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None
    return layer.run(query, key, value, scale=scaling, softcap=softcap or 0.0, sinks=s_aux), None


def register() -> None:
    """Makes transformers know the implementation; doing so again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, paged_attention)
    AttentionInterface.register(PROBED, paged_attention)


def register_probe(probe: Probe) -> None:
    """The masks of a probed model are this probe's."""
    from transformers import AttentionMaskInterface

    AttentionMaskInterface.register(PROBED, probe.mask)


def exchange(module: Any, implementation: str) -> None:
    """Another attention for all of a model; what transformers would only warn of is a ModelError."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        module.set_attn_implementation(implementation)
    finally:
        logging.set_verbosity(level)
    if module.config._attn_implementation != implementation:
        raise ModelError(f"{type(module).__name__} does not let its attention be exchanged; give another model")
