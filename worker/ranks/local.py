"""The processes of an engine without a cluster: its own, and a child for each further rank of a tensor-parallel model.

`cluster/offline/engine.py` makes one per LLM. With one rank there is nothing but the worker. Children end with their
parent: their connections to it break.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from cluster.errors import ConfigError, WorkFailed
from cluster.settings import WorkerSettings
from kernels.device.seam import device_of
from worker.model import loading
from worker.model.startup import Say
from worker.ranks import member
from worker.ranks.team import RankPlace, lost
from worker.worker import Worker

END_S = 10.0


class Ranks:
    """The ranks of one embedded engine."""

    def __init__(self, settings: WorkerSettings, size: int) -> None:
        if size < 1:
            raise ConfigError(f"tensor_parallel_size is {size}; give 1 or more")
        self._settings = settings
        self._size = size
        self.children: list[subprocess.Popen[bytes]] = []
        self._folder = ""
        self._end: Callable[[], object] = lambda: None

    def start(
        self, say: Say = lambda line: None, *, replica: str = "local", incarnation: int = 1, node: str = ""
    ) -> Worker:
        """The worker, which is rank 0; returns when all ranks have loaded their part."""
        make = partial(Worker, replica=replica, incarnation=incarnation, node=node, say=say)
        if self._size == 1:
            return make(self._settings)
        # A card that is not there is better known now than from a child that ends.
        loading.pick_device(self._on_rank(self._size - 1).device)
        loading.check_slices(self._settings.model, self._size)
        self._folder = tempfile.mkdtemp(prefix="quire-ranks-")
        meeting = f"file://{self._folder}/meeting"
        for rank in range(1, self._size):
            self.children.append(member.spawn(self._on_rank(rank), RankPlace(rank, self._size, meeting)))
        try:
            self._await_children(meeting)
            worker = make(self._on_rank(0), place=RankPlace(0, self._size, meeting))
        except RuntimeError as error:
            _end(None, self.children, self._folder)
            raise lost(error) from error
        except BaseException:
            _end(None, self.children, self._folder)
            raise
        # Also when nobody calls `close`: at the end of the process, or when the engine is forgotten.
        self._end = weakref.finalize(self, partial(_end, worker, self.children, self._folder))
        return worker

    def _await_children(self, meeting: str) -> None:
        for rank, child in enumerate(self.children, 1):
            while not member.came_file(meeting, rank).exists():
                if child.poll() is not None:
                    detail = f"rank {rank} ended with exit code {child.returncode} while it started"
                    raise WorkFailed(f"{detail}; memory may be short, `quire doctor` says what else is wrong")
                time.sleep(0.02)

    def _on_rank(self, rank: int) -> WorkerSettings:
        """Each rank has a GPU of its own, from the one that is named on, or its part of the CPU."""
        device = loading.pick_device(self._settings.device)
        if not device_of(device).is_apart:
            return self._settings
        _, at, seed = self._settings.device.partition("@")
        return replace(self._settings, device=f"{device.type}:{(device.index or 0) + rank}{at}{seed}")

    def close(self) -> None:
        """Ends all other ranks; doing so again changes nothing."""
        self._end()


def _end(worker: Worker | None, children: list[subprocess.Popen[bytes]], folder: str) -> None:
    if worker is not None:
        worker.close()
    for child in children:
        try:
            child.wait(END_S if worker is not None else 0)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    shutil.rmtree(folder, ignore_errors=True)
