"""Where transformers' attention modules meet our kernels: the function that they call instead of their own attention.

`register()` makes the attention implementation "quire" known to transformers, with a mask function that builds none.
Each attention module of a loaded model is given a PagedLayer by `worker/model/model.py`; the function finds it there,
so that several models live in one process. Keys and values go to the blocks that the step's AttentionBatch names.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from kernels.batch import AttentionBatch
from kernels.dispatch import Backend
from kernels.layout import LayerCache, LayerShape

IMPLEMENTATION = "quire"
_ATTRIBUTE = "quire_layer"


@dataclass(frozen=True, slots=True)
class LayerCall:
    """What one attention module asked for when it was probed."""

    num_heads: int
    shape: LayerShape
    window: int
    softcap: float
    has_sinks: bool


@dataclass
class StepContext:
    """What all layers of one model share in a step. `probe` set: layers note what they ask for and compute nothing."""

    backend: Backend
    # By layer shape and heads: a backend prepares its tasks for one shape at a time. Most models have one.
    batches: dict[tuple[int, LayerShape], AttentionBatch] = field(default_factory=dict)
    probe: dict[int, LayerCall] | None = None


class PagedLayer:
    """One layer's attention over paged keys. `cache` and `batch_key` are set once the pool stands."""

    __slots__ = ("batch_key", "cache", "context", "index")

    def __init__(self, index: int, context: StepContext) -> None:
        self.index = index
        self.context = context
        self.cache: LayerCache | None = None
        self.batch_key: tuple[int, LayerShape] | None = None

    def run(
        self,
        q: torch.Tensor,  # [1, heads, tokens, head_dim]
        k: torch.Tensor,  # [1, kv_heads, tokens, head_dim]
        v: torch.Tensor,  # [1, kv_heads, tokens, value_dim]
        *,
        scale: float | None,
        window: int,
        softcap: float,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attention of one step, [1, tokens, heads, value_dim]."""
        context = self.context
        if context.probe is not None:
            return self._probe(q, k, v, window=window, softcap=softcap, sinks=sinks)
        assert self.cache is not None and self.batch_key is not None, "the pool is not attached"
        batch = context.batches[self.batch_key]
        q, k, v = q[0].transpose(0, 1), k[0].transpose(0, 1), v[0].transpose(0, 1)
        context.backend.write_kv(k, v, self.cache, batch.slots)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        out = context.backend.attention(q, self.cache, batch, scale=scale, window=window, softcap=softcap, sinks=sinks)
        return out.unsqueeze(0)

    def _probe(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        window: int,
        softcap: float,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        assert self.context.probe is not None
        shape = LayerShape(k.shape[1], k.shape[3], v.shape[3])
        self.context.probe[self.index] = LayerCall(q.shape[1], shape, window, softcap, sinks is not None)
        return q.new_zeros(1, q.shape[2], q.shape[1], v.shape[3])


def attach(module: torch.nn.Module, layer: PagedLayer) -> None:
    setattr(module, _ATTRIBUTE, layer)


def layer_of(module: torch.nn.Module) -> PagedLayer:
    layer = getattr(module, _ATTRIBUTE)
    assert isinstance(layer, PagedLayer)
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
    out = layer_of(module).run(
        query, key, value, scale=scaling, window=sliding_window or 0, softcap=softcap or 0.0, sinks=s_aux
    )
    return out, None


def no_mask(*_: object, **__: object) -> None:
    """Our kernels know what a query sees from the batch."""


def register() -> None:
    """Makes transformers know the implementation; doing so again changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, paged_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, no_mask)
