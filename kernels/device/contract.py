"""What Quire asks of a device beside torch's own operations: memory, copies, order, graphs, facts.

Every device of `seam.py` keeps this contract, and whoever uses one sees nothing else of it. It chooses no device.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

P = ParamSpec("P")
T = TypeVar("T")

# What a kernel is cut for.
Family = Literal["sm80", "sm90", "sm100", "cdna3", "interpreter"]


class Event(Protocol):
    """A place in a stream's order of work."""

    def record(self, stream: Stream | None = None) -> None:
        """Here is where the stream stands now; None: the current one."""

    def wait(self) -> None:
        """The host sleeps until the device has come so far."""


class Stream(Protocol):
    """Work of one device that is done in the order in which it was issued."""

    def wait_for(self, other: Stream) -> None:
        """What is issued here from now on begins when all that was issued there before is done."""

    def wait(self) -> None:
        """The host sleeps until all that was issued here is done."""


class Graph(Protocol):
    """Work that was issued once and is done again: with the same addresses and scalars, whatever has become of them."""

    def replay(self) -> None: ...


class GraphPool(Protocol):
    """The memory of some graphs, of which one runs at a time."""

    def capture(self, work: Callable[[], T]) -> tuple[Graph, T]:
        """Records what `work` issues, without doing it. The host can't wait in it, nor pin memory."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What kernels are cut by."""

    name: str
    family: Family  # "interpreter": there is no GPU
    num_sms: int
    cache_bytes: int  # of the last cache before memory


class Device(Protocol):
    """One device. Its methods may be called from any thread; what they issue goes to the thread's current stream."""

    @property
    def device(self) -> torch.device: ...

    @property
    def is_apart(self) -> bool:
        """Its memory is not the host's: nothing arrives without a copy, and what is issued may still be under way."""

    @property
    def has_graphs(self) -> bool: ...

    @property
    def sums_by(self) -> str:
        """What torch.distributed adds up tensors of ranks with: a backend, or one for each kind of memory."""

    def facts(self) -> Facts: ...

    def bind(self) -> None:
        """Makes it this thread's current device: what is launched or made without a device goes there."""

    # -- memory

    def pinned(self, shape: int | tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Host memory that copies can be read from and written to while the host goes on. Its content is undefined."""

    def pin(self, address: int, size: int) -> Callable[[], None] | None:
        """Pins memory that is here already; returns what lets go of it, None where that is not possible."""

    @property
    def slack_bytes(self) -> int:
        """What an allocator may hold beyond what it was asked for, of small parts: for ordinary memory, and once more
        for that of graphs."""

    def free_bytes(self) -> int:
        """What can still be allocated at once, after everything unused was given back."""

    def total_bytes(self) -> int: ...

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """What `work` takes at its highest beyond what is held before it."""

    # -- copies

    def send(self, array: NDArray[np.generic]) -> torch.Tensor:
        """The array on the device, in the order of the current stream. The host may change it at once, but for the
        CPU, where nothing is copied."""

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on its way to the host: whole once an event that is recorded behind this has come."""

    # -- order

    def stream(self) -> Stream:
        """A new one, beside all others."""

    def current(self) -> Stream:
        """The one that this thread issues to."""

    def steps(self) -> Stream:
        """The one that threads issue to which have chosen none."""

    def on(self, stream: Stream) -> AbstractContextManager[object]:
        """Within it this thread issues to `stream`."""

    def event(self) -> Event: ...

    def wait(self) -> None:
        """The host sleeps until all that was issued is done."""

    def seconds_of(self, work: Callable[[], object]) -> float:
        """How long the device is at what `work` issues, by its own clock; the host waits for it. For benchmarks."""

    def may_wait(self) -> AbstractContextManager[object]:
        """Within it a tensor may be read on the host as if it lay there, which waits for the device: while a worker
        starts, and in checks. The twin allows it nowhere else."""

    def goes_on(self, is_over: Callable[[], bool]) -> None:
        """Called where this thread waits for what is not the device: the twin does its work meanwhile, until `is_over`.
        Any other device needs nobody for that, and the call returns at once."""

    def graphs(self) -> GraphPool: ...

    # -- work that is not torch's

    def call(self, work: Callable[P, object], *args: P.args, **more: P.kwargs) -> None:
        """Calls it in the order of the current stream, with what the device holds for each tensor among the arguments
        (in lists, tuples and dataclasses too). Whatever writes to memory without being an operation of torch goes
        through here: kernels, collectives, the reference's ops."""


def release(*_: Any) -> None:
    """What lets go of memory that was never pinned."""
