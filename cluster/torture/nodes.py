"""A Ray of several nodes on this machine for a torture, whose raylets can be killed and started again.

`quire up` joins it as it would join somebody else's. The first node is the head, where the doors and the scheduler are;
it is never killed here. Each has as many CPUs as its workers need, so that workers spread over them.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

from cluster.errors import Unavailable
from cluster.lifecycle import ray_head
from cluster.lifecycle.ports import free_port

JOIN_S = 120.0


class RayNodes:
    """Use it in a `with`: at its end all its processes are gone."""

    def __init__(self, num: int, cpus: int) -> None:
        self.token = secrets.token_hex(32)
        self.folder = ray_head.new_folder()
        self._num = num
        self._cpus = cpus
        self._head = ray_head.HeadStart(self.folder, free_port(), cpus, self.token)
        self.address = self._head.address
        self._first = 0

    def __enter__(self) -> RayNodes:
        try:
            self._head.wait()
            (self._first,) = self.raylets()
            self.fill()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._head.abandon()
        left = ray_head.end(self.folder)
        assert not left, f"processes {left} of the Ray at {self.folder} are left"

    def raylets(self) -> list[int]:
        """Of all nodes that are there."""
        pids = ray_head.processes_of(self.folder)
        return [pid for pid in pids if ray_head.alive(pid) and ray_head.name_of(pid) == "raylet"]

    def others(self) -> list[int]:
        """Of all but the head's: these may be killed."""
        return [pid for pid in self.raylets() if pid != self._first]

    def fill(self) -> None:
        """Starts nodes until there are as many as there shall be."""
        while len(self.raylets()) < self._num:
            self._add()

    def _add(self) -> None:
        before = len(self.raylets())
        words = ["start", f"--address={self.address}", "--node-ip-address=127.0.0.1", f"--num-cpus={self._cpus}"]
        words += ["--include-log-monitor=false", "--disable-usage-stats"]
        environment = {**os.environ, **ray_head.token_variables(self.token), "RAY_USAGE_STATS_ENABLED": "0"}
        with (Path(self.folder).parent / "node.log").open("ab") as log:
            subprocess.run(
                [sys.executable, "-m", "cluster.lifecycle.ray_start", *words],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=JOIN_S,
                check=True,
                start_new_session=True,
            )
        until = time.monotonic() + JOIN_S
        while len(self.raylets()) <= before:
            if time.monotonic() > until:
                raise Unavailable(f"no further node of {self.address} is there after {JOIN_S:g} s")
            time.sleep(0.2)
