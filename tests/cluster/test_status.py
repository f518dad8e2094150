"""What commands at the operators' door say: what is missing, numbers as numbers, and which mistake it is."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import AsyncClient, Tls
from cluster.cli import exits, main
from cluster.errors import ConfigError, Unavailable
from cluster.gateway.settings import GatewaySettings
from cluster.serving.admin import Wanted
from cluster.serving.admin_client import plain
from cluster.serving.auth import load_tokens, make_tokens
from cluster.serving.auth_certificates import make_certificates
from cluster.serving.public_port import PortTls, PublicPort
from protos.quire.v1 import admin_pb2 as pb
from tests.cluster.doors import serving
from tests.cluster.front_door import PROMPT, at_the_door
from tests.cluster.front_door import Door as Running

ROOT = Path(__file__).parents[2]
OPEN = PublicPort("127.0.0.1", 0)
WANTED = Wanted({"gateway-0": "127.0.0.1:5", "gateway-1": "127.0.0.1:6"}, lambda: {"demo-0": "demo"})


def test_who_is_missing_is_shown_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(OPEN, WANTED) as addresses:
        assert main(["status", "--address", addresses.admin]) == 0
        told = capsys.readouterr().out
        assert "0 of 1 worker, 0 of 2 gateways" in told
        assert "gateway-1  127.0.0.1:6  missing" in told and told.count("missing") == 3
        assert "requests finished" in told and "stale" not in told
        assert main(["status", "--address", addresses.admin, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
    assert found["workers"]["missing"] == [{"name": "demo-0", "model": "demo"}]
    assert found["cluster"]["epoch"] == 1 and found["cluster"]["num_running"] == 0
    assert found["cluster"]["counters"]["turns"] >= 0 and found["requests"] == {"requests": [], "num_left_out": 0}


def test_values_of_a_message_are_what_json_has() -> None:
    pool = pb.Pool(name="host", kind=pb.POOL_KIND_HOST, num_blocks=2**40)
    summary = pb.RequestSummary(state=pb.REQUEST_STATE_QUEUED)
    assert plain(pool)["num_blocks"] == 2**40 and plain(pool)["num_free"] == 0 and plain(pool)["kind"] == "host"
    assert plain(summary)["state"] == "queued" and plain(summary)["queue_s"] == 0.0
    assert plain(pb.ListPoolsResponse(pools=[pool]))["pools"][0]["name"] == "host"
    assert plain(pb.GetClusterResponse(counters={"turns": 3}))["counters"] == {"turns": 3}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["blocks", "nobody"], "no request nobody is under way"),
        (["drain", "nobody"], "no worker nobody is here"),
        (["usage", "--tenant", "nobody"], "no tenant nobody"),
    ],
)
def test_what_is_unknown_is_said_to_be(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(OPEN) as addresses:
        assert main([*words, "--address", addresses.admin]) == exits.WRONG_INPUT
    told = capsys.readouterr()
    assert told.out == "" and said in told.err and told.err.count("\n") == 1


def test_a_wrong_token_is_denied_and_a_right_one_comes_from_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = make_tokens(tmp_path / "tokens.json", [("shop", ["inference"]), ("operator", ["admin"])])
    with serving(replace(OPEN, tokens=load_tokens(tmp_path / "tokens.json"))) as addresses:
        words = ["status", "--address", addresses.admin]
        for token, code, said in (
            (None, exits.DENIED, "no token"),
            ("wrong", exits.DENIED, "not known here"),
            (tokens["shop"], exits.DENIED, "has no right to admin"),
            (tokens["operator"], exits.DONE, ""),
        ):
            monkeypatch.delenv("QUIRE_ADMIN_TOKEN", raising=False)
            if token is not None:
                monkeypatch.setenv("QUIRE_ADMIN_TOKEN", token)
            assert main(words) == code
            assert said in capsys.readouterr().err
        monkeypatch.delenv("QUIRE_ADMIN_TOKEN")
        file = tmp_path / "operator"
        file.write_text(tokens["operator"] + "\n")
        file.chmod(0o600)
        assert main([*words, "--token-file", str(file)]) == 0
        monkeypatch.setenv("QUIRE_ADMIN_TOKEN_FILE", str(file))
        assert main(words) == 0
        file.chmod(0o666)
        assert main(words) == exits.WRONG_INPUT
        assert "can be written by others" in capsys.readouterr().err


MISTAKES = {
    "another authority": ("here", "other", "signed by another authority", ConfigError),
    "no tls": ("here", "", "as a port does that speaks TLS", Unavailable),
    "tls where there is none": ("", "here", "does not speak TLS", ConfigError),
    "no name": ("other", "other", "does not have the name 127.0.0.1", ConfigError),
    "no certificate": ("mutual", "here", "a client's certificate", Unavailable),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    make_certificates(folder / "here", ["127.0.0.1"])
    make_certificates(folder / "other", ["elsewhere"])
    return folder


@pytest.mark.parametrize("case", MISTAKES)
def test_each_mistake_of_tls_is_one_line_that_says_which(
    case: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the operators' door, in a process of its own because gRPC writes past Python's streams, and at a gateway."""
    server, trusted, said, kind = MISTAKES[case]
    folder = made / ("here" if server == "mutual" else server)
    files = PortTls(folder / "server.pem", folder / "server.key") if server else None
    if server == "mutual":
        files = replace(files, client_authority=made / "here" / "authority.pem")
    authority = made / trusted / "authority.pem" if trusted else None
    monkeypatch.delenv("QUIRE_TLS_AUTHORITY", raising=False)
    if authority is not None:
        monkeypatch.setenv("QUIRE_TLS_AUTHORITY", str(authority))
    with serving(replace(OPEN, tls=files)) as addresses:
        command = [sys.executable, "-m", "cluster.cli", "status", "--address", addresses.admin]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == exits.code_of(kind(""))
    assert said in done.stderr and done.stderr.count("\n") == 1, done.stderr

    async def story(door: Running) -> None:
        async with AsyncClient(door.address, tls=None if authority is None else Tls(authority)) as client:
            for work in (client.models(), client.generate(PROMPT, max_tokens=2)):
                with pytest.raises(kind, match=said):
                    await work

    at_the_door(story, settings=GatewaySettings(port=0, tls=files))
