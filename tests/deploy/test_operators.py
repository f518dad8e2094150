"""What an operator does besides `quire up`, end to end: jobs of Ray, growth by itself, mutual TLS, Ray's token."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.lifecycle import ray_head
from cluster.lifecycle.ports import free_port
from tests.deploy.lifecycle import UP, environment, quire, start

pytestmark = [pytest.mark.trust]
BIN = Path(sys.executable).parent
PROMPT = "Once upon a time"


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="quire-home-"))
    yield folder
    ended = quire(folder, "down", "--grace", "0")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(600)
def test_clients_show_certificates_and_both_are_changed_while_it_serves(home: Path, tmp_path: Path) -> None:
    """Mutual TLS at gRPC and HTTP; a tenant that comes and goes, certificates that are renewed, no new start."""
    folder = tmp_path / "door"
    made = quire(home, "certificates", str(folder), "--tenant", "shop")
    (shop,) = re.findall(r"token of shop: (\S+)", made.stdout)
    (operator,) = re.findall(r"token of operator: (\S+)", made.stdout)
    doors = ["--tls-certificate", f"{folder}/server.pem", "--tls-key", f"{folder}/server.key"]
    doors += ["--tls-authority", f"{folder}/authority.pem", "--client-authority", f"{folder}/authority.pem"]
    up = quire(home, *UP, *doors, "--tokens", f"{folder}/tokens.json")
    assert up.returncode == 0, up.stderr
    shown = {"QUIRE_CLIENT_CERTIFICATE": f"{folder}/client.pem", "QUIRE_CLIENT_KEY": f"{folder}/client.key"}

    def asks(**more: str) -> subprocess.CompletedProcess[str]:
        return quire(home, "generate", "--max-tokens", "5", "--quiet", PROMPT, **more)

    told = asks(QUIRE_TOKEN=shop, **shown)
    assert told.returncode == 0 and "Once upon a time, a" in told.stdout, told.stderr
    for environ, code, said in (
        ({"QUIRE_TOKEN": shop}, 3, "certificate"),
        ({"QUIRE_TOKEN": "wrong", **shown}, 4, "not known here"),
        (shown, 4, "no token"),
    ):
        refused = asks(**environ)
        assert refused.returncode == code and refused.stderr.count("\n") == 1 and said in refused.stderr, refused.stderr
    added = quire(home, "tenants", "add", "guest", "--days", "1")
    (guest,) = re.findall(r"token of guest: (\S+)", added.stdout)
    assert asks(QUIRE_TOKEN=guest, **shown).returncode == 0
    assert quire(home, "certificates", "renew", str(folder)).returncode == 0
    assert asks(QUIRE_TOKEN=guest, **shown).returncode == 0
    assert quire(home, "tenants", "revoke", "guest").returncode == 0
    assert asks(QUIRE_TOKEN=guest, **shown).returncode == 4
    # The operators' doors want no certificate, and a token of theirs where it is not their own machine's note.
    status = json.loads(quire(home, "status", "--json").stdout)
    assert status["cluster"]["num_workers"] == 1
    by_address = ["status", "--address", f"localhost:{_port(home, 'admin_port')}"]
    authority = {"QUIRE_TLS_AUTHORITY": f"{folder}/authority.pem"}
    assert quire(home, *by_address, QUIRE_ADMIN_TOKEN=operator, **authority).returncode == 0
    assert quire(home, *by_address, QUIRE_ADMIN_TOKEN=shop, **authority).returncode == 4
    logged = quire(home, "logs", "--level", "warning").stdout
    assert "a call for inference was refused" in logged and "a call for admin was refused" in logged
    assert shop not in logged and "wrong" not in logged


def _port(home: Path, name: str) -> int:
    return int(json.loads((home / "cluster.json").read_text())["settings"][name])


@pytest.mark.timeout(600)
def test_it_grows_by_itself_under_a_load(home: Path) -> None:
    up = quire(home, *UP, "--autoscale", "1:2", "--max-batch", "1")
    assert up.returncode == 0 and "autoscaling: 1:2" in up.stdout, up.stdout + up.stderr
    load = start(
        home,
        "generate",
        "--ignore-eos",
        "--max-tokens",
        "1900",
        "--quiet",
        *[f"{PROMPT}, number {n}" for n in range(60)],
    )
    try:
        until = time.monotonic() + 240
        while True:
            there = json.loads(quire(home, "status", "--json").stdout)["workers"]["workers"]
            if len(there) == 2 or time.monotonic() > until:
                break
            assert load.poll() is None, "the load was over before anybody was called"
            time.sleep(1)
        assert [one["name"] for one in there] == ["demo-0", "demo-1"]
        until = time.monotonic() + 120
        while not any(one["name"] == "demo-1" and one["steps"] > 20 for one in there):
            assert time.monotonic() < until, there
            time.sleep(1)
            there = json.loads(quire(home, "status", "--json").stdout)["workers"]["workers"]
    finally:
        load.kill()
        load.communicate()


@pytest.mark.timeout(600)
def test_a_job_of_ray_brings_it_up_asks_it_and_ends_it(home: Path) -> None:
    """The commands of deploy/README.md, on a Ray with its dashboard."""
    page = (Path(__file__).parents[2] / "deploy" / "README.md").read_text()
    folder, port, dashboard = ray_head.new_folder(), free_port(), free_port()
    words = [str(BIN / "ray"), "start", "--head", "--node-ip-address=127.0.0.1", f"--port={port}"]
    words += [f"--temp-dir={folder}", "--num-cpus=2", "--include-dashboard=true", f"--dashboard-port={dashboard}"]
    words += ["--disable-usage-stats"]
    around = environment(home, PATH=f"{BIN}:{os.environ['PATH']}")
    around |= {"QUIRE_CPUS_PER_WORKER": "0.5", "QUIRE_KV_BLOCKS": "256", "QUIRE_HOST_MEMORY": "16MiB"}
    around["QUIRE_HTTP_PORT"] = "0"
    # A head asks for a token as soon as its user's home has one; this one has none.
    around["HOME"] = str(home)
    try:
        subprocess.run(words, env=around, check=True, timeout=100, capture_output=True, start_new_session=True)
        found = re.findall(r"^ray job submit --address http://127.0.0.1:8265 -- (.*)$", page, re.MULTILINE)
        assert len(found) == 3
        for command, said in zip(found, ("2 workers are ready", "Once upon a time, a", "nothing is left"), strict=True):
            job = f"ray job submit --address http://127.0.0.1:{dashboard} -- {command}"
            until = time.monotonic() + 60
            while True:
                done = subprocess.run(
                    ["bash", "-c", job], env=around, capture_output=True, text=True, timeout=250, check=False
                )
                # The agent of the node, which runs jobs, comes up some seconds after the head.
                if "No available agent" not in done.stderr or time.monotonic() > until:
                    break
                time.sleep(1)
            assert done.returncode == 0 and said in done.stdout, done.stdout[-3000:] + done.stderr[-1000:]
    finally:
        assert not ray_head.end(folder)


@pytest.mark.timeout(300)
def test_a_token_of_ray_that_is_missing_or_wrong_is_said_to_be(home: Path) -> None:
    """In one line, as a denial, and before anything is started."""
    folder, port = ray_head.new_folder(), free_port()
    around = environment(home, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="a" * 64)
    words = [str(BIN / "ray"), "start", "--head", "--node-ip-address=127.0.0.1", f"--port={port}"]
    words += [f"--temp-dir={folder}", "--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats"]
    address = ("--address", f"127.0.0.1:{port}")
    try:
        subprocess.run(words, env=around, check=True, timeout=100, capture_output=True, start_new_session=True)
        for token, said in (("", "none is given"), ("b" * 64, "is another one")):
            refused = quire(home, *UP, *address, RAY_AUTH_TOKEN=token, HOME=str(home))
            assert (refused.returncode, refused.stderr.count("\n"), refused.stdout) == (4, 1, ""), refused.stderr
            assert said in refused.stderr and "RAY_AUTH_TOKEN" in refused.stderr
        kept = home / "token"
        kept.write_text("a" * 64)
        up = quire(home, *UP, *address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(kept), HOME=str(home))
        assert up.returncode == 0, up.stderr
        down = quire(home, "down", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(kept), HOME=str(home))
        assert down.returncode == 0, down.stderr
    finally:
        assert not ray_head.end(folder)
