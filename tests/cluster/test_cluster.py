"""The real thing: Ray, actors, gRPC, processes that are killed. Streams are compared token by token."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cluster import Client, SamplingParams, launch
from cluster.cluster_settings import ClusterSettings
from cluster.errors import ConfigError
from cluster.logs import read_lines
from protos.quire.v1 import admin_pb2, inference_pb2
from protos.quire.v1.admin_pb2_grpc import AdminServiceStub
from protos.quire.v1.inference_pb2_grpc import InferenceServiceStub

PROMPTS = (
    "Once upon a time",
    "The river",
    "A cold morning",
    "Otto the baker",
    "In Alder Bridge",
    "Mira had",
)
MAX_TOKENS = 200
# Pools so small that requests are swapped to host memory and back.
SETTINGS = ClusterSettings(
    workers=2,
    kv_blocks=56,
    cpus_per_worker=0.5,
    port=0,
    admin_port=0,
    metrics_port=0,
    max_batch=16,
    preemption="swap",
    trace="file",
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[launch.Running]:
    home = tmp_path_factory.mktemp("quire")
    before = os.environ.get("QUIRE_HOME")
    os.environ["QUIRE_HOME"] = str(home)
    try:
        yield launch.up(SETTINGS, print)
    finally:
        left = launch.down(print)
        os.environ.pop("QUIRE_HOME") if before is None else os.environ.update(QUIRE_HOME=before)
        assert not left, left


def ask(running: launch.Running, prompt: str, temperature: float, n: int) -> list[list[int]]:
    """All tokens of one request, through the client, which resumes where its connection broke."""
    outputs: list[list[int]] = [[] for _ in range(n)]
    params = SamplingParams(n=n, temperature=temperature, max_tokens=MAX_TOKENS, seed=11, ignore_eos=True)
    with Client(running.gateway) as client:
        for news in client.stream(prompt, params, timeout_s=80.0, resume_grace_s=20.0):
            outputs[news.index] += news.token_ids
    return outputs


def ask_all(running: launch.Running, temperature: float, n: int) -> list[list[list[int]] | None]:
    answers: list[list[list[int]] | None] = [None] * len(PROMPTS)

    def one(place: int) -> None:
        answers[place] = ask(running, PROMPTS[place], temperature, n)

    threads = [threading.Thread(target=one, args=(place,)) for place in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    return answers


def pid_of(running: launch.Running, actor: str) -> int:
    """The process of an actor of this cluster: a child of its raylet, by what Ray calls it."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(") ")[2].split()[1])
                if parent in running.ray_pids and f"ray::{actor}".encode() in (entry / "cmdline").read_bytes():
                    return int(entry.name)
            except OSError:
                continue
    raise AssertionError(f"no process of {actor} is there")


def kill_soon(running: launch.Running, actor: str) -> tuple[threading.Timer, list[int]]:
    """SIGKILL in the middle of the streams; the list holds the process once it is dead."""
    killed: list[int] = []

    def kill() -> None:
        pid = pid_of(running, actor)
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    timer = threading.Timer(0.4, kill)
    timer.start()
    return timer, killed


def wait_for_workers(running: launch.Running, count: int) -> None:
    until = time.monotonic() + 100
    with grpc.insecure_channel(running.admin) as channel:
        while time.monotonic() < until:
            try:
                workers = AdminServiceStub(channel).ListWorkers(admin_pb2.ListWorkersRequest(), timeout=5).workers
                if len(workers) == count:
                    return
            except grpc.RpcError:
                pass
            time.sleep(0.2)
    raise AssertionError(f"{count} workers have not come back")


@pytest.mark.timeout(500)
def test_streams_survive_the_death_of_any_one_process(running: launch.Running) -> None:
    undisturbed = {(temperature, n): ask_all(running, temperature, n) for temperature, n in ((0.0, 1), (0.8, 2))}
    for (temperature, n), expected in undisturbed.items():
        for outputs in expected:
            assert outputs is not None and [len(output) for output in outputs] == [MAX_TOKENS] * n
        for actor in ("WorkerActor", "SchedulerActor", "GatewayActor"):
            wait_for_workers(running, 2)
            timer, killed = kill_soon(running, actor)
            assert ask_all(running, temperature, n) == expected, f"{actor} killed, temperature {temperature}, n {n}"
            timer.join()
            assert killed, f"{actor} was not killed"
    with grpc.insecure_channel(running.admin) as channel:
        counters = AdminServiceStub(channel).GetCluster(admin_pb2.GetClusterRequest(), timeout=5).counters
    assert counters["preempted swap"] and counters["transfer read done"], dict(counters)


@pytest.mark.timeout(240)
def test_a_worker_that_stands_still_for_longer_than_its_leases_changes_nothing(running: launch.Running) -> None:
    wait_for_workers(running, 2)
    expected = ask_all(running, 0.8, 1)
    pid = pid_of(running, "WorkerActor")
    stop = threading.Timer(0.3, lambda: os.kill(pid, signal.SIGSTOP))
    go_on = threading.Timer(6.0, lambda: os.kill(pid, signal.SIGCONT))
    stop.start()
    go_on.start()
    assert ask_all(running, 0.8, 1) == expected
    go_on.join()
    # It finds itself declared lost, ends, and comes back with an incarnation of its own.
    wait_for_workers(running, 2)


