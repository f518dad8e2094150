"""Starting and ending leave nothing behind: not after a crash, not after Ctrl-C, not on a Ray of somebody else's."""

from __future__ import annotations

import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.lifecycle import ray_head
from tests.deploy.lifecycle import UP, Holdings, environment, interrupt, noted, parents, quire, start

KINDS = ("raylet", "gcs_server", "WorkerActor", "SchedulerActor", "GatewayActor", "HostPoolActor", "DashboardAgent")


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="quire-test-"))
    yield folder
    quire(folder, "down")
    shutil.rmtree(folder, ignore_errors=True)


def cycle(home: Path, kill: tuple[str, ...] = ()) -> None:
    """Up, a few tokens, a crash of what is named, down; then nothing of it is left."""
    done = quire(home, *UP)
    assert done.returncode == 0, done.stderr
    assert "ready after" in done.stdout
    has = Holdings.of(home)
    assert all(has.named(kind) for kind in KINDS), has
    serving = [pid for kind in KINDS if kind.endswith("Actor") for pid in has.named(kind)]
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in serving} == {os.getpriority(os.PRIO_PROCESS, 0)}
    # Ray lets everybody write into its folder; nobody else gets there.
    assert stat.S_IMODE(Path(noted(home)["ray_temp"]).parent.stat().st_mode) == 0o700
    assert not has.named("ray.util.client.server"), "Ray's client server runs"
    logs = list((home / "logs").glob("*.jsonl"))
    assert logs and all(stat.S_IMODE(log.stat().st_mode) == 0o600 for log in (*logs, home / "cluster.json"))
    told = quire(home, "generate", "--max-tokens", "5", "--quiet", "Once upon a time")
    assert told.returncode == 0 and "Once upon a time, a" in told.stdout, told.stderr
    for kind in kill:
        for pid in has.named(kind):
            os.kill(pid, signal.SIGKILL)
    ended = quire(home, "down")
    assert ended.returncode == 0 and "nothing is left" in ended.stdout, ended.stdout + ended.stderr
    assert not has.left(), has.left()


@pytest.mark.timeout(280)
def test_a_crash_of_the_head_and_of_a_worker_leaves_nothing(home: Path) -> None:
    cycle(home, kill=("raylet", "WorkerActor"))
    again = quire(home, "down")
    assert (again.returncode, again.stdout) == (0, "no cluster of this user is noted: nothing to end\n")


@pytest.mark.timeout(280)
@pytest.mark.parametrize(
    ("words", "num_actors"),
    [pytest.param(("--tp", "2"), 5, id="two ranks"), pytest.param((), 4, id="one rank", marks=pytest.mark.trust)],
)
def test_on_a_ray_that_was_started_by_hand(home: Path, words: tuple[str, ...], num_actors: int) -> None:
    """Actors, groups and names are gone after `down`, and the Ray cluster goes on."""
    folder, port = ray_head.new_folder(), ray_head_port()
    by_hand = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--node-ip-address=127.0.0.1"]
    by_hand += [f"--port={port}", f"--temp-dir={folder}", "--num-cpus=2", "--include-dashboard=false"]
    try:
        subprocess.run(
            by_hand, env=environment(home), check=True, timeout=100, capture_output=True, start_new_session=True
        )
        heads = ray_head.processes_of(folder)
        done = quire(home, *UP, *words, "--address", f"127.0.0.1:{port}")
        assert done.returncode == 0, done.stderr
        above = parents()
        actors = [pid for pid, parent in above.items() if parent in heads and b"Actor" in cmdline(pid)]
        assert len(actors) == num_actors
        second = quire(home, *UP)
        assert (second.returncode, second.stderr.count("\n")) == (2, 1) and "runs already" in second.stderr
        told = quire(home, "generate", "--max-tokens", "5", "--quiet", "Once upon a time")
        assert told.returncode == 0 and "Once upon a time, a" in told.stdout, told.stderr
        ended = quire(home, "down")
        assert ended.returncode == 0 and "nothing is left" in ended.stdout, ended.stdout + ended.stderr
        assert not [pid for pid in actors if ray_head.alive(pid)]
        assert ray_head.serves(folder), "down ended a Ray that is not ours"
        assert not noted(home)
    finally:
        assert not ray_head.end(folder)


