"""Memory of the twin: where it lies, what it is filled with when nobody owns it, and how much there is.

Memory is filled with POISON when it is made and when its owner lets go of it, in the order of the stream that it was
made on: that is when an allocator may give it to the next owner. Poison is not a number in every floating type and no
index of anything in every integer type. Segments are those of torch's allocator, so that what is lost in holes is lost
here as well.
"""

from __future__ import annotations

import bisect
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.device.twin.order import TwinStream

POISON = 0x7FFF
_GRAIN = 64
_PAGE = 4096
# torch's allocator: small blocks share a segment, middling ones a larger one, each of the others has its own.
SMALL_BYTES, SMALL_SEGMENT = 1 << 20, 2 << 20
MIDDLE_BYTES, MIDDLE_SEGMENT = 10 << 20, 20 << 20
_ROUND = 2 << 20


class OutOfMemory(torch.OutOfMemoryError):
    """The twin's card is full."""


def poison(base: torch.Tensor) -> None:
    """base: int16, all of an allocation."""
    base.fill_(POISON)


class GraphMemory:
    """What belongs to the graphs of one pool: nothing else is put there, and a graph that runs may write to all that
    was made after it."""

    def __init__(self) -> None:
        self.num_captures = 0
        self.made: list[tuple[int, weakref.ref[Memory]]] = []

    def behind(self, capture: int) -> list[torch.Tensor]:
        """What lives yet of the captures after this one."""
        self.made = [(number, memory) for number, memory in self.made if memory() is not None]
        found = [memory() for number, memory in self.made if number > capture]
        return [memory.base for memory in found if memory is not None]