@pytest.mark.timeout(150)
def test_nothing_is_held_once_all_is_answered(running: launch.Running) -> None:
    wait_for_workers(running, 2)
    ask_all(running, 0.0, 1)
    with grpc.insecure_channel(running.admin) as channel:
        pools = AdminServiceStub(channel).ListPools(admin_pb2.ListPoolsRequest(), timeout=5).pools
    for pool in pools:
        assert pool.num_held == pool.num_moving == pool.num_quarantined == 0
        assert pool.num_free + pool.num_cached == pool.num_blocks


@pytest.mark.timeout(150)
def test_figures_logs_and_spans_tell_what_happened(running: launch.Running) -> None:
    """One scrape has all processes, the log has a line for each request, and a client's trace reaches the worker."""
    wait_for_workers(running, 2)
    before = samples_of(running)
    answers = ask_all(running, 0.0, 1)
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    request_id = ask_traced(running, f"00-{trace}-00f067aa0ba902b7-01")
    after = samples_of(running)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    at = '{gateway="gateway-0",model="demo"}'
    num_tokens = sum(len(outputs[0]) for outputs in answers if outputs) + 5
    assert grown(f"quire_output_tokens_total{at}") == num_tokens
    assert grown(f"quire_time_to_first_token_seconds_count{at}") == len(PROMPTS) + 1
    assert grown(f"quire_inter_token_seconds_count{at}") <= num_tokens - len(PROMPTS) - 1
    assert after['quire_up{part="gateway-0"}'] == after['quire_up{part="scheduler"}'] == 1
    assert grown("quire_scheduler_turn_seconds_count") > 10
    for pool in ("demo-0", "demo-1"):
        blocks = [count for name, count in after.items() if name.startswith(f'quire_pool_blocks{{pool="{pool}"')]
        assert sum(blocks) == 56
    folder = Path(running.settings["log_dir"])
    (line,) = [line for line in read_lines(folder, request=request_id) if line["message"] == "ended: length"]
    assert line["figures"]["output_tokens"] == 5 and line["process"] == "gateway-0"
    until = time.monotonic() + 30
    while True:
        texts = [path.read_text() for path in folder.glob("spans-*.jsonl")]
        spans = [json.loads(text) for text in "".join(texts).splitlines() if trace in text]
        if len(spans) == 2 or time.monotonic() > until:
            break
        time.sleep(0.5)
    request, attempt = sorted(spans, key=lambda span: span["name"] == "attempt")
    assert (request["name"], request["parent"]) == ("request", "00f067aa0ba902b7")
    assert (attempt["name"], attempt["parent"]) == ("attempt", request["span"])


@pytest.mark.timeout(150)
def test_a_load_is_sent_and_measured(running: launch.Running, tmp_path: Path) -> None:
    """Open and closed loop, from two processes: every request is in the files once, and none failed."""
    wait_for_workers(running, 2)
    common = ["--requests", "24", "--warm-up", "0", "--output-tokens", "9", "--shared-prefix", "40"]
    for words in (["--arrival", "poisson", "--rate", "12", "30"], ["--arrival", "closed", "--concurrency", "6"]):
        paths = {kind: tmp_path / f"{words[1]}.{kind}" for kind in ("csv", "json", "html")}
        files = [word for kind, path in paths.items() for word in (f"--{kind}", str(path))]
        command = [
            sys.executable,
            "-m",
            "cluster.bench",
            "serve",
            "--address",
            running.gateway,
            *words,
            *common,
            *files,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        rows = list(csv.DictReader(paths["csv"].open()))
        num_runs = 2 if words[1] == "poisson" else 1
        assert len(rows) == 24 * num_runs and len({(row["load"], row["number"]) for row in rows}) == len(rows)
        for row in rows:
            assert (
                float(row["due"]) <= float(row["sent"]) < float(row["first"]) <= float(row["last"]) <= float(row["end"])
            )
            assert row["num_tokens"] == "9" and not row["error"] and int(row["num_prompt"]) > 40
        assert sum(int(row["cached"]) for row in rows) >= 32 * len(rows) // 2
        tables = json.loads(paths["json"].read_text())["tables"]
        assert [row["requests"] for row in tables["throughput"]] == [24] * num_runs
        counts = {row["time"]: row["count"] for row in tables["milliseconds"]}
        assert counts["first token"] == counts["whole request"] == 24 and 0 < counts["inter-token"] <= 24 * 8
        html = paths["html"].read_text()
        assert html.count("<svg") == 5 + (num_runs > 1)


def samples_of(running: launch.Running) -> dict[str, float]:
    address = f"http://127.0.0.1:{running.settings['metrics_port']}/metrics"
    text = urllib.request.urlopen(address, timeout=10).read().decode()
    pairs = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in pairs}


def ask_traced(running: launch.Running, traceparent: str) -> str:
    message = inference_pb2.GenerateRequest(request_id="traced", prompt=inference_pb2.Prompt(text="Once"))
    message.sampling.max_tokens, message.sampling.ignore_eos = 5, True
    with grpc.insecure_channel(running.gateway) as channel:
        stub = InferenceServiceStub(channel)
        list(stub.Generate(message, metadata=[("traceparent", traceparent)], timeout=60))
    return "local/traced"


@pytest.mark.timeout(150)
def test_a_second_cluster_of_the_same_user_is_refused(running: launch.Running) -> None:
    with pytest.raises(ConfigError, match="a cluster runs already"):
        launch.up(SETTINGS, print)
