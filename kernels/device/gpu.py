"""CUDA and HIP behind the seam, by way of torch's own streams, events, graphs and allocators."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.device.contract import Event, Facts, Family, Graph, GraphPool, Stream

P = ParamSpec("P")
T = TypeVar("T")

_NOTHING: AbstractContextManager[object] = contextlib.nullcontext()
_PORTABLE = 1  # of cudaHostRegister: pinned for every device of this process


class GpuStream:
    """See `contract.Stream`."""

    def __init__(self, own: torch.cuda.Stream) -> None:
        self.own = own

    def wait_for(self, other: Stream) -> None:
        assert isinstance(other, GpuStream)
        self.own.wait_stream(other.own)

    def wait(self) -> None:
        self.own.synchronize()


class GpuEvent:
    """See `contract.Event`. Whoever waits for it sleeps instead of spinning."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._own = torch.cuda.Event(blocking=True)

    def record(self, stream: Stream | None = None) -> None:
        assert stream is None or isinstance(stream, GpuStream)
        self._own.record(torch.cuda.current_stream(self._device) if stream is None else stream.own)

    def wait(self) -> None:
        self._own.synchronize()


class GpuGraphPool:
    """See `contract.GraphPool`. Captures of a device are made on one stream: for each stream that products run on their
    library keeps a workspace for good, on Hopper of 32 MiB."""

    def __init__(self, device: torch.device, stream: torch.cuda.Stream) -> None:
        self._device = device
        self._stream = stream
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()

    def capture(self, work: Callable[[], T]) -> tuple[Graph, T]:
        graph = torch.cuda.CUDAGraph()
        # Other threads go on, those of a collective's watch among them: what they do is no part of it.
        way = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        # A capture that fails leaves its stream as the current one; the middle one of these puts that right.
        here = torch.cuda.stream(torch.cuda.current_stream(self._device))
        with torch.cuda.device(self._device), here, way:
            made = work()
        return graph, made


class GpuDevice:
    """See `contract.Device`."""

    is_apart = True
    has_graphs = True
    sums_by = "cpu:gloo,cuda:nccl"
    # Torch's allocator takes small parts in segments of 2 MiB, middling ones in segments of 20 MiB.
    slack_bytes = 22 << 20

    def __init__(self, device: torch.device) -> None:
        self.device = torch.device("cuda", device.index or 0)
        self._captures: torch.cuda.Stream | None = None

    def facts(self) -> Facts:
        properties = torch.cuda.get_device_properties(self.device)
        family: Family = "sm80" if properties.major < 9 else "sm90" if properties.major == 9 else "sm100"
        if torch.version.hip is not None:
            family = "cdna3"
        return Facts(properties.name, family, properties.multi_processor_count, properties.L2_cache_size)

    def bind(self) -> None:
        torch.cuda.set_device(self.device)

    def pinned(self, shape: int | tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def pin(self, address: int, size: int) -> Callable[[], None] | None:
        try:
            runtime = torch.cuda.cudart()
            if int(runtime.cudaHostRegister(address, size, _PORTABLE)) != 0:
                self._forget_error()
                return None
        except (RuntimeError, AttributeError, AssertionError):
            return None
        return lambda: runtime.cudaHostUnregister(address)

    def _forget_error(self) -> None:
        """What the runtime was asked for by itself and refused it would tell the next launch of this thread as its own
        failure."""
        with contextlib.suppress(RuntimeError):
            torch.empty(1, device=self.device).zero_()

    def free_bytes(self) -> int:
        """What the driver says: memory that torch's allocator holds and can't give back has holes, into which a large
        allocation does not fit."""
        gc.collect()
        with torch.cuda.device(self.device):
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.device)[0])

    def total_bytes(self) -> int:
        return int(torch.cuda.mem_get_info(self.device)[1])

    def peak_bytes(self, work: Callable[[], object]) -> int:
        gc.collect()
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device) - before

    def send(self, array: NDArray[np.generic]) -> torch.Tensor:
        # From pinned memory, which torch keeps until the copy is done, the host goes on at once.
        host = torch.from_numpy(np.ascontiguousarray(array)).pin_memory()
        return host.to(self.device, non_blocking=True)

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.pinned(tuple(tensor.shape), tensor.dtype).copy_(tensor, non_blocking=True)

    def stream(self) -> Stream:
        return GpuStream(torch.cuda.Stream(self.device))

    def current(self) -> Stream:
        return GpuStream(torch.cuda.current_stream(self.device))

    def steps(self) -> Stream:
        return GpuStream(torch.cuda.default_stream(self.device))

    def on(self, stream: Stream) -> AbstractContextManager[object]:
        assert isinstance(stream, GpuStream)
        return torch.cuda.stream(stream.own)

    def event(self) -> Event:
        return GpuEvent(self.device)

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)

    def seconds_of(self, work: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        stream = torch.cuda.current_stream(self.device)
        begin.record(stream)
        work()
        end.record(stream)
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000.0

    def may_wait(self) -> AbstractContextManager[object]:
        return _NOTHING

    def goes_on(self, is_over: Callable[[], bool]) -> None:
        pass

    def graphs(self) -> GraphPool:
        if self._captures is None:
            self._captures = torch.cuda.Stream(self.device)
        return GpuGraphPool(self.device, self._captures)

    def call(self, work: Callable[P, object], *args: P.args, **more: P.kwargs) -> None:
        work(*args, **more)
