"""The CPU as a device: its memory is the host's, and what is issued is done when the call returns."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ParamSpec

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.device.contract import Event, Facts, GraphPool, Stream, release
from kernels.device.host_memory import available_bytes, lines_of

P = ParamSpec("P")
_NOTHING: AbstractContextManager[object] = contextlib.nullcontext()


class _Now:
    """A stream or an event whose work is always done."""

    def record(self, stream: Stream | None = None) -> None:
        pass

    def wait(self) -> None:
        pass

    def wait_for(self, other: Stream) -> None:
        pass


_NOW = _Now()


class HostDevice:
    """See `contract.Device`."""

    device = torch.device("cpu")
    is_apart = False
    has_graphs = False
    sums_by = "gloo"
    slack_bytes = 0

    def facts(self) -> Facts:
        # Few multiprocessors, so that small batches are split as large ones are on a GPU.
        return Facts("CPU", "interpreter", 3, 4096)

    def bind(self) -> None:
        pass

    def pinned(self, shape: int | tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    def pin(self, address: int, size: int) -> Callable[[], None] | None:
        return release

    def free_bytes(self) -> int:
        return available_bytes()

    def total_bytes(self) -> int:
        return _bytes("/proc/meminfo", "MemTotal")

    def peak_bytes(self, work: Callable[[], object]) -> int:
        gc.collect()
        before = _bytes("/proc/self/status", "VmRSS")
        try:
            # Makes the kernel count the peak anew; where that is not allowed the peak of the whole process bounds it.
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass
        work()
        return max(0, _bytes("/proc/self/status", "VmHWM") - before)

    def send(self, array: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def stream(self) -> Stream:
        return _NOW

    def current(self) -> Stream:
        return _NOW

    def steps(self) -> Stream:
        return _NOW

    def on(self, stream: Stream) -> AbstractContextManager[object]:
        return _NOTHING

    def event(self) -> Event:
        return _NOW

    def wait(self) -> None:
        pass

    def seconds_of(self, work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    def may_wait(self) -> AbstractContextManager[object]:
        return _NOTHING

    def goes_on(self, is_over: Callable[[], bool]) -> None:
        pass

    def graphs(self) -> GraphPool:
        raise NotImplementedError("a CPU has no graphs")

    def call(self, work: Callable[P, object], *args: P.args, **more: P.kwargs) -> None:
        work(*args, **more)


def _bytes(path: str, key: str) -> int:
    """A figure of the kernel's, in bytes; 0 where it has none."""
    for line in lines_of(path):
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0
