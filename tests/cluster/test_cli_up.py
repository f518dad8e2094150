"""What `quire up` is told wrongly: one line with what to do, an exit code, and nothing started or left behind."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from cluster.cli import main
from cluster.lifecycle.cluster_settings import ClusterSettings, gather
from cluster.serving.auth_certificates import make_certificates
from cluster.serving.public_port import PortTls

FREE = ["--port", "0", "--admin-port", "0", "--metrics-port", "0"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUIRE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--model", "/nowhere/x"], 2, "no model folder /nowhere/x"),
        (["--model", "demo", "--model", "demo"], 2, "is there twice"),
        (["--kv-memory", "3XB"], 2, "kv_memory is '3XB'"),
        (["--workers", "0"], 2, "workers is 0; give 1 to 4096"),
        (["--autoscale", "5:2"], 2, "give LEAST:MOST"),
        (["--workers", "1", "--autoscale", "2:3"], 2, "outside of autoscale 2:3"),
        (["--log-level", "loud"], 2, "log_level is 'loud'"),
        (["--host", "0.0.0.0"], 2, "quire certificates FOLDER"),
        (["--tls-certificate", "/n.pem", "--tls-key", "/n.key"], 2, "/n.pem cannot be read: No such file or directory"),
        (["--config", "/nowhere.toml"], 2, "the settings file /nowhere.toml cannot be read"),
        (["--address", "127.0.0.1:9"], 3, "no Ray cluster answers at 127.0.0.1:9"),
        (["--device", "cuda"], 2, "device is cuda"),
        (["--tp", "3", "--cpus-per-worker", "0.1"], 2, "3 ranks can't share evenly; give 2 or "),
        (["--workers", "4096"], 2, "4096 workers need 4096 CPU, and this machine has "),
        (["--tp", "2", "--workers", "2048"], 2, "2048 workers of 2 ranks need 4096 CPU"),
        (["--autoscale", "1:4096"], 2, "4096 workers need 4096 CPU, and this machine has "),
        (["--model", ""], 2, "model is '', which has no name; give a folder, a hub id"),
    ],
)
def test_each_wrong_word_is_one_line(
    words: list[str], code: int, said: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in words and list(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has a GPU")
    began = time.process_time()
    assert main(["up", *FREE, *words]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err, err
    assert not (home / "cluster.json").exists()
    assert time.process_time() - began < 30


def test_a_port_that_is_taken_is_named_with_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for option in ("--port", "--admin-port", "--metrics-port"):
            assert main(["up", *FREE, option, port]) == 2
            assert (
                f"port {port} on 127.0.0.1 is taken; free it, or give another with {option}" in capsys.readouterr().err
            )


def test_a_certificate_that_commands_here_would_refuse_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is started: it was found when all workers had come up."""
    here, other = (make_certificates(tmp_path / name, [name]) for name in ("localhost", "elsewhere"))
    for host, certificate, key, authority, said in (
        ("127.0.0.1", here.server_certificate, here.server_key, here.authority, "does not have the name 127.0.0.1"),
        ("localhost", here.server_certificate, here.server_key, other.authority, "give the authority that signed it"),
        ("localhost", here.server_certificate, other.server_key, here.authority, "are no certificate and its key"),
        ("localhost", here.server_certificate, here.server_key, tmp_path / "no.pem", "no.pem: No such file"),
    ):
        words = ["--tls-certificate", str(certificate), "--tls-key", str(key), "--tls-authority", str(authority)]
        assert main(["up", *FREE, "--host", host, *words]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and said in err, err
    PortTls(here.server_certificate, here.server_key).check_client("localhost", here.authority)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("workers = ", "cannot be read"),
        ("wrokers = 2", "has a setting 'wrokers' that there is not"),
        ('workers = "two"', "workers is 'two'; give a whole number"),
        ("model = 3", "model is 3; give a text or a list of texts"),
        ("kv_memory = 5", "kv_memory is 5; give a text in quotes"),
        ("workers = true", "workers is True; give a whole number"),
        ("x = " + "[" * 100_000, "cannot be read"),
        ("#" * 2_000_000, "more than 1,048,576 bytes"),
        ("workers = " + "9" * 10_000, "cannot be read"),
    ],
)
def test_a_settings_file_that_is_wrong_is_one_line(
    line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "quire.toml"
    file.write_text(line + "\n")
    assert main(["up", *FREE, "--config", str(file)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(file) in err and said in err


def test_the_command_line_wins_over_the_environment_which_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "quire.toml"
    file.write_text('workers = 3\nmodel = ["demo", "other"]\nkv_memory = "1GiB"\ncpus_per_worker = 1\n')
    environment = {"QUIRE_WORKERS": "4", "QUIRE_LOG_LEVEL": "debug", "QUIRE_HOME": "/x"}
    found = gather({"workers": 5, "port": None}, file, environment)
    assert (found.workers, found.log_level, found.kv_memory) == (5, "debug", "1GiB")
    assert found.model == ("demo", "other") and found.port == ClusterSettings().port
    assert gather({}, file, environment).workers == 4 and gather({}, file, {}).workers == 3


@pytest.mark.parametrize("words", ["scale 3", "unload x", "load x", "top", "status", "bench serve"])
def test_without_a_cluster_each_command_says_how_to_start_one(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 3
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "quire up" in err
