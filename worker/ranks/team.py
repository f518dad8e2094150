"""The ranks of one tensor-parallel replica: how they find each other, and what rank 0 tells the others.

Rank 0 is the Worker and decides; every other rank is a member (`worker/ranks/member.py`) that does the same to its own
slice of the weights and its own heads of the same blocks. Words are arrays of integers over `torch.distributed` (gloo;
the sums inside a step go over NCCL on GPUs): no pickle. A rank that dies breaks its connections, so that the others
learn of it at their next word or sum.
"""

from __future__ import annotations

import os
import socket
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from cluster.errors import ConfigError, WorkFailed
from kernels.device.seam import device_of

Words = NDArray[np.int64]

# What rank 0 says. Each is followed by arrays whose meaning the two ends know.
END, STEP, COPY, CLEAR, MOVE = range(5)

# Torch has given it a name that older ones do not know.
_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

# A word of up to this many integers goes out in one piece: a step of 256 decodes has about 2,000.
_HEAD = 4096
# A rank that computes makes the others wait, also while it compiles; one that waits for work does so for ever.
_COMPUTE_LIMIT = timedelta(minutes=10)
_IDLE_LIMIT = timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class RankPlace:
    """Which rank of how many, and where they meet: file:///PATH on one machine (a path that does not exist yet), or
    tcp://HOST:PORT where rank 0 listens, for a network that only the cluster can reach."""

    rank: int
    size: int
    meeting: str

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ConfigError(f"rank is {self.rank} of {self.size}; give 0 to {self.size - 1}")
        if not self.meeting.startswith(("file:///", "tcp://")):
            raise ConfigError(f"the ranks' meeting place is {self.meeting!r}; give file:///PATH or tcp://HOST:PORT")


class Team:
    """This process among its ranks. One per process: torch.distributed has one world."""

    def __init__(self, place: RankPlace, device: torch.device) -> None:
        """Returns when all ranks have come."""
        self.rank, self.size = place.rank, place.size
        if dist.is_initialized():
            raise ConfigError("this process is a rank of another tensor-parallel replica; close that one first")
        if place.meeting.startswith("file:"):
            _stay_on_this_machine()
        seam = device_of(device)
        if seam.is_apart:
            seam.bind()
        try:
            dist.init_process_group(
                seam.sums_by,
                init_method=place.meeting,
                rank=place.rank,
                world_size=place.size,
                timeout=_COMPUTE_LIMIT,
            )
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"rank {place.rank} of {place.size} met nobody at {place.meeting}: {error}") from error
        self._seam = seam
        self._words: Any = dist.new_group(backend="gloo", timeout=_IDLE_LIMIT)
        self._head = torch.zeros(_HEAD, dtype=torch.int64)
        # Words that rank 0 has begun to say.
        self.num_said = 0
        # Ranks that meet in a file see the same memory.
        self.shares_memory = place.meeting.startswith("file:")
        if seam.is_apart:
            # Ways between cards take memory of the driver when they are first used: now, not when the pool has it all.
            one = torch.zeros(1, 1, device=device)
            self.sum(one)
            self.gather(one)
            self.share(one)
            seam.wait()
        # Graphs with sums in them. A communicator of NCCL's that is to end waits for them, for ever.
        self.recorded: weakref.WeakSet[object] = weakref.WeakSet()

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def say(self, kind: int, *parts: Sequence[int] | NDArray[Any]) -> None:
        """Rank 0 tells all others. WorkFailed when one of them is gone."""
        assert self.leads
        self.num_said += 1
        arrays = [np.asarray(part, np.int64).reshape(-1) for part in parts]
        flat = np.concatenate([np.array([kind, len(arrays), *map(len, arrays)], np.int64), *arrays])
        rest = max(0, len(flat) + 1 - _HEAD)
        head = self._head.numpy()
        head[0] = rest
        head[1 : 1 + len(flat) - rest] = flat[: len(flat) - rest]
        try:
            self._broadcast(self._head)
            if rest:
                self._broadcast(torch.from_numpy(flat[len(flat) - rest :].copy()))
        except RuntimeError as error:
            raise lost(error) from error

    def hear(self) -> tuple[int, list[Words]]:
        """Any other rank waits for the next word. RuntimeError when rank 0 is gone (`is_broken`)."""
        assert not self.leads
        self._broadcast(self._head)
        flat = self._head.numpy()[1:].copy()
        rest = int(self._head[0])
        if rest:
            more = torch.zeros(rest, dtype=torch.int64)
            self._broadcast(more)
            flat = np.concatenate([flat, more.numpy()])
        kind, count = int(flat[0]), int(flat[1])
        ends = 2 + count + np.cumsum(flat[2 : 2 + count])
        return kind, np.split(flat[: int(ends[-1]) if count else 2], [2 + count, *ends[:-1]])[1:] if count else []

    def _broadcast(self, words: torch.Tensor) -> None:
        under_way: Any = dist.broadcast(words, 0, group=self._words, async_op=True)
        self._seam.goes_on(under_way.is_completed)
        under_way.wait()

    def sum(self, tensor: torch.Tensor) -> None:
        """Each rank's tensor becomes the sum of all, in the order of the device's work."""
        device_of(tensor.device).call(dist.all_reduce, tensor)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The last dimensions of all ranks' tensors, which look alike, one behind the other."""
        rows = tensor.flatten(0, -2)
        found = rows.new_empty(self.size * rows.shape[0], rows.shape[1])
        if rows.shape[0]:
            device_of(tensor.device).call(_gather, found, rows)
        joined = found.view(self.size, *rows.shape).transpose(0, 1)
        return joined.reshape(*tensor.shape[:-1], self.size * rows.shape[1])

    def share(self, tensor: torch.Tensor) -> None:
        """Rank 0's tensor comes into that of every other rank, in the order of the device's work."""
        device_of(tensor.device).call(dist.broadcast, tensor, 0)

    def least(self, number: int) -> int:
        """The smallest of all ranks' numbers; every rank asks at the same point."""
        found = torch.tensor([number], dtype=torch.int64)
        under_way: Any = dist.all_reduce(found, op=dist.ReduceOp.MIN, group=self._words, async_op=True)
        self._seam.goes_on(under_way.is_completed)
        under_way.wait()
        return int(found)

    def most(self, number: int) -> int:
        return -self.least(-number)

    def close(self) -> None:
        """Leaves the world; rank 0 first tells the others to go."""
        if not dist.is_initialized():
            return
        assert not self.recorded, "graphs that add up over the ranks are to go before the ranks part"
        if self.leads:
            try:
                # What they have begun they end together.
                self._seam.wait()
                self.say(END)
            except (RuntimeError, WorkFailed):
                # They are gone already.
                pass
        dist.destroy_process_group()


def is_broken(error: BaseException) -> bool:
    """A word or a sum did not come through, because another rank is gone."""
    return isinstance(error, RuntimeError) and "onnection" in str(error) and "peer" in str(error)


def lost(error: RuntimeError) -> WorkFailed:
    """What a broken word or sum means."""
    why = " ".join(str(error).split()).partition(" This is")[0]
    return WorkFailed(f"a rank is lost, and with it the replica ({why}); start it again")


def _stay_on_this_machine() -> None:
    """Ranks that meet in a file talk over the loopback device only."""
    names = {name for _, name in socket.if_nameindex()}
    for name in ("lo", "lo0"):
        if name in names and sys.platform != "win32":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            return
