"""The examples of deploy/examples run as they stand, against a cluster as `quire up` starts it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.lifecycle import ROOT, UP, environment, is_set_up_for, noted, quire
from tests.engine import models

EXAMPLES = ROOT / "deploy" / "examples"


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="quire-examples-"))
    done = quire(folder, *UP)
    assert done.returncode == 0, done.stderr
    yield folder
    ended = quire(folder, "down")
    shutil.rmtree(folder, ignore_errors=True)
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="module")
def gateway(home: Path) -> str:
    return f"127.0.0.1:{noted(home)['settings']['port']}"


def told_by(home: Path, name: str, *words: str) -> str:
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *words],
        env=environment(home), capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_every_example_has_a_test() -> None:
    here = Path(__file__).read_text()
    files = [path.name for path in EXAMPLES.rglob("*") if path.suffix in (".py", ".sh", ".mjs")]
    assert len(files) >= 8
    missing = [
        name for name in files if name not in here and name not in (ROOT / "tests/deploy/test_two_nodes.py").read_text()
    ]
    assert not missing


def test_offline_batch(home: Path) -> None:
    lines = told_by(home, "offline_batch.py").splitlines()
    assert len(lines) == 4 and lines[0].startswith("'Once upon a time' -> ', a")


def test_streaming_says_what_the_batch_says(home: Path, gateway: str) -> None:
    streamed = told_by(home, "streaming.py", gateway).splitlines()
    batch = told_by(home, "offline_batch.py").splitlines()
    assert len(streamed) > 4
    assert streamed[-2:] == batch[:2]


def test_a_conversation_finds_its_turns_cached(home: Path, gateway: str) -> None:
    told = told_by(home, "chat.py", gateway)
    first, second = (int(count) for count in re.findall(r"\((\d+) prompt tokens were cached\)", told))
    assert second >= 16 > first or second > first


def test_beams_come_best_first(home: Path, gateway: str) -> None:
    scores = [float(line.split()[0]) for line in told_by(home, "beams.py", gateway).splitlines()]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)


def test_a_warm_prefix_is_cached(home: Path, gateway: str) -> None:
    told = told_by(home, "warm_prefix.py", gateway)
    (kept,) = (int(count) for count in re.findall(r"^(\d+) tokens of the prefix", told))
    cached = [int(count) for count in re.findall(r"^(\d+) tokens were cached", told, re.MULTILINE)]
    assert kept >= 16 and len(cached) == 3 and min(cached) >= kept


@pytest.mark.skipif(not is_set_up_for(ROOT), reason="this environment was not made by deploy/setup.sh here")
def test_two_nodes_leave_a_cluster_that_is_up_alone(home: Path, gateway: str) -> None:
    around = environment(home, QUIRE_VENV=sys.prefix)
    ran = subprocess.run(
        [str(EXAMPLES / "two_nodes.sh")], env=around, capture_output=True, text=True, timeout=110, check=False
    )
    assert ran.returncode == 1 and "a cluster of yours is up" in ran.stderr, ran.stderr
    assert quire(home, "status").returncode == 0


def test_openais_client(home: Path) -> None:
    door = f"http://127.0.0.1:{noted(home)['settings']['http_port']}/v1"
    assert "live in Alder Bridge" in told_by(home, "openai_client.py", door)


@pytest.mark.timeout(240)
def test_two_models(home: Path, gateway: str, tmp_path: Path) -> None:
    folder = models.build(tmp_path / "second", "llama", seed=5)
    done = quire(home, "load", str(folder))
    assert done.returncode == 0, done.stderr
    lines = told_by(home, "two_models.py", gateway).splitlines()
    assert len(lines) == 3 and "demo" in lines[0]
    answers = [json.loads(line.partition(": ")[2]) for line in lines[1:]]
    assert all(len(answer) == 12 for answer in answers) and answers[0] != answers[1]


@pytest.mark.timeout(240)
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node.js with npm")
def test_a_client_in_javascript(home: Path, gateway: str, tmp_path: Path) -> None:
    """With packages of its own folder, so that nothing is installed into the checkout."""
    for name in ("package.json", "stream.mjs"):
        shutil.copy(EXAMPLES / "node" / name, tmp_path)
    surroundings = {**os.environ, "QUIRE_PROTOS": str(ROOT / "protos")}
    install = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent"]
    subprocess.run(install, cwd=tmp_path, check=True, timeout=200)
    asks = ["node", "stream.mjs", gateway, "demo"]
    ran = subprocess.run(asks, cwd=tmp_path, env=surroundings, capture_output=True, text=True, timeout=90, check=False)
    assert ran.returncode == 0, ran.stderr
    assert '40 tokens: ", a' in ran.stdout