def ray_head_port() -> int:
    from cluster.lifecycle.ports import free_port

    return free_port()


def cmdline(pid: int) -> bytes:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""


def interrupted_after(home: Path, seconds: float) -> None:
    process = start(home, *UP)
    time.sleep(seconds)
    had_begun = bool(noted(home))
    has = Holdings.of(home) if had_begun else Holdings(home=home)
    code, told = interrupt(process)
    # It may have been ready already: then there is a cluster, and it is ended like any other.
    if code == 0:
        assert quire(home, "down").returncode == 0
    else:
        assert (code, told.splitlines()[-1]) == (130, "error: interrupted"), told
        # What comes of it is proven, and said, as by `quire down`.
        assert "down: nothing is left\n" in told or not had_begun, told
    assert not has.left(patience_s=2.0), has.left()
    assert not noted(home)


@pytest.mark.timeout(200)
def test_ctrl_c_at_any_moment_leaves_nothing(home: Path, seed: int) -> None:
    interrupted_after(home, random.Random(seed).uniform(1.0, 9.0))


@pytest.mark.trust
@pytest.mark.timeout(200)
def test_ctrl_c_while_the_page_starts_leaves_nothing(home: Path) -> None:
    process = start(home, *UP)
    while not noted(home).get("page_pid") and process.poll() is None:
        time.sleep(0.005)
    has = Holdings.of(home)
    code, told = interrupt(process)
    assert (code, told.splitlines()[-1]) == (130, "error: interrupted"), told
    assert "ready after" in told and "down: nothing is left\n" in told, told
    assert not has.left(patience_s=2.0), has.left()
    assert not noted(home)


@pytest.mark.timeout(100)
def test_a_start_whose_process_is_killed_says_so_in_one_line(home: Path) -> None:
    """As the system does when memory runs out."""
    process = start(home, *UP)
    children: list[int] = []
    # It is there until the cluster serves, so however slow the machine is it is seen before `up` ends.
    while not children and process.poll() is None:
        mine = [pid for pid, parent in parents().items() if parent == process.pid]
        children = [pid for pid in mine if b"lifecycle.create" in cmdline(pid)]
        time.sleep(0.02)
    assert len(children) == 1, process.communicate(timeout=60)
    os.kill(children[0], signal.SIGKILL)
    errors = process.communicate(timeout=60)[1]
    assert (process.returncode, errors.count("\n")) == (3, 1), errors
    assert "SIGKILL" in errors and "memory" in errors, errors
    assert not noted(home)


@pytest.mark.trust
@pytest.mark.timeout(200)
@pytest.mark.parametrize("kind", ["HostPoolActor", "WorkerActor", "GatewayActor"])
def test_a_process_that_dies_once_while_the_cluster_starts_is_started_again(home: Path, kind: str) -> None:
    process = start(home, *UP)
    killed: list[int] = []
    while not killed and process.poll() is None:
        heads = noted(home).get("ray_pids", ())
        above = parents() if heads else {}
        killed = [pid for pid, parent in above.items() if parent in heads and f"ray::{kind}".encode() in cmdline(pid)]
        time.sleep(0.02)
    os.kill(killed[0], signal.SIGKILL)
    told, errors = process.communicate(timeout=150)
    assert (process.returncode, "ready after" in told) == (0, True), told + errors
    asked = quire(home, "generate", "--max-tokens", "5", "--quiet", "Once upon a time")
    assert asked.returncode == 0 and "Once upon a time, a" in asked.stdout, asked.stderr


@pytest.mark.trust
@pytest.mark.timeout(1500)
def test_twenty_starts_and_stops_leave_nothing(home: Path) -> None:
    before = set(Path("/dev/shm").iterdir())
    for _ in range(20):
        cycle(home)
    assert {path for path in Path("/dev/shm").iterdir() if "quire" in path.name} <= before


@pytest.mark.trust
@pytest.mark.timeout(900)
def test_ctrl_c_at_twelve_moments_leaves_nothing(home: Path, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(12):
        interrupted_after(home, draw.uniform(0.2, 20.0))


@pytest.mark.trust
@pytest.mark.timeout(200)
@pytest.mark.parametrize("kind", KINDS)
def test_a_crash_of_any_one_process_leaves_nothing(home: Path, kind: str) -> None:
    cycle(home, kill=(kind,))
