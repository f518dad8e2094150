"""The experts of a mixture on a GPU in five launches, none of which the host waits for.

transformers runs experts by a function that can be exchanged, as attention is; ours is registered here and put in place
by `replaced.py` where it says the same. Gates and routers stay transformers' own, and so does what adds up over ranks.
"""

from __future__ import annotations

from typing import Any

import torch

from kernels.gpu.experts import grouped_product, route, warm_up
from kernels.gpu.rows import gate
from worker.model.faster import Forward

NAME = "quire"


def mixture(module: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """hidden [tokens, hidden], index and weights [tokens, experts of a token]: [tokens, hidden]. Outputs are added in
    the order in which the router names their experts."""
    tokens, top = index.shape
    order, starts = route(index.reshape(-1).long(), module.num_experts)
    inner = grouped_product(
        hidden.contiguous(), _weight(module, _up(module)), order, starts, top=top, gathers=True,
        bias=_bias(module, _up(module)),
    )  # fmt: skip
    if not module.has_gate:
        inner = module.act_fn(inner)
    elif _opens_by_silu(module):
        inner = gate(inner, "silu")
    else:
        inner = module._apply_gate(inner).contiguous()
    scale = weights.reshape(-1).contiguous()
    out = grouped_product(
        inner, _weight(module, "down_proj"), order, starts, top=top, gathers=False, bias=_bias(module, "down_proj"),
        scale=scale,
    )  # fmt: skip
    return out.view(tokens, top, -1).sum(dim=1).to(hidden.dtype)


def _up(module: Any) -> str:
    return "gate_up_proj" if module.has_gate else "up_proj"


def _weight(module: Any, name: str) -> torch.Tensor:
    weight: torch.Tensor = getattr(module, name).detach()
    return weight.transpose(1, 2) if module.is_transposed else weight


def _bias(module: Any, name: str) -> torch.Tensor | None:
    return getattr(module, f"{name}_bias").detach() if module.has_bias else None


def _opens_by_silu(module: Any) -> bool:
    apply_gate = getattr(type(module)._apply_gate, "__name__", "")
    return apply_gate == "_default_apply_gate" and type(module.act_fn).__name__ in ("SiLU", "SiLUActivation")


class Experts:
    """The modules of experts of one model that go another way."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._modules = {module for module in model.modules() if _is_mixture(module)}
        self._taken: list[Any] = []
        self._own: list[tuple[Any, Any]] = []
        self._warm: set[tuple[torch.Size, bool]] = set()
        if self._modules:
            from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

            ALL_EXPERTS_FUNCTIONS.register(NAME, mixture)

    def __len__(self) -> int:
        """Modules that are taken: all or none, because they are told by one configuration."""
        return len(self._taken) if len(self._taken) == len(self._modules) else 0

    def has(self, module: Any) -> bool:
        return module in self._modules

    def way(self, module: Any) -> Forward:
        """The module's forward with our function in it."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            own = module.config._experts_implementation
            module.config._experts_implementation = NAME
            try:
                return module.forward(*args, **kwargs)
            finally:
                module.config._experts_implementation = own

        return forward

    def take(self, module: Any) -> None:
        self._taken.append(module)
        # Any number of tokens may come while serving, and no request may wait for a compiler.
        top = int(getattr(module.config, "num_experts_per_tok", 2))
        for name, gathers in ((_up(module), True), ("down_proj", False)):
            weight = _weight(module, name)
            if (weight.shape, gathers) not in self._warm:
                self._warm.add((weight.shape, gathers))
                warm_up(weight, top=top, gathers=gathers, bias=_bias(module, name))

    def on(self) -> None:
        if len(self) and not self._own:
            configs = {id(module.config): module.config for module in self._taken}
            self._own = [(config, config._experts_implementation) for config in configs.values()]
            for config in configs.values():
                config._experts_implementation = NAME

    def off(self) -> None:
        for config, own in self._own:
            config._experts_implementation = own
        self._own = []


def _is_mixture(module: Any) -> bool:
    """Whether transformers runs this module by an exchangeable function, whose attributes say how its weights lie."""
    names = ("has_gate", "has_bias", "is_transposed", "num_experts", "down_proj", "config")
    if not all(hasattr(module, name) for name in names) or not hasattr(type(module).forward, "__wrapped__"):
        return False
    if getattr(module, "has_post_expert_norm", False) or getattr(module, "_is_expert_parallel", False):
        return False
    return all(getattr(getattr(module, name, None), "ndim", 0) == 3 for name in (_up(module), "down_proj"))
