"""Tensors of the twin: each is a shell without memory, and every operation on one comes here.

What an operation returns is known at once, in shape and dtype; what it computes is issued to the current stream and
done later, on the CPU tensors behind the shells. Views are made at once. What a GPU can't do without the host waiting
for it is a Fault, but where `may_wait` allows it; so is what mixes memory of host and device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch

from kernels.device.twin.card import CHOSEN, ORDER, PINNED, Card
from kernels.device.twin.memory import Memory
from kernels.device.twin.order import OrderFault

NAME = "twin"
aten: Any = torch.ops.aten

# Their answer is a number, or has as many elements as the values say: the host has to know them.
_ASKS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.bincount.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
    aten.repeat_interleave.Tensor,
}
_INDEXES = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
# They look like views, and make memory of their own only where they must; a shell has to know which.
_VIEWS = {aten._unsafe_view.default, aten._reshape_alias.default, aten.lift_fresh.default}


def _histc(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.histc(x.double(), *args, **kwargs).to(x.dtype)


# What a GPU has and torch's CPU has not.
_INSTEAD: dict[Any, Callable[..., Any]] = {aten.histc.default: _histc}


def _grouped(rows: torch.Tensor, weights: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return rows.new_empty(rows.shape[0], weights.shape[-1])


# What they make, where torch says it for some dtypes only.
_MAKES: dict[Any, Callable[..., Any]] = {aten._grouped_mm.default: _grouped}

_cards: dict[int, Card] = {}


def card(index: int) -> Card:
    with ORDER.lock:
        found = _cards.get(index)
        if found is None:
            found = _cards[index] = Card(index)
        return found


class TwinTensor(torch.Tensor):
    """The shell. `raw` is what the device holds, `memory` what keeps it from being given to somebody else."""

    raw: torch.Tensor
    memory: Memory
    card: Card

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return dispatch(func, args, kwargs or {})

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def tolist(self) -> Any:
        with ORDER.lock:
            self.card.ask("tolist")
            return self.raw.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"TwinTensor({list(self.shape)}, {self.dtype}, {self.device})"


def shell(raw: torch.Tensor, memory: Memory, card: Card) -> TwinTensor:
    # Torch forbids some uses of tensors that were made in inference mode; a shell's content may come from anywhere.
    with torch.inference_mode(False):
        made: Any = torch.Tensor._make_wrapper_subclass(
            TwinTensor,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, card.index),
        )
    made.raw, made.memory, made.card = raw, memory, card
    return made  # type: ignore[no-any-return]


def new(card: Card, shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> TwinTensor:
    """Memory with nothing in it."""
    with torch.inference_mode(False):
        raw, memory = card.allocate(shape, stride, dtype)
    return shell(raw, memory, card)


# -- one operation

Rule = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
_rules: dict[Any, Rule] = {}


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    rule = _rules.get(func)
    if rule is None:
        rule = _rules[func] = _rule_of(func)
    return rule(func, args, kwargs)


def _rule_of(func: Any) -> Rule:
    if func is aten.copy_.default:
        return _copy
    if func is aten._to_copy.default:
        return _to_copy
    if func in _ASKS:
        return _ask
    if func in _INDEXES:
        return _index
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        # Made of other operations; in inference mode torch leaves that to whoever dispatches.
        return lambda func, args, kwargs: func.decompose(*args, **kwargs)
    schema = func._schema
    written = [argument for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write]
    if written:
        return _writes(func)
    is_view = any(result.alias_info is not None for result in schema.returns)
    return _view if is_view or func in _VIEWS else _fresh


def card_of(func: Any, *parts: Any) -> Card:
    """Whose tensors these are. All of one card."""
    found: Card | None = None
    waiting = list(parts)
    while waiting:
        part = waiting.pop()
        if isinstance(part, TwinTensor):
            if found is not None and part.card is not found:
                raise OrderFault(f"{func} is given tensors of cards {found.index} and {part.card.index}")
            found = part.card
        elif isinstance(part, (list, tuple)):
            waiting.extend(part)
        elif isinstance(part, dict):
            waiting.extend(part.values())
    assert found is not None, f"{func} was given no tensor of a card"
    return found


def raw(part: Any) -> Any:
    """What the device holds, in place of shells. Numbers on the host go along as they are now."""
    if isinstance(part, TwinTensor):
        return part.raw
    if isinstance(part, torch.Tensor):
        if part.dim():
            raise OrderFault(f"a host tensor {list(part.shape)} was given to the device, which can't read it")
        return part.clone()
    if isinstance(part, (list, tuple)):
        return type(part)(raw(one) for one in part) if not hasattr(part, "_fields") else type(part)(*map(raw, part))
    if isinstance(part, torch.device):
        return _CPU if part.type == NAME else part
    if is_dataclass(part) and not isinstance(part, type):
        changed = {
            field.name: raw(value)
            for field in fields(part)
            if isinstance(value := getattr(part, field.name), (torch.Tensor, list, tuple))
        }
        return replace(part, **changed) if changed else part
    return part


_CPU = torch.device("cpu")


def _raws(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    return [raw(arg) for arg in args], {name: raw(value) for name, value in kwargs.items()}


def _view(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    source = args[0]
    assert isinstance(source, TwinTensor)
    plain, more = _raws(args, kwargs)
    made = func(*plain, **more)
    if isinstance(made, torch.Tensor):
        return shell(made, source.memory, source.card)
    return [shell(one, source.memory, source.card) for one in made]


def _writes(func: Any) -> Rule:
    """A rule for an operation that changes some of its arguments, which are what it returns."""
    schema = func._schema
    places: list[Any] = []
    for result in schema.returns:
        for number, argument in enumerate(schema.arguments):
            both = argument.alias_info and result.alias_info
            if both and argument.alias_info.before_set == result.alias_info.before_set:
                places.append(argument.name if argument.kwarg_only else number)

    def rule(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        card = card_of(func, args, kwargs)
        plain, more = _raws(args, kwargs)
        card.issue(lambda: func(*plain, **more))
        found = [kwargs[place] if isinstance(place, str) else args[place] for place in places]
        return found[0] if len(found) == 1 else tuple(found) if found else None

    return rule


def _fresh(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    card = card_of(func, args, kwargs)
    device = kwargs.get("device")
    plain, more = _raws(args, kwargs)
    if device is not None and device.type != NAME:
        if device.type == "cpu":
            # Only what looks at no values: zeros_like and its kin.
            return func(*plain, **more)
        raise OrderFault(f"{func} to {device}")
    kinds = _kinds(func, args, kwargs)
    made = [new(card, *kind) if isinstance(kind, tuple) else kind for kind in kinds[1]]
    targets = [one.raw if isinstance(one, TwinTensor) else None for one in made]

    run = _INSTEAD.get(func, func)

    def work() -> None:
        results = run(*plain, **more)
        if isinstance(results, torch.Tensor):
            results = (results,)
        for target, result in zip(targets, results, strict=True):
            if target is not None:
                target.copy_(result)

    card.issue(work)
    return made[0] if kinds[0] is torch.Tensor else kinds[0](made)


# What an operation makes of arguments that look so: the type of the whole, and of each result its shape, strides and
# dtype, or the result itself if it is no tensor.
_made_of: dict[Any, tuple[Any, list[Any]]] = {}


def _kinds(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, list[Any]]:
    key = func, _looks(args), _looks(tuple(kwargs.items()))
    found = _made_of.get(key)
    if found is None:
        made = _MAKES.get(func, func)(*_meta(args), **{name: _meta(value) for name, value in kwargs.items()})
        whole = torch.Tensor if isinstance(made, torch.Tensor) else type(made)
        parts = [made] if whole is torch.Tensor else list(made)
        found = (
            whole,
            [(tuple(one.shape), one.stride(), one.dtype) if isinstance(one, torch.Tensor) else one for one in parts],
        )
        _made_of[key] = found
    return found


def _looks(part: Any) -> Any:
    if isinstance(part, torch.Tensor):
        return part.shape, part.stride(), part.dtype
    if isinstance(part, (list, tuple)):
        return tuple(_looks(one) for one in part)
    # One is not 1.0 where dtypes are concerned.
    return type(part), part


def _meta(part: Any) -> Any:
    if isinstance(part, torch.Tensor):
        return torch.empty_strided(part.shape, part.stride(), dtype=part.dtype, device="meta")
    if isinstance(part, (list, tuple)):
        return type(part)(_meta(one) for one in part)
    return torch.device("meta") if isinstance(part, torch.device) else part


def _ask(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    card = card_of(func, args, kwargs)
    with ORDER.lock:
        card.ask(str(func))
        plain, more = _raws(args, kwargs)
        results = func(*plain, **more)
        if isinstance(results, torch.Tensor):
            return _arrived(card, results)
        if isinstance(results, (list, tuple)):
            return type(results)(_arrived(card, one) for one in results)
        return results


def _arrived(card: Card, result: torch.Tensor) -> TwinTensor:
    made = new(card, tuple(result.shape), result.stride(), result.dtype)
    made.raw.copy_(result)
    return made


def _index(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A mask has to be looked at for the number of its elements, an index on the host to be copied."""
    card = card_of(func, args, kwargs)
    indices = [index for index in args[1] if index is not None]
    is_masked = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
    if is_masked or not all(isinstance(index, TwinTensor) for index in indices):
        with ORDER.lock:
            card.ask(f"{func} with a mask, or with indices on the host,")
            args = args[0], [index if index is None else _on_card(card, index) for index in args[1]], *args[2:]
            if func is aten.index.Tensor:
                return _ask(func, args, kwargs)
    if func in (aten.index_put_.default, aten._index_put_impl_.default):
        plain, more = _raws(args, kwargs)
        card.issue(lambda: func(*plain, **more))
        return args[0]
    return _fresh(func, args, kwargs)


