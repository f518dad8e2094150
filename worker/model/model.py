"""One decoder in memory as the worker sees it: what a token's keys and values look like, and a forward pass.

The modules are transformers' own. A batch is flat, [1, tokens] with explicit positions; no cache object of theirs is
made, and logits are computed only for the tokens that are asked for. The model owns no pool: `attach_pool` shows it
one. It samples nothing and knows no sequences.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from cluster.errors import ModelError
from kernels.batch import AttentionBatch
from kernels.cpu.decoder import CpuDecoder, Picked
from kernels.dispatch import Backend
from kernels.layout import BlockLayout, KeyOrder
from kernels.sampling import DrawSettings
from worker.model import attention
from worker.model.attention import PagedLayer, StepContext
from worker.model.fused import fuse
from worker.model.loading import Loaded
from worker.model.packed import pack_linears, packed_bytes
from worker.model.probe import LayerCall, Probe
from worker.pool import DevicePool
from worker.state import Int32

if TYPE_CHECKING:
    from worker.model.replaced import Replaced


class Model:
    """A loaded decoder whose attention reads and writes blocks."""

    def __init__(self, loaded: Loaded, backend: Backend, device: torch.device) -> None:
        self.loaded = loaded
        self.backend = backend
        self.device = device
        self._fused: CpuDecoder | None = None
        # Products of a decoder that is not fused whose weights were packed.
        self.num_packed = 0
        # On a GPU: modules that were replaced in place.
        self._replaced: Replaced | None = None
        self._context = StepContext(backend)
        self._layers: dict[int, PagedLayer] = {}
        calls = self._probe()
        # Other parts of a model (an encoder of images) have layers that no text comes to.
        self._layers = {index: self._layers[index] for index in calls}
        for index, call in calls.items():
            self._layers[index].call, self._layers[index].window = call, call.window
        self.calls = list(calls.values())
        self._keys = [(call.num_heads, call.shape) for call in self.calls]
        self._distinct = list(dict.fromkeys(self._keys))

    def fuse(self, max_tokens: int, *, in_slices: bool = False) -> str:
        """Puts one call in place of a recognised decoder's modules, before a pool is attached; or packs the products of
        its modules, and says why not. A model in slices keeps its modules, which add
        up over the ranks."""
        made = "its ranks add up" if in_slices else fuse(self.loaded, self.calls, self.backend, max_tokens)
        if isinstance(made, str):
            if not in_slices:
                self.num_packed = pack_linears(self.loaded.module, self.loaded.dtype, self.backend)
            return made
        # The modules go, and with them the weights that were packed.
        self.loaded.module.to("meta")
        self._layers = {}
        self._fused = made
        return ""

    def replace(self, run: Callable[[], object]) -> None:
        """On a GPU, of a model that is not fused: modules get faster ways. `run` computes some tokens with it."""
        if self.backend.name == "triton":
            # Triton is loaded only where it is used.
            from worker.model.replaced import Replaced

            self._replaced = Replaced(self.loaded.module, run)

    @property
    def num_replaced(self) -> int:
        return 0 if self._replaced is None else len(self._replaced)

    def put_back(self) -> None:
        """The modules that were replaced are transformers' own again."""
        assert self._replaced is not None
        self._replaced.off()
        self._replaced = None

    @property
    def weights_bytes(self) -> int:
        if self._fused is not None:
            return self._fused.weights_bytes
        return self.loaded.weights_bytes + packed_bytes(self.loaded.module)

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
        for layer, cache, key in zip(self._layers.values(), pool.layers, self._keys, strict=False):
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

    def watch(self, descriptor: int) -> None:
        """`pick` runs no further step once this can be read."""
        if self.runs_ahead:
            assert self._fused is not None
            self._fused.watch(descriptor)

    @torch.inference_mode()
    def _run_module(self, ids: torch.Tensor, positions: torch.Tensor, logit_rows: torch.Tensor) -> torch.Tensor:
        out = self.loaded.module(
            input_ids=ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=logit_rows,
        )
        return out.logits[0]  # type: ignore[no-any-return]

    @torch.inference_mode()
    def plain_logits(self, ids: torch.Tensor, implementation: str = "eager") -> torch.Tensor:
        """Logits [tokens, vocabulary] of one sequence, by an attention of transformers and its own cache."""
        module = self.loaded.module
        attention.exchange(module, implementation)
        if self._replaced is not None:
            self._replaced.off()
        try:
            out = module(input_ids=ids.unsqueeze(0), attention_mask=torch.ones_like(ids).unsqueeze(0))
            return out.logits[0]  # type: ignore[no-any-return]
        finally:
            if self._replaced is not None:
                self._replaced.on()
            attention.exchange(module, attention.IMPLEMENTATION)

    def _probe(self) -> dict[int, LayerCall]:
        """Runs one token through the model to see what each layer asks of attention; refuses what we can't give."""
        module, name = self.loaded.module, type(self.loaded.module).__name__
        for layer_module in module.modules():
            index = getattr(layer_module, "layer_idx", None)
            if isinstance(index, int):
                attention.attach(layer_module, self._layers.setdefault(index, PagedLayer(index, self._context)))
        self._context.probe = probe = Probe(name)
        attention.register_probe(probe)
        attention.exchange(module, attention.PROBED)
        zero = torch.zeros(1, dtype=torch.int64, device=self.device)
        try:
            self.forward(zero, zero, zero)
        except (AttributeError, TypeError, RuntimeError, ValueError, KeyError) as error:
            why = " ".join(str(error).split())
            raise ModelError(f"{name} does not run without a cache of its own: {why}; give another model") from error
        finally:
            self._context.probe = None
            attention.exchange(module, attention.IMPLEMENTATION)
        calls = probe.calls(self.loaded.config, self.loaded.max_model_len)
        lacking = {"position_ids", "logits_to_keep"}.difference(inspect.signature(module.forward).parameters)
        if lacking:
            raise ModelError(
                f"{name} takes no {max(lacking)}, without which tokens of "
                "several sequences can't be computed side by side; give another model"
            )
        return calls
