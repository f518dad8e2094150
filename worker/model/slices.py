"""A model that ranks share: each keeps its slice of a weight, by the plan that transformers has for the architecture.

`worker/model/loading.py` cuts a model that lies on the host, before any of it goes to the device. What a slice computes
is a part of a sum or some of the columns; modules whose plan says so add up or gather over the ranks (`worker/ranks`).
Modules stay transformers' own with plain tensors, so that merged products, fused modules and graphs take them as they
take those of a whole model. What does not come out even is filled up with zeros, but for heads.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear

from cluster.errors import ModelError
from kernels.device.seam import device_of
from worker.ranks.team import Team

# What means nothing here: all ranks have the whole of it, and nobody trains.
_WHOLE = {"replicated_with_grad_allreduce", "replicate", "local_params"}
_KEY_PARTS = {"k_proj", "v_proj"}


def slice_model(model: Any, config: Any, team: Team, device: torch.device) -> None:
    """Cuts this rank's slices out of a whole model on the host. Raises ModelError for what the plan asks for and we
    can't do."""
    slicer = _Slicer(model, config, team, keeps_views=device_of(device).is_apart)
    for name, module in list(model.named_modules()):
        for part in dict(module.named_parameters(recurse=False)):
            style = slicer.style_of(f"{name}.{part}")
            if style is not None:
                slicer.cut_parameter(module, part, style)
        style = slicer.style_of(name)
        if style is not None:
            slicer.cut_module(model, module, name, style)


class _Slicer:
    def __init__(self, model: Any, config: Any, team: Team, *, keeps_views: bool) -> None:
        self._plan: dict[str, str] = dict(model._tp_plan)
        self._team = team
        self._num_heads = int(config.num_attention_heads)
        self._num_kv_heads = int(getattr(config, "num_key_value_heads", None) or self._num_heads)
        # Whether slices may be views of the whole, because they are copied to a device next.
        self._keeps_views = keeps_views
        # Weights that were tied stay so.
        self._cut: dict[tuple[torch.Tensor, int], torch.nn.Parameter] = {}

    def style_of(self, name: str) -> str | None:
        style = self._plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", name))
        return None if style in _WHOLE else style

    def cut_parameter(self, module: Any, name: str, style: str) -> None:
        """A parameter that the plan names itself, as those of experts."""
        dims = module.get_parameter(name).dim()
        if style == "packed_colwise" and dims == 3:
            self._take(module, name, 1, factor=2)
        elif style == "colwise":
            self._take(module, name, max(dims - 2, 0))
        elif style == "rowwise":
            self._take(module, name, dims - 1)
        else:
            raise _unknown(f"{type(module).__name__}.{name}", style)

    def cut_module(self, model: Any, module: Any, name: str, style: str) -> None:
        if style in ("moe_tp_experts", "all_reduce"):
            module.forward = self._summed(module.forward)
        elif isinstance(module, torch.nn.Embedding) and style == "embedding_rowwise":
            self._embedding(module)
        elif isinstance(module, torch.nn.Linear) and style in ("colwise", "colwise_gather_output", "colwise_rep"):
            parent, _, own = name.rpartition(".")
            if own in _KEY_PARTS and self._num_kv_heads < self._team.size:
                self._shared_keys(model.get_submodule(parent), module)
            else:
                self._colwise(module, gathers=style != "colwise")
        elif isinstance(module, torch.nn.Linear) and style in ("rowwise", "rowwise_split_input", "rowwise_rep"):
            self._rowwise(module, splits=style != "rowwise")
        else:
            raise _unknown(name, style)

    # -- kinds of modules

    def _colwise(self, module: Any, *, gathers: bool) -> None:
        whole, team = module.out_features, self._team
        self._take(module, "weight", 0)
        if module.bias is not None:
            self._take(module, "bias", 0)
        module.out_features = module.weight.shape[0]
        if gathers:
            module.forward = lambda x: team.gather(linear(x, module.weight, module.bias))[..., :whole]

    def _shared_keys(self, attention: Any, module: Any) -> None:
        """More ranks than heads of keys: several have the same one."""
        size, dim = self._team.size, module.out_features // self._num_kv_heads
        first = self._team.rank * self._num_kv_heads // size * dim
        for name in ("weight", "bias"):
            part = getattr(module, name)
            if part is not None:
                self._put(module, name, part.detach().narrow(0, first, dim))
        module.out_features = dim
        attention.num_key_value_groups = self._num_heads // size

    def _rowwise(self, module: Any, *, splits: bool) -> None:
        team, whole = self._team, module.in_features
        if splits and whole % team.size:
            raise ModelError(f"a product of depth {whole} can't be split among {team.size} ranks; give another number")
        self._take(module, "weight", 1)
        each = module.in_features = module.weight.shape[1]

        def forward(x: torch.Tensor) -> torch.Tensor:
            if splits:
                x = x.narrow(-1, team.rank * each, each)
            out = linear(x, module.weight)
            team.sum(out)
            # Once, not once for each rank.
            return out if module.bias is None else out + module.bias

        module.forward = forward

    def _embedding(self, module: Any) -> None:
        team, look_up = self._team, module.forward
        self._take(module, "weight", 0)
        each = module.num_embeddings = module.weight.shape[0]

        def forward(ids: torch.Tensor) -> torch.Tensor:
            own = ids - team.rank * each
            is_here = (own >= 0) & (own < each)
            out: torch.Tensor = look_up(own.clamp(0, each - 1)).masked_fill(~is_here.unsqueeze(-1), 0)
            team.sum(out)
            return out

        module.forward = forward

    def _summed(self, forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def summed(*args: Any, **more: Any) -> torch.Tensor:
            out = forward(*args, **more)
            self._team.sum(out)
            return out

        return summed

    # -- weights

    def _take(self, module: Any, name: str, dim: int, factor: int = 1) -> None:
        """Along `dim` this rank's part; `factor`: of each of so many parts that lie there one behind the other."""
        whole = module.get_parameter(name)
        found = self._cut.get((whole, dim))
        if found is not None:
            setattr(module, name, found)
            return
        self._put(module, name, self._part(whole.detach(), dim, factor))
        self._cut[whole, dim] = module.get_parameter(name)

    def _part(self, whole: torch.Tensor, dim: int, factor: int) -> torch.Tensor:
        length, size = whole.shape[dim] // factor, self._team.size
        each = -(-length // size)
        first = min(length, self._team.rank * each)
        count = min(each, length - first)
        if factor == 1 and count == each:
            return whole.narrow(dim, first, each)
        parts = [whole.narrow(dim, at * length + first, count) for at in range(factor)]
        zeros = [each - count if at == dim else size for at, size in enumerate(whole.shape)]
        return torch.cat([tensor for part in parts for tensor in (part, part.new_zeros(zeros))], dim)

    def _put(self, module: Any, name: str, part: torch.Tensor) -> None:
        kept = part if self._keeps_views else part.clone(memory_format=torch.contiguous_format)
        setattr(module, name, torch.nn.Parameter(kept, requires_grad=False))


def _unknown(name: str, style: str) -> ModelError:
    return ModelError(f"transformers shares {name} among ranks in a way ({style}) that is not supported; use one rank")