class Memory:
    """One allocation. Whoever holds a tensor of it holds this."""

    __slots__ = ("__weakref__", "base", "heap", "place", "pool", "stream")

    def __init__(self, heap: Heap, stream: TwinStream, size: int, pool: GraphMemory | None) -> None:
        self.heap = heap
        self.stream = stream
        self.pool = pool
        self.place: Place | None = None
        self.base = torch.empty(-(-max(size, 1) // _GRAIN) * _GRAIN // 2, dtype=torch.int16)
        poison(self.base)
        self.place = heap.take(size, pool)
        if pool is not None:
            pool.made.append((pool.num_captures, weakref.ref(self)))

    def __del__(self) -> None:
        # Whatever thread this is, and in the middle of whatever: the next to issue does the rest.
        if self.place is not None:
            self.heap.let_go.append((self.base, self.stream, self.place, self.pool))


class _Segment:
    __slots__ = ("free", "pool", "size")

    def __init__(self, size: int, pool: GraphMemory | None) -> None:
        self.size = size
        self.pool = None if pool is None else weakref.ref(pool)
        # Gaps as (start, end), in order.
        self.free = [(0, size)]

    def is_of(self, pool: GraphMemory | None) -> bool:
        return self.pool is None if pool is None else self.pool is not None and self.pool() is pool

    @property
    def is_idle(self) -> bool:
        lives = self.pool is not None and self.pool() is not None
        return not lives and self.free == [(0, self.size)]


Place = tuple[_Segment, int, int]
LetGo = tuple[torch.Tensor, TwinStream, Place, "GraphMemory | None"]


class Heap:
    """The memory of one card. `total` None: as much as anybody asks for."""

    def __init__(self, total: int | None = None) -> None:
        self.total = total
        self.num_reserved = self.num_held = self.most_held = 0
        self.let_go: deque[LetGo] = deque()
        self._segments: list[_Segment] = []

    @property
    def num_free(self) -> int:
        """What the driver has, less what the allocator keeps."""
        return (1 << 40 if self.total is None else self.total) - self.num_reserved

    def take(self, size: int, pool: GraphMemory | None) -> Place:
        size = -(-max(size, 1) // 512) * 512
        place = self._fit(size, pool) or self._reserve(size, pool)
        self.num_held += size
        self.most_held = max(self.most_held, self.num_held)
        return place

    def _fit(self, size: int, pool: GraphMemory | None) -> Place | None:
        for segment in self._segments:
            # Small ones never go where large ones lie, nor the other way round.
            if (segment.size == SMALL_SEGMENT) != (size <= SMALL_BYTES) or not segment.is_of(pool):
                continue
            if size > MIDDLE_BYTES and segment.size == MIDDLE_SEGMENT:
                continue
            for number, (start, end) in enumerate(segment.free):
                if end - start >= size:
                    segment.free[number : number + 1] = [(start + size, end)] if end - start > size else []
                    return segment, start, start + size
        return None

    def _reserve(self, size: int, pool: GraphMemory | None) -> Place:
        if size <= SMALL_BYTES:
            length = SMALL_SEGMENT
        elif size < MIDDLE_BYTES:
            length = MIDDLE_SEGMENT
        else:
            length = -(-size // _ROUND) * _ROUND
        if length > self.num_free:
            self.trim()
        if length > self.num_free:
            held, total = self.num_held, self.total
            raise OutOfMemory(f"the twin's card of {total:,} bytes holds {held:,} and can't give {size:,} in one run")
        segment = _Segment(length, pool)
        self._segments.append(segment)
        self.num_reserved += length
        segment.free = [(size, length)] if size < length else []
        return segment, 0, size

    def give_back(self, place: Place) -> None:
        segment, start, end = place
        self.num_held -= end - start
        bisect.insort(segment.free, (start, end))
        merged: list[tuple[int, int]] = []
        for first, last in segment.free:
            if merged and merged[-1][1] == first:
                merged[-1] = merged[-1][0], last
            else:
                merged.append((first, last))
        segment.free = merged

    def hold(self, size: int) -> None:
        """The driver takes some for itself, or gives it back where `size` is negative."""
        if size > self.num_free:
            self.trim()
        if size > self.num_free:
            raise OutOfMemory(f"the twin's card of {self.total:,} bytes has no {size:,} for its driver")
        self.num_reserved += size

    def trim(self) -> None:
        """Segments in which nothing lies go back to the driver."""
        idle = [segment for segment in self._segments if segment.is_idle]
        self._segments = [segment for segment in self._segments if not segment.is_idle]
        self.num_reserved -= sum(segment.size for segment in idle)


class PinnedMemory:
    """Which host memory is pinned, by address."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._starts: list[int] = []
        self._ends: list[int] = []
        # What is pinned no more. A finaliser says so, whatever thread this is, and in the middle of whatever.
        self._let_go: deque[int] = deque()

    @contextmanager
    def _account(self) -> Iterator[None]:
        with self._lock:
            self._tidy()
            yield

    def _tidy(self) -> None:
        while self._let_go:
            address = self._let_go.popleft()
            at = bisect.bisect_left(self._starts, address)
            assert self._starts[at] == address, "this memory is not pinned"
            del self._starts[at], self._ends[at]

    def add(self, address: int, size: int) -> None:
        with self._account():
            at = bisect.bisect(self._starts, address)
            self._starts.insert(at, address)
            self._ends.insert(at, address + size)

    def shares_a_page(self, address: int, size: int) -> bool:
        """Whether any page of these bytes is pinned already: the system pins whole pages, each once."""
        first, end = address // _PAGE * _PAGE, -(-(address + size) // _PAGE) * _PAGE
        with self._account():
            at = bisect.bisect_left(self._starts, end)
            return at > 0 and self._ends[at - 1] > first

    def remove(self, address: int) -> None:
        self._let_go.append(address)

    @property
    def num_bytes(self) -> int:
        with self._account():
            return sum(self._ends) - sum(self._starts)

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether all of a host tensor is pinned."""
        if not tensor.numel():
            return True
        first = tensor.data_ptr()
        # Dense in what the caller copies.
        last = first + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        with self._account():
            at = bisect.bisect(self._starts, first) - 1
            return at >= 0 and last < self._ends[at]


class _PinnedArray(np.ndarray[Any, Any]):
    """Host memory that is pinned as long as it lives. Views of it know nothing of that, but keep it alive."""

    _lets_go: Callable[[], None] | None = None

    def __del__(self) -> None:
        if self._lets_go is not None:
            self._lets_go()


def pinned_array(pinned: PinnedMemory, size: int) -> NDArray[np.int16]:
    """int16, of at least so many bytes, full of poison."""
    made = np.full(-(-max(size, 1) // _GRAIN) * _GRAIN // 2, POISON, np.int16).view(_PinnedArray)
    address = made.ctypes.data
    pinned.add(address, made.nbytes)
    made._lets_go = lambda: pinned.remove(address)
    return made
