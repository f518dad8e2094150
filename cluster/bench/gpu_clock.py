"""Times what runs on a GPU: the device's own clock around replays of a captured graph, caches emptied before, medians.

Candidates take turns, so that a slow spell hits each alike. On the twin, with kernels in Triton's interpreter, all but
the figures is tried without a GPU: captures, replays, waits. It knows nothing of what it times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

from kernels.device.seam import device_of
from kernels.gpu.read import read

Work = Callable[[], object]

GIB = 1 << 30


@dataclass(frozen=True)
class Ceilings:
    """What the device can do at most, measured: bytes per second read and copied (read plus written), bf16 FLOP/s."""

    read: float
    copy: float
    matmul: float


class DeviceClock:
    """Times work on one device. `budget_s` is spent per comparison, after warming up."""

    def __init__(self, device: torch.device, *, budget_s: float = 0.4, max_rounds: int = 50) -> None:
        self.device, self.seam = device, device_of(device)
        facts = self.seam.facts()
        # Elsewhere figures mean nothing, and one round is enough.
        self.is_real = facts.family != "interpreter"
        self.num_sms = facts.num_sms
        self._budget_s, self._max_rounds = budget_s, max_rounds if self.is_real else 1
        # Read, not written: lines that must go back to memory would cost what is timed next.
        self._flood = torch.zeros(4 * facts.cache_bytes // 4, dtype=torch.int32, device=device)

    def compare(self, candidates: Mapping[str, Work], *, capture: bool = True) -> dict[str, float]:
        """The median seconds of one call of each candidate; captured into a graph where that is possible."""
        runs = {name: self._captured(work) if capture else work for name, work in candidates.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        if self.is_real:
            for run in runs.values():
                run()
        self.seam.wait()
        ends_at = time.perf_counter() + self._budget_s * len(runs)
        for number in range(self._max_rounds):
            for name, run in runs.items():
                times[name].append(self._once(run))
            if number >= 4 and time.perf_counter() >= ends_at:
                break
        return {name: median(values) for name, values in times.items()}

    def seconds(self, work: Work, *, capture: bool = True) -> float:
        return self.compare({"": work}, capture=capture)[""]

    def _once(self, run: Work) -> float:
        if self.is_real:
            read(self._flood, self.num_sms)
            read(self._flood, self.num_sms)
        return self.seam.seconds_of(run)

    def _captured(self, work: Work) -> Work:
        """A replay of `work`, so that launching it costs the host nothing; `work` itself if it cannot be captured."""
        if not self.seam.has_graphs:
            return work
        # What is compiled or set up at the first call is no part of it.
        work()
        self.seam.wait()
        try:
            graph, made = self.seam.graphs().capture(work)
        except RuntimeError:
            self.seam.wait()
            return work

        def replay() -> object:
            graph.replay()
            return made

        return replay

    def ceilings(self) -> Ceilings:
        """Measures the device itself, on memory that no cache holds."""
        words = GIB if self.is_real else 1 << 14
        source = torch.randint(0, 1 << 10, (words,), dtype=torch.int32, device=self.device)
        target = torch.empty_like(source)
        size = 4096 if self.is_real else 32
        dtype = torch.bfloat16 if self.is_real else torch.float32
        a, b = (torch.randn((2 * size, 2 * size), device=self.device).to(dtype) for _ in range(2))
        if int(read(source, self.num_sms).sum(dtype=torch.int64)) != int(source.sum(dtype=torch.int64)):
            raise RuntimeError("the kernel that measures reading did not read everything")
        took = self.compare(
            {
                "read": lambda: read(source, self.num_sms),
                "copy": lambda: target.copy_(source),
                "matmul": lambda: torch.mm(a, b),
            }
        )
        size_bytes = source.numel() * 4
        return Ceilings(
            size_bytes / took["read"], 2 * size_bytes / took["copy"], 2.0 * (2 * size) ** 3 / took["matmul"]
        )
