"""The one place where Triton kernels are launched: on the device of the first argument, in the order of its stream.

Triton's own way to launch takes 70 to 110 us of the host, most of it to find out which compiled kernel fits. Here that
is one look into a table: a kernel that was launched before with such arguments is called by what Triton made of it. In
the interpreter and on the twin kernels run as Triton runs them.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from kernels.device.seam import device_of
from kernels.gpu.choices import interpreting

# What Triton compiled, by kernel, constants and what arguments it was compiled for.
_compiled: dict[tuple[Any, ...], Any] = {}
# By kernel: of each argument that is no constant, whether Triton looks at an integer's value there.
_looked_at: dict[Any, tuple[bool, ...]] = {}


def issue(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """`args` in the order of the kernel, tensors first of all; `constants` are those behind them, in their order, and
    Triton's own (num_warps, num_stages)."""
    device_of(args[0].device).call(_launch, kernel, grid, constants, *args)


def key_of(kernel: Any, constants: dict[str, Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Equal keys, one compiled kernel: as Triton tells arguments apart. It takes pointers to multiples of 16 and
    integers that are 1 or multiples of 16 for something else than others."""
    looked_at = _looked_at.get(kernel)
    if looked_at is None:
        looked_at = tuple(looks for _, looks in _params(kernel) if looks is not None)
        _looked_at[kernel] = looked_at
    kinds: list[Any] = [kernel, *constants.values()]
    for arg, looks in zip(args, looked_at, strict=True):
        if isinstance(arg, torch.Tensor):
            kinds.append((arg.dtype, not arg.data_ptr() & 15))
        elif isinstance(arg, int):
            wide = not -0x80000000 <= arg <= 0x7FFFFFFF
            kinds.append((arg == 1, not arg & 15, wide) if looks else wide)
    return tuple(kinds)


def _params(kernel: Any) -> list[tuple[str, bool | None]]:
    """Names of a kernel's arguments, and whether integers are looked at there; None: a constant."""
    if hasattr(kernel, "params"):
        return [(one.name, None if one.is_constexpr else not one.do_not_specialize) for one in kernel.params]
    # The interpreter's form of a kernel.
    left = kernel.kwargs.get("do_not_specialize") or ()
    return [
        (name, None if "constexpr" in str(one.annotation) else name not in left)
        for name, one in inspect.signature(kernel.fn).parameters.items()
    ]


def _launch(kernel: Any, grid: tuple[int, ...], constants: dict[str, Any], *args: Any) -> None:
    if interpreting():
        kernel[grid](*args, **constants)
        return
    index = args[0].device.index
    key = (index, *key_of(kernel, constants, args))
    found = _compiled.get(key)
    if found is None:
        compiled = kernel.run(*args, grid=grid, warmup=False, **constants)
        own = tuple(constants[name] for name, looks in _params(kernel) if looks is None)
        _compiled[key] = compiled.run, compiled.function, compiled.packed_metadata, own
        return
    run, function, metadata, own = found
    stream = torch._C._cuda_getCurrentRawStream(index)
    wide, tall, deep = (*grid, 1, 1)[:3]
    run(wide, tall, deep, stream, function, metadata, None, None, None, *args, *own)
