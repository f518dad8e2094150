"""The one place where a Triton kernel is launched: on the device of its first argument, in the order of its stream."""

from __future__ import annotations

from typing import Any

import torch

from kernels.device.seam import device_of


def issue(kernel: Any, grid: tuple[int, ...], first: torch.Tensor, *more: Any, **constants: Any) -> None:
    """`constants` are the kernel's, and Triton's own (num_warps, num_stages)."""
    device_of(first.device).call(kernel[grid], first, *more, **constants)
