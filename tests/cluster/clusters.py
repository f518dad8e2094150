"""Real clusters for tests: started and ended as people do, asked through the client, their processes by name."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from cluster import Client, SamplingParams
from cluster.lifecycle import launch
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.running import Running
from protos.quire.v1 import admin_pb2
from protos.quire.v1.admin_pb2_grpc import AdminServiceStub

PROMPTS = (
    "Once upon a time",
    "The river",
    "A cold morning",
    "Otto the baker",
    "In Alder Bridge",
    "Mira had",
)
MAX_TOKENS = 200
GREEDY = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
SAMPLED = SamplingParams(n=2, temperature=0.8, max_tokens=MAX_TOKENS, seed=11, ignore_eos=True)
BEAMS = SamplingParams(beam_width=4, n=2, max_tokens=60, ignore_eos=True)

Answers = list[list[list[int]] | None]


@dataclass
class Times:
    """When tokens came, over all streams of one round."""

    gaps: list[float] = field(default_factory=list)

    @property
    def longest(self) -> float:
        return max(self.gaps, default=0.0)


@contextmanager
def up(settings: ClusterSettings, home: Path) -> Iterator[Running]:
    """A cluster whose state folder is `home`; on leaving nothing of it is left."""
    before = os.environ.get("QUIRE_HOME")
    os.environ["QUIRE_HOME"] = str(home)
    try:
        yield launch.up(settings, print)
    finally:
        left = launch.down(print)
        os.environ.pop("QUIRE_HOME") if before is None else os.environ.update(QUIRE_HOME=before)
        assert not left, left


def ask(running: Running, prompt: str, params: SamplingParams, times: Times | None = None) -> list[list[int]]:
    """All tokens of one request, through the client, which resumes where its connection broke."""
    outputs: list[list[int]] = [[] for _ in range(params.n)]
    last: float | None = None
    with Client(running.gateways) as client:
        for news in client.stream(prompt, params, model="demo", timeout_s=100.0, resume_grace_s=60.0):
            outputs[news.index] += news.token_ids
            now = time.monotonic()
            if times is not None and last is not None:
                times.gaps.append(now - last)
            last = now
    return outputs


def ask_all(running: Running, params: SamplingParams, times: Times | None = None) -> Answers:
    answers: Answers = [None] * len(PROMPTS)

    def one(place: int) -> None:
        answers[place] = ask(running, PROMPTS[place], params, times)

    threads = [threading.Thread(target=one, args=(place,)) for place in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return answers


def parent_of(pid: int) -> int:
    return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(") ")[2].split()[1])


def children(parents: Sequence[int]) -> dict[int, str]:
    """The processes of these parents, with their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if parent_of(int(entry.name)) in parents:
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
    return found


def processes_with(text: str) -> dict[int, str]:
    """Processes whose command line holds this text, with that line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if text in words:
                found[int(entry.name)] = words
    return found


def pid_of(running: Running, actor: str) -> int:
    """The process of an actor of this cluster: a child of its raylet, by what Ray calls it."""
    for pid, words in children(running.ray_pids).items():
        if f"ray::{actor}" in words:
            return pid
    raise AssertionError(f"no process of {actor} is there")


def soon(delay_s: float, do: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(delay_s, do)
    timer.start()
    return timer


def kill_soon(running: Running, actor: str, delay_s: float = 0.4) -> tuple[threading.Timer, list[int]]:
    """SIGKILL in the middle of the streams; the list holds the process once it is dead."""
    killed: list[int] = []

    def kill() -> None:
        pid = pid_of(running, actor)
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    return soon(delay_s, kill), killed


def wait_for(what: str, holds: Callable[[], bool], timeout_s: float = 100.0) -> None:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        try:
            if holds():
                return
        except grpc.RpcError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"{what}: not so after {timeout_s:g} s")


def wait_for_workers(running: Running, count: int) -> None:
    with running.admin_channel() as channel:
        admin = AdminServiceStub(channel)
        listed = lambda: admin.ListWorkers(admin_pb2.ListWorkersRequest(), timeout=5).workers  # noqa: E731
        wait_for(f"{count} workers are there", lambda: len(listed()) == count)


def wait_for_all(running: Running, workers: int, host_pools: int) -> None:
    """Everybody has come back who was killed before."""
    wait_for_workers(running, workers)
    with running.admin_channel() as channel:
        admin = AdminServiceStub(channel)

        def all_there() -> bool:
            pools = admin.ListPools(admin_pb2.ListPoolsRequest(), timeout=5).pools
            gateways = admin.GetCluster(admin_pb2.GetClusterRequest(), timeout=5).num_gateways
            hosts = [pool for pool in pools if pool.kind == admin_pb2.POOL_KIND_HOST]
            return len(hosts) == host_pools and gateways == len(running.gateways)

        wait_for("host pools and gateways are there", all_there)
