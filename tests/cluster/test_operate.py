"""Operating a real cluster: figures, logs and spans; a load; workers and models that come and go while it serves."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

import worker.demo
from cluster import Client
from cluster.errors import ModelError, NotFound, Unavailable
from cluster.lifecycle import fleet
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.running import Running
from cluster.lifecycle.served import ModelToServe
from cluster.watching.logs import read_lines
from protos.quire.v1 import admin_pb2, inference_pb2
from protos.quire.v1.admin_pb2_grpc import AdminServiceStub
from protos.quire.v1.inference_pb2_grpc import InferenceServiceStub
from tests.cluster.clusters import GREEDY, MAX_TOKENS, PROMPTS, SAMPLED, Answers, ask_all, up, wait_for_workers

SETTINGS = ClusterSettings(
    workers=2, kv_blocks=56, cpus_per_worker=0.5, port=0, admin_port=0, metrics_port=0, max_batch=16, trace="file"
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with up(SETTINGS, tmp_path_factory.mktemp("quire")) as running:
        yield running


@pytest.mark.timeout(150)
def test_figures_logs_and_spans_tell_what_happened(running: Running) -> None:
    """One scrape has all processes, the log has a line for each request, and a client's trace reaches the worker."""
    wait_for_workers(running, 2)
    before = samples_of(running)
    answers = ask_all(running, GREEDY)
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
def test_a_load_is_sent_and_measured(running: Running, tmp_path: Path) -> None:
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


@pytest.mark.timeout(300)
def test_models_and_workers_come_and_go_under_load_and_nothing_fails(running: Running, tmp_path: Path) -> None:
    """Requests run all the while, and every answer is the one that an undisturbed cluster gives."""
    wait_for_workers(running, 2)
    expected = ask_all(running, SAMPLED)
    second = tmp_path / "second"
    shutil.copytree(Path(worker.demo.__file__).parent, second, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    going = threading.Event()
    answers: list[Answers] = []

    def ask_on() -> None:
        # A breath between them: at full load the workers that start would have no core to do it on.
        while not going.wait(0.5):
            answers.append(ask_all(running, SAMPLED))

    asking = threading.Thread(target=ask_on)
    asking.start()
    try:
        fleet.scale(3, None, print)
        fleet.scale(1, None, print)
        fleet.load(ModelToServe("second", str(second)), 1, print)
        with Client(running.gateway) as client:
            until = time.monotonic() + 30
            while {card.name for card in client.models()} != {"demo", "second"}:
                assert time.monotonic() < until, "the gateway never listed the second model"
                time.sleep(0.05)
            stream = client.stream(PROMPTS[0], max_tokens=MAX_TOKENS, ignore_eos=True, model="second")
            first = next(stream)
            fleet.unload("second", 60.0, print)
            rest = list(stream)
            assert sum(len(news.token_ids) for news in (first, *rest)) == MAX_TOKENS
            with pytest.raises(NotFound, match="no model"):
                client.generate("x", model="second")
        told: list[str] = []
        fleet.load(ModelToServe("second", str(second)), 1, told.append)
        assert not any(line.startswith("host-") for line in told), "of what was there before nothing is said"
        fleet.unload("second", 60.0, print)
        fleet.scale(2, None, print)
    finally:
        going.set()
        asking.join(90)
    assert len(answers) >= 3 and all(answer == expected for answer in answers)
    wait_for_workers(running, 2)
    causes = read_lines(Path(running.settings["log_dir"]), level="error")
    assert causes == [], "who was ended by order is taken for a failure"
    told = "\n".join(line["message"] for line in read_lines(Path(running.settings["log_dir"])))
    assert "demo-2 has left: as ordered: it was drained" in told
    assert "second-0 has left: as ordered: model second was unloaded" in told
    assert "demo-2 is lost" not in told and "second-0 is lost" not in told


@pytest.mark.timeout(200)
def test_a_model_that_cannot_start_leaves_nothing_behind(running: Running, tmp_path: Path) -> None:
    """A folder that is none is found before anything starts; a hub's model only where it is loaded, each time anew."""
    wait_for_workers(running, 2)
    with pytest.raises(ModelError, match="no model folder"):
        fleet.load(ModelToServe("third", str(tmp_path / "third")), 1, print)
    for _ in range(2):
        with pytest.raises(Unavailable, match="third-0 did not start: ModelError"):
            fleet.load(ModelToServe("third", "nobody/third"), 1, print)
    until = time.monotonic() + 20
    with running.admin_channel() as channel:
        stub = AdminServiceStub(channel)
        while missing := list(stub.ListWorkers(admin_pb2.ListWorkersRequest(), timeout=10).missing):
            assert time.monotonic() < until, missing
            time.sleep(0.2)


def samples_of(running: Running) -> dict[str, float]:
    address = f"http://127.0.0.1:{running.settings['metrics_port']}/metrics"
    text = urllib.request.urlopen(address, timeout=10).read().decode()
    pairs = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in pairs}


def ask_traced(running: Running, traceparent: str) -> str:
    message = inference_pb2.GenerateRequest(request_id="traced", prompt=inference_pb2.Prompt(text="Once"))
    message.sampling.max_tokens, message.sampling.ignore_eos = 5, True
    with grpc.insecure_channel(running.gateway) as channel:
        stub = InferenceServiceStub(channel)
        list(stub.Generate(message, metadata=[("traceparent", traceparent)], timeout=60))
    return "local/traced"
