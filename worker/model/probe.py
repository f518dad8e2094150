"""What each attention layer of a model asks for and may see, found by running one token through the model.

`worker/model/model.py` opens a Probe, during which layers note what they ask for instead of computing it, and the
function that would build transformers' masks hands out a marker that stands for the rule of the mask. What can't be
served exactly is refused by name: two attentions in one layer, rules that are neither causal nor a window, masks that
a model builds by itself. It computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from cluster.errors import ModelError
from kernels.checks import MAX_HEAD_DIM
from kernels.layout import LayerShape

# (batch, head, query, key) -> whether the query sees the key; on tensors of positions.
Rule = Callable[[int, int, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class LayerCall:
    """What one attention module asked for when it was probed. `window`: keys that a query sees, its own included; 0:
    all before it."""

    num_heads: int
    shape: LayerShape
    window: int
    softcap: float
    has_sinks: bool


@dataclass(frozen=True, slots=True)
class _Noted:
    call: LayerCall
    mask: torch.Tensor | None
    num_calls: int


class Probe:
    """One run of one token; `name` is the model's, for messages."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._rules: dict[int, tuple[torch.Tensor, Rule]] = {}
        self._noted: dict[int, _Noted] = {}

    def mask(self, *_: Any, mask_function: Rule, dtype: torch.dtype = torch.float32, **more: Any) -> torch.Tensor:
        """In the place of a function that builds a mask: a marker for its rule."""
        marker = torch.zeros(1, 1, 1, 1, dtype=dtype, device=more.get("device"))
        self._rules[marker.data_ptr()] = marker, mask_function
        return marker

    def note(self, index: int, call: LayerCall, mask: torch.Tensor | None, *, is_causal: bool) -> None:
        """Layer `index` asks for attention under this mask."""
        if not is_causal:
            raise ModelError(f"{self._name} attends to both sides of a token; only causal decoders are supported")
        before = self._noted.get(index)
        self._noted[index] = _Noted(call, mask, 1 if before is None else before.num_calls + 1)

    def calls(self, config: Any, max_model_len: int) -> dict[int, LayerCall]:
        """What each layer asks for, in order. Raises ModelError for what can't be given."""
        name, noted = self._name, self._noted
        if len(noted) != config.num_hidden_layers:
            raise ModelError(
                f"{name} called attention in {len(noted)} of {config.num_hidden_layers} layers; the others keep a "
                "state that blocks of keys and values can't hold"
            )
        twice = next((index for index, one in noted.items() if one.num_calls > 1), None)
        if twice is not None:
            raise ModelError(
                f"{name} attends {noted[twice].num_calls} times in layer {twice}, and a block holds one set of keys "
                "and values for each layer; give another model"
            )
        return {index: self._call(index, noted[index], config, max_model_len) for index in sorted(noted)}

    def _call(self, index: int, noted: _Noted, config: Any, max_model_len: int) -> LayerCall:
        call = noted.call
        largest = max(call.shape.head_dim, call.shape.value_dim)
        if largest > MAX_HEAD_DIM:
            raise ModelError(
                f"{self._name} has heads of {largest} in layer {index}, and attention kernels go up to {MAX_HEAD_DIM}"
            )
        if noted.mask is not None:
            marked = self._rules.get(noted.mask.data_ptr())
            if marked is None:
                raise ModelError(
                    f"{self._name} builds a mask of its own for layer {index}, which paged attention can't see; give "
                    "another model"
                )
            call = replace(call, window=self._window(index, marked[1], max_model_len))
        self._check_kind(index, call, config, max_model_len)
        return call

    def _window(self, index: int, rule: Rule, max_model_len: int) -> int:
        """The window of a rule, from what it says of two queries in the middle of a sequence and of the last one: side
        by side they see equally many keys in a window, and not in chunks."""
        middle, last = max_model_len // 2, max_model_len - 1
        keys = torch.arange(max_model_len)
        windows = []
        for query in (middle, min(middle + 1, last), last):
            try:
                seen = rule(0, 0, torch.tensor(query), keys).expand(max_model_len)
            except (IndexError, RuntimeError) as error:
                raise self._odd_rule(index) from error
            first = int(seen.int().argmax())
            if not bool(seen[first : query + 1].all()) or int(seen.sum()) != query + 1 - first:
                raise self._odd_rule(index)
            windows.append(query + 1 - first if first else 0)
        # Those in the middle may see all the same where the window is wide.
        if not {0, windows[-1]}.issuperset(windows):
            raise self._odd_rule(index)
        return windows[-1]

    def _odd_rule(self, index: int) -> ModelError:
        return ModelError(
            f"{self._name} attends in layer {index} neither to all tokens before nor to a window of them; only full "
            "and sliding attention are supported"
        )

    def _check_kind(self, index: int, call: LayerCall, config: Any, max_model_len: int) -> None:
        """A window of the configuration that came neither with the call nor with its mask would be lost; transformers'
        cache goes by the configuration."""
        kinds = getattr(config, "layer_types", None) or []
        window = getattr(config, "sliding_window", None) or 0
        sliding = kinds[index] == "sliding_attention" if index < len(kinds) else bool(window) and not kinds
        if sliding and not call.window and getattr(config, "use_sliding_window", True) and window < max_model_len:
            raise ModelError(
                f"{self._name} does not tell attention the sliding window of layer {index}; it can't be run exactly"
            )
