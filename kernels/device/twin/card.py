"""One card of the twin: its memory, its streams, and what each thread has chosen to issue to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from kernels.device.twin.memory import GraphMemory, Heap, Memory, PinnedMemory, poison
from kernels.device.twin.order import Order, OrderFault, TwinStream

# One of each in a process: every card is as late as the same dice say.
ORDER = Order()
PINNED = PinnedMemory()


class _Chosen(threading.local):
    card = 0
    may_wait = 0


class _ChosenStream(threading.local):
    stream: TwinStream | None = None


CHOSEN = _Chosen()


class Card:
    """Card `index`. Whoever issues holds the order's lock."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.heap = Heap()
        self.steps = TwinStream(ORDER, index)
        self._chosen = _ChosenStream()
        # Where memory lies that is asked for in a capture.
        self._captured: GraphMemory | None = None

    @property
    def stream(self) -> TwinStream:
        """What this thread issues to."""
        return self._chosen.stream or self.steps

    @contextmanager
    def on(self, stream: TwinStream) -> Iterator[None]:
        if stream.index != self.index:
            raise OrderFault(f"a stream of card {stream.index} was chosen on card {self.index}")
        before, self._chosen.stream = self._chosen.stream, stream
        try:
            yield
        finally:
            self._chosen.stream = before

    def allocate(
        self, shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype
    ) -> tuple[torch.Tensor, Memory]:
        """New memory full of poison, seen as a tensor."""
        last = sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if 0 not in shape else -1
        with ORDER.lock:
            self.tidy()
            stream = self.stream
            pool = self._captured if ORDER.capturing is stream else None
            memory = Memory(self.heap, stream, (last + 1) * dtype.itemsize, pool)
        return memory.base.view(dtype).as_strided(shape, stride), memory

    def issue(self, work: Callable[[], object]) -> None:
        """Work for this thread's stream, one launch."""
        with ORDER.lock:
            self.tidy()
            stream = self.stream
            if stream.tape is None:
                ORDER.num_launches += 1
            stream.issue(work)

    def tidy(self) -> None:
        """What was let go of is free for the next owner, in the order of the stream that it was made on."""
        let_go = self.heap.let_go
        while let_go:
            base, stream, place, pool = let_go.popleft()
            self.heap.give_back(place)

            def spoil(base: torch.Tensor = base) -> None:
                poison(base)

            # What a graph lets go of in the middle of its work, the same work may use again.
            stream.issue(spoil, is_taped=pool is not None)

    def ask(self, what: str) -> None:
        """The host needs to know what the device has computed, now."""
        stream = self.stream
        if not CHOSEN.may_wait and stream.pending:
            raise OrderFault(f"{what} makes the host wait for the device in the middle of its work")
        stream.wait()

    def capture(self, pool: GraphMemory, stream: TwinStream, work: Callable[[], object]) -> list[Callable[[], object]]:
        """What `work` issues, which is not done."""
        with ORDER.lock:
            self.tidy()
            if ORDER.capturing is not None:
                raise OrderFault("a capture was begun inside another")
            self.steps.wait()
            pool.num_captures += 1
            tape: list[Callable[[], object]] = []
            stream.tape, self._captured, ORDER.capturing = tape, pool, stream
            try:
                with self.on(stream):
                    work()
                self.tidy()
            finally:
                stream.tape = self._captured = ORDER.capturing = None
            return tape
