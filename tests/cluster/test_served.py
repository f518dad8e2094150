"""`quire serve`: a cluster in front of a person, under names of their own, that ends with it; and what options say."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import worker.demo
from cluster import cli
from cluster.client.blocking import Client
from cluster.errors import ConfigError
from cluster.lifecycle import preflight
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.running import Running
from cluster.lifecycle.served import ModelToServe, read_models
from cluster.watching.logs import processes_of, read_lines

FREE = ["--port", "0", "--admin-port", "0", "--metrics-port", "0", "--http-port", "0", "--kv-blocks", "64"]
LONG = {"max_tokens": 900, "ignore_eos": True}


@pytest.mark.parametrize(
    ("text", "name", "path"),
    [
        ("demo", "demo", "demo"),
        ("story=demo", "story", "demo"),
        ("a-b.1:x=/models/a=b", "a-b.1:x", "/models/a=b"),
        ("/models/a=b", "/models/a=b", "/models/a=b"),
        ("org/model", "org/model", "org/model"),
    ],
)
def test_a_model_has_the_name_that_it_is_given(text: str, name: str, path: str) -> None:
    model = ModelToServe.read(text)
    assert (model.name, model.path, str(model)) == (name, path, text)


def test_a_folder_with_an_equals_sign_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a=b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert ModelToServe.read("a=b").path == "a=b"


@pytest.mark.parametrize("texts", [["x="], ["a=demo", "b/a"], ["demo", "demo"], [""], ["a" * 2_000]])
def test_models_that_cannot_be_told_apart_are_refused(texts: list[str]) -> None:
    with pytest.raises(ConfigError):
        read_models(texts)


def test_a_start_without_a_word_leaves_room_for_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpus, workers, booked in ((2, 2, 0.5), (16, 2, 1.0), (4, 3, 0.666)):
        monkeypatch.setattr(preflight, "num_cpus", lambda cpus=cpus: cpus)
        settings = preflight.leave_room(ClusterSettings(workers=workers))
        assert settings.booked_cpus == booked and 2 * workers * booked <= 2 * cpus
    told = ClusterSettings(workers=2, cpus_per_worker=0.75)
    assert preflight.leave_room(told) == told
    assert preflight.leave_room(ClusterSettings(address="auto")).booked_cpus == 1.0


def commands(group: Any, name: str = "quire") -> Iterator[tuple[str, Any]]:
    if hasattr(group, "commands"):
        for word, command in group.commands.items():
            yield from commands(command, f"{name} {word}")
    else:
        yield name, group


def test_every_help_has_defaults_and_the_names_of_the_environment() -> None:
    found = dict(commands(cli.build()))
    for name, command in found.items():
        for option in command.params:
            if option.param_type_name != "option" or getattr(option, "is_flag", False):
                continue
            told = (getattr(option, "help", "") or "").lower()
            shown = getattr(option, "show_default", False)
            has_default = isinstance(shown, str) or (shown and option.default is not None)
            assert has_default or "default" in told, f"{name} {option.opts[0]} says no default"
            # A word for a person, and none behind a flag: no list of Python's; a range stands behind the text.
            assert option.metavar and not re.search(r"\[| range", option.metavar), f"{name} {option.opts[0]}"
    options = {option.name: option for option in found["quire up"].params}
    for field in fields(ClusterSettings):
        # Those of file and environment only.
        if field.name not in ("silence_s", "hang_s"):
            assert f"QUIRE_{field.name.upper()}" in (getattr(options[field.name], "help", "") or "")
    assert options.keys() - {"models", "grace"} >= {one.name for one in found["quire serve"].params} - {
        "models",
        "grace",
    }


def test_logs_of_one_process_are_not_those_of_another(tmp_path: Path) -> None:
    for number, name in enumerate(("demo-1", "demo-10", "demo-1.1", "scheduler")):
        line = {"time": f"2026-01-01T00:00:0{number}", "level": "info", "process": name, "run": "r", "message": "m"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    assert [line["process"] for line in read_lines(tmp_path, process="demo-1")] == ["demo-1", "demo-1.1"]
    assert len(read_lines(tmp_path, process="demo")) == 3
    assert processes_of(tmp_path) == ["demo-1", "demo-1.1", "demo-10", "scheduler"]


@pytest.mark.timeout(200)
def test_it_serves_in_front_and_a_second_model_breaks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages are shown when they are reached, logs as they come; nothing is left when it is told to end."""
    monkeypatch.setenv("QUIRE_HOME", str(tmp_path / "home"))
    copy = shutil.copytree(Path(worker.demo.__file__).parent, tmp_path / "copy")
    command = [sys.executable, "-m", "cluster.cli"]
    served = subprocess.Popen(
        [*command, "serve", "story=demo", "--workers", "1", "--grace", "100", *FREE],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    lines: list[str] = []
    is_up = threading.Event()

    def read() -> None:
        assert served.stdout is not None
        for line in served.stdout:
            lines.append(line)
            if line.startswith("try:"):
                is_up.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()

    def quire(*words: str) -> str:
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        assert is_up.wait(120), lines
        at = {words: float(time) for time, words in re.findall(r"^ *([\d.]+) s  (.*?)(?::.*)?$", "".join(lines), re.M)}
        assert at["the scheduler serves"] < at["story-0 weights"] < at["story-0 serves"] + 0.3
        assert at["story-0 weights"] < at["story-0 pool"]
        assert "default" in quire("models") and "story" in quire("models")
        assert "other-0 serves" in quire("load", f"other={copy}")
        running = Running.load()
        assert running is not None
        with Client(running.gateways) as client:
            for model in ("", "story", "other"):
                assert client.generate("Once", max_tokens=3, model=model).outputs[0].text
            assert {card.name: card.is_default for card in client.models()} == {"story": True, "other": False}
            quire("scale", "1", "--model", "other")
            quire("unload", "story")
            # The one that is left.
            assert client.generate("Once", max_tokens=3).outputs[0].text
        assert '"replicas lost"' not in quire("status", "--json")
        with Client(running.gateways) as client, closing(client.stream_many(["Once"] * 16, **LONG)) as pieces:
            next(pieces)
            os.killpg(served.pid, signal.SIGTERM)
            while not any("under way, with 100 s to end" in line for line in lines):
                assert served.poll() is None, lines
                time.sleep(0.05)
            # Another one does not wait for them, and still leaves nothing.
            os.killpg(served.pid, signal.SIGINT)
            assert served.wait(30) == 0, lines
    finally:
        if served.poll() is None:
            os.killpg(served.pid, signal.SIGTERM)
        assert served.wait(150) == 0, lines
        reader.join(10)
    told = "".join(lines)
    assert "model other is served from now on" in told and lines[-1] == "down: nothing is left\n"
    assert told.count("model other is served from now on") == 1
