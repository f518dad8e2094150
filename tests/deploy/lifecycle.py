"""A cluster of `quire up` as a user starts and ends it, and what of it the machine still has afterwards.

What there is to lose is noted while the cluster runs: the processes below Ray's by their parents, the shared memory
that they have open, their ports and folders. It is looked for by other means than those by which `quire down` looks.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.lifecycle import ray_head

ROOT = Path(__file__).parents[2]


def is_set_up_for(checkout: Path) -> bool:
    """Whether deploy/setup.sh made this environment, and for this checkout: what runs the scripts begins there."""
    stamp = Path(sys.prefix) / "quire.stamp"
    return stamp.exists() and stamp.read_text().splitlines()[2:] in ([], [str(checkout)])


UP = ("up", "--workers", "1", "--cpus-per-worker", "0.5", "--kv-blocks", "256", "--host-memory", "16MiB")


def environment(home: Path, **more: str) -> dict[str, str]:
    ports = {f"QUIRE_{name}PORT": "0" for name in ("", "ADMIN_", "METRICS_")}
    return {**os.environ, **ports, "QUIRE_HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def start(home: Path, *words: str, **more: str) -> subprocess.Popen[str]:
    """A command in a session of its own, as a terminal would start it."""
    return subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", *words],
        cwd="/",
        env=environment(home, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def quire(home: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    process = start(home, *words, **more)
    try:
        told, errors = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(words, process.returncode, told, errors)


def noted(home: Path) -> dict[str, Any]:
    """What `quire up` wrote down; empty while nothing is."""
    try:
        read: dict[str, Any] = json.loads((home / "cluster.json").read_text())
        return read
    except (OSError, ValueError):
        return {}


def born(pid: int) -> int:
    """When a process began, in the kernel's count: with its id it names one process for good. 0: there is none."""
    try:
        words = (Path("/proc") / str(pid) / "stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return 0
    return 0 if words[0] == "Z" else int(words[19])


def parents() -> dict[int, int]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(") ")[2].split()[1])
            except OSError:
                continue
    return found


def shared_memory(pid: int) -> set[str]:
    """The files under /dev/shm that a process has mapped or open."""
    found = set()
    process = Path("/proc") / str(pid)
    try:
        lines = (process / "maps").read_text().splitlines()
        found |= {line.split(maxsplit=5)[5] for line in lines if "/dev/shm/" in line}
        found |= {
            target for link in (process / "fd").iterdir() if (target := os.readlink(link)).startswith("/dev/shm/")
        }
    except OSError:
        pass
    return {name for name in found if name.startswith("/dev/shm/") and not name.endswith("(deleted)")}


@dataclass
class Holdings:
    """All that a running cluster has on this machine."""

    processes: dict[int, int] = field(default_factory=dict)
    ports: list[int] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    memory: set[str] = field(default_factory=set)
    home: Path = Path()

    @staticmethod
    def of(home: Path) -> Holdings:
        note = noted(home)
        above = parents()
        # While Ray is starting, its processes have not been noted yet.
        pids = set(ray_head.processes_of(str(note["ray_temp"]))) | {int(pid) for pid in note["ray_pids"]}
        while more := {pid for pid, parent in above.items() if parent in pids} - pids:
            pids |= more
        settings = note["settings"]
        ports = [int(settings[name]) for name in ("port", "admin_port", "metrics_port")]
        folders = [Path(str(note["ray_temp"]))] if note["ray_temp"] else []
        memory = {name for pid in pids for name in shared_memory(pid)}
        return Holdings({pid: born(pid) for pid in pids}, ports, folders, memory, home)

    def named(self, text: str) -> list[int]:
        """The processes whose command line holds this."""
        found = []
        for pid in self.processes:
            try:
                if text.encode() in (Path("/proc") / str(pid) / "cmdline").read_bytes():
                    found.append(pid)
            except OSError:
                continue
        return found

    def left(self, patience_s: float = 0.0) -> list[str]:
        """What of it is still there; asked again until that is nothing or the time is over."""
        until = time.monotonic() + patience_s
        while True:
            found = [f"process {pid}" for pid, began in self.processes.items() if began and born(pid) == began]
            found += [f"port {port}" for port in self.ports if port and is_taken(port)]
            found += [str(folder) for folder in self.folders if folder.exists()]
            found += [name for name in sorted(self.memory) if Path(name).exists()]
            if (self.home / "cluster.json").exists():
                found.append("cluster.json")
            if not found or time.monotonic() > until:
                return found
            time.sleep(0.1)


def is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def interrupt(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Ctrl-C as a terminal sends it, to all processes in front; exit status and what was said."""
    os.killpg(process.pid, signal.SIGINT)
    told, errors = process.communicate(timeout=60)
    return process.returncode, told + errors
