"""The twin behind the seam, and its registration with torch, where it is a device of its own name."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.device.contract import Event, Facts, Graph, GraphPool, Stream
from kernels.device.host_memory import available_bytes
from kernels.device.twin import tensors
from kernels.device.twin.card import CHOSEN, ORDER, PINNED, Card
from kernels.device.twin.memory import MIDDLE_SEGMENT, SMALL_SEGMENT, GraphMemory, pinned_array, poison
from kernels.device.twin.order import OrderFault, TwinEvent, TwinStream
from kernels.device.twin.tensors import NAME, card, card_of, raw

P = ParamSpec("P")
T = TypeVar("T")

__all__ = ["NAME", "ORDER", "OrderFault", "TwinDevice", "card", "open_twin"]

# What a driver keeps of a graph, and of each launch in it.
GRAPH_BYTES, NODE_BYTES = 64 << 10, 2 << 10
# What ways between cards take of the driver's memory, for each kind of collective from its first use on.
WAYS_BYTES = 8 << 20

_libraries: list[Any] = []


def open_twin(index: int, seed: str = "") -> torch.device:
    """Card `index`; `seed` chooses a schedule for all cards of the process, none leaves it as it is."""
    if seed and not seed.isdecimal():
        raise ValueError(f"the seed of a twin is a number, got {seed!r}")
    _register()
    if seed:
        ORDER.schedule(int(seed))
    return torch.device(NAME, index)


def _register() -> None:
    if _libraries:
        return
    # It is no public function of torch, and the only way to a device that needs no C++.
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as set_up

    set_up(NAME, backend_module=_Module())
    every = torch.library.Library("_", "IMPL")
    every.fallback(tensors.make, "PrivateUse1")
    some = torch.library.Library("aten", "IMPL")
    some.impl("arange.start_step", tensors.arange, "PrivateUse1")
    some.impl("arange.start", tensors.arange, "PrivateUse1")
    some.impl("copy_", tensors.fill, "PrivateUse1")
    some.impl("arange", lambda end, **more: tensors.arange(0, end, **more), "PrivateUse1")
    _libraries.extend((every, some))


class _Module:
    """What torch asks of a device's module."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return CHOSEN.card

    def device_count(self) -> int:
        return 8

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]


class TwinGraph:
    """See `contract.Graph`: a tape of calls, with the memory and the numbers that they were issued with."""

    def __init__(self, card: Card, pool: GraphMemory, tape: list[Callable[[], object]]) -> None:
        self._card = card
        self._pool = pool
        self._number = pool.num_captures
        self._tape = tape
        kept = GRAPH_BYTES + NODE_BYTES * len(tape)
        card.heap.hold(kept)
        weakref.finalize(self, card.heap.hold, -kept)

    def replay(self) -> None:
        with ORDER.lock:
            self._card.tidy()
            stream = self._card.stream
            if stream.tape is not None:
                raise OrderFault("a graph was replayed inside a capture")
            ORDER.num_launches += 1
            for base in self._pool.behind(self._number):
                stream.issue(_spoiling(base))
            for work in self._tape:
                stream.issue(work)


def _spoiling(base: torch.Tensor) -> Callable[[], None]:
    return lambda: poison(base)


class TwinGraphPool:
    """See `contract.GraphPool`."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._memory = GraphMemory()
        self._stream = TwinStream(ORDER, card.index)

    def capture(self, work: Callable[[], T]) -> tuple[Graph, T]:
        made: list[T] = []
        tape = self._card.capture(self._memory, self._stream, lambda: made.append(work()))
        return TwinGraph(self._card, self._memory, tape), made[0]


class TwinDevice:
    """See `contract.Device`."""

    is_apart = True
    has_graphs = True
    sums_by = "gloo"
    slack_bytes = SMALL_SEGMENT + MIDDLE_SEGMENT

    def __init__(self, device: torch.device) -> None:
        # Kinds of collectives that were used.
        self.ways: set[str] = set()
        _register()
        self._card = card(device.index or 0)
        self.device = torch.device(NAME, self._card.index)

    def facts(self) -> Facts:
        return Facts(f"{NAME} {self._card.index}", "interpreter", 3, 4096)

    def bind(self) -> None:
        CHOSEN.card = self._card.index

    def pinned(self, shape: int | tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        with ORDER.lock:
            if self._card.stream.tape is not None:
                raise OrderFault("host memory was pinned inside a capture")
        shape = (shape,) if isinstance(shape, int) else shape
        count = int(np.prod(shape, dtype=np.int64))
        with torch.inference_mode(False):
            memory = torch.from_numpy(pinned_array(PINNED, count * dtype.itemsize))
            return memory.view(dtype)[:count].view(shape)

    def pin(self, address: int, size: int) -> Callable[[], None] | None:
        if PINNED.shares_a_page(address, size):
            return None
        PINNED.add(address, size)
        return lambda: PINNED.remove(address)

    def free_bytes(self) -> int:
        gc.collect()
        with ORDER.lock:
            self._card.steps.wait()
            self._card.tidy()
            self._card.heap.trim()
            return min(self._card.heap.num_free, available_bytes())

    def total_bytes(self) -> int:
        total = self._card.heap.total
        return available_bytes() if total is None else total

    def peak_bytes(self, work: Callable[[], object]) -> int:
        gc.collect()
        self.wait()
        with ORDER.lock:
            heap = self._card.heap
            self._card.tidy()
            before = heap.most_held = heap.num_held
        work()
        self.wait()
        return heap.most_held - before

    def send(self, array: NDArray[np.generic]) -> torch.Tensor:
        host = torch.from_numpy(np.ascontiguousarray(array))
        staged = self.pinned(tuple(host.shape), host.dtype).copy_(host)
        return staged.to(self.device, non_blocking=True)

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.pinned(tuple(tensor.shape), tensor.dtype).copy_(tensor, non_blocking=True)

    def stream(self) -> Stream:
        return TwinStream(ORDER, self._card.index)

    def current(self) -> Stream:
        return self._card.stream

    def steps(self) -> Stream:
        return self._card.steps

    def on(self, stream: Stream) -> AbstractContextManager[object]:
        assert isinstance(stream, TwinStream)
        return self._card.on(stream)

    def event(self) -> Event:
        return TwinEvent(lambda: self._card.stream)

    def wait(self) -> None:
        with ORDER.lock:
            self._card.steps.host_waits()
            ORDER.finish(self._card.index)

    def seconds_of(self, work: Callable[[], object]) -> float:
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    @contextmanager
    def may_wait(self) -> Iterator[None]:
        CHOSEN.may_wait += 1
        try:
            yield
        finally:
            CHOSEN.may_wait -= 1

    def goes_on(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            with ORDER.lock:
                if ORDER.busy:
                    stream = ORDER.busy[0]
                    stream.reach(stream.num_done + 1)
                    continue
            time.sleep(0.0002)

    def graphs(self) -> GraphPool:
        return TwinGraphPool(self._card)

    def call(self, work: Callable[P, object], *args: P.args, **more: P.kwargs) -> None:
        found = card_of(work, args, more)
        if found.index != CHOSEN.card:
            raise OrderFault(f"{work} was launched on card {CHOSEN.card} with memory of card {found.index}")
        name = getattr(work, "__name__", "")
        if getattr(work, "__module__", "").startswith("torch.distributed") and name not in self.ways:
            found.heap.hold(WAYS_BYTES)
            self.ways.add(name)
        plain: Any = raw(list(args))
        named: Any = {name: raw(value) for name, value in more.items()}
        found.issue(lambda: work(*plain, **named))