def _on_card(card: Card, tensor: torch.Tensor) -> TwinTensor:
    return tensor if isinstance(tensor, TwinTensor) else _arrived(card, tensor)


# -- between host and device


def _copy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    target, source = args[0], args[1]
    lets_go = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    if isinstance(target, TwinTensor) and isinstance(source, TwinTensor):
        return copy_inside(target, source)
    if isinstance(target, TwinTensor):
        return _copy_in(target, source, lets_go)
    return _copy_out(target, source, lets_go)


def copy_inside(target: TwinTensor, source: TwinTensor) -> TwinTensor:
    card = card_of("copy_", target, source)
    to, what = target.raw, source.raw
    card.issue(lambda: to.copy_(what))
    return target


def _copy_in(target: TwinTensor, source: torch.Tensor, lets_go: bool) -> TwinTensor:
    """Pinned memory is read when the copy is done, any other before the call returns."""
    card, to = target.card, target.raw
    with ORDER.lock:
        is_pinned = PINNED.holds(source)
        if not (is_pinned and lets_go):
            card.ask("a copy from memory that is not pinned" if not is_pinned else "a copy that is not asynchronous")
        what = source if is_pinned and lets_go else source.clone()
        ORDER.num_bytes += source.nbytes
        card.issue(lambda: to.copy_(what))
        if not lets_go:
            card.stream.catch_up()
    return target


