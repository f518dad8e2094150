"""One decoder in memory as the worker sees it: what a token's keys and values look like, and a forward pass.

The modules are transformers' own. A batch is flat, [1, tokens] with explicit positions; no cache object of theirs is
made, and logits are computed only for the tokens that are asked for. The model owns no pool: `attach_pool` shows it
one. It samples nothing and knows no sequences.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from cluster.errors import ModelError
from kernels.batch import AttentionBatch
from kernels.cpu.decoder import CpuDecoder, Picked
from kernels.dispatch import Backend
from kernels.layout import BlockLayout, KeyOrder
from kernels.sampling import DrawSettings
from worker.model.attention import LayerCall, PagedLayer, StepContext, attach
from worker.model.fused import fuse
from worker.model.loading import Loaded
from worker.model.packed import PackedLinear, pack_linears
from worker.pool import DevicePool
from worker.state import Int32


class Model:
    """A loaded decoder whose attention reads and writes blocks."""

    def __init__(self, loaded: Loaded, backend: Backend, device: torch.device) -> None:
        self.loaded = loaded
        self.backend = backend
        self.device = device
        self._fused: CpuDecoder | None = None
        # Linear modules of a decoder that is not fused whose weights were packed.
        self.num_packed = 0
        self._context = StepContext(backend)
        self._layers = self._give_layers()
        self.calls = self._probe()
        self._keys = [(call.num_heads, call.shape) for call in self.calls]
        self._distinct = list(dict.fromkeys(self._keys))

    def fuse(self, max_tokens: int) -> str:
        """Puts one call in place of a recognised decoder's modules, before a pool is attached; or packs the products of
        its modules and says why not."""
        made = fuse(self.loaded, self.calls, self.backend, max_tokens)
        if isinstance(made, str):
            self.num_packed = pack_linears(self.loaded.module, self.loaded.dtype, self.backend)
            return made
        # The modules go, and with them the weights that were packed.
        self.loaded.module.to("meta")
        self._layers = []
        self._fused = made
        return ""

    @property
    def weights_bytes(self) -> int:
        if self._fused is not None:
            return self._fused.weights_bytes
        packed = sum(one.size_bytes for one in self.loaded.module.modules() if isinstance(one, PackedLinear))
        return self.loaded.weights_bytes + packed

    @property
    def vocab_size(self) -> int:
        return self.loaded.vocab_size

    @property
    def num_heads(self) -> int:
        return self.calls[0].num_heads

    def layout(self, block_size: int) -> BlockLayout:
        """How this model's keys and values lie in a block, in the order that the kernels like."""
        order: KeyOrder = self.backend.key_order(self.loaded.dtype, block_size)
        return BlockLayout(tuple(call.shape for call in self.calls), block_size, self.loaded.dtype, order)

    def attach_pool(self, pool: DevicePool) -> None:
        """From now on attention reads and writes this pool."""
        if self._fused is not None:
            self._fused.attach(pool.layers)
        for layer, cache, key in zip(self._layers, pool.layers, self._keys, strict=False):
            layer.cache = cache
            layer.batch_key = key
        self._block_size = pool.layout.block_size

    def prepare(self, batch: AttentionBatch) -> None:
        """Once per step, when the batch's tensors are final."""
        for number, key in enumerate(self._distinct):
            heads, shape = key
            self._context.batches[key] = self.backend.prepare(
                # Tasks are made for one shape at a time, so that a further shape needs a batch of its own.
                replace(batch, tasks=None) if number else batch,
                num_heads=heads,
                num_kv_heads=shape.num_kv_heads,
                head_dim=shape.head_dim,
                block_size=self._block_size,
            )

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, logit_rows: torch.Tensor) -> torch.Tensor:
        """Computes the prepared batch: ids and positions int64 [tokens]. Logits [len(logit_rows), vocabulary], which
        may lie where the next step writes its own."""
        if self._fused is not None:
            return self._fused.run(ids, positions, self._context.batches[self._keys[0]], logit_rows)
        return self._run_module(ids, positions, logit_rows)

    @property
    def runs_ahead(self) -> bool:
        """Whether it can choose tokens and go on with them by itself."""
        return self._fused is not None and not self._fused.backend.is_debug

    @property
    def keys_per_cut(self) -> int:
        assert self._fused is not None
        return self._fused.keys_per_cut

    @property
    def picks(self) -> bool:
        """Whether it can choose tokens by itself."""
        return self._fused is not None

    def pick(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        logit_rows: torch.Tensor,
        num_steps: int,
        stops: Int32,
        draws: DrawSettings | None,
    ) -> Picked:
        """Computes the prepared batch and picks the likeliest tokens, or draws them; for a batch of decodes up to
        `num_steps` steps, until a row gets one of its stops. Only for a model that `picks`."""
        assert self._fused is not None
        batch = self._context.batches[self._keys[0]]
        if num_steps > 1:
            return self._fused.run_ahead(ids, positions, batch, num_steps, stops, draws)
        return self._fused.pick(ids, positions, batch, logit_rows, draws)

    @torch.inference_mode()
    def _run_module(self, ids: torch.Tensor, positions: torch.Tensor, logit_rows: torch.Tensor) -> torch.Tensor:
        out = self.loaded.module(
            input_ids=ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=logit_rows,
        )
        return out.logits[0]  # type: ignore[no-any-return]

    def _give_layers(self) -> list[PagedLayer]:
        layers: dict[int, PagedLayer] = {}
        for module in self.loaded.module.modules():
            index = getattr(module, "layer_idx", None)
            if isinstance(index, int):
                if getattr(module, "is_causal", True) is False:
                    name = type(self.loaded.module).__name__
                    raise ModelError(f"{name} attends to both sides of a token; only causal decoders are supported")
                attach(module, layers.setdefault(index, PagedLayer(index, self._context)))
        return [layers[index] for index in sorted(layers)]

    def _probe(self) -> list[LayerCall]:
        """Runs one token through the model to see what each layer asks of attention; refuses what we can't give."""
        config, name = self.loaded.config, type(self.loaded.module).__name__
        calls: dict[int, LayerCall] = {}
        self._context.probe = calls
        zero = torch.zeros(1, dtype=torch.int64, device=self.device)
        try:
            self.forward(zero, zero, zero)
        except (AttributeError, TypeError, RuntimeError, ValueError, KeyError) as error:
            raise ModelError(f"{name} does not run without a cache of its own: {error}; give another model") from error
        finally:
            self._context.probe = None
        if len(calls) != config.num_hidden_layers:
            raise ModelError(
                f"{name} called attention in {len(calls)} of {config.num_hidden_layers} layers; the others keep a "
                "state that blocks of keys and values can't hold"
            )
        found = [calls[index] for index in sorted(calls)]
        self._check_windows(config, name, found)
        return found

    @staticmethod
    def _check_windows(config: Any, name: str, calls: list[LayerCall]) -> None:
        """A window that transformers puts only into its mask would be lost here."""
        kinds = getattr(config, "layer_types", None) or []
        sliding = [i for i, kind in enumerate(kinds) if kind == "sliding_attention"]
        lost = [i for i in sliding if not calls[i].window]
        if not kinds and getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
            lost = [i for i, call in enumerate(calls) if not call.window]
        if lost:
            raise ModelError(
                f"{name} does not tell attention the sliding window of layer {lost[0]}; it can't be run exactly"
            )