def _copy_out(target: torch.Tensor, source: TwinTensor, lets_go: bool) -> torch.Tensor:
    card, what = source.card, source.raw
    with ORDER.lock:
        ORDER.num_bytes += source.nbytes
        if lets_go and PINNED.holds(target):
            # Nobody may look at it before the copy is done.
            spoil(target)
            card.issue(lambda: target.copy_(what))
        else:
            card.ask("a copy to memory that is not pinned" if lets_go else "a copy that is not asynchronous")
            target.copy_(what)
    return target


def spoil(host: torch.Tensor) -> None:
    """Fills host memory with what is no content of anything."""
    if host.dtype.is_floating_point:
        host.fill_(float("nan"))
    elif host.dtype is not torch.bool:
        host.fill_(torch.iinfo(host.dtype).max // 2)


def _to_copy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    device, source = kwargs.get("device"), args[0]
    if device is None or device.type == NAME:
        if device is not None and device.index not in (None, source.card.index):
            raise OrderFault(f"a copy from card {source.card.index} to card {device.index}")
        # Pinned memory and lateness mean nothing inside one card.
        more = {name: value for name, value in kwargs.items() if name not in ("non_blocking", "pin_memory")}
        return _fresh(func, args, {**more, "device": source.device})
    with ORDER.lock:
        source.card.ask(f"a copy to {device}")
        ORDER.num_bytes += source.nbytes
        return func(source.raw, **kwargs)


# -- what makes tensors out of nothing


def make(func: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation without a tensor of the twin, on a card."""
    device = kwargs.get("device") or torch.device(NAME, CHOSEN.card)
    of = card(CHOSEN.card if device.index is None else device.index)
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    shape = tuple(args[0])
    if func is aten.empty_strided.default:
        return new(of, shape, tuple(args[1]), dtype)
    if func is aten.empty.memory_format:
        like = torch.empty(shape, dtype=dtype, device="meta", memory_format=kwargs.get("memory_format"))
        return new(of, shape, like.stride(), dtype)
    raise NotImplementedError(f"the twin does not know how to make {func}")


def arange(start: Any, end: Any, step: Any = 1, **kwargs: Any) -> Any:
    """Torch would make it empty and let it grow."""
    device = kwargs["device"]
    like = torch.arange(start, end, step, dtype=kwargs.get("dtype"), device="cpu")
    made = new(
        card(CHOSEN.card if device.index is None else device.index), tuple(like.shape), like.stride(), like.dtype
    )
    made.card.issue(lambda: made.raw.copy_(like))
    return made


def fill(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """Where torch makes a tensor from numbers it passes by the shells' own dispatch."""
    assert isinstance(target, TwinTensor)
    return _copy_in(target, source, non_blocking)
